//! What a slicer does beside the next record: feeding segments, following TLIs, base images that were registered behind
//! it, and gaps.

use super::path::TliPath;
use super::sink::Sink;
use super::{Slicer, Stopped, new_stream};
use crate::error::IngestError;
use zenith_manifest::{BaseId, BaseImage, BaseKind, TliSwitch};
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
            self.stream.feed(wants, content)?;
            self.drain_base_wal(&base).await?;
        }
        let name = |segment| SegmentName(tli, segment, size).to_string();
        let stopped = match self.source.highest(tli, segment).await? {
            Some(later) if later > segment => Stopped::Waiting { missing: name(segment), later: name(later) },
            Some(_) => return Ok(None), // It arrived just now.
            None => Stopped::EndOfArchive { next: name(segment) },
        };
        Ok(Some(stopped))
    }

    /// Slices the base image's own WAL up to its end; what follows it there is not WAL of this timeline.
    async fn drain_base_wal(&mut self, base: &BaseImage) -> Result<(), IngestError> {
        while self.position < base.end {
            match self.stream.next()? {
                Some(record) => {
                    self.prefetch(std::slice::from_ref(&record)).await?;
                    self.take(&record).await?;
                }
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
            self.held = None;
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

    /// Base images that were registered after their end had been sliced: their end is looked up in the archive.
    pub(super) async fn confirm_behind(&mut self) -> Result<(), IngestError> {
        let behind = |base: &BaseImage| base.end <= self.position;
        let candidates: Vec<BaseImage> =
            self.unconfirmed.iter().filter(|base| behind(base)).cloned().collect();
        for base in candidates {
            // It is asked once; a base image whose end this WAL does not hold stays unconfirmed.
            self.unconfirmed.retain(|other| other.id != base.id);
            self.settled.insert(base.id);
            let passed = base.kind == BaseKind::Online && self.passed_ends.contains(&(base.redo, base.tli));
            if passed || self.archive_holds_end(&base).await? {
                self.sink.confirm(vec![base.id]).await?;
                self.report.confirmed.push(base.id);
            } else {
                tracing::warn!(base = %base.id.0, end = %base.end, "the archived WAL does not hold the base image's end");
            }
        }
        Ok(())
    }

    async fn archive_holds_end(&self, base: &BaseImage) -> Result<bool, IngestError> {
        let size = self.archive.segment_size();
        let mut stream = new_stream(&self.archive, base.redo, Lsn::INVALID, base.tli);
        loop {
            while let Some(record) = match stream.next() {
                Ok(record) => record,
                Err(error) if error.may_be_end_of_wal() => return Ok(false),
                Err(error) => return Err(error.into()),
            } {
                if ends_base(&record, base)? {
                    return Ok(true);
                }
                if record.end >= base.end {
                    return Ok(false);
                }
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
            let Some(content) = content else { return Ok(false) };
            stream.feed(wants, content)?;
        }
    }

    /// `tli`, then the TLIs that were followed after it.
    fn tlis_of(&self, tli: Tli) -> Vec<Tli> {
        let later = self.history.iter().map(|switch| switch.tli).filter(|later| *later > tli);
        std::iter::once(tli).chain(later).collect()
    }

    /// A base image past a missing segment begins a new range, once all WAL that makes it whole is archived.
    pub(super) async fn begin_range_after_gap(&mut self) -> Result<Option<BaseId>, IngestError> {
        let size = self.archive.segment_size();
        let missing = size.segment_of(self.stream.wants());
        let beyond = |base: &&BaseImage| {
            base.redo > self.position && base.tli >= self.tli && size.segment_of(base.redo) > missing
        };
        let Some(base) = self.unconfirmed.iter().filter(beyond).min_by_key(|base| base.redo).cloned() else {
            return Ok(None);
        };
        let (first, last) = (size.segment_of(base.redo), size.segment_of(Lsn(base.end.0.saturating_sub(1))));
        let listed = self.archive.list(base.tli, first).await?;
        let whole = base.kind == BaseKind::Directory
            || listed.iter().take_while(|segment| **segment <= last).count() as u64 == last - first + 1;
        let arrived = self.archive.list(self.tli, missing).await?.contains(&missing);
        if !whole || arrived {
            return Ok(None);
        }
        self.sink.begin_range(self.position, base.id).await?;
        self.report.gap = Some((self.position, base.redo));
        Ok(Some(base.id))
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
