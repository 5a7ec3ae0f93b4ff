//! Redo of single pages: what real WAL did to real pages, through the pool of redo processes.

use super::Bench;
use crate::operation::{Operation, Round, Times, cpu_with};
use crate::page_history::{self, Nearness, PageHistory, caches, pool};
use anyhow::{Context, bail};
use zenith_layers::{KeyHistory, Value};
use zenith_pgformat::Fork;
use zenith_reader::RedoSource;
use zenith_redo::{Change, PageRequest, RedoPool};

/// Pages that are asked for at once, as a restore does.
const BATCH: usize = 256;
/// Pages of a round.
const PAGES: usize = 8192;
/// Of one kind: different pages, so that none is redone from a warm cache alone.
const DIFFERENT: usize = 512;
/// The long history.
const LONG: usize = 26 << 10;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Vec<Operation>> {
    let history = PageHistory::open(bench)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let one = pool(1)?;
    let kinds = runtime.block_on(async {
        let source = RedoSource::running(one.clone());
        let snapshot = history.end(Nearness::Here, caches(128 << 20, 0), source).await?;
        let mut kinds = Vec::new();
        for (name, table, limit, target) in [
            ("2 records (pgbench_accounts)", "pgbench_accounts", Limit::Records(2), 5),
            ("26 KB of records of wide rows", "wide", Limit::Bytes(LONG), 40),
            ("26 KB of records of TPC-B (pgbench_tellers)", "pgbench_tellers", Limit::Bytes(LONG), 40),
        ] {
            let node = history.table(table)?;
            let blocks = snapshot.rel_size(node, Fork::Main).await?.context("a table that exists")?;
            let mut requests = Vec::new();
            for from in (0..blocks).step_by(64) {
                let found = page_history::rows(&snapshot, node, from, 64.min(blocks - from)).await?;
                requests.extend(found.iter().filter_map(|history| request(history, limit)));
                if requests.len() >= DIFFERENT {
                    break;
                }
            }
            if requests.is_empty() {
                bail!("no page of {table} has such a history: more segments are needed");
            }
            kinds.push((name, requests, target));
        }
        anyhow::Ok(kinds)
    })?;
    let two = pool(2)?;
    let mut operations = Vec::new();
    for (name, requests, target) in &kinds {
        let records: usize = requests.iter().map(|request| request.changes.len()).sum();
        let note =
            format!("{} pages, {:.1} records each", requests.len(), records as f64 / requests.len() as f64);
        let measure = |batch: usize, pool: &RedoPool| {
            runtime.block_on(async { measure(bench, pool.clone(), requests, batch).await })
        };
        let line = |what: String, times, target: Option<u32>, note: &str| Operation {
            what,
            times,
            target,
            note: note.to_owned(),
        };
        operations.push(line(
            format!("redo, {name}, {BATCH} pages at once, 1 process"),
            measure(BATCH, &one)?,
            Some(*target),
            &note,
        ));
        operations.push(line(
            format!("redo, {name}, {BATCH} pages at once, 2 processes"),
            measure(BATCH, &two)?,
            None,
            "",
        ));
        operations.push(line(format!("redo, {name}, one page alone"), measure(1, &one)?, None, ""));
    }
    Ok(operations)
}

/// Where a history is cut.
#[derive(Clone, Copy)]
enum Limit {
    Records(usize),
    Bytes(usize),
}

/// The start of a page's history: what it begins with, and so many records; `None` where it is shorter.
fn request(history: &KeyHistory, limit: Limit) -> Option<PageRequest> {
    let mut rows = history.rows.iter().rev().peekable();
    let base = match &rows.peek()?.value {
        Value::Page(page) => Some(page.clone()),
        _ => None,
    };
    if base.is_some() {
        rows.next();
    }
    let mut changes = Vec::new();
    let mut bytes = 0;
    for row in rows {
        let change = match &row.value {
            Value::Record(raw) | Value::InitRecord(raw) => Change::record(row.lsn, raw.clone()),
            Value::Edit(bytes) => Change::edit(row.lsn, bytes.clone()),
            _ => return None,
        };
        bytes += change.bytes().len();
        changes.push(change);
        let enough = match limit {
            Limit::Records(records) => changes.len() >= records,
            Limit::Bytes(limit) => bytes >= limit,
        };
        if enough {
            let (node, block) = (history.key.node(), history.key.block);
            return Some(PageRequest {
                node,
                fork: Fork::Main,
                block,
                base,
                changes,
                hint_bits_logged: true,
            });
        }
    }
    None
}

async fn measure(
    bench: &Bench,
    pool: RedoPool,
    requests: &[PageRequest],
    batch: usize,
) -> anyhow::Result<Times> {
    let requests: Vec<PageRequest> = requests.iter().cycle().take(PAGES).cloned().collect();
    let mut times = Times::default();
    // The first round is not counted: processes start, memory is touched for the first time.
    for round in 0..=bench.repeats {
        let requests = requests.clone();
        let (task_pool, mut counted) = (pool.clone(), Round::begin(cpu_with(&pool.idle_process_ids())?));
        let task = tokio::spawn(async move {
            let mut requests = requests.into_iter();
            loop {
                let part: Vec<PageRequest> = requests.by_ref().take(batch).collect();
                if part.is_empty() {
                    return anyhow::Ok(counted);
                }
                let (done, begun) = (part.len(), crate::measure::now());
                let pages = task_pool.redo(part).await;
                counted.took(begun.elapsed(), done);
                pages.into_iter().collect::<Result<Vec<_>, _>>()?;
            }
        });
        let counted = task.await??;
        if round > 0 {
            times.end(counted, cpu_with(&pool.idle_process_ids())?);
        }
    }
    Ok(times)
}
