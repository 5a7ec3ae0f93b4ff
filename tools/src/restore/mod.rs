//! Writing a stock data directory at an LSN, on a PostgreSQL timeline of its own: complete, or lazily, with the pages of
//! relations to come when they are touched.
//!
//! Every page is written as it was at the LSN, so the server that starts here has nothing to replay: `pg_control` says
//! that it was shut down cleanly, at a checkpoint that is made up for the occasion and that begins the new timeline.
//! Either everything is written and synced, or nothing stays behind.

pub mod config;
pub mod layout;
pub mod snapshot;
pub mod source;
pub mod tablespaces;

mod control;
pub mod lazy;
mod relations;
mod slru;
pub(crate) mod small_files;
mod timeline;
mod wal_segment;

use anyhow::{Context, Result};
use bytes::Bytes;
use config::{Change, Host, Needs};
use futures::{StreamExt, TryStreamExt};
use layout::{DIRECTORIES, Owner, Target};
use lazy::Lazy;
use relations::{PageRules, Plan};
use source::{Facts, ForkSize, Source};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tablespaces::{Placed, TablespaceMapping};
use timeline::Timelines;
use wal_segment::{Fork, Segment};
use zenith_ingest::base::SmallFile;
use zenith_pgformat::rel::GLOBAL_TABLESPACE;
use zenith_pgformat::relmap::RelMap;
use zenith_pgformat::wal_name::WalFile;
use zenith_pgformat::{BLCKSZ, Lsn, Oid, Tli};

/// `SubscriptionRelationId` (catalog/pg_subscription.h), a shared and so a mapped catalog.
const PG_SUBSCRIPTION: Oid = 6100;
/// Databases whose relations are listed at the same time.
const LISTED_PARALLEL: usize = 4;

/// How a directory is written.
#[derive(Clone)]
pub struct Options {
    /// The data directory to be made.
    pub target: PathBuf,
    /// `-T OLD=NEW`.
    pub tablespaces: Vec<TablespaceMapping>,
    /// To whom the files go; `None` leaves them to this process's user.
    pub owner: Option<Owner>,
    /// Whether files and directories are synced. Only tests can do without.
    pub sync: bool,
    /// How many batches of pages are read and written at a time; each takes about 2 MB of memory.
    pub parallel: usize,
    /// The new timeline; `None` takes the parent's plus one.
    pub tli: Option<Tli>,
    /// The reason in the new timeline's history file.
    pub reason: String,
    /// The new server's own `archive_command`, if it has a timeline to archive to.
    pub archive_command: Option<String>,
    /// The machine that the server will run on.
    pub host: Arc<dyn Host>,
    /// The time of the fabricated checkpoint, in seconds since 1970-01-01 UTC.
    pub now: i64,
    /// Leaves the pages of relations to be fetched when they are touched.
    pub lazy: Option<Lazy>,
}

/// How far a restore is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Bytes of relations written.
    pub done: u64,
    /// Bytes of relations to be written.
    pub total: u64,
}

/// What was written.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Report {
    /// The state's LSN.
    pub lsn: Lsn,
    /// Where the fabricated checkpoint stands.
    pub checkpoint: Lsn,
    /// The new timeline.
    pub tli: Tli,
    /// The timeline that it left.
    pub parent_tli: Tli,
    /// Forks of relations.
    pub forks: usize,
    /// Bytes of relations and SLRUs that were written.
    pub bytes: u64,
    /// Bytes of relations that are to be fetched when they are touched.
    pub later: u64,
    /// The pin in the store that keeps them.
    pub pin: Option<uuid::Uuid>,
    /// Prepared transactions that wait for their end.
    pub prepared: usize,
    /// Tablespaces: number and new place.
    pub tablespaces: Vec<(Oid, PathBuf)>,
    /// What differs in the configuration.
    pub changes: Vec<Change>,
}

/// Everything that is known before the first byte is written.
struct Prepared {
    facts: Facts,
    tli: Tli,
    timelines: Timelines,
    checkpoint: Lsn,
    segments: Vec<Segment>,
    control: Bytes,
    files: BTreeMap<String, SmallFile>,
    tablespaces: Vec<Placed>,
    databases: Vec<(Oid, Oid)>,
    plan: Plan,
    later: Vec<ForkSize>,
    shared_sizes: BTreeMap<Oid, u32>,
}

/// Writes the directory.
///
/// # Errors
/// A target that is not empty, a source that contradicts itself, a disk that is full: nothing stays behind then,
/// also when the future is dropped.
pub async fn write_directory(
    source: &dyn Source,
    options: &Options,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Report> {
    let root = std::path::absolute(&options.target)
        .with_context(|| format!("target directory {}", options.target.display()))?;
    let small = source.small_files().await?;
    let target = Target::new(&root, small_files::group_access(&small), options.owner, options.sync);
    let mut undo = target.undo();
    target.claim(&root, "target directory", &mut undo)?;
    let prepared = prepare(source, options, small, &root).await?;
    for directory in DIRECTORIES {
        target.make_directory(directory)?;
    }
    tablespaces::make(&target, &prepared.tablespaces, &mut undo)?;
    let report = fill(source, options, &target, prepared, progress).await?;
    target.sync_directories()?;
    undo.keep();
    Ok(report)
}

/// Reads what is small and decides everything that can be decided without writing.
async fn prepare(
    source: &dyn Source,
    options: &Options,
    small: BTreeMap<String, SmallFile>,
    root: &std::path::Path,
) -> Result<Prepared> {
    // All at once: a store that is far away answers many questions together as fast as one.
    let beginning = async {
        let facts = source.facts().await?;
        let tli = options.tli.unwrap_or(facts.tli.saturating_add(1));
        let timelines = Timelines::read(source, &facts, tli, &options.reason);
        let (timelines, fabricated) = futures::join!(timelines, fabricate(source, &facts, tli, options.now));
        anyhow::Ok((tli, timelines?, fabricated?, facts))
    };
    let (beginning, listed, tablespaces) =
        futures::join!(beginning, list_relations(source), source.tablespaces());
    let (tli, timelines, (checkpoint, segments, control), facts) = beginning?;
    let (databases, relations) = listed?;
    let shared = relations.iter().filter(|fork| fork.node.spc == GLOBAL_TABLESPACE);
    let shared = shared.filter(|fork| fork.fork == zenith_pgformat::Fork::Main);
    let shared_sizes = shared.map(|fork| (fork.node.rel, fork.blocks)).collect();
    let tablespaces = tablespaces::place(tablespaces?, &options.tablespaces, root)?;
    let files = small.into_iter().filter(|(path, _)| small_files::is_kept(path)).collect();
    let mut plan = Plan::new(relations);
    let later = if options.lazy.is_some() { plan.take_fetched_later() } else { Vec::new() };
    Ok(Prepared {
        facts,
        tli,
        timelines,
        checkpoint,
        segments,
        control,
        files,
        tablespaces,
        databases,
        plan,
        later,
        shared_sizes,
    })
}

/// The databases, and the forks of all relations, the shared ones first.
async fn list_relations(source: &dyn Source) -> Result<(Vec<(Oid, Oid)>, Vec<ForkSize>)> {
    let databases = source.databases().await?;
    let places: Vec<(Oid, Oid)> = [(GLOBAL_TABLESPACE, 0)].into_iter().chain(databases.clone()).collect();
    let listed = places.into_iter().map(async |(spc, db)| source.relations(spc, db).await);
    let listed: Vec<Vec<ForkSize>> =
        futures::stream::iter(listed).buffered(LISTED_PARALLEL).try_collect().await?;
    Ok((databases, listed.into_iter().flatten().collect()))
}

/// The checkpoint's position, its record in its segments, and the control file that points to it.
async fn fabricate(
    source: &dyn Source,
    facts: &Facts,
    tli: Tli,
    now: i64,
) -> Result<(Lsn, Vec<Segment>, Bytes)> {
    let fork = Fork {
        lsn: facts.lsn,
        last_record: facts.last_record,
        tli,
        system_identifier: facts.control.system_identifier,
        segment_size: facts.control.wal_segment_size,
    };
    let at = fork.record_position()?;
    let checkpoint = control::checkpoint(facts, at, tli, now)?;
    let segments = fork.segments(&source.segment_head().await?, &checkpoint)?;
    let control = control::control_file(facts, checkpoint)?.encode();
    Ok((at, segments, Bytes::from(control)))
}

/// Writes all contents. pg_control comes last: without it no server starts.
async fn fill(
    source: &dyn Source,
    options: &Options,
    target: &Target,
    mut prepared: Prepared,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Report> {
    let facts = &prepared.facts;
    // Relations are written into the directories of their databases.
    for (spc, db) in [(GLOBAL_TABLESPACE, 0)].iter().chain(&prepared.databases) {
        target.make_directory(&small_files::database_directory(*spc, *db))?;
    }
    // All of it is waited for, also after a failure: nothing may be written when the directory is being removed.
    let (relations, shared_map, slrus, two_phase, origins) = futures::join!(
        write_relations(source, options, target, &prepared, progress),
        write_databases(source, target, &prepared.databases),
        write_slrus(source, target, facts),
        small_files::write_two_phase(source, target, facts),
        small_files::write_origins(source, target)
    );
    relations?;
    let (shared_map, two_phase) = (shared_map?, two_phase?);
    let bytes = prepared.plan.bytes() + slrus?;
    let needs = Needs {
        parameters: facts.parameters,
        prepared: two_phase,
        origins: origins?,
        subscriptions: may_have_subscriptions(&shared_map, &prepared.shared_sizes),
        archive_command: options.archive_command.clone(),
        lazy: options.lazy.as_ref().map(|lazy| lazy.needs(facts)),
    };
    let changes = config::rewrite(&mut prepared.files, &needs, options.host.as_ref(), target.file_mode())?;
    small_files::write_kept(target, &prepared.files)?;
    prepared.timelines.write(target)?;
    write_wal(target, &prepared)?;
    if let Some(lazy) = &options.lazy {
        lazy.write(target, facts, &prepared.later)?;
    }
    target.sync_files()?;
    target.write("global/pg_control", &prepared.control)?;
    target.sync_files()?;
    Ok(Report {
        pin: options.lazy.as_ref().and_then(|lazy| lazy.pin),
        ..report(&prepared, bytes, two_phase, changes)
    })
}

/// Writes the databases' relation maps. Returns the shared one.
async fn write_databases(source: &dyn Source, target: &Target, databases: &[(Oid, Oid)]) -> Result<RelMap> {
    let shared = small_files::write_database(source, target, GLOBAL_TABLESPACE, 0)
        .await?
        .context("global/pg_filenode.map is not in the store: the base image is damaged")?;
    for (spc, db) in databases {
        small_files::write_database(source, target, *spc, *db).await?;
    }
    Ok(shared)
}

/// Writes the SLRUs. Returns the bytes written.
async fn write_slrus(source: &dyn Source, target: &Target, facts: &Facts) -> Result<u64> {
    let written = slru::wanted(facts).map(|slru| slru::write(source, target, facts, slru));
    let written = futures::future::try_join_all(written).await?;
    Ok(written.into_iter().sum())
}

/// The segments that the fabricated checkpoint lies in, in their full length, as PostgreSQL does: a full disk is noticed here
/// and not at a commit. One that it fills is ready to be archived: the server goes on in the next one and marks only what it
/// fills itself.
fn write_wal(target: &Target, prepared: &Prepared) -> Result<()> {
    let mut segments = prepared.segments.iter().peekable();
    while let Some(segment) = segments.next() {
        let file = WalFile::Segment { tli: prepared.tli, segment: segment.number };
        let name = file.name(prepared.facts.control.wal_segment_size);
        target.write(&format!("pg_wal/{name}"), &segment.bytes)?;
        if segments.peek().is_some() {
            target.write(&format!("pg_wal/archive_status/{name}.ready"), b"")?;
        }
    }
    Ok(())
}

fn report(prepared: &Prepared, bytes: u64, two_phase: usize, changes: Vec<Change>) -> Report {
    let places = prepared.tablespaces.iter();
    Report {
        lsn: prepared.facts.lsn,
        checkpoint: prepared.checkpoint,
        tli: prepared.tli,
        parent_tli: prepared.facts.tli,
        forks: prepared.plan.forks() + prepared.later.len(),
        bytes,
        later: prepared.later.iter().map(|fork| u64::from(fork.blocks) * BLCKSZ as u64).sum(),
        pin: None,
        prepared: two_phase,
        tablespaces: places.filter_map(|placed| Some((placed.oid, placed.new.clone()?))).collect(),
        changes,
    }
}

async fn write_relations(
    source: &dyn Source,
    options: &Options,
    target: &Target,
    prepared: &Prepared,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<()> {
    let total = prepared.plan.bytes();
    let written = AtomicU64::new(0);
    let done = |bytes| {
        let done = written.fetch_add(bytes, Ordering::Relaxed) + bytes;
        progress(Progress { done, total });
    };
    let rules = PageRules { lsn: prepared.facts.lsn, checksums: prepared.facts.control.has_checksums() };
    relations::write(source, target, &prepared.plan, rules, options.parallel, &done).await
}

/// Whether pg_subscription has ever had a row. Looking into its rows is not worth it: a setting is turned off and
/// listed, nothing is lost.
fn may_have_subscriptions(shared_map: &RelMap, sizes: &BTreeMap<Oid, u32>) -> bool {
    let file = shared_map.file_of(PG_SUBSCRIPTION);
    file.and_then(|file| sizes.get(&file)).is_some_and(|blocks| *blocks > 0)
}

#[cfg(test)]
mod tests;
