//! Pages of relations: rows from the layers, redo in batches, pages fit to be given to PostgreSQL.

use crate::assemble::{Absent, Build, newest_image};
use crate::error::ReadError;
use crate::options::{CachedPage, PageKey};
use crate::plan::{ForkPlan, Scope, Verdict};
use crate::snapshot::{MAX_ROWS, Snapshot};
use bytes::Bytes;
use std::sync::Arc;
use zenith_layers::{Key, KeyRange, Row};
use zenith_pgformat::{Fork, RelNode};
use zenith_redo::RedoError;

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

impl BlockRange {
    /// The last block; `None` if there is none.
    fn last(&self) -> Option<u32> {
        Some(self.from.saturating_add(self.count.checked_sub(1)?))
    }
}

/// The visible rows of one block, newest first, over all scopes, and what it begins as if they do not say.
#[derive(Debug)]
pub(crate) struct BlockRows {
    pub(crate) block: u32,
    pub(crate) rows: Vec<Row>,
    pub(crate) absent: Absent,
    /// Nothing older is needed.
    settled: bool,
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
            let mut pages = self.read(node, &plan, block, block).await?;
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
        let mut wanted = Vec::with_capacity(ranges.len());
        for range in ranges {
            let plan = self.plan_of(range.node, range.fork).await?;
            if let Some(last) = range.last() {
                self.check_block(range.node, &plan, last)?;
                wanted.push((*range, last, plan));
            }
        }
        match wanted.as_slice() {
            [(range, last, plan)] => self.read(range.node, plan, range.from, *last).await,
            _ => self.read_together(&wanted).await,
        }
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

    /// The pages `from..=last`, which exist.
    async fn read(
        &self,
        node: RelNode,
        plan: &ForkPlan,
        from: u32,
        last: u32,
    ) -> Result<Vec<Bytes>, ReadError> {
        let mut pages = Vec::with_capacity((last - from) as usize + 1);
        let mut from = from;
        loop {
            let (blocks, next) = self.gather(plan, from, last).await?;
            let mut builds = self.start(node, plan, blocks)?;
            self.run(&mut builds).await?;
            pages.append(&mut self.finish(builds)?);
            match next {
                Some(next) if next > from && next <= last => from = next,
                _ => return Ok(pages),
            }
        }
    }

    /// Blocks of several forks: one search of the layers for all, and one batch of redo.
    async fn read_together(
        &self,
        wanted: &[(BlockRange, u32, Arc<ForkPlan>)],
    ) -> Result<Vec<Bytes>, ReadError> {
        let own = wanted.iter().filter_map(|(range, last, plan)| {
            let scope = plan.scopes.first()?;
            Some(KeyRange::blocks(scope.node, plan.fork, range.from, *last))
        });
        let histories = self.history_of(&own.collect::<Vec<_>>(), self.inner.lsn).await?;
        let mut builds = Vec::new();
        for (range, last, plan) in wanted {
            let Some(own) = plan.scopes.first() else { continue };
            let keys = KeyRange::blocks(own.node, plan.fork, range.from, *last);
            let first = histories.partition_point(|history| history.key < keys.first);
            let rest = histories.get(first..).unwrap_or_default();
            let mine = rest.iter().take_while(|history| history.key <= keys.last);
            let mut blocks = empty(range.from, *last);
            mine.for_each(|history| add_rows(&mut blocks, history.key.block, history.rows.clone()));
            self.go_on(plan, &mut blocks).await?;
            builds.append(&mut self.start(range.node, plan, blocks)?);
        }
        self.run(&mut builds).await?;
        self.finish(builds)
    }

    /// The visible rows of blocks from `from` on, and the block to go on with.
    pub(crate) async fn gather(
        &self,
        plan: &ForkPlan,
        from: u32,
        last: u32,
    ) -> Result<(Vec<BlockRows>, Option<u32>), ReadError> {
        let Some(own) = plan.scopes.first() else { return Ok((Vec::new(), None)) };
        let layers = self.inner.timeline.layers();
        let range = KeyRange::blocks(own.node, plan.fork, from, last);
        let chunk = layers.history_chunk(range, own.upto, self.mode(own.upto), MAX_ROWS).await?;
        let next = chunk.rest.map(|rest| rest.first.block);
        let end = next.map_or(last, |next| next.saturating_sub(1).clamp(from, last));
        let mut blocks = empty(from, end);
        for history in chunk.histories {
            add_rows(&mut blocks, history.key.block, history.rows);
        }
        self.go_on(plan, &mut blocks).await?;
        Ok((blocks, next))
    }

    /// From the rows of a fork's own scope to those of all scopes, the invisible ones taken out.
    async fn go_on(&self, plan: &ForkPlan, blocks: &mut [BlockRows]) -> Result<(), ReadError> {
        let Some((own, copied)) = plan.scopes.split_first() else { return Ok(()) };
        blocks.iter_mut().for_each(|block| block.settle(own, 0));
        for scope in copied {
            let ranges = open_ranges(blocks, scope.node, plan.fork);
            if ranges.is_empty() {
                break;
            }
            let known: Vec<usize> = blocks.iter().map(|block| block.rows.len()).collect();
            for history in self.history_of(&ranges, scope.upto).await? {
                add_rows(blocks, history.key.block, history.rows);
            }
            for (block, known) in blocks.iter_mut().zip(known) {
                block.settle(scope, known);
            }
        }
        if blocks.iter().any(|block| !block.settled) {
            let base_blocks = self.base_blocks(plan).await?;
            for block in blocks.iter_mut().filter(|block| !block.settled && block.block < base_blocks) {
                block.absent = Absent::Zeros;
            }
        }
        Ok(())
    }

    /// The page of one gathered block.
    pub(crate) async fn page_of(
        &self,
        node: RelNode,
        plan: &ForkPlan,
        found: BlockRows,
    ) -> Result<Bytes, ReadError> {
        let key = Key::rel_block(node, plan.fork, found.block);
        let mut builds = self.start(node, plan, vec![found])?;
        self.run(&mut builds).await?;
        self.finish(builds)?.pop().ok_or(ReadError::LostBase { key, lsn: self.inner.lsn })
    }

    fn start(&self, node: RelNode, plan: &ForkPlan, blocks: Vec<BlockRows>) -> Result<Vec<Build>, ReadError> {
        let mut builds = Vec::with_capacity(blocks.len());
        for BlockRows { block, rows, absent, .. } in blocks {
            let key = Key::rel_block(node, plan.fork, block);
            builds.push(match plan.fork {
                Fork::Fsm => Build::whole(key, newest_image(key, &rows)?),
                _ => Build::new(key, self.inner.lsn, rows, absent, &self.inner.hints)?,
            });
        }
        Ok(builds)
    }

    fn finish(&self, builds: Vec<Build>) -> Result<Vec<Bytes>, ReadError> {
        let (lsn, checksums) = (self.inner.lsn, self.data_checksums());
        builds.into_iter().map(|build| build.done(lsn, checksums)).collect()
    }

    /// Redo of all pages, in as few batches as there are changes of settings inside one page's history: one, as a
    /// rule.
    async fn run(&self, builds: &mut [Build]) -> Result<(), ReadError> {
        loop {
            let (mut open, mut requests) = (Vec::new(), Vec::new());
            for build in builds.iter_mut() {
                if let Some(request) = build.next_request()? {
                    open.push(build);
                    requests.push(request);
                }
            }
            if requests.is_empty() {
                return Ok(());
            }
            let asked = requests.len();
            let answers = self.inner.timeline.redo().pool().await?.redo(requests).await;
            if answers.len() != asked {
                let problem = format!("{asked} pages were asked for and {} came back", answers.len());
                return Err(ReadError::Interrupted(problem));
            }
            for (build, answer) in open.into_iter().zip(answers) {
                build.took(answer.map_err(|source| self.redo_error(build.key(), source))?);
            }
        }
    }

    fn redo_error(&self, key: Key, source: RedoError) -> ReadError {
        match source {
            RedoError::LostBase { lsn, .. } => ReadError::LostBase { key, lsn },
            source => ReadError::Redo { key, lsn: self.inner.lsn, source },
        }
    }
}

impl BlockRows {
    /// Drops the rows of a scope (those from the `known`-th on) that are not visible, and notes what follows.
    fn settle(&mut self, scope: &Scope, known: usize) {
        if self.settled {
            return;
        }
        let mut rows = self.rows.split_off(known.min(self.rows.len()));
        match scope.block_floor(self.block).cut(&mut rows) {
            Verdict::Started => self.settled = true,
            Verdict::Ended(absent) => (self.settled, self.absent) = (true, absent),
            Verdict::GoesOn => {}
        }
        self.rows.append(&mut rows);
    }
}

/// Blocks of which nothing is known yet.
fn empty(from: u32, last: u32) -> Vec<BlockRows> {
    (from..=last)
        .map(|block| BlockRows { block, rows: Vec::new(), absent: Absent::Lost, settled: false })
        .collect()
}

/// Appends a scope's rows to those of their block.
fn add_rows(blocks: &mut [BlockRows], block: u32, mut rows: Vec<Row>) {
    let from = blocks.first().map_or(0, |first| first.block);
    let index = block.checked_sub(from).and_then(|index| usize::try_from(index).ok());
    if let Some(found) = index.and_then(|index| blocks.get_mut(index)).filter(|found| !found.settled) {
        found.rows.append(&mut rows);
    }
}

/// The blocks whose history goes on, as ranges of keys in the next scope.
fn open_ranges(blocks: &[BlockRows], node: RelNode, fork: Fork) -> Vec<KeyRange> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for block in blocks.iter().filter(|block| !block.settled).map(|block| block.block) {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(block) => *last = block,
            _ => ranges.push((block, block)),
        }
    }
    ranges.into_iter().map(|(first, last)| KeyRange::blocks(node, fork, first, last)).collect()
}
