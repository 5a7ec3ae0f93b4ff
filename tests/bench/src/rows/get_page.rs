//! Reading single pages of a folder store, in every state of the caches, and what a cold page costs in requests.

use super::Bench;
use crate::measure::now;
use crate::operation::{Operation, Round, Times, cpu_with};
use crate::page_history::{self, Nearness, PageHistory, caches, pool};
use anyhow::Context;
use std::sync::Arc;
use zenith_pgformat::{Fork, RelNode};
use zenith_reader::{ReaderCaches, RedoSource, Snapshot};
use zenith_redo::RedoPool;
use zenith_store::CountsSnapshot;

/// Different pages of a kind.
const PAGES: usize = 256;
/// Reads of cached pages in a round.
const CACHED_READS: usize = 65_536;
/// Reads of pages that are not.
const READS: usize = 2048;
/// Pages whose requests are counted.
const COUNTED: usize = 32;
/// Processes that begin with nothing, in a round.
const PROCESSES: usize = 20;
/// Bytes of a cache that is large enough for everything here.
const AMPLE: u64 = 256 << 20;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Vec<Operation>> {
    let history = Arc::new(PageHistory::open(bench)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let runs = Runs { rounds: bench.repeats, history, pool: pool(1)? };
    // On a thread of the runtime, where a server reads, and not on the one that waits for it.
    runtime.block_on(async { tokio::spawn(async move { runs.all().await }).await? })
}

struct Runs {
    rounds: usize,
    history: Arc<PageHistory>,
    pool: RedoPool,
}

impl Runs {
    async fn all(&self) -> anyhow::Result<Vec<Operation>> {
        let snapshot = self.history.end(Nearness::Here, caches(AMPLE, 0), self.redo()).await?;
        let accounts = self.history.table("pgbench_accounts")?;
        let (plain, changed) = kinds(&snapshot, accounts).await?;
        let mut operations = Vec::new();
        operations.push(Operation {
            what: "get_page, page cached".to_owned(),
            times: self.read(caches(AMPLE, AMPLE), accounts, &changed, CACHED_READS).await?,
            target: Some(2),
            note: String::new(),
        });
        for (kind, blocks) in [("an image alone", &plain), ("an image and records", &changed)] {
            for (state, block_bytes, target) in
                [("layer blocks cached", AMPLE, 50), ("layer indexes cached only", 0, 500)]
            {
                let times = self.read(caches(block_bytes, 0), accounts, blocks, READS).await?;
                let distant =
                    self.history.end(Nearness::Distant, caches(block_bytes, 0), self.redo()).await?;
                operations.push(Operation {
                    what: format!("get_page, {state}, {kind}"),
                    times,
                    target: Some(target),
                    note: cost(&distant, accounts, blocks).await?,
                });
            }
        }
        operations.extend(self.by_layers().await?);
        operations.push(self.begun_with_nothing(accounts, &changed).await?);
        Ok(operations)
    }

    fn redo(&self) -> RedoSource {
        RedoSource::running(self.pool.clone())
    }

    /// Reads these blocks again and again; the first time round is not counted.
    async fn read(
        &self,
        caches: ReaderCaches,
        node: RelNode,
        blocks: &[u32],
        reads: usize,
    ) -> anyhow::Result<Times> {
        let snapshot = self.history.end(Nearness::Here, caches, self.redo()).await?;
        self.read_at(&snapshot, node, blocks, reads).await
    }

    async fn read_at(
        &self,
        snapshot: &Snapshot,
        node: RelNode,
        blocks: &[u32],
        reads: usize,
    ) -> anyhow::Result<Times> {
        for block in blocks {
            snapshot.page(node, Fork::Main, *block).await?;
        }
        let mut times = Times::default();
        for _ in 0..self.rounds {
            let mut round = Round::begin(self.cpu()?);
            for block in blocks.iter().cycle().take(reads) {
                let begun = now();
                snapshot.page(node, Fork::Main, *block).await?;
                round.took(begun.elapsed(), 1);
            }
            times.end(round, self.cpu()?);
        }
        Ok(times)
    }

    /// A page that every step of slicing changed, after each of them, with nothing but the layers' indexes cached.
    async fn by_layers(&self) -> anyhow::Result<Vec<Operation>> {
        let node = self.history.table("deep")?;
        let timeline = self.history.timeline(Nearness::Here, caches(0, 0), self.redo()).await?;
        let distant = self.history.timeline(Nearness::Distant, caches(0, 0), self.redo()).await?;
        let blocks: Vec<u32> = (0..32).collect();
        let mut operations: Vec<Operation> = Vec::new();
        for lsn in page_history::steps(&timeline) {
            let snapshot = timeline.snapshot(lsn).await?;
            let layers = snapshot.explain(node, Fork::Main, 1).await?.layers.len().saturating_sub(1);
            let what = format!("get_page, layer indexes cached only, {layers} delta layers since the image");
            if operations.iter().any(|operation| operation.what == what) {
                continue;
            }
            let times = self.read_at(&snapshot, node, &blocks, 256).await?;
            let note = cost(&distant.snapshot(lsn).await?, node, &blocks).await?;
            operations.push(Operation { what, times, target: None, note });
        }
        Ok(operations)
    }

    /// From an opened store to the page, as a process that begins does, but for starting redo.
    async fn begun_with_nothing(&self, node: RelNode, blocks: &[u32]) -> anyhow::Result<Operation> {
        let mut times = Times::default();
        for _ in 0..self.rounds {
            let mut round = Round::begin(self.cpu()?);
            for block in blocks.iter().take(PROCESSES) {
                let begun = now();
                let snapshot = self.history.end(Nearness::Here, caches(AMPLE, AMPLE), self.redo()).await?;
                snapshot.page(node, Fork::Main, *block).await?;
                round.took(begun.elapsed(), 1);
            }
            times.end(round, self.cpu()?);
        }
        let snapshot = self.history.end(Nearness::Distant, caches(AMPLE, AMPLE), self.redo()).await?;
        let opened = snapshot.timeline().counts().snapshot();
        if let Some(block) = blocks.first() {
            snapshot.page(node, Fork::Main, *block).await?;
        }
        let all = snapshot.timeline().counts().snapshot();
        let note = format!("{}; of them for the page: {}", spent(&all, 1), spent(&all.since(&opened), 1));
        Ok(Operation {
            what: "get_page, nothing cached, timeline not open".to_owned(),
            times,
            target: None,
            note,
        })
    }

    fn cpu(&self) -> anyhow::Result<std::time::Duration> {
        cpu_with(&self.pool.idle_process_ids())
    }
}

/// Blocks that an image alone gives, and blocks that records changed since.
async fn kinds(snapshot: &Snapshot, node: RelNode) -> anyhow::Result<(Vec<u32>, Vec<u32>)> {
    let size = snapshot.rel_size(node, Fork::Main).await?.context("a table that exists")?;
    let (mut plain, mut changed) = (Vec::new(), Vec::new());
    // A large prime number, so that they are spread over the whole table.
    for block in (0..size).map(|n| (u64::from(n) * 2_147_483_647 % u64::from(size)) as u32).take(PAGES * 8) {
        let kind = match snapshot.explain(node, Fork::Main, block).await?.rows.len() {
            1 => &mut plain,
            _ => &mut changed,
        };
        if kind.len() < PAGES {
            kind.push(block);
        }
        if plain.len() + changed.len() == 2 * PAGES {
            break;
        }
    }
    Ok((plain, changed))
}

/// What these pages cost in requests, one after the other, the layers' indexes cached.
async fn cost(snapshot: &Snapshot, node: RelNode, blocks: &[u32]) -> anyhow::Result<String> {
    let blocks = blocks.get(..COUNTED.min(blocks.len())).unwrap_or_default();
    for block in blocks {
        snapshot.page(node, Fork::Main, *block).await?;
    }
    let before = snapshot.timeline().counts().snapshot();
    for block in blocks {
        snapshot.page(node, Fork::Main, *block).await?;
    }
    Ok(spent(&snapshot.timeline().counts().snapshot().since(&before), blocks.len()))
}

fn spent(spent: &CountsSnapshot, pages: usize) -> String {
    let each = |number: u64| number as f64 / pages.max(1) as f64;
    let (waves, requests) = (each(spent.waves), each(spent.requests()));
    format!("{waves:.2} waves, {requests:.2} requests, {:.1} KB", each(spent.bytes_got) / 1024.0)
}
