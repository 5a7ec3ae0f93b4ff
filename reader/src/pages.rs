//! Pages of relations: rows from the layers, redo in batches, pages fit to be given to PostgreSQL.

use crate::assemble::Build;
use crate::error::ReadError;
use crate::locate::Wanted;
use crate::options::{CachedPage, PageKey};
use crate::plan::ForkPlan;
use crate::snapshot::Snapshot;
use bytes::Bytes;
use std::sync::Arc;
use zenith_layers::Key;
use zenith_pgformat::{Fork, RelNode};

/// The most blocks that [`Snapshot::pages`] reads at once: 8 MB of pages.
pub const MAX_BLOCKS: u32 = 1024;

/// Blocks of one fork that follow one another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRange {
    /// The relation.
    pub node: RelNode,
    /// The fork.
    pub fork: Fork,
    /// The first block.
    pub from: u32,
    /// How many.
    pub count: u32,
}

impl Snapshot {
    /// One page, 8192 bytes. Kept in the page cache; whoever asks for it at the same time shares the work.
    ///
    /// # Errors
    /// [`ReadError::NoSuchRelation`], [`ReadError::NoSuchBlock`]; [`ReadError::LostBase`] and others that name the
    /// page and LSN when it cannot be built (I9).
    pub async fn page(&self, node: RelNode, fork: Fork, block: u32) -> Result<Bytes, ReadError> {
        let plan = self.plan_of(node, fork).await?;
        self.check_block(node, &plan, block)?;
        let key = Key::rel_block(node, fork, block);
        let cached = PageKey {
            timeline: self.inner.timeline.id(),
            base: self.inner.base.id,
            key,
            lsn: self.inner.lsn,
        };
        let load = Box::pin(async {
            let mut pages = self.read(&[Wanted { node, plan, block }]).await?;
            pages.pop().map(CachedPage).ok_or(ReadError::LostBase { key, lsn: self.inner.lsn })
        });
        let page = self.inner.timeline.caches().pages.get_or_load(cached, load).await;
        page.map(|page| page.0).map_err(ReadError::Shared)
    }

    /// The pages `from..from + count`, at most [`MAX_BLOCKS`]: one scan of the layers and one batch of redo rather than
    /// a search for each. They do not go through the page cache, which a whole restore would only flush.
    pub async fn pages(
        &self,
        node: RelNode,
        fork: Fork,
        from: u32,
        count: u32,
    ) -> Result<Vec<Bytes>, ReadError> {
        self.page_ranges(&[BlockRange { node, fork, from, count }]).await
    }

    /// The pages of several ranges, one after the other, together at most [`MAX_BLOCKS`]: as [`Snapshot::pages`] for many
    /// small relations.
    pub async fn page_ranges(&self, ranges: &[BlockRange]) -> Result<Vec<Bytes>, ReadError> {
        let asked = ranges.iter().fold(0u32, |sum, range| sum.saturating_add(range.count));
        if asked > MAX_BLOCKS {
            return Err(ReadError::TooMany { asked, limit: MAX_BLOCKS });
        }
        let mut wanted = Vec::with_capacity(asked as usize);
        for BlockRange { node, fork, from, count } in ranges.iter().copied() {
            let plan = self.plan_of(node, fork).await?;
            if let Some(last) = count.checked_sub(1).map(|more| from.saturating_add(more)) {
                self.check_block(node, &plan, last)?;
                wanted.extend((from..=last).map(|block| Wanted { node, plan: Arc::clone(&plan), block }));
            }
        }
        self.read(&wanted).await
    }

    pub(crate) async fn plan_of(&self, node: RelNode, fork: Fork) -> Result<Arc<ForkPlan>, ReadError> {
        let lsn = self.inner.lsn;
        self.plan(node, fork).await?.ok_or(ReadError::NoSuchRelation { node, fork, lsn })
    }

    pub(crate) fn check_block(&self, node: RelNode, plan: &ForkPlan, block: u32) -> Result<(), ReadError> {
        if block < plan.blocks {
            return Ok(());
        }
        let (fork, blocks, lsn) = (plan.fork, plan.blocks, self.inner.lsn);
        Err(ReadError::NoSuchBlock { node, fork, block, blocks, lsn })
    }

    async fn read(&self, wanted: &[Wanted]) -> Result<Vec<Bytes>, ReadError> {
        let lines = self.locate(wanted).await?;
        self.finish(self.replay(&lines, &mut |_| {}).await?)
    }

    pub(crate) fn finish(&self, builds: Vec<Build>) -> Result<Vec<Bytes>, ReadError> {
        let (lsn, checksums) = (self.inner.lsn, self.data_checksums());
        builds.into_iter().map(|build| build.done(lsn, checksums)).collect()
    }
}
