//! What a slicer does beside the next record: feeding segments, following TLIs, and base images that were registered
//! behind it.

use super::path::TliPath;
use super::sink::Sink;
use super::{Slicer, Stopped, new_stream};
use crate::error::IngestError;
use zenith_manifest::{BaseImage, BaseKind, TliSwitch};
use zenith_pgformat::wal::xlog::{self, XlogRecord};
use zenith_pgformat::wal::{Record, RmgrId};
use zenith_pgformat::wal_name::{SegmentName, WalFile};
use zenith_pgformat::{Lsn, Tli};

impl<S: Sink> Slicer<S> {
    /// Gives the stream its next segment; `Some` when there is none.
    pub(super) async fn feed(&mut self) -> Result<Option<Stopped>, IngestError> {
        let size = self.archive.segment_size();
        let wants = self.stream.wants();
        let segment = size.segment_of(wants);
        let tli = self.path.tli_of_segment(segment, size);
        if let Some(content) = self.source.segment(tli, segment).await? {
            self.stream.enter_timeline(tli);
            self.stream.feed(wants, content)?;
            return Ok(None);
        }
        // A stopped directory's last segment was never archived; the base image carries its beginning.
        if let Some(base) = self.open_base.clone().filter(|base| self.position < base.end)
            && let Some(content) = self.source.base_wal(&base, tli, segment).await?
        {
            self.stream.enter_timeline(tli);
            self.stream.feed(wants, content)?;
            self.drain_base_wal(&base).await?;
        }
        let name = |tli, segment| SegmentName(tli, segment, size).to_string();
        let mut later = None;
        for of in self.path.from(tli) {
            // The segment's own TLI was listed a moment ago, when it was looked for.
            let highest = match of == tli {
                true => self.source.highest_listed(of),
                false => self.source.highest(of, segment).await?,
            };
            match highest {
                Some(found) if found > segment => later = Some(name(of, found)),
                _ => {}
            }
        }
        let missing = name(tli, segment);
        Ok(Some(match later {
            Some(later) => Stopped::Waiting { missing, later },
            None => Stopped::EndOfArchive { next: missing },
        }))
    }

    /// Slices the base image's own WAL up to its end; what follows it there is not WAL of this timeline.
    async fn drain_base_wal(&mut self, base: &BaseImage) -> Result<(), IngestError> {
        while self.position < base.end {
            match self.stream.next()? {
                Some(record) => self.take(&record).await?,
                None => break,
            }
        }
        self.stream = new_stream(&self.archive, self.position, self.prev, self.tli);
        Ok(())
    }

    /// Looks for histories that go on from here. The stream begins anew when another TLI's segments count.
    pub(super) async fn refresh_path(&mut self) -> Result<(), IngestError> {
        let histories = self.archive.histories(self.tli).await?;
        let path = TliPath::along(self.tli, self.position, &self.history, &histories)?;
        if path != self.path {
            self.path = path;
            self.stream = new_stream(&self.archive, self.position, self.prev, self.tli);
            self.batch.clear();
        }
        self.enter_tli().await
    }

    /// At a switch point: commits what belongs to the old TLI and goes on with the new one.
    pub(super) async fn enter_tli(&mut self) -> Result<(), IngestError> {
        while let Some(TliSwitch { tli, from }) = self.path.next_switch() {
            if self.position < from {
                return Ok(());
            }
            if self.position > from {
                return Err(IngestError::Diverged {
                    tli,
                    from: self.tli,
                    switch: from,
                    sliced: self.position,
                });
            }
            self.commit().await?;
            self.path.enter_next();
            self.tli = tli;
            self.history.push(TliSwitch { tli, from });
            self.switches.push(TliSwitch { tli, from });
        }
        Ok(())
    }

    /// Looks for base images that were registered while this slicer runs.
    pub(super) async fn refresh_bases(&mut self) -> Result<(), IngestError> {
        let now = self.env.clock.elapsed();
        if now.saturating_sub(self.bases_asked) < self.options.lag {
            return Ok(());
        }
        self.bases_asked = now;
        if let Some(bases) = self.sink.bases().await? {
            let open = |base: &BaseImage| !base.confirmed && !self.settled.contains(&base.id);
            self.unconfirmed = bases.into_iter().filter(open).collect();
        }
        Ok(())
    }

    /// Base images that were registered after their end had been sliced: their end is looked up in the archive. `false`
    /// when `stop` ended the search.
    pub(super) async fn confirm_behind(
        &mut self,
        stop: &mut (dyn FnMut() -> bool + Send),
    ) -> Result<bool, IngestError> {
        let behind = |base: &BaseImage| base.end <= self.position;
        let candidates: Vec<BaseImage> =
            self.unconfirmed.iter().filter(|base| behind(base)).cloned().collect();
        for base in candidates {
            let passed = base.kind == BaseKind::Online && self.passed_ends.contains(&(base.redo, base.tli));
            let holds_end = if passed { Some(true) } else { self.archive_holds_end(&base, stop).await? };
            let Some(holds_end) = holds_end else { return Ok(false) };
            if holds_end {
                self.sink.confirm(vec![base.id]).await?;
                self.report.confirmed.push(base.id);
            } else {
                tracing::warn!(base = %base.id.0, end = %base.end, "the archived WAL does not hold the base image's end");
            }
            // It is asked once; a base image whose end this WAL does not hold stays unconfirmed.
            self.unconfirmed.retain(|other| other.id != base.id);
            self.settled.insert(base.id);
        }
        Ok(true)
    }

    /// `None` when `stop` ended the search; it may go over as much WAL as was written while the image was taken.
    async fn archive_holds_end(
        &self,
        base: &BaseImage,
        stop: &mut (dyn FnMut() -> bool + Send),
    ) -> Result<Option<bool>, IngestError> {
        let size = self.archive.segment_size();
        let mut stream = new_stream(&self.archive, base.redo, Lsn::INVALID, base.tli);
        loop {
            while let Some(record) = match stream.next() {
                Ok(record) => record,
                Err(error) if error.may_be_end_of_wal() => return Ok(Some(false)),
                Err(error) => return Err(error.into()),
            } {
                if ends_base(&record, base)? {
                    return Ok(Some(true));
                }
                if record.end >= base.end {
                    return Ok(Some(false));
                }
            }
            if stop() {
                return Ok(None);
            }
            let wants = stream.wants();
            let segment = size.segment_of(wants);
            let mut content = None;
            // The segment that holds a switch point may be there only under the newer TLI.
            for tli in self.tlis_of(base.tli) {
                if content.is_none() {
                    content = self.archive.get(WalFile::Segment { tli, segment }).await?;
                }
            }
            let Some(content) = content else { return Ok(Some(false)) };
            stream.feed(wants, content)?;
        }
    }

    /// `tli`, then the TLIs that were followed after it.
    fn tlis_of(&self, tli: Tli) -> Vec<Tli> {
        let later = self.history.iter().map(|switch| switch.tli).filter(|later| *later > tli);
        std::iter::once(tli).chain(later).collect()
    }
}

/// Whether the record is the end of the base image.
fn ends_base(record: &Record, base: &BaseImage) -> Result<bool, IngestError> {
    if record.rmgr != RmgrId::XLOG {
        return Ok(false);
    }
    Ok(match (xlog::parse(record)?, base.kind) {
        (XlogRecord::BackupEnd(start), BaseKind::Online) => start == base.redo,
        (XlogRecord::CheckpointShutdown(_), BaseKind::Directory) => record.lsn == base.redo,
        _ => false,
    })
}
