//! `zenith log`: what happened in a timeline, for somebody who looks for the moment to go back to.

use crate::cli::{Session, Settings, output, reading, time, units};
use anyhow::Context;
use clap::Args;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::path::Path;
use zenith_pgformat::{BLCKSZ, Lsn, Xid};
use zenith_reader::{Loss, Lost, Timeline};
use zenith_store::Env;

/// Options of `zenith log`.
#[derive(Args, Debug, Clone)]
pub struct LogArgs {
    /// List what was dropped, truncated or rewritten, the newest first
    #[arg(long, required = true)]
    pub drops: bool,
    /// Only relations of this name: NAME, SCHEMA.NAME or DATABASE.SCHEMA.NAME
    #[arg(long, value_name = "NAME")]
    pub rel: Option<String>,
    /// List at most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
}

/// A line of the list.
#[derive(Clone, Debug, Serialize)]
struct Line {
    /// The last LSN at which it was there: what `zenith_restore --lsn` takes.
    before: Lsn,
    /// Where the record that removed it ends.
    lsn: Lsn,
    /// When the transaction committed.
    time: Option<String>,
    xid: Xid,
    /// The transaction was prepared.
    prepared: bool,
    what: &'static str,
    kind: &'static str,
    database: String,
    schema: Option<String>,
    name: Option<String>,
    /// Its path below the data directory.
    path: Option<String>,
    /// Size of the main fork in bytes.
    bytes: Option<u64>,
}

/// Searches the timeline and prints what it finds. Temporary files go below `scratch`.
pub async fn run(env: &Env, settings: &Settings, args: &LogArgs, scratch: &Path) -> anyhow::Result<()> {
    let session = Session::open(env, settings, false)?;
    let mut timeline = reading::open_in(&session, settings, scratch).await?;
    reading::slice_what_is_not(&mut timeline, None).await?;
    let wanted = |lost: &Lost| args.rel.as_deref().is_none_or(|name| is_called(lost, name));
    // One more tells whether that is all.
    let limit = args.limit as usize;
    let mut lost = Vec::new();
    let searched = timeline.lost(wanted, limit.saturating_add(1), &mut lost).await;
    let more = lost.len() > limit;
    lost.truncate(limit);
    let lines: Vec<Line> = lost.into_iter().map(Line::from).collect();
    if settings.json {
        output::json(&lines)?;
    } else if !lines.is_empty() {
        output::line(describe(&lines).trim_end())?;
    }
    // What was found counts, and what could not be read is told.
    searched.context("older ones, if there are any, were not found")?;
    for line in lines.iter().filter(|line| line.prepared) {
        output::say(&format!(
            "{} was prepared: a server restored to {} holds its locks until ROLLBACK PREPARED (pg_prepared_xacts has its name)",
            line.xid, line.before
        ));
    }
    if lines.is_empty() {
        let what = args.rel.as_deref().map_or_else(|| "nothing".to_owned(), |name| format!("no {name}"));
        output::say(&format!("{what} was dropped, truncated or rewritten {}", searched_ranges(&timeline)));
    } else if more {
        output::say(&format!("there are older ones: this lists the newest {limit} (--limit)"));
    } else {
        output::say(&format!("searched: {}", searched_ranges(&timeline)));
    }
    Ok(())
}

/// Gaps are not passed over in silence.
fn searched_ranges(timeline: &Timeline) -> String {
    let ranges = timeline.ranges();
    let ranges = ranges.iter().map(|range| format!("from {} to {}", range.from, range.to));
    ranges.collect::<Vec<String>>().join(" and ")
}

/// Names are compared as they are stored, so that one with dots or capitals needs no quotes. A database that was dropped
/// took its relations with it.
fn is_called(lost: &Lost, asked: &str) -> bool {
    let Some(relation) = &lost.relation else {
        return asked.strip_prefix(&lost.database).is_some_and(|rest| rest.starts_with('.'));
    };
    let qualified = format!("{}.{}", relation.schema, relation.name);
    asked == relation.name || asked == qualified || asked == format!("{}.{qualified}", lost.database)
}

/// Names may hold anything, also what a terminal obeys.
fn printable(name: &str) -> String {
    let shown = |letter: char| {
        if letter.is_control() { letter.escape_default().collect() } else { letter.to_string() }
    };
    name.chars().map(shown).collect()
}

impl From<Lost> for Line {
    fn from(lost: Lost) -> Line {
        let zone = TimeZone::system();
        let relation = lost.relation.as_ref();
        let main =
            |node| zenith_pgformat::rel::RelFile { node, fork: zenith_pgformat::Fork::Main, segment: 0 };
        Line {
            before: lost.before,
            lsn: lost.lsn,
            time: lost.time.map(|at| time::format(at, &zone)),
            xid: lost.xid,
            prepared: lost.prepared,
            what: match lost.loss {
                Loss::Dropped | Loss::DatabaseDropped => "dropped",
                Loss::Truncated => "truncated",
                Loss::Rewritten => "rewritten",
            },
            kind: match relation.map(|relation| relation.kind) {
                None => "database",
                Some('m') => "materialized view",
                Some('S') => "sequence",
                Some(_) => "table",
            },
            schema: relation.map(|relation| relation.schema.clone()),
            name: relation.map(|relation| relation.name.clone()),
            path: relation.map(|relation| main(relation.node).path()),
            bytes: relation.map(|relation| u64::from(relation.blocks) * BLCKSZ as u64),
            database: lost.database,
        }
    }
}

fn describe(lines: &[Line]) -> String {
    let heading = ["just before", "time", "xid", "what", "kind", "database", "relation", "size"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(lines.iter().map(|line| {
        let relation = match (&line.schema, &line.name) {
            (Some(schema), Some(name)) => printable(&format!("{schema}.{name}")),
            _ => String::new(),
        };
        vec![
            line.before.to_string(),
            line.time.clone().unwrap_or_else(|| "not committed".to_owned()),
            line.xid.to_string(),
            line.what.to_owned(),
            line.kind.to_owned(),
            printable(&line.database),
            relation,
            line.bytes.map(units::size).unwrap_or_default(),
        ]
    }));
    output::table(&rows)
}
