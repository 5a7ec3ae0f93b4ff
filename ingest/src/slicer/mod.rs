//! From archived segments to layers: reads WAL in order from where slicing stands, interprets it, and hands layers to a
//! [`Sink`]: a commit to the manifest, or a local folder for a reader that has no rights to write.
//!
//! It reads raw segments and Zenith's own layers, nothing of the primary. What was written and not committed when a
//! process dies is garbage that no manifest names; the next run begins where the manifest says and gives the same
//! values.
//!
//! Memory: rows up to [`SlicerOptions::arena_bytes`] and once more while their layer is encoded, two segments that are
//! read ahead, one that is decoded (up to four over a record that crosses them), 26 MB of relation sizes, and the
//! small states (a few kB for each database, prepared transaction and 256 kB of SLRU).

mod arena;
mod behind;
mod layout;
mod load;
mod open;
mod path;
mod sink;
mod source;

pub use layout::{SlicerStart, slicer_layers};
pub use open::open_slicer;
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
use zenith_pgformat::wal::{Record, StreamStart, WalError, WalStream};
use zenith_pgformat::{Lsn, Tli};
use zenith_store::Env;

/// Records that are looked at together to load the state they need in one go.
const BATCH_RECORDS: usize = 4096;

/// Ends of backups that are remembered.
const PASSED_ENDS: usize = 64;

/// How slicing is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlicerOptions {
    /// Rows are written and committed when they take this much memory.
    pub arena_bytes: usize,
    /// With `--follow`: they are committed when the oldest of them waited this long.
    pub lag: Duration,
    /// With `--follow`: pause between two looks at the archive.
    pub poll: Duration,
    /// Stop before the first record that ends past this LSN.
    pub stop_at: Option<Lsn>,
}

impl Default for SlicerOptions {
    fn default() -> SlicerOptions {
        SlicerOptions {
            arena_bytes: 128 << 20,
            lag: Duration::from_secs(10),
            poll: Duration::from_secs(1),
            stop_at: None,
        }
    }
}

/// Why a run ended where it did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// The archive has no more WAL: its last complete record is sliced.
    EndOfArchive {
        /// The segment that would go on.
        next: String,
    },
    /// A segment is missing although later ones are there: it may still be on its way.
    Waiting {
        /// The missing segment.
        missing: String,
        /// The highest one that is there.
        later: String,
    },
    /// The last archived segment holds no sound record after this position, and nothing follows it.
    EndOfRecords(WalError),
    /// [`SlicerOptions::stop_at`] is reached.
    Target,
    /// WAL is missing for good: a base image past it begins a new range. Open a new slicer to go on there.
    RangeBegun {
        /// The base image.
        base: BaseId,
    },
}

/// What a run did.
#[derive(Clone, PartialEq, Debug)]
pub struct SliceReport {
    /// Where it began.
    pub from: Lsn,
    /// End of the last sliced record.
    pub to: Lsn,
    /// Its TLI.
    pub tli: Tli,
    /// Records.
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
    pub confirmed: Vec<BaseId>,
    /// TLIs that were entered.
    pub switches: Vec<TliSwitch>,
    /// WAL that is missing for good, because a base image past it begins a new range: from, to.
    pub gap: Option<(Lsn, Lsn)>,
    /// Why it ended.
    pub stopped: Stopped,
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
    /// Ends of backups that this slicer has passed: start, TLI. Saves reading the WAL again for a base image that is
    /// registered right after.
    passed_ends: VecDeque<(Lsn, Tli)>,
    /// When the registered base images were last asked for.
    bases_asked: Duration,
    /// A record that was read and not wanted yet.
    held: Option<Record>,
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
        let report = empty_report(position.lsn, position.tli);
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
            passed_ends: VecDeque::new(),
            bases_asked,
            held: None,
            oldest: None,
            report,
        }
    }

    /// Slices what there is, commits it, and says what it did.
    pub async fn run_once(&mut self) -> Result<SliceReport, IngestError> {
        self.report = empty_report(self.position, self.tli);
        let stopped = self.advance_or_save().await?;
        self.commit().await?;
        let stopped = self.after_gap(stopped).await?;
        Ok(self.finish_report(stopped))
    }

    /// Whether WAL is missing for good.
    async fn after_gap(&mut self, stopped: Stopped) -> Result<Stopped, IngestError> {
        if !matches!(stopped, Stopped::Waiting { .. } | Stopped::EndOfArchive { .. }) {
            return Ok(stopped);
        }
        let begun = self.begin_range_after_gap().await?;
        Ok(begun.map_or(stopped, |base| Stopped::RangeBegun { base }))
    }

    /// Keeps slicing as segments arrive, until `stop` says so (it is asked between two looks at the archive). A
    /// commit is made when the arena is full or its oldest row waited [`SlicerOptions::lag`]. Ends early with
    /// [`Stopped::RangeBegun`] or [`Stopped::Target`].
    pub async fn follow(
        &mut self,
        mut stop: impl FnMut() -> bool + Send,
        mut told: impl FnMut(&SliceReport) + Send,
    ) -> Result<Stopped, IngestError> {
        self.report = empty_report(self.position, self.tli);
        loop {
            let mut stopped = self.advance_or_save().await?;
            if self.arena.is_empty() && self.position == self.committed {
                stopped = self.after_gap(stopped).await?;
            }
            let last = matches!(stopped, Stopped::Target | Stopped::RangeBegun { .. });
            let last = stop() || last;
            if last || self.is_due() {
                self.commit().await?;
                told(&self.finish_report(stopped.clone()));
                self.report = empty_report(self.position, self.tli);
            }
            if last {
                return Ok(stopped);
            }
            self.env.clock.sleep(self.options.poll).await;
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

    /// As [`Slicer::advance`]; what came before damaged WAL is committed first, for it can be read.
    async fn advance_or_save(&mut self) -> Result<Stopped, IngestError> {
        let result = self.advance().await;
        if let Err(IngestError::Wal(_)) = &result {
            self.commit().await?;
        }
        result
    }

    /// Reads and interprets until there is no more; commits whenever the arena is full.
    async fn advance(&mut self) -> Result<Stopped, IngestError> {
        if self.state.is_none() {
            let state = self.loader.initial_state(self.position).await?;
            self.state = Some(state);
        }
        self.refresh_path().await?;
        self.refresh_bases().await?;
        self.confirm_behind().await?;
        loop {
            if let Some(stopped) = self.drain().await? {
                return Ok(stopped);
            }
            if let Some(stopped) = self.feed().await? {
                return Ok(stopped);
            }
        }
    }

    /// Interprets all records that the stream can give; `Some` when there is a reason to stop.
    async fn drain(&mut self) -> Result<Option<Stopped>, IngestError> {
        loop {
            let mut batch: Vec<Record> = self.held.take().into_iter().collect();
            let mut ended = None;
            while batch.len() < BATCH_RECORDS {
                match self.stream.next() {
                    Ok(Some(record)) => batch.push(record),
                    Ok(None) => {
                        ended = Some(Ok(()));
                        break;
                    }
                    Err(error) => {
                        ended = Some(Err(error));
                        break;
                    }
                }
            }
            self.prefetch(&batch).await?;
            for record in batch {
                if self.options.stop_at.is_some_and(|stop| record.end > stop) {
                    self.held = Some(record);
                    return Ok(Some(Stopped::Target));
                }
                self.enter_tli().await?;
                self.take(&record).await?;
            }
            if self.arena.bytes() >= self.options.arena_bytes {
                self.commit().await?;
            }
            match ended {
                None => {}
                Some(Ok(())) => {
                    self.enter_tli().await?;
                    return Ok(None);
                }
                Some(Err(error)) => {
                    self.enter_tli().await?;
                    return self.judge(error).await.map(Some);
                }
            }
        }
    }

    /// WAL that cannot be read on: its end, if nothing follows; damage otherwise, and so before a switch to another
    /// TLI, up to which its history says that there is WAL. A stream that failed is done with.
    async fn judge(&mut self, error: WalError) -> Result<Stopped, IngestError> {
        let after = self.archive.segment_size().segment_of(self.position).saturating_add(1);
        self.restart_stream();
        let may_end = error.may_be_end_of_wal() && self.path.next_switch().is_none();
        if may_end && self.source.highest(self.tli, after).await?.is_none() {
            return Ok(Stopped::EndOfRecords(error));
        }
        Err(error.into())
    }

    fn restart_stream(&mut self) {
        self.stream = new_stream(&self.archive, self.position, self.prev, self.tli);
        self.held = None;
    }

    async fn prefetch(&mut self, batch: &[Record]) -> Result<(), IngestError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        state.trim();
        let mut missing = Vec::new();
        for record in batch {
            missing.extend(needs(record)?.missing(state));
        }
        self.loader.load(state, missing, self.position, &self.arena).await
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
        let changes = interpret(record, state, Context { window_open: window(self.open_base.as_ref()) })?;
        let (backup_end, shutdown) = (changes.backup_end, changes.shutdown_checkpoint);
        if self.oldest.is_none() {
            self.oldest = Some(self.env.clock.elapsed());
        }
        self.arena.add(&changes);
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

    fn is_due(&self) -> bool {
        let waited = self.oldest.map(|oldest| self.env.clock.elapsed().saturating_sub(oldest));
        waited.is_some_and(|waited| waited >= self.options.lag)
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
        self.arena = Arena::default();
        self.oldest = None;
        self.committed = self.position;
        self.report.confirmed.append(&mut self.confirmed);
        self.report.switches.append(&mut self.switches);
        Ok(())
    }

    fn finish_report(&self, stopped: Stopped) -> SliceReport {
        SliceReport { to: self.position, tli: self.tli, stopped, ..self.report.clone() }
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

fn empty_report(from: Lsn, tli: Tli) -> SliceReport {
    SliceReport {
        from,
        to: from,
        tli,
        records: 0,
        rows: 0,
        layers: 0,
        layer_bytes: 0,
        commits: 0,
        confirmed: Vec::new(),
        switches: Vec::new(),
        gap: None,
        stopped: Stopped::Target,
    }
}
