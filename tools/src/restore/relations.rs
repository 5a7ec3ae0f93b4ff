//! Relation files, written in parallel from batches of pages.

use super::layout::{Target, explain};
use super::source::{ForkSize, PageRange, Source};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::StreamExt;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, Page, RELSEG_SIZE, RelNode, page};

/// Blocks that are asked for at once: 1 MB.
const BATCH: u32 = 128;

/// Which forks are written, and as what.
#[derive(Debug)]
pub(crate) struct Plan {
    forks: Vec<ForkSize>,
    /// Relations with an init fork: unlogged ones, whose other forks are made from it.
    unlogged: BTreeSet<RelNode>,
}

impl Plan {
    /// Sorts out what exists: free-space maps are hints and are left to VACUUM; of an unlogged relation only the init
    /// fork is read, because a start after a clean shutdown does not reset it.
    pub(crate) fn new(relations: impl IntoIterator<Item = ForkSize>) -> Plan {
        let mut forks: Vec<ForkSize> = relations.into_iter().filter(|fork| fork.fork != Fork::Fsm).collect();
        let unlogged: BTreeSet<RelNode> =
            forks.iter().filter(|fork| fork.fork == Fork::Init).map(|fork| fork.node).collect();
        forks.retain(|fork| fork.fork == Fork::Init || !unlogged.contains(&fork.node));
        Plan { forks, unlogged }
    }

    /// Bytes to be read.
    pub(crate) fn bytes(&self) -> u64 {
        self.forks.iter().map(|fork| u64::from(fork.blocks) * BLCKSZ as u64).sum()
    }

    /// How many forks are read.
    pub(crate) fn forks(&self) -> usize {
        self.forks.len()
    }

    /// Takes away the forks whose pages can be fetched later: all but init forks, which PostgreSQL copies past its storage
    /// manager.
    pub(crate) fn take_fetched_later(&mut self) -> Vec<ForkSize> {
        let (written, later) =
            std::mem::take(&mut self.forks).into_iter().partition(|fork| fork.fork == Fork::Init);
        self.forks = written;
        later
    }

    /// The files that a range of a fork goes to: an init fork is also the main fork.
    fn files(&self, range: &PageRange) -> Vec<RelFile> {
        let segment = range.first / RELSEG_SIZE;
        let file = RelFile { node: range.node, fork: range.fork, segment };
        if range.fork == Fork::Init && self.unlogged.contains(&range.node) {
            vec![file, RelFile { fork: Fork::Main, ..file }]
        } else {
            vec![file]
        }
    }

    /// The work, in order: batches of ranges that stay inside one segment file each. Small forks share a batch; an
    /// empty fork is a range of no blocks.
    fn batches(&self) -> impl Iterator<Item = Vec<PageRange>> + '_ {
        let mut ranges = self.forks.iter().flat_map(ranges_of).peekable();
        std::iter::from_fn(move || {
            let mut batch = vec![ranges.next()?];
            let mut blocks = batch.iter().map(|range| range.count).sum::<u32>();
            while let Some(next) =
                ranges.next_if(|next| blocks + next.count <= BATCH && batch.len() < BATCH as usize)
            {
                blocks += next.count;
                batch.push(next);
            }
            Some(batch)
        })
    }
}

/// A fork's blocks in ranges of at most [`BATCH`], which divides a segment.
fn ranges_of(fork: &ForkSize) -> impl Iterator<Item = PageRange> + use<> {
    let ForkSize { node, fork, blocks } = *fork;
    let starts = (0..blocks.max(1)).step_by(BATCH as usize);
    starts.map(move |first| PageRange { node, fork, first, count: (blocks - first).min(BATCH) })
}

/// What every page is checked against before it is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageRules {
    /// The LSN of the restore: a page must not be newer.
    pub(crate) lsn: Lsn,
    /// Whether the cluster has data checksums.
    pub(crate) checksums: bool,
}

/// Reads and writes all forks, `parallel` batches at a time; `done` is told the bytes of each batch.
pub(crate) async fn write(
    source: &dyn Source,
    target: &Target,
    plan: &Plan,
    rules: PageRules,
    parallel: usize,
    done: &(dyn Fn(u64) + Send + Sync),
) -> Result<()> {
    let files = Arc::new(OpenFiles::new(target.clone(), plan));
    let failed = AtomicBool::new(false);
    let write_batch = async |ranges: Vec<PageRange>| {
        let wanted: Vec<PageRange> = ranges.iter().copied().filter(|range| range.count > 0).collect();
        let pages = if wanted.is_empty() { Vec::new() } else { source.pages(&wanted).await? };
        let bytes = pages.len() as u64 * BLCKSZ as u64;
        let work: Vec<(PageRange, Vec<RelFile>)> =
            ranges.into_iter().map(|range| (range, plan.files(&range))).collect();
        let files = Arc::clone(&files);
        tokio::task::spawn_blocking(move || files.write(&work, &pages, rules))
            .await
            .context("a writer of relation files ended")??;
        done(bytes);
        anyhow::Ok(())
    };
    let jobs = plan.batches().map(async |ranges| {
        if failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let outcome = write_batch(ranges).await;
        failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
        outcome
    });
    // Every batch is waited for, also after a failure: a writer that is still at work would put files back into a
    // directory that is being removed.
    let mut outcomes = futures::stream::iter(jobs).buffer_unordered(parallel.max(1));
    let mut all = Ok(());
    while let Some(outcome) = outcomes.next().await {
        all = all.and(outcome);
    }
    all
}

/// The files that are being written. Bounded: batches come in order, so only the files of batches in flight are open.
#[derive(Debug)]
struct OpenFiles {
    target: Target,
    /// Blocks of each fork, to know when a file is complete.
    blocks: HashMap<(RelNode, Fork), u32>,
    open: Mutex<HashMap<RelFile, Arc<OpenFile>>>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: String,
    missing: AtomicU64,
}

impl OpenFiles {
    fn new(target: Target, plan: &Plan) -> OpenFiles {
        let sizes = plan.forks.iter().flat_map(|fork| {
            let mut sizes = vec![((fork.node, fork.fork), fork.blocks)];
            if plan.unlogged.contains(&fork.node) {
                sizes.push(((fork.node, Fork::Main), fork.blocks));
            }
            sizes
        });
        OpenFiles { target, blocks: sizes.collect(), open: Mutex::default() }
    }

    /// Checks and writes the pages of a batch; hands on the files that are complete with it.
    fn write(&self, work: &[(PageRange, Vec<RelFile>)], pages: &[Bytes], rules: PageRules) -> Result<()> {
        let _entered = self.target.enter()?;
        let count: u64 = work.iter().map(|(range, _)| u64::from(range.count)).sum();
        ensure!(count == pages.len() as u64, "{count} pages were asked for, {} came", pages.len());
        let mut rest = pages;
        for (range, files) in work {
            let (pages, later) = rest.split_at(range.count as usize);
            rest = later;
            let mut bytes = Vec::with_capacity(pages.len() * BLCKSZ);
            for (page, block) in pages.iter().zip(range.first..) {
                check(page, range, block, rules)?;
                bytes.extend_from_slice(page);
            }
            for file in files {
                self.write_range(*file, range, &bytes)?;
            }
        }
        Ok(())
    }

    fn write_range(&self, file: RelFile, range: &PageRange, bytes: &[u8]) -> Result<()> {
        let open = self.open(file)?;
        let offset = u64::from(range.first - file.first_block()) * BLCKSZ as u64;
        let path = || self.target.path(&open.path);
        open.file.write_all_at(bytes, offset).map_err(|error| explain(error, &path()))?;
        self.target.begin_to_sync(&open.file, offset, bytes.len() as u64);
        let count = u64::from(range.count);
        let missing = open.missing.fetch_sub(count, Ordering::AcqRel) - count;
        if missing == 0 {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&file);
            let complete = open.file.try_clone().map_err(|error| explain(error, &path()))?;
            self.target.complete(complete, &open.path)?;
        }
        Ok(())
    }

    fn open(&self, file: RelFile) -> Result<Arc<OpenFile>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.get(&file) {
            return Ok(Arc::clone(open));
        }
        let path = file.path();
        let blocks = self.blocks.get(&(file.node, file.fork)).copied().unwrap_or_default();
        let missing = blocks.saturating_sub(file.first_block()).min(RELSEG_SIZE);
        let opened = OpenFile {
            file: self.target.create(&path, self.target.file_mode())?,
            path,
            missing: AtomicU64::new(u64::from(missing)),
        };
        let opened = Arc::new(opened);
        open.insert(file, Arc::clone(&opened));
        Ok(opened)
    }
}

/// A page that PostgreSQL would refuse must stop the restore, not the server that runs on it later.
fn check(bytes: &[u8], range: &PageRange, block: u32, rules: PageRules) -> Result<()> {
    let name = || format!("block {block} of relation {}, {} fork", range.node, range.fork.name());
    let page: &Page = bytes.try_into().with_context(|| format!("{}: {} bytes", name(), bytes.len()))?;
    page::verify(page, block, rules.checksums).with_context(name)?;
    if !page::is_new(page) && page::lsn(page) > rules.lsn {
        bail!("{} has LSN {}, which is after {}", name(), page::lsn(page), rules.lsn);
    }
    Ok(())
}

#[cfg(test)]
#[path = "relations_tests.rs"]
mod tests;
