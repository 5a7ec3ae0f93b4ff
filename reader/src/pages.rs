//! Pages of relations: rows from the layers, redo in batches, pages fit to be given to PostgreSQL.

use crate::assemble::Build;
use crate::error::ReadError;
use crate::locate::{Begins, Wanted};
use crate::options::{CachedPage, PageKey};
use crate::plan::ForkPlan;
use crate::snapshot::{CachedPlan, Snapshot};
use bytes::Bytes;
use std::sync::Arc;
use zenith_layers::{Key, Row};
use zenith_pgformat::{Fork, Lsn, RelNode};

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
        match self.page_in_memory(node, fork, block).await {
            Some(page) => Ok(page),
            None => self.built_page(node, fork, block).await,
        }
    }

    /// One page, if it was built before and is still there.
    pub(crate) async fn page_in_memory(&self, node: RelNode, fork: Fork, block: u32) -> Option<Bytes> {
        let pages = &self.inner.timeline.caches().pages;
        pages.get(&self.page_key(Key::rel_block(node, fork, block))).await.map(|page| page.0)
    }

    fn page_key(&self, key: Key) -> PageKey {
        let timeline = self.inner.timeline.id();
        PageKey { timeline, base: self.inner.base.id, key, lsn: self.inner.lsn }
    }

    /// One page that is not in the page cache yet.
    pub(crate) async fn built_page(&self, node: RelNode, fork: Fork, block: u32) -> Result<Bytes, ReadError> {
        let key = Key::rel_block(node, fork, block);
        let pages = &self.inner.timeline.caches().pages;
        let (plan, ahead) = match self.inner.plans.get(&(node, fork)).await {
            Some(CachedPlan(Some(plan))) => (plan, None),
            // One wave of requests for the relation's size and what is most probably the page's history.
            _ => {
                let ahead = self.newest_rows(key, Lsn::INVALID, self.inner.lsn);
                let (plan, ahead) = futures::join!(self.plan_of(node, fork), ahead);
                // What went wrong will do so again if it matters: the rows may be none of this relation's.
                (plan?, ahead.ok().flatten())
            }
        };
        self.check_block(node, &plan, block)?;
        let load =
            Box::pin(async { self.read_one(Wanted { node, plan, block }, ahead).await.map(CachedPage) });
        let page = pages.get_or_load(self.page_key(key), load).await;
        page.map(|page| page.0).map_err(ReadError::Shared)
    }

    /// One page: mostly its history is short and lies in the fork's own scope, so that one look at the layers finds it.
    async fn read_one(&self, wanted: Wanted, ahead: Option<Vec<Row>>) -> Result<Bytes, ReadError> {
        let scope = wanted.plan.scopes.first().filter(|_| !wanted.is_hint());
        if let Some(scope) = scope {
            let (from, _) = scope.block_floor(wanted.block).judge(None);
            let rows = match ahead {
                // Rows that begin earlier are those of another relation of the same number, or were cut off.
                Some(rows) => Some(rows).filter(|rows| rows.first().is_some_and(|row| row.lsn >= from)),
                None => self.newest_rows(wanted.key(), from, scope.upto).await?,
            };
            if let Some(rows) = rows {
                let mut build = [Build::new(wanted.key(), Begins::Row)];
                for row in rows {
                    build[0].add(row, &self.inner.hints)?;
                }
                self.redo(&mut build).await?;
                let [build] = build;
                return build.done(self.inner.lsn, self.data_checksums());
            }
        }
        let pages = self.read(std::slice::from_ref(&wanted)).await?;
        pages.into_iter().next().ok_or(ReadError::LostBase { key: wanted.key(), lsn: self.inner.lsn })
    }

    async fn newest_rows(&self, key: Key, from: Lsn, upto: Lsn) -> Result<Option<Vec<Row>>, ReadError> {
        let timeline = &self.inner.timeline;
        let (mode, limit) = (self.mode(upto), timeline.row_limit());
        Ok(timeline.values().newest_history(key, from, upto, mode, limit).await?)
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
        let values = self.inner.timeline.values();
        self.finish(self.replay(values, &lines, &mut |_| {}).await?)
    }

    pub(crate) fn finish(&self, builds: Vec<Build>) -> Result<Vec<Bytes>, ReadError> {
        let (lsn, checksums) = (self.inner.lsn, self.data_checksums());
        builds.into_iter().map(|build| build.done(lsn, checksums)).collect()
    }
}
