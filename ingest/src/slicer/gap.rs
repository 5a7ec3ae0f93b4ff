//! Gaps: WAL that is missing for good (PROTOCOLS.md §2). A segment that is missing while a later one is archived is waited
//! for; it is a gap once a base image past it begins a new range.

use super::Slicer;
use super::sink::Sink;
use crate::error::IngestError;
use std::collections::BTreeSet;
use zenith_manifest::{BaseId, BaseImage, BaseKind};
use zenith_pgformat::{Lsn, Tli};

impl<S: Sink> Slicer<S> {
    /// Begins a range at the first base image past the segment that is missing, if that one is proven to be missing
    /// and all WAL that makes the image whole is there. What is merely late is never given up: nothing of it could be
    /// sliced any more.
    pub(super) async fn begin_range_after_gap(&mut self) -> Result<Option<BaseId>, IngestError> {
        let size = self.archive.segment_size();
        let missing = size.segment_of(self.stream.wants());
        let beyond = |base: &&BaseImage| {
            base.redo > self.position && size.segment_of(base.redo) > missing && self.path.may_lead_to(base)
        };
        let mut candidates: Vec<BaseImage> = self.unconfirmed.iter().filter(beyond).cloned().collect();
        candidates.sort_by_key(|base| base.redo);
        for base in candidates {
            if !self.is_whole(&base).await? {
                continue;
            }
            if !self.is_gap(missing, base.tli).await? {
                if base.kind == BaseKind::Directory && self.told_waiting.insert(base.id) {
                    tracing::warn!(
                        base = %base.id.0,
                        redo = %base.redo,
                        sliced = %self.position,
                        "a base image waits for the WAL before it, which may be on its way: start the server, so that \
                         it archives what it has, or archive its pg_wal with zenith_push wal"
                    );
                }
                continue;
            }
            self.sink.begin_range(self.position, base.id).await?;
            self.report.gap = Some((self.position, base.redo));
            return Ok(Some(base.id));
        }
        Ok(None)
    }

    /// Whether every segment from the image's redo LSN to its end is archived. The one of a stopped directory carries
    /// its own.
    async fn is_whole(&self, base: &BaseImage) -> Result<bool, IngestError> {
        if base.kind == BaseKind::Directory {
            return Ok(true);
        }
        let size = self.archive.segment_size();
        let (first, last) = (size.segment_of(base.redo), size.segment_of(Lsn(base.end.0.saturating_sub(1))));
        let mut archived: BTreeSet<u64> = self.archive.list(base.tli, first).await?.into_iter().collect();
        // The segment that holds a switch point may be there only under the newer TLI.
        for tli in
            (first..=last).map(|segment| self.path.tli_of_segment(segment, size)).collect::<BTreeSet<_>>()
        {
            if tli > base.tli {
                archived.extend(self.archive.list(tli, first).await?);
            }
        }
        Ok(archived.range(first..=last).count() as u64 == (last - first).saturating_add(1))
    }

    /// Whether a later segment than `missing` is archived and `missing` itself is not, on any TLI that may lead to `tli`.
    async fn is_gap(&self, missing: u64, tli: Tli) -> Result<bool, IngestError> {
        let newest = tli.max(self.path.tli_of_segment(missing, self.archive.segment_size()));
        let tlis: Vec<Tli> = self.archive.tlis().await?;
        let tlis: Vec<Tli> = tlis.into_iter().filter(|tli| (self.tli..=newest).contains(tli)).collect();
        let mut is_later = false;
        for tli in &tlis {
            is_later |= !self.archive.list(*tli, missing.saturating_add(1)).await?.is_empty();
        }
        if !is_later {
            return Ok(false);
        }
        // Asked after the later one was seen: a segment that came in between must not look lost.
        for tli in &tlis {
            if self.archive.list(*tli, missing).await?.first() == Some(&missing) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
