//! From archived segments to layers: reads WAL in order from where slicing stands, interprets it, and hands layers to a
//! [`Sink`]: a commit to the manifest, or a local folder for a reader that has no rights to write.
//!
//! It reads raw segments and Zenith's own layers, nothing of the primary. What was written and not committed when a
//! process dies is garbage that no manifest names; the next run begins where the manifest says and gives the same
//! values.
//!
//! Memory: rows up to [`SlicerOptions::arena_bytes`] and those of one record more (33 blocks at most: 264 kB of
//! full-page images), and once more while their layer is encoded; two segments that are read ahead, one that is decoded
//! (up to four over a record that crosses them); the decoded records that wait, 4 MB of WAL and at most 16 MB of
//! references; 26 MB of relation sizes; and the small states (a few kB for each database, prepared transaction and 256 kB
//! of SLRU). A record longer than all that, such as a logical message, is held whole, once.

mod arena;
mod behind;
mod gap;
mod layout;
mod load;
mod open;
mod path;
mod payloads;
mod report;
mod run;
mod sink;
mod source;

pub use layout::{SlicerStart, slicer_layers};
pub use open::open_slicer;
pub use report::{SliceReport, Stopped, Told};
pub use sink::{LocalSink, ManifestSink, Sink};

use crate::archive::WalArchive;
use crate::error::IngestError;
use crate::interpret::{Context, State, interpret, needs};
use arena::Arena;
use load::Loader;
use path::TliPath;
use source::Source;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use zenith_layers::{LayerSet, LayerStore};
use zenith_manifest::change::Slice;
use zenith_manifest::{BaseId, BaseImage, BaseKind, TliSwitch};
use zenith_pgformat::wal::{Record, StreamStart, WalStream};
use zenith_pgformat::{Lsn, Tli};
use zenith_store::Env;

/// Ends of backups that are remembered.
const PASSED_ENDS: usize = 64;

/// How slicing is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlicerOptions {
    /// Rows are written and committed by the record with which they take this much memory.
    pub arena_bytes: usize,
    /// With `--follow`: they are committed when the oldest of them waited this long.
    pub lag: Duration,
    /// With `--follow`: pause between two looks at the archive.
    pub poll: Duration,
    /// With `--follow`: what that pause grows to, doubling, while nothing arrives.
    pub poll_idle: Duration,
    /// Stop before the first record that ends past this LSN.
    pub stop_at: Option<Lsn>,
}

impl Default for SlicerOptions {
    fn default() -> SlicerOptions {
        SlicerOptions {
            arena_bytes: 128 << 20,
            lag: Duration::from_secs(10),
            poll: Duration::from_secs(1),
            poll_idle: Duration::from_secs(10),
            stop_at: None,
        }
    }
}

/// See the module.
pub struct Slicer<S: Sink> {
    options: SlicerOptions,
    env: Env,
    archive: WalArchive,
    sink: S,
    loader: Loader,
    /// Layers that this slicer writes are found here.
    written: Arc<LayerStore>,
    state: Option<State>,
    arena: Arena,
    stream: WalStream,
    source: Source,
    path: TliPath,
    history: Vec<TliSwitch>,
    tli: Tli,
    /// End and start of the last record whose changes are in the arena.
    position: Lsn,
    prev: Lsn,
    /// Where the last commit ended.
    committed: Lsn,
    switches: Vec<TliSwitch>,
    /// The base image that began the range, while its end was not met.
    open_base: Option<BaseImage>,
    /// Base images whose end was not met.
    unconfirmed: Vec<BaseImage>,
    confirmed: Vec<BaseId>,
    /// Base images whose end the archived WAL does not hold, or that were confirmed: not looked at again.
    settled: HashSet<BaseId>,
    /// Base images of which it was told that they wait.
    told_waiting: HashSet<BaseId>,
    /// Ends of backups that this slicer has passed: start, TLI. Saves reading the WAL again for a base image that is
    /// registered right after.
    passed_ends: VecDeque<(Lsn, Tli)>,
    /// When the registered base images were last asked for.
    bases_asked: Duration,
    /// Records that are decoded and wait to be interpreted.
    batch: VecDeque<Record>,
    /// When the oldest row in the arena came.
    oldest: Option<Duration>,
    report: SliceReport,
}

impl<S: Sink> Slicer<S> {
    /// A slicer that goes on where `start` says. `layers` are those of the same manifest version, without base images
    /// that must not be used ([`slicer_layers`]); `written` is where the sink's layers are read from.
    pub fn new(
        options: SlicerOptions,
        env: Env,
        archive: WalArchive,
        start: SlicerStart,
        layers: LayerSet,
        written: Arc<LayerStore>,
        sink: S,
    ) -> Slicer<S> {
        let SlicerStart { position, history, open_base, unconfirmed, mode } = start;
        let stream = new_stream(&archive, position.lsn, position.prev, position.tli);
        let report = SliceReport::new(position.lsn, position.tli);
        let bases_asked = env.clock.elapsed();
        Slicer {
            options,
            env,
            source: Source::new(archive.clone(), sink.base_objects()),
            archive,
            sink,
            loader: Loader::new(layers, mode, position.state),
            written,
            state: None,
            arena: Arena::default(),
            stream,
            path: TliPath::only(position.tli),
            history,
            tli: position.tli,
            position: position.lsn,
            prev: position.prev,
            committed: position.lsn,
            switches: Vec::new(),
            open_base,
            unconfirmed,
            confirmed: Vec::new(),
            settled: HashSet::new(),
            told_waiting: HashSet::new(),
            passed_ends: VecDeque::new(),
            bases_asked,
            batch: VecDeque::new(),
            oldest: None,
            report,
        }
    }

    /// The sink, with what it was given.
    pub fn into_sink(self) -> S {
        self.sink
    }

    /// End of the last sliced record.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Interprets one record.
    async fn take(&mut self, record: &Record) -> Result<(), IngestError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let needed = needs(record)?;
        let missing: Vec<_> = needed.missing(state).collect();
        if !missing.is_empty() {
            self.loader.load(state, missing, self.position, &self.arena).await?;
        }
        needed.touch(state);
        let mut changes = interpret(record, state, Context { window_open: window(self.open_base.as_ref()) })?;
        let (backup_end, shutdown) = (changes.backup_end, changes.shutdown_checkpoint);
        if self.oldest.is_none() {
            self.oldest = Some(self.env.clock.elapsed());
        }
        self.arena.add(std::mem::take(&mut changes.rows), std::mem::take(&mut changes.events));
        changes.apply(state);
        self.position = record.end;
        self.prev = record.lsn;
        self.report.records += 1;
        self.meet_base_ends(record, backup_end, shutdown)
    }

    /// Confirms base images whose end is this record.
    fn meet_base_ends(
        &mut self,
        record: &Record,
        backup_end: Option<Lsn>,
        shutdown: bool,
    ) -> Result<(), IngestError> {
        if let Some(start) = backup_end {
            self.passed_ends.push_back((start, self.tli));
            if self.passed_ends.len() > PASSED_ENDS {
                self.passed_ends.pop_front();
            }
        }
        if self.unconfirmed.is_empty() {
            return Ok(());
        }
        let tli = self.tli;
        let ends = |base: &BaseImage| {
            base.tli == tli
                && match base.kind {
                    BaseKind::Online => backup_end == Some(base.redo),
                    BaseKind::Directory => shutdown && record.lsn == base.redo,
                }
        };
        let (met, rest) = std::mem::take(&mut self.unconfirmed).into_iter().partition(ends);
        let (met, rest): (Vec<BaseImage>, Vec<BaseImage>) = (met, rest);
        self.unconfirmed = rest;
        for base in met {
            if self.open_base.as_ref().is_some_and(|open| open.id == base.id) {
                self.close_window(record.end)?;
            }
            self.settled.insert(base.id);
            self.confirmed.push(base.id);
        }
        match &self.open_base {
            Some(open) if record.end > open.end => {
                Err(IngestError::BaseEndNotMet { base: open.id.0, redo: open.redo, end: open.end })
            }
            _ => Ok(()),
        }
    }

    /// Every page that was missing must have been explained by now (`XLogCheckInvalidPages`).
    fn close_window(&mut self, at: Lsn) -> Result<(), IngestError> {
        self.open_base = None;
        let Some(state) = &self.state else { return Ok(()) };
        let invalid = &state.memory.invalid_pages;
        match invalid.first_key_value() {
            None => Ok(()),
            Some((first, lsn)) => {
                Err(IngestError::InvalidPages { at, count: invalid.len(), first: *first, lsn: *lsn })
            }
        }
    }

    /// Writes the arena's layers and commits up to the position.
    async fn commit(&mut self) -> Result<(), IngestError> {
        if self.position == self.committed && self.switches.is_empty() && self.confirmed.is_empty() {
            return Ok(());
        }
        let Some(state) = &self.state else { return Ok(()) };
        let layers = self.arena.write(&self.sink, &self.env, self.tli, self.committed, self.position).await?;
        let slice = Slice {
            epoch: self.sink.epoch(),
            from: self.committed,
            to: self.position,
            prev: self.prev,
            layers: layers.clone(),
            confirmed: self.confirmed.clone(),
            switches: self.switches.clone(),
            state: layout::memory_to_json(&state.memory),
        };
        self.sink.commit(slice).await?;
        self.report.commits += 1;
        self.report.layers += layers.len() as u64;
        self.report.layer_bytes += layers.iter().map(|layer| layer.bytes).sum::<u64>();
        self.report.rows += layers.iter().map(|layer| layer.rows).sum::<u64>();
        self.loader.add_layers(self.written.clone(), layers)?;
        if self.arena.bytes() >= self.options.arena_bytes {
            self.arena.begin_anew();
        } else {
            // Who follows an archive may wait long now.
            self.arena = Arena::default();
        }
        self.oldest = None;
        self.committed = self.position;
        self.report.confirmed.append(&mut self.confirmed);
        self.report.switches.append(&mut self.switches);
        Ok(())
    }
}

/// Whether missing pages are to be remembered: inside the window of an online base image.
fn window(open_base: Option<&BaseImage>) -> bool {
    open_base.is_some_and(|base| base.kind == BaseKind::Online)
}

fn new_stream(archive: &WalArchive, lsn: Lsn, prev: Lsn, tli: Tli) -> WalStream {
    WalStream::new(StreamStart {
        lsn,
        prev,
        tli,
        seg_size: archive.segment_size(),
        system_identifier: archive.system_identifier(),
    })
}
