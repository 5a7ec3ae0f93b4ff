//! Segments in order, the next ones fetched while one is being sliced.

use crate::archive::{ArchiveError, WalArchive};
use crate::base::read_base_wal;
use crate::error::IngestError;
use bytes::Bytes;
use object_store::ObjectStore;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::task::JoinHandle;
use zenith_manifest::{BaseImage, BaseKind};
use zenith_pgformat::Tli;
use zenith_pgformat::wal_name::{SegmentName, WalFile};
use zenith_store::TimelinePaths;

/// Segments that are fetched ahead.
const AHEAD: u64 = 2;

type Fetch = JoinHandle<Result<Option<Bytes>, ArchiveError>>;

/// See the module.
pub(super) struct Source {
    archive: WalArchive,
    base_objects: Option<(Arc<dyn ObjectStore>, TimelinePaths)>,
    /// What the last listing of a TLI showed, from the segment it began at.
    listed: HashMap<Tli, BTreeSet<u64>>,
    ahead: HashMap<(Tli, u64), Fetch>,
}

impl Source {
    pub(super) fn new(
        archive: WalArchive,
        base_objects: Option<(Arc<dyn ObjectStore>, TimelinePaths)>,
    ) -> Source {
        Source { archive, base_objects, listed: HashMap::new(), ahead: HashMap::new() }
    }

    /// A segment's content, `None` if it is not archived. Begins to fetch those that follow it.
    pub(super) async fn segment(&mut self, tli: Tli, segment: u64) -> Result<Option<Bytes>, IngestError> {
        if !self.knows(tli, segment) {
            self.list(tli, segment).await?;
        }
        if !self.knows(tli, segment) {
            return Ok(None);
        }
        self.ahead.retain(|(known, at), fetch| {
            let wanted = *known == tli && *at >= segment;
            if !wanted {
                fetch.abort();
            }
            wanted
        });
        let fetch = self.fetch(tli, segment);
        for next in segment + 1..=segment + AHEAD {
            if self.knows(tli, next) && !self.ahead.contains_key(&(tli, next)) {
                let fetch = self.fetch(tli, next);
                self.ahead.insert((tli, next), fetch);
            }
        }
        let content = fetch
            .await
            .map_err(|e| IngestError::Internal(format!("reading a segment ended early: {e}")))??;
        if content.is_none() {
            return Err(IngestError::NoSegment {
                name: SegmentName(tli, segment, self.archive.segment_size()).to_string(),
                lsn: self.archive.segment_size().start_of(segment),
            });
        }
        Ok(content)
    }

    /// The beginning of a segment as the base image of a stopped directory carries it.
    pub(super) async fn base_wal(
        &self,
        base: &BaseImage,
        tli: Tli,
        segment: u64,
    ) -> Result<Option<Bytes>, IngestError> {
        let (Some((objects, paths)), BaseKind::Directory) = (&self.base_objects, base.kind) else {
            return Ok(None);
        };
        let size = self.archive.segment_size();
        Ok(read_base_wal(&**objects, paths, base.id, tli, segment, size).await?)
    }

    /// The highest archived segment of a TLI from `from` on, asked anew.
    pub(super) async fn highest(&mut self, tli: Tli, from: u64) -> Result<Option<u64>, IngestError> {
        self.list(tli, from).await?;
        Ok(self.highest_listed(tli))
    }

    /// The same, as it was when the TLI was last listed.
    pub(super) fn highest_listed(&self, tli: Tli) -> Option<u64> {
        self.listed.get(&tli).and_then(|segments| segments.last().copied())
    }

    fn knows(&self, tli: Tli, segment: u64) -> bool {
        self.listed.get(&tli).is_some_and(|segments| segments.contains(&segment))
    }

    async fn list(&mut self, tli: Tli, from: u64) -> Result<(), IngestError> {
        let segments = self.archive.list(tli, from).await?;
        self.listed.insert(tli, segments.into_iter().collect());
        Ok(())
    }

    fn fetch(&mut self, tli: Tli, segment: u64) -> Fetch {
        if let Some(fetch) = self.ahead.remove(&(tli, segment)) {
            return fetch;
        }
        let archive = self.archive.clone();
        tokio::spawn(async move { archive.get(WalFile::Segment { tli, segment }).await })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.ahead.values().for_each(JoinHandle::abort);
    }
}
