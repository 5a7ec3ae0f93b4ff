//! Why a read or a restore target is refused, and what to do about it.

use crate::target::RestorePoint;
use zenith_layers::Key;
use zenith_manifest::BaseId;
use zenith_pgformat::{Fork, Lsn, Oid, RelNode, Tli};
use zenith_store::TimelineId;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The timeline holds no base image (or none in this manifest version).
    #[error(
        "timeline {timeline} has no base image yet, so nothing can be read: take one with `zenith_push base`"
    )]
    NoBase {
        /// The timeline.
        timeline: TimelineId,
    },
    /// Older than everything the timeline holds.
    #[error(
        "LSN {lsn} lies before {earliest}, the end of the oldest base image of timeline {timeline}: the oldest state that can be read is at {earliest}"
    )]
    BelowBase {
        /// What was asked for.
        lsn: Lsn,
        /// The oldest readable LSN.
        earliest: Lsn,
        /// The timeline.
        timeline: TimelineId,
    },
    /// Between two readable ranges.
    #[error(
        "LSN {lsn} lies in a gap of the archived WAL: timeline {timeline} can be read up to {before} and again from {after} on"
    )]
    InGap {
        /// What was asked for.
        lsn: Lsn,
        /// The last readable LSN before the gap.
        before: Lsn,
        /// The first readable LSN after it: the end of the base image that closes it.
        after: Lsn,
        /// The timeline.
        timeline: TimelineId,
    },
    /// Newer than what is archived (or sliced).
    #[error(
        "LSN {lsn} lies past {end}, the end of what timeline {timeline} holds: choose an LSN up to {end}, or archive and slice more WAL"
    )]
    PastEnd {
        /// What was asked for.
        lsn: Lsn,
        /// The last readable LSN.
        end: Lsn,
        /// The timeline.
        timeline: TimelineId,
    },
    /// A branch of a history that its parent has left since.
    #[error(
        "a branch at {lsn} on PostgreSQL's timeline {before} cannot be read: timeline {timeline}, which it was branched off \
         before its WAL was sliced, went on along PostgreSQL's timeline {after} below that LSN. Branch off anew"
    )]
    OtherHistory {
        /// The parent.
        timeline: TimelineId,
        /// The branch point.
        lsn: Lsn,
        /// PostgreSQL's timeline number there when the branch was made.
        before: Tli,
        /// The one that it has now.
        after: Tli,
    },
    /// The base image's end has not been met in the archived WAL.
    #[error(
        "base image {} of timeline {timeline} is not confirmed: the record that ends it, before {end}, has not been met in the archived WAL; archive the WAL up to {end} and run zenith_slicedice (or restore, which reads unsliced WAL too)",
        base.0
    )]
    Unconfirmed {
        /// The base image.
        base: BaseId,
        /// Where it ends.
        end: Lsn,
        /// The timeline.
        timeline: TimelineId,
    },
    /// No such database at that LSN.
    #[error("there is no database {db} in tablespace {spc} at LSN {lsn}")]
    NoSuchDatabase {
        /// Tablespace.
        spc: Oid,
        /// Database.
        db: Oid,
        /// Where it was looked for.
        lsn: Lsn,
    },
    /// No such relation at that LSN.
    #[error("relation {node} has no {} fork at LSN {lsn}", fork.name())]
    NoSuchRelation {
        /// The relation.
        node: RelNode,
        /// The fork.
        fork: Fork,
        /// Where it was looked for.
        lsn: Lsn,
    },
    /// The block lies past the fork's end.
    #[error("block {block} of {node} {} does not exist at LSN {lsn}: the fork has {blocks} blocks", fork.name())]
    NoSuchBlock {
        /// The relation.
        node: RelNode,
        /// The fork.
        fork: Fork,
        /// The block.
        block: u32,
        /// How many there are.
        blocks: u32,
        /// Where it was looked for.
        lsn: Lsn,
    },
    /// No such SLRU page at that LSN.
    #[error("{key} does not exist at LSN {lsn}")]
    NoSuchKey {
        /// The key.
        key: Key,
        /// Where it was looked for.
        lsn: Lsn,
    },
    /// The page's history has no beginning (I9): the store lost or never held what it builds on.
    #[error(
        "the history of {key} at LSN {lsn} has no beginning in the store, so the page cannot be built; restore to an LSN before it was damaged, or take a new base image with `zenith_push base`"
    )]
    LostBase {
        /// The page.
        key: Key,
        /// Where it was wanted.
        lsn: Lsn,
    },
    /// A value that does not read as what its key says (I9).
    #[error(
        "the value of {key} at LSN {lsn} is damaged: {problem}; take a new base image with `zenith_push base`"
    )]
    BadValue {
        /// The key.
        key: Key,
        /// The value's LSN.
        lsn: Lsn,
        /// What is wrong.
        problem: String,
    },
    /// A rebuilt page claims to be newer than the LSN it was built for (I9).
    #[error("{key}, built for LSN {lsn}, carries the LSN {page_lsn}, which is newer: the page is not served")]
    PageFromTheFuture {
        /// The page.
        key: Key,
        /// Its `pd_lsn`.
        page_lsn: Lsn,
        /// Where it was wanted.
        lsn: Lsn,
    },
    /// Redo of a page failed.
    #[error("{key} could not be rebuilt for LSN {lsn}: {source}")]
    Redo {
        /// The page.
        key: Key,
        /// Where it was wanted.
        lsn: Lsn,
        /// Why.
        #[source]
        source: zenith_redo::RedoError,
    },
    /// A request that holds more than one answer may.
    #[error("{asked} blocks were asked for at once; at most {limit} are served")]
    TooMany {
        /// How many were asked for.
        asked: u32,
        /// How many may be.
        limit: u32,
    },
    /// A raw WAL segment that is needed is not archived.
    #[error(
        "WAL segment {segment} is not in the archive of timeline {timeline}: archive it (zenith_push wal) or choose an earlier target"
    )]
    MissingSegment {
        /// The segment's file name.
        segment: String,
        /// The timeline.
        timeline: TimelineId,
    },
    /// No PostgreSQL timeline number is known for an LSN.
    #[error("no PostgreSQL timeline of {timeline} covers LSN {lsn}")]
    NoTli {
        /// The LSN.
        lsn: Lsn,
        /// The timeline.
        timeline: TimelineId,
    },
    /// Ancestors that never end.
    #[error(
        "timeline {timeline} has more than {limit} ancestors, or is its own: its identity object is damaged"
    )]
    TooManyAncestors {
        /// The timeline.
        timeline: TimelineId,
        /// How many are followed.
        limit: usize,
    },
    /// An identity that PostgreSQL could not have.
    #[error(
        "the identity of timeline {timeline} is damaged: {segment_bytes} bytes are no size of WAL segments"
    )]
    BadIdentity {
        /// The timeline.
        timeline: TimelineId,
        /// What it says.
        segment_bytes: u32,
    },
    /// The WAL before an LSN holds no whole record.
    #[error("the archived WAL holds no record that ends at or before {lsn}")]
    NoRecord {
        /// Where.
        lsn: Lsn,
    },
    /// A base image that the manifest does not name.
    #[error("the manifest of timeline {timeline} uses base image {} but does not describe it", base.0)]
    UnknownBase {
        /// The base image.
        base: BaseId,
        /// The timeline.
        timeline: TimelineId,
    },
    /// Raw WAL that does not decode.
    #[error("WAL of PostgreSQL timeline {tli} near {lsn}: {source}")]
    Wal {
        /// PostgreSQL's timeline number.
        tli: Tli,
        /// Where.
        lsn: Lsn,
        /// Why.
        #[source]
        source: zenith_pgformat::wal::WalError,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] zenith_store::StoreError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] zenith_manifest::ManifestError),
    /// A layer.
    #[error(transparent)]
    Layer(#[from] zenith_layers::LayerError),
    /// The raw archive.
    #[error(transparent)]
    Archive(#[from] zenith_ingest::archive::ArchiveError),
    /// The base image's object of small files.
    #[error(transparent)]
    Base(#[from] zenith_ingest::base::BaseError),
    /// Names and identities.
    #[error(transparent)]
    Name(#[from] zenith_manifest::NameError),
    /// Slicing the tail.
    #[error("the WAL that is not sliced yet cannot be read: {0}")]
    Tail(#[source] zenith_ingest::IngestError),
    /// The folder that it is sliced into takes no more.
    #[error(
        "the WAL that is not sliced yet has no place in {folder}: {reason}; make room there, choose another folder by \
         TMPDIR, or run zenith_slicedice first"
    )]
    TailFolder {
        /// Which folder.
        folder: String,
        /// The system's words.
        reason: String,
    },
    /// Layers sliced locally contradict the manifest.
    #[error("the WAL that is not sliced yet cannot be added: {0}")]
    TailRefused(#[source] zenith_manifest::Refusal),
    /// PostgreSQL's redo cannot be started.
    #[error("PostgreSQL's redo cannot be started: {0}")]
    RedoStart(#[source] zenith_redo::StartError),
    /// Work that ended before it was done.
    #[error("reading was interrupted: {0}")]
    Interrupted(String),
    /// The working folder.
    #[error("the working folder {folder} cannot be used: {source}")]
    WorkDir {
        /// Which.
        folder: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An error that another request for the same page met first.
    #[error("{0}")]
    Shared(std::sync::Arc<ReadError>),
}

impl ReadError {
    /// The same refusal of an LSN, told with the LSN that was asked for.
    pub(crate) fn of(mut self, asked: Lsn) -> ReadError {
        match &mut self {
            ReadError::BelowBase { lsn, .. }
            | ReadError::InGap { lsn, .. }
            | ReadError::PastEnd { lsn, .. } => *lsn = asked,
            _ => {}
        }
        self
    }
}

/// Why a restore target means no LSN.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// No archived time is that late.
    #[error(
        "nothing archived is as late as {}: the newest commit, abort, restore point or checkpoint is of {}",
        crate::time::display(*wanted),
        crate::time::display_or_none(*newest)
    )]
    TimePastEnd {
        /// What was asked for.
        wanted: i64,
        /// The newest time there is (`TimestampTz`).
        newest: Option<i64>,
    },
    /// The time lies before everything that can be restored.
    #[error(
        "the state just before {} lies before {earliest}, the oldest that can be restored: choose a later time",
        crate::time::display(*wanted)
    )]
    TimeBeforeBase {
        /// What was asked for.
        wanted: i64,
        /// The oldest readable LSN.
        earliest: Lsn,
    },
    /// No such restore point.
    #[error("there is no restore point \"{name}\"; {}", list(known))]
    NoSuchName {
        /// What was asked for.
        name: String,
        /// The newest ones that there are, bounded.
        known: Vec<RestorePoint>,
    },
    /// Several restore points bear the name.
    #[error("{} restore points are named \"{name}\": choose one with --lsn; {}", found.len(), list(found))]
    AmbiguousName {
        /// What was asked for.
        name: String,
        /// All of them, by LSN.
        found: Vec<RestorePoint>,
    },
    /// No such transaction.
    #[error("no commit or abort of transaction {xid} is archived{}", if *outside { " where it can be restored" } else { "" })]
    NoSuchXid {
        /// What was asked for.
        xid: u32,
        /// It is archived, but at an LSN that cannot be read.
        outside: bool,
    },
    /// Several transactions bore that number (it wraps around).
    #[error("transaction {xid} ended more than once ({}): choose one with --lsn", lsns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    AmbiguousXid {
        /// What was asked for.
        xid: u32,
        /// The ends of their records.
        lsns: Vec<Lsn>,
    },
    /// Reading failed, or the LSN cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

fn list(points: &[RestorePoint]) -> String {
    if points.is_empty() {
        return "no restore point is archived".to_owned();
    }
    let items: Vec<String> = points
        .iter()
        .map(|point| format!("\"{}\" at {} ({})", point.name, point.lsn, crate::time::display(point.time)))
        .collect();
    format!("archived: {}", items.join(", "))
}
