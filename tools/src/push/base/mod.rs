//! `zenith_push base`: a base image of a running server, or of a cleanly stopped data directory.
//!
//! Every object is stored before the one commit that names them: a run that ends early leaves garbage that nobody
//! reads, and is simply run again (I3).

pub mod copydata;
pub mod directory;
pub mod feed;
pub mod image;
pub mod libpq;
pub mod online;
pub mod password;
pub mod preflight;
pub mod register;
pub mod stopped;
pub mod tar_stream;

mod running;

use super::command::BaseArgs;
use crate::cli::{Settings, exit, interrupt, output, units};
use anyhow::bail;
use serde::Serialize;
use std::time::Duration;
use zenith_manifest::BaseKind;
use zenith_pgformat::{Lsn, Tli};
use zenith_store::Env;

/// Threads that compress and store while the main one reads.
const THREADS: usize = 2;

/// A base image that was taken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BaseSummary {
    /// Its id.
    pub base: String,
    /// The timeline that it was registered in.
    pub timeline: String,
    /// This run created the timeline.
    pub created_timeline: bool,
    /// The manifest version that names it.
    pub manifest_version: u64,
    /// How it was taken.
    pub kind: BaseKind,
    /// PostgreSQL's timeline number.
    pub tli: Tli,
    /// Slicing begins here.
    pub redo: Lsn,
    /// Reads begin here.
    pub end: Lsn,
    /// Files read.
    pub files: u64,
    /// Bytes of relation files.
    pub data_bytes: u64,
    /// Bytes of its objects.
    pub stored_bytes: u64,
    /// Pages carry checksums, which were verified.
    pub data_checksums: bool,
    /// How long it took.
    pub seconds: f64,
}

/// Takes a base image and prints what it came to.
pub fn run(env: &Env, settings: &Settings, args: &BaseArgs) -> anyhow::Result<()> {
    let runtime = exit::runtime(THREADS)?;
    let taken = runtime.block_on(take(env, settings, args));
    runtime.shutdown_background();
    let summary = taken?;
    if settings.json {
        return output::json(&summary);
    }
    output::line(&summary.describe())
}

/// Takes a base image.
pub async fn take(env: &Env, settings: &Settings, args: &BaseArgs) -> anyhow::Result<BaseSummary> {
    let started = env.clock.elapsed();
    let gathering = async {
        match &args.from_dir {
            Some(directory) => stopped::gather(env, settings, args, directory).await,
            None => running::gather(env, settings, args).await,
        }
    };
    let gathered = tokio::select! {
        gathered = gathering => gathered?,
        signal = interrupt::interrupted() => bail!(
            "ended by {signal}: no base image was registered, and what was stored already is named by nothing; run \
             zenith_push base again"
        ),
    };
    // Not interrupted any more: whether a commit happened must be known.
    let registered = register::register(gathered).await?;
    Ok(registered.summary(env.clock.elapsed().saturating_sub(started)))
}

impl BaseSummary {
    /// For people.
    pub fn describe(&self) -> String {
        let created = if self.created_timeline { " (created)" } else { "" };
        let how = match self.kind {
            BaseKind::Online => {
                "It can be read from its end on, once zenith_slicedice has met its end in the archived WAL."
            }
            BaseKind::Directory => "It can be read once zenith_slicedice has confirmed it.",
        };
        let checksums = if self.data_checksums { "page checksums verified" } else { "no page checksums" };
        format!(
            "base image {} of timeline {}{created}\n  TLI {}, redo {}, end {}\n  {} files, {} of data, {} stored, {checksums}, {}\n{how}",
            self.base,
            self.timeline,
            self.tli,
            self.redo,
            self.end,
            self.files,
            units::size(self.data_bytes),
            units::size(self.stored_bytes),
            units::duration(Duration::from_secs_f64(self.seconds.max(0.0))),
        )
    }
}
