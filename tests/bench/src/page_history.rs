//! A history that single pages are read from: pgbench's tables and two more, sliced in steps, so that a page may have rows in
//! several layers.

use crate::data::Primary;
use crate::measure::time;
use crate::rows::{Bench, base};
use crate::stores::{Place, Reached};
use anyhow::{Context, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use zenith_layers::{CacheOptions, KeyHistory, KeyRange, ReadMode};
use zenith_pgformat::{Fork, Lsn, RelNode};
use zenith_reader::{ReaderCaches, ReaderOptions, RedoSource, Snapshot, Timeline, TimelineRef};
use zenith_redo::{RedoOptions, RedoPool};
use zenith_store::{Store, StoreSettings};
use zenith_testkit::faults::{Fault, FaultStore, Rule};

/// How often the slicer runs: at the end a page of `deep` has rows in as many delta layers.
pub(crate) const STEPS: usize = 8;

/// Rows of about 1 KB that do not compress, written again and again into the same pages between two checkpoints. The first row of
/// a page stays, because a page that was empty begins a new history.
const WIDE: &str = "
    CREATE TABLE wide (id int, filler text) WITH (autovacuum_enabled = off);
    ALTER TABLE wide ALTER filler SET STORAGE PLAIN;";
const WIDE_AGAIN: &str = "
    INSERT INTO wide SELECT id, (SELECT string_agg(md5(n || '/' || id || random()), '') FROM generate_series(1, 30) AS n)
        FROM generate_series(1, 2000) AS id;
    DELETE FROM wide WHERE (ctid::text::point)[1] > 1;
    VACUUM (TRUNCATE OFF) wide;";
/// Every step changes every page.
const DEEP: &str = "
    CREATE TABLE deep (id int, n int) WITH (fillfactor = 50, autovacuum_enabled = off);
    INSERT INTO deep SELECT id, 0 FROM generate_series(0, 19999) AS id;";

/// The tables whose pages are read.
pub(crate) const TABLES: [&str; 4] = ["pgbench_accounts", "pgbench_tellers", "wide", "deep"];

/// A timeline in a folder.
pub(crate) struct PageHistory {
    folder: PathBuf,
    _temporary: Option<TempDir>,
    tables: Vec<(String, RelNode)>,
}

impl PageHistory {
    /// The one that was kept, or a new one.
    pub(crate) fn open(bench: &Bench) -> anyhow::Result<PageHistory> {
        let (folder, temporary) = match &bench.history {
            Some(kept) if kept.join("tables").exists() => (kept.clone(), None),
            kept => {
                let made = make(bench)?;
                match kept {
                    Some(kept) => {
                        std::fs::rename(made.keep(), kept).with_context(|| format!("keep it in {kept:?}"))?;
                        (kept.clone(), None)
                    }
                    None => (made.path().to_owned(), Some(made)),
                }
            }
        };
        let tables = read_tables(&folder.join("tables"))?;
        Ok(PageHistory { folder, _temporary: temporary, tables })
    }

    /// The main fork of one of [`TABLES`].
    pub(crate) fn table(&self, name: &str) -> anyhow::Result<RelNode> {
        let found = self.tables.iter().find(|(table, _)| table == name);
        found
            .map(|(_, node)| *node)
            .with_context(|| format!("the kept history has no table {name}: remove it"))
    }

    /// Opens the timeline as a new process would.
    pub(crate) async fn timeline(
        &self,
        place: Nearness,
        caches: ReaderCaches,
        redo: RedoSource,
    ) -> anyhow::Result<Timeline> {
        let url = format!("file://{}", self.folder.display());
        let store = Store::open(&url, &StoreSettings::default())?;
        let options = ReaderOptions { caches, redo, ..ReaderOptions::new(std::env::temp_dir()) };
        let main = TimelineRef::Name("main".to_owned());
        if place == Nearness::Here {
            return Ok(Timeline::open(&store, "main", &main, options).await?);
        }
        let distant = store.wrapped(|objects| {
            let distant = FaultStore::new(objects, Arc::clone(&options.env.clock), 0);
            distant.faults().add(Rule::new(Fault::Latency(LATENCY)));
            distant
        });
        Ok(Timeline::open(&distant, "main", &main, options).await?)
    }

    /// Its end.
    pub(crate) async fn end(
        &self,
        place: Nearness,
        caches: ReaderCaches,
        redo: RedoSource,
    ) -> anyhow::Result<Snapshot> {
        let timeline = self.timeline(place, caches, redo).await?;
        Ok(timeline.snapshot(timeline.end()?).await?)
    }
}

/// How far the folder is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Nearness {
    /// As it is.
    Here,
    /// Every request takes a moment more, so that those that are made at once also run at once: waves can be counted.
    Distant,
}

/// What a request to a distant folder takes.
const LATENCY: Duration = Duration::from_millis(3);

/// Caches of these bounds, and of the default ones otherwise.
pub(crate) fn caches(block_bytes: u64, page_bytes: u64) -> ReaderCaches {
    ReaderCaches::new(CacheOptions { block_bytes, ..CacheOptions::default() }, page_bytes)
}

/// A pool of so many processes.
pub(crate) fn pool(workers: usize) -> anyhow::Result<RedoPool> {
    Ok(RedoPool::start(&RedoOptions { workers: Some(workers), ..RedoOptions::default() })?)
}

/// All rows of some blocks, as they lie in the layers.
pub(crate) async fn rows(
    snapshot: &Snapshot,
    node: RelNode,
    from: u32,
    count: u32,
) -> anyhow::Result<Vec<KeyHistory>> {
    let range = [KeyRange::blocks(node, Fork::Main, from, from + count - 1)];
    Ok(snapshot.timeline().layers().history(&range, snapshot.lsn(), ReadMode::Serve).await?)
}

/// Up to where each step was sliced, beginning with what the base image serves from.
pub(crate) fn steps(timeline: &Timeline) -> Vec<Lsn> {
    let ends: BTreeSet<Lsn> = timeline.entries().iter().map(|entry| entry.lsn_to).collect();
    let first = timeline.ranges().first().map(|range| range.from).unwrap_or_default();
    ends.into_iter().filter(|end| *end >= first).collect()
}

fn make(bench: &Bench) -> anyhow::Result<TempDir> {
    let primary = Primary::new(bench.scale())?;
    let server = &primary.server;
    server.script("postgres", &format!("{WIDE}{DEEP}"));
    let store = bench.stores.empty(Place::Folder)?;
    time(&mut base::push(&store, &primary))?;
    server.script("postgres", &WIDE_AGAIN.repeat(6));
    let mut pushed = BTreeSet::new();
    let mut slice = || {
        primary.switch()?;
        let new: Vec<PathBuf> =
            primary.archived()?.into_iter().filter(|file| pushed.insert(file.clone())).collect();
        store.push_wal(&new)?;
        time(&mut store.zenith("zenith_slicedice"))
    };
    for step in 0..STEPS {
        primary.load((bench.segments.unwrap_or(64) / STEPS).max(1))?;
        server.sql(&format!("UPDATE deep SET n = n + 1 WHERE id % {STEPS} = {step}"));
        slice()?;
    }
    let mut tables = String::new();
    for table in TABLES {
        let node = server.sql(&format!("SELECT pg_relation_filenode('{table}')"));
        let database = server.sql("SELECT oid FROM pg_database WHERE datname = 'postgres'");
        tables += &format!("{table} 1663 {database} {node}\n");
    }
    let Reached::Folder(folder) = store else { bail!("a folder was asked for") };
    std::fs::write(folder.path().join("tables"), tables)?;
    Ok(folder)
}

/// Lines of name, tablespace, database, relation.
fn read_tables(path: &Path) -> anyhow::Result<Vec<(String, RelNode)>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let table = |line: &str| {
        let mut words = line.split(' ');
        let name = words.next()?.to_owned();
        let mut number = || words.next()?.parse().ok();
        Some((name, RelNode { spc: number()?, db: number()?, rel: number()? }))
    };
    text.lines().map(|line| table(line).with_context(|| format!("{}: {line}", path.display()))).collect()
}
