//! `zenith status`: what a store holds, how far it is, and what is wrong.

pub mod assess;
pub mod gather;
pub mod off_history;
pub mod print;

use crate::cli::{Settings, exit, output, units};
use clap::Args;
use std::time::Duration;
use zenith_store::Env;

/// Options of `zenith status`.
#[derive(Args, Debug, Clone, Default)]
pub struct StatusArgs {
    /// Print metrics in Prometheus' text format
    #[arg(long, conflicts_with = "json")]
    pub prometheus: bool,
    /// Exit with 1 if WAL is missing, the slicer has stopped or the archive is older than this, such as 10min, or where this
    /// machine's clock is behind the store's
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub max_age: Option<Duration>,
}

/// Prints the status; the exit status says whether something is wrong.
pub async fn run(env: &Env, settings: &Settings, args: &StatusArgs) -> anyhow::Result<u8> {
    let now = env.clock.now();
    let status = gather::gather(env, settings).await?;
    let problems = match args.max_age {
        Some(max_age) => assess::problems(&status, now, max_age),
        None => Vec::new(),
    };
    if settings.json {
        output::json(&print::Document { status: &status, problems: &problems })?;
    } else if args.prometheus {
        output::bytes(print::prometheus(&status, now, args.max_age.map(|_| problems.as_slice())).as_bytes())?;
    } else {
        output::line(print::text(&status, now).trim_end())?;
    }
    for problem in &problems {
        output::say(&format!("zenith: {problem}"));
    }
    Ok(if problems.is_empty() { exit::DONE } else { exit::FAILED })
}
