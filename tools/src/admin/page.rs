//! `zenith page`: one page as it was at an LSN.

use super::hex;
use super::relation::RelationName;
use crate::cli::{Session, Settings, output, reading, units};
use crate::restore_wal::write_whole;
use anyhow::Context;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use zenith_pgformat::{BLCKSZ, Lsn, Page};
use zenith_reader::{Explanation, PageStart};
use zenith_store::Env;

/// Options of `zenith page`.
#[derive(Args, Debug, Clone)]
pub struct PageArgs {
    /// DB/REL, SPC/DB/REL or a path below the data directory, with /fsm, /vm or /init for another fork
    #[arg(long, value_name = "REL")]
    pub rel: RelationName,
    /// The block's number
    #[arg(long, value_name = "N")]
    pub block: u32,
    /// The page after every record that ends at or below this
    #[arg(long, value_name = "LSN")]
    pub lsn: Lsn,
    /// Write the 8192 bytes there instead of printing them ("-": standard output)
    #[arg(short = 'o', long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Tell which layers, records and requests the page took
    #[arg(long)]
    pub explain: bool,
}

/// Reads the page and prints it. Temporary files go below `scratch`.
pub async fn run(env: &Env, settings: &Settings, args: &PageArgs, scratch: &Path) -> anyhow::Result<()> {
    let session = Session::open(env, settings, false)?;
    let mut timeline = reading::open_in(&session, settings, scratch).await?;
    reading::slice_what_is_not(&mut timeline, Some(args.lsn)).await?;
    let snapshot = timeline.snapshot(args.lsn).await?;
    let RelationName { node, fork } = args.rel;
    let (bytes, explanation) = if args.explain {
        let explanation = snapshot.explain(node, fork, args.block).await?;
        (explanation.page.clone(), Some(explanation))
    } else {
        (snapshot.page(node, fork, args.block).await?, None)
    };
    let page: &Page =
        bytes.as_ref().try_into().with_context(|| format!("a page of {} bytes", bytes.len()))?;
    show(settings, args, page, explanation.as_ref())
}

fn show(
    settings: &Settings,
    args: &PageArgs,
    page: &Page,
    explanation: Option<&Explanation>,
) -> anyhow::Result<()> {
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    if let Some(path) = args.output.as_ref().filter(|_| !to_stdout) {
        write_file(path, page)?;
    }
    if to_stdout {
        if let Some(explanation) = explanation {
            output::say(describe(explanation).trim_end());
        }
        return output::bytes(page);
    }
    if settings.json {
        let header = zenith_pgformat::page::PageHeader::decode(page);
        return output::json(&json!({
            "relation": args.rel.node.to_string(),
            "fork": args.rel.fork.name(),
            "block": args.block,
            "lsn": args.lsn,
            "pd_lsn": header.lsn,
            "pd_checksum": header.checksum,
            "pd_lower": header.lower,
            "pd_upper": header.upper,
            "pd_special": header.special,
            "page": args.output.is_none().then(|| hex::plain(page)),
            "explanation": explanation,
        }));
    }
    let mut text = String::new();
    if let Some(explanation) = explanation {
        text.push_str(&describe(explanation));
    }
    if args.output.is_none() {
        text.push_str(&hex::header(page));
        text.push_str(&hex::dump(page));
    }
    if text.is_empty() { Ok(()) } else { output::line(text.trim_end()) }
}

/// A pipe or a device is written to as it is; a file gets its name when it is whole.
fn write_file(path: &Path, page: &[u8; BLCKSZ]) -> anyhow::Result<()> {
    let is_special = std::fs::metadata(path).is_ok_and(|found| !found.is_file());
    if !is_special {
        return write_whole(path, page);
    }
    let opened = std::fs::OpenOptions::new().write(true).open(path);
    opened
        .and_then(|mut special| special.write_all(page))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// What the page took, for people.
fn describe(explanation: &Explanation) -> String {
    let start = match explanation.start {
        PageStart::Row => "the oldest value below",
        PageStart::Zeros => "zeros",
    };
    let mut text = format!(
        "at {}: the fork has {} blocks; the page begins as {start}, base image {}\nrelations: {}\n{} requests, {}\n",
        explanation.lsn,
        explanation.blocks,
        explanation.base.0.simple(),
        explanation.relations.join(", "),
        explanation.requests,
        units::size(explanation.bytes),
    );
    let heading = ["LSN", "value", "record", "info", "xid", "bytes in WAL", "bytes stored"];
    let mut rows: Vec<Vec<String>> = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(explanation.rows.iter().map(|row| {
        vec![
            row.lsn.to_string(),
            row.kind.to_owned(),
            row.rmgr.clone(),
            format!("{:02X}", row.info),
            row.xid.to_string(),
            row.record_bytes.to_string(),
            row.stored_bytes.to_string(),
        ]
    }));
    text.push_str(&output::table(&rows));
    let heading = ["layer", "kind", "TLI", "above", "up to", "size"];
    let mut rows: Vec<Vec<String>> = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(explanation.layers.iter().map(|layer| {
        vec![
            layer.object.clone(),
            format!("{:?}", layer.kind).to_lowercase(),
            layer.tli.to_string(),
            layer.lsn_from.to_string(),
            layer.lsn_to.to_string(),
            units::size(layer.bytes),
        ]
    }));
    text.push_str(&output::table(&rows));
    text
}
