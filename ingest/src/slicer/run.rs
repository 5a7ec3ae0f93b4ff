//! The slicer at work: one run, or following an archive as it grows.

use super::sink::Sink;
use super::{SliceReport, Slicer, Stopped, Told, new_stream};
use crate::error::IngestError;
use crate::interpret::needs;
use std::time::Duration;
use zenith_pgformat::wal::WalError;

/// Records that are decoded together, so that the state they need is loaded in one go.
const BATCH_RECORDS: usize = 4096;
/// They end with the record that takes them past this many bytes of WAL.
const BATCH_BYTES: usize = 4 << 20;

/// Whoever follows: asked and told between two steps.
struct Follower<'a> {
    stop: &'a mut (dyn FnMut() -> bool + Send),
    told: &'a mut (dyn FnMut(Told<'_>) + Send),
}

fn asked(follower: &mut Option<&mut Follower<'_>>) -> bool {
    follower.as_mut().is_some_and(|follower| (follower.stop)())
}

/// What the next few records came to.
enum Step {
    /// Go on.
    More,
    /// The arena was full and is committed; go on.
    Committed,
    /// There is a reason to stop.
    Stopped(Stopped),
}

impl<S: Sink> Slicer<S> {
    /// Slices what there is, commits it, and says what it did.
    pub async fn run_once(&mut self) -> Result<SliceReport, IngestError> {
        self.report = SliceReport::new(self.position, self.tli);
        let stopped = self.look(None).await?;
        self.commit().await?;
        let stopped = self.after_gap(stopped).await?;
        Ok(self.finish_report(stopped))
    }

    /// Keeps slicing as segments arrive, until `stop` says so: it is asked again and again, in a long backlog too. What
    /// is in the arena then is committed. Otherwise a commit is made when the arena is full or its oldest row waited
    /// [`super::SlicerOptions::lag`]. Ends early with [`Stopped::RangeBegun`] or [`Stopped::Target`].
    ///
    /// # Errors
    /// After an error that [`IngestError::may_pass`], a new slicer goes on where the manifest says.
    pub async fn follow(
        &mut self,
        mut stop: impl FnMut() -> bool + Send,
        mut told: impl FnMut(Told<'_>) + Send,
    ) -> Result<Stopped, IngestError> {
        self.report = SliceReport::new(self.position, self.tli);
        let mut pause = self.options.poll;
        loop {
            let before = self.position;
            let mut follower = Follower { stop: &mut stop, told: &mut told };
            let mut stopped = self.look(Some(&mut follower)).await?;
            if self.is_committed() {
                stopped = self.after_gap(stopped).await?;
            }
            let last = matches!(stopped, Stopped::Asked | Stopped::Target | Stopped::RangeBegun { .. });
            if last || self.is_due() {
                self.commit().await?;
            }
            if last || self.report.commits > 0 || !self.report.confirmed.is_empty() {
                told(Told::Report(&self.take_report(stopped.clone())));
            } else if self.is_committed() {
                told(Told::CaughtUp);
            }
            if last {
                return Ok(stopped);
            }
            // A look at an archive that nobody writes to is paid for, too.
            let idle = self.is_committed() && self.position == before;
            pause =
                if idle { pause.saturating_mul(2).min(self.options.poll_idle) } else { self.options.poll };
            self.pause(pause, &mut stop).await;
        }
    }

    /// Waits, in parts of [`super::SlicerOptions::poll`], between which it may be asked to stop.
    async fn pause(&self, pause: Duration, stop: &mut (impl FnMut() -> bool + Send)) {
        let mut waited = Duration::ZERO;
        while waited < pause {
            let part = self.options.poll.max(Duration::from_millis(1)).min(pause - waited);
            self.env.clock.sleep(part).await;
            waited += part;
            if stop() {
                return;
            }
        }
    }

    /// One look at the archive, to its end. What came before damaged WAL is committed, for it can be read.
    async fn look(&mut self, follower: Option<&mut Follower<'_>>) -> Result<Stopped, IngestError> {
        let result = self.advance(follower).await;
        if let Err(error) = &result {
            // The next look begins at the last record that was taken.
            self.restart_stream();
            if matches!(error, IngestError::Wal(_)) {
                self.commit().await?;
            }
        }
        result
    }

    async fn advance(&mut self, mut follower: Option<&mut Follower<'_>>) -> Result<Stopped, IngestError> {
        if asked(&mut follower) {
            return Ok(Stopped::Asked);
        }
        if self.state.is_none() {
            let state = self.loader.initial_state(self.position).await?;
            self.state = Some(state);
        }
        self.refresh_path().await?;
        self.refresh_bases().await?;
        if !self.confirm_behind(&mut || asked(&mut follower)).await? {
            return Ok(Stopped::Asked);
        }
        loop {
            let mut step = self.step().await?;
            if let Step::Stopped(stopped) = step {
                return Ok(stopped);
            }
            if follower.is_some() && matches!(step, Step::More) && self.is_due() {
                self.commit().await?;
                step = Step::Committed;
            }
            if let (Step::Committed, Some(follower)) = (&step, &mut follower) {
                (follower.told)(Told::Report(&self.take_report(Stopped::Going)));
            }
            if asked(&mut follower) {
                return Ok(Stopped::Asked);
            }
        }
    }

    /// Interprets the records that are decoded, up to the one that fills the arena. When there are none, decodes more or
    /// feeds the next segment.
    async fn step(&mut self) -> Result<Step, IngestError> {
        if self.batch.is_empty() {
            if let Err(error) = self.read_batch() {
                self.enter_tli().await?;
                return self.judge(error).await.map(Step::Stopped);
            }
            if self.batch.is_empty() {
                self.enter_tli().await?;
                return Ok(self.feed().await?.map_or(Step::More, Step::Stopped));
            }
            self.prefetch().await?;
        }
        while let Some(record) = self.batch.pop_front() {
            if self.options.stop_at.is_some_and(|stop| record.end > stop) {
                self.batch.push_front(record);
                return Ok(Step::Stopped(Stopped::Target));
            }
            self.enter_tli().await?;
            self.take(&record).await?;
            if self.arena.bytes() >= self.options.arena_bytes {
                self.commit().await?;
                return Ok(Step::Committed);
            }
        }
        Ok(Step::More)
    }

    /// Decodes records, as many as one batch may hold. Leaves none where the stream needs its next segment. An error
    /// behind some records is told when they are taken: the stream repeats it.
    fn read_batch(&mut self) -> Result<(), WalError> {
        let mut bytes = 0;
        while self.batch.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
            match self.stream.next() {
                Ok(Some(record)) => {
                    bytes += record.raw.len();
                    self.batch.push_back(record);
                }
                Err(error) if self.batch.is_empty() => return Err(error),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(())
    }

    /// Loads the state that the batch needs. What trimming the state drops meanwhile, [`Slicer::take`] loads again.
    async fn prefetch(&mut self) -> Result<(), IngestError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        state.trim();
        let mut missing = Vec::new();
        // A record that cannot be read is told when it is taken, after those before it.
        for needed in self.batch.iter().filter_map(|record| needs(record).ok()) {
            missing.extend(needed.missing(state));
        }
        self.loader.load(state, missing, self.position, &self.arena).await
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
        self.batch.clear();
    }

    /// Whether WAL is missing for good.
    async fn after_gap(&mut self, stopped: Stopped) -> Result<Stopped, IngestError> {
        if !matches!(stopped, Stopped::Waiting { .. } | Stopped::EndOfArchive { .. }) {
            return Ok(stopped);
        }
        let begun = self.begin_range_after_gap().await?;
        Ok(begun.map_or(stopped, |base| Stopped::RangeBegun { base }))
    }

    fn is_committed(&self) -> bool {
        self.arena.is_empty() && self.position == self.committed
    }

    fn is_due(&self) -> bool {
        let waited = self.oldest.map(|oldest| self.env.clock.elapsed().saturating_sub(oldest));
        waited.is_some_and(|waited| waited >= self.options.lag)
    }

    fn finish_report(&self, stopped: Stopped) -> SliceReport {
        SliceReport { to: self.position, tli: self.tli, stopped, ..self.report.clone() }
    }

    /// The report so far; the next one begins here.
    fn take_report(&mut self, stopped: Stopped) -> SliceReport {
        let report = self.finish_report(stopped);
        self.report = SliceReport::new(self.position, self.tli);
        report
    }
}
