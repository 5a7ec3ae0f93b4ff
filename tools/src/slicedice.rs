//! `zenith_slicedice`: archived WAL into layers, committed under the slicer's epoch.

mod follow;
mod outage;

pub use follow::Stop;

use crate::cli::options::SOURCES;
use crate::cli::{Session, Settings, StoreOptions, exit, output, reading, units};
use anyhow::Context;
use clap::Parser;
use serde::Serialize;
use std::process::ExitCode;
use std::sync::Arc;
use zenith_ingest::slicer::{ManifestSink, SliceReport, Slicer, SlicerOptions, Stopped, open_slicer};
use zenith_layers::{CacheOptions, LayerCaches, LayerSet};
use zenith_manifest::{Identity, ManifestStore, Role};
use zenith_pgformat::{Lsn, Tli};
use zenith_reader::Timeline;
use zenith_store::Env;

/// Threads that decode, compress and store.
const THREADS: usize = 2;

/// Slices archived WAL into layers that can be read at any LSN.
#[derive(Parser, Debug)]
#[command(
    name = "zenith_slicedice",
    version,
    after_help = format!("\
Examples:
  zenith_slicedice --store file:///srv/zenith
  zenith_slicedice --store s3://backup/pg --follow

It reads archived WAL and its own layers, nothing of the server; it may run anywhere and be stopped at any moment: the
next run goes on where the last commit stands. One slicer works on a timeline at a time: a new one takes over and the
old one ends with exit status 1. A segment that is missing while later ones are there is waited for: that is told, and
is no failure. With --follow it outlives a store that is away or full: it tries again until it can go on. A clock that is
wrong is waited out in the same way, where the store refuses it. SIGTERM and SIGINT make it commit what is sliced and end
with 0. Memory: the batch and once more while it is written, and about 130 MB.

{SOURCES}")
)]
struct Cli {
    #[command(flatten)]
    store: StoreOptions,
    /// Keep going as segments arrive: commits every batch, and what waited 10 s
    #[arg(long)]
    follow: bool,
    /// Commit when this many MB of changes are in memory
    #[arg(long, value_name = "MB", default_value = "128", value_parser = units::parse_megabytes)]
    batch: u64,
}

/// What slicing came to, for machines.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Where it began.
    pub from: Lsn,
    /// End of the last sliced record.
    pub to: Lsn,
    /// Its PostgreSQL timeline number.
    pub tli: Tli,
    /// Records read.
    pub records: u64,
    /// Values written.
    pub rows: u64,
    /// Layers written.
    pub layers: u64,
    /// Their bytes.
    pub layer_bytes: u64,
    /// Commits.
    pub commits: u64,
    /// Base images whose end was met.
    pub confirmed: Vec<String>,
    /// WAL that is missing for good.
    pub gap: Option<(Lsn, Lsn)>,
    /// Why it ended.
    pub ended: String,
    /// The segment that is waited for, while later ones are there.
    pub waiting_for: Option<String>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match exit::parse::<Cli>() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    exit::run("zenith_slicedice", exit::FAILED, || {
        let settings = cli.store.resolve()?;
        let arena = usize::try_from(cli.batch.saturating_mul(1 << 20)).context("--batch")?;
        let options = SlicerOptions { arena_bytes: arena, ..SlicerOptions::default() };
        let runtime = exit::runtime(THREADS)?;
        let sliced = runtime.block_on(async {
            let session = Session::open(&Env::system(), &settings, false)?;
            let mut run = Run::open(session, &settings, options).await?;
            if cli.follow {
                let stop = Stop::default();
                stop.at_signals();
                run.follow(&stop).await
            } else {
                run.once().await.map(drop)
            }
        });
        runtime.shutdown_background();
        sliced.map(|()| exit::DONE)
    })
}

/// A slicer at work on one timeline.
pub struct Run {
    session: Session,
    settings: Settings,
    options: SlicerOptions,
    identity: Identity,
    manifest: Arc<ManifestStore>,
    caches: LayerCaches,
    epoch: Option<u64>,
    /// Held as long as its layers are read: those of WAL that was sliced here go with it.
    parent: Option<Timeline>,
}

impl Run {
    /// Finds the timeline. Takes nothing over yet.
    pub async fn open(session: Session, settings: &Settings, options: SlicerOptions) -> anyhow::Result<Run> {
        let identity = session.identity(&settings.timeline).await?;
        let manifest = Arc::new(session.manifest(&identity));
        let caches = LayerCaches::new(CacheOptions::default());
        Ok(Run {
            session,
            settings: settings.clone(),
            options,
            identity,
            manifest,
            caches,
            epoch: None,
            parent: None,
        })
    }

    /// Slices what is archived.
    pub async fn once(&mut self) -> anyhow::Result<Vec<Summary>> {
        let mut summaries = Vec::new();
        loop {
            let report = self.slicer().await?.run_once().await?;
            let summary = Summary::new(&report);
            summary.print(&self.settings)?;
            summaries.push(summary);
            if !matches!(report.stopped, Stopped::RangeBegun { .. }) {
                return Ok(summaries);
            }
        }
    }

    /// A slicer where the newest manifest version stands. The first one takes the role over.
    async fn slicer(&mut self) -> anyhow::Result<Slicer<ManifestSink>> {
        let epoch = match self.epoch {
            Some(epoch) => epoch,
            None => {
                if self.manifest.latest().await?.sliced.is_none() {
                    anyhow::bail!(
                        "timeline {} holds no base image yet, so there is nowhere to begin: take one with zenith_push base",
                        self.identity.timeline
                    );
                }
                let (epoch, _) = self.manifest.take_epoch(Role::Slicer).await?;
                *self.epoch.insert(epoch)
            }
        };
        let parent = self.parent().await?;
        let slicer = open_slicer(
            self.options,
            self.session.env.clone(),
            Arc::clone(&self.session.store.objects),
            Arc::clone(&self.manifest),
            &self.identity,
            parent,
            self.caches.clone(),
            epoch,
        );
        Ok(slicer.await?)
    }

    /// The layers that a branch begins on.
    async fn parent(&mut self) -> anyhow::Result<Option<(Arc<LayerSet>, Lsn)>> {
        let Some(ancestor) = self.identity.ancestor else { return Ok(None) };
        let layers = match &self.parent {
            Some(parent) => Arc::clone(parent.layers()),
            None => {
                let parent = || format!("the parent of timeline {}", self.identity.timeline);
                let cluster = &self.settings.cluster;
                let opened = reading::open_id(&self.session, cluster, ancestor.timeline).await;
                let mut timeline = opened.with_context(parent)?;
                reading::slice_what_is_not(&mut timeline, Some(ancestor.lsn)).await.with_context(parent)?;
                timeline.check_for_branch(&ancestor, ancestor.lsn).with_context(parent)?;
                Arc::clone(self.parent.insert(timeline).layers())
            }
        };
        Ok(Some((layers, ancestor.lsn)))
    }
}

impl Summary {
    fn new(report: &SliceReport) -> Summary {
        let waiting_for = match &report.stopped {
            Stopped::Waiting { missing, .. } => Some(missing.clone()),
            _ => None,
        };
        Summary {
            from: report.from,
            to: report.to,
            tli: report.tli,
            records: report.records,
            rows: report.rows,
            layers: report.layers,
            layer_bytes: report.layer_bytes,
            commits: report.commits,
            confirmed: report.confirmed.iter().map(|base| base.0.simple().to_string()).collect(),
            gap: report.gap,
            ended: reading::ended(&report.stopped),
            waiting_for,
        }
    }

    fn print(&self, settings: &Settings) -> anyhow::Result<()> {
        if settings.json {
            return output::line(&serde_json::to_string(self).context("cannot print as JSON")?);
        }
        output::line(&self.describe())
    }

    fn describe(&self) -> String {
        let mut text = if self.to > self.from {
            format!(
                "sliced {} to {} on TLI {}: {} records into {} values, {} layers, {}",
                self.from,
                self.to,
                self.tli,
                self.records,
                self.rows,
                self.layers,
                units::size(self.layer_bytes)
            )
        } else {
            format!("nothing new: WAL is sliced up to {} on TLI {}", self.to, self.tli)
        };
        for base in &self.confirmed {
            text.push_str(&format!("\nbase image {base} can be read from now on: its end was met"));
        }
        if let Some((from, to)) = self.gap {
            text.push_str(&format!(
                "\nWAL from {from} to {to} is missing for good: nothing between can be restored; a base image begins anew behind it"
            ));
        }
        text.push('\n');
        text.push_str(&self.ended);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_missing_segment_is_told_with_the_remedy() {
        let stopped = Stopped::Waiting { missing: "A".to_owned(), later: "B".to_owned() };
        let text = reading::ended(&stopped);
        assert!(text.contains("segment A") && text.contains("zenith_push base"), "{text}");
    }
}
