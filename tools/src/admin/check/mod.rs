//! `zenith check`: proves what a store holds.

mod print;

use crate::cli::{Session, Settings, Usage, exit, output, progress, reading};
use clap::Args;
use std::path::Path;
use zenith_pgformat::Lsn;
use zenith_reader::CheckOptions;
use zenith_reader::consistency::CheckProgress;
use zenith_store::Env;

/// Options of `zenith check`.
#[derive(Args, Debug, Clone)]
pub struct CheckArgs {
    /// Redo every record of the archived WAL, whole and as it is stored, and compare the pages with each other, with the
    /// images of wal_consistency_checking and with what is read from the store
    #[arg(long, required = true)]
    pub wal: bool,
    /// Only records that end above this [default: the end of the first base image]
    #[arg(long, value_name = "LSN")]
    pub from: Option<Lsn>,
    /// Only records that end at or below this [default: the end of what is sliced]
    #[arg(long, value_name = "LSN")]
    pub to: Option<Lsn>,
    /// How many differences are listed; all are counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub list: usize,
}

/// Checks and prints what was found; exit status 1 if anything differs. Temporary files go below `scratch`.
pub async fn run(env: &Env, settings: &Settings, args: &CheckArgs, scratch: &Path) -> anyhow::Result<u8> {
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from >= to
    {
        return Err(Usage(format!("--from {from} does not lie below --to {to}")).into());
    }
    let session = Session::open(env, settings, false)?;
    let mut timeline = reading::open_in(&session, settings, scratch).await?;
    if args.to.is_some() {
        reading::slice_what_is_not(&mut timeline, args.to).await?;
    }
    let options = CheckOptions { from: args.from, to: args.to, listed: args.list };
    let bar = progress::bytes("checking WAL", 0);
    let told = |CheckProgress { done, total }| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let checked = timeline.check_wal(&options, told).await;
    bar.finish_and_clear();
    let checked = checked?;
    if settings.json {
        output::json(&checked)?;
    } else {
        output::line(print::text(&checked).trim_end())?;
    }
    Ok(if checked.differences == 0 { exit::DONE } else { exit::FAILED })
}
