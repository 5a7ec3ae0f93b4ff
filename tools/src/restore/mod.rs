//! Writing a complete stock data directory at an LSN, on a PostgreSQL timeline of its own.
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
mod relations;
mod slru;
pub(crate) mod small_files;
mod timeline;
mod wal_segment;

use anyhow::{Context, Result};
use bytes::Bytes;
use config::{Change, Host, Needs};
use layout::{DIRECTORIES, Owner, Target};
use relations::{PageRules, Plan};
use source::{Facts, Source};
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
use zenith_pgformat::{Lsn, Oid, Tli};

/// `SubscriptionRelationId` (catalog/pg_subscription.h), a shared and so a mapped catalog.
const PG_SUBSCRIPTION: Oid = 6100;

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
    /// Bytes of relations and SLRUs.
    pub bytes: u64,
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
    let facts = source.facts().await?;
    let tli = options.tli.unwrap_or(facts.tli.saturating_add(1));
    let timelines = Timelines::read(source, &facts, tli, &options.reason).await?;
    let (checkpoint, segments, control) = fabricate(source, &facts, tli, options.now).await?;
    let databases = source.databases().await?;
    let shared = source.relations(GLOBAL_TABLESPACE, 0).await?;
    let shared_sizes = shared.iter().filter(|fork| fork.fork == zenith_pgformat::Fork::Main);
    let shared_sizes = shared_sizes.map(|fork| (fork.node.rel, fork.blocks)).collect();
    let mut relations = shared;
    for (spc, db) in &databases {
        relations.extend(source.relations(*spc, *db).await?);
    }
    let tablespaces = tablespaces::place(source.tablespaces().await?, &options.tablespaces, root)?;
    let files = small.into_iter().filter(|(path, _)| small_files::is_kept(path)).collect();
    let plan = Plan::new(relations);
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
        shared_sizes,
    })
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
    let shared_map = small_files::write_database(source, target, GLOBAL_TABLESPACE, 0)
        .await?
        .context("global/pg_filenode.map is not in the store: the base image is damaged")?;
    for (spc, db) in &prepared.databases {
        small_files::write_database(source, target, *spc, *db).await?;
    }
    write_relations(source, options, target, &prepared, progress).await?;
    let mut bytes = prepared.plan.bytes();
    for slru in slru::wanted(facts) {
        bytes += slru::write(source, target, facts, slru).await?;
    }
    let two_phase = small_files::write_two_phase(source, target, facts).await?;
    let needs = Needs {
        parameters: facts.parameters,
        prepared: two_phase,
        origins: small_files::write_origins(source, target).await?,
        subscriptions: may_have_subscriptions(&shared_map, &prepared.shared_sizes),
        archive_command: options.archive_command.clone(),
    };
    let changes = config::rewrite(&mut prepared.files, &needs, options.host.as_ref(), target.file_mode())?;
    small_files::write_kept(target, &prepared.files)?;
    prepared.timelines.write(target)?;
    write_wal(target, &prepared)?;
    target.write("global/pg_control", &prepared.control)?;
    Ok(report(&prepared, bytes, two_phase, changes))
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
        forks: prepared.plan.forks(),
        bytes,
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
