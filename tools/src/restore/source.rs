//! What a data directory is written from: a cluster's whole state at one LSN.

use anyhow::Result;
use bytes::Bytes;
use std::collections::BTreeMap;
use zenith_ingest::base::SmallFile;
use zenith_ingest::model::Parameters;
use zenith_layers::Slru;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::{Fork, Lsn, Oid, RelNode, Tli, Xid};

/// The state of a cluster at an LSN. `reader::Snapshot` is one; a stopped data directory can be another.
///
/// Every method may be called by many tasks at once. What it gives is checked before it is written, and an error ends
/// the restore.
#[async_trait::async_trait]
pub trait Source: Send + Sync {
    /// What the whole cluster has once.
    async fn facts(&self) -> Result<Facts>;
    /// Configuration and other small files of the base image, by their path below the data directory.
    async fn small_files(&self) -> Result<BTreeMap<String, SmallFile>>;
    /// The history file of a timeline on the way to the LSN; `None` where there is none, as for timeline 1.
    async fn history_file(&self, tli: Tli) -> Result<Option<Bytes>>;
    /// Raw WAL from the start of the segment that holds the LSN up to the LSN.
    async fn segment_head(&self) -> Result<Bytes>;
    /// Databases as (tablespace, database), in every tablespace in which they have anything; shared relations are not
    /// among them.
    async fn databases(&self) -> Result<Vec<(Oid, Oid)>>;
    /// The forks of a database's relations in one tablespace; (1664, 0) for the shared ones.
    async fn relations(&self, spc: Oid, db: Oid) -> Result<Vec<ForkSize>>;
    /// Tablespaces with their locations, the two built-in ones not among them. A location that is not absolute is one
    /// inside the data directory (`allow_in_place_tablespaces`).
    async fn tablespaces(&self) -> Result<Vec<(Oid, String)>>;
    /// A database's `pg_filenode.map`; (1664, 0) for the shared one.
    async fn rel_map(&self, spc: Oid, db: Oid) -> Result<Option<Bytes>>;
    /// The pages of some ranges, one after the other, each `BLCKSZ` bytes, checksums right.
    async fn pages(&self, ranges: &[PageRange]) -> Result<Vec<Bytes>>;
    /// The segments of an SLRU as (segment, pages).
    async fn slru_segments(&self, slru: Slru) -> Result<Vec<(u32, u32)>>;
    /// The pages of an SLRU segment, one after the other.
    async fn slru_segment(&self, slru: Slru, segment: u32) -> Result<Bytes>;
    /// State files of prepared transactions.
    async fn two_phase(&self) -> Result<Vec<(Xid, Bytes)>>;
    /// Progress of replication origins: number, and the position in the origin.
    async fn repl_origins(&self) -> Result<Vec<(u16, Lsn)>>;
}

/// What a cluster has once.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The LSN: the end of the last record that is in.
    pub lsn: Lsn,
    /// Where that record starts.
    pub last_record: Lsn,
    /// The timeline that it is on: the parent of the one to be written.
    pub tli: Tli,
    /// pg_control of the base image: identity and sizes; its state is not used.
    pub control: ControlFile,
    /// The checkpoint counters, `next_xid` aside.
    pub checkpoint: CheckPoint,
    /// The next transaction id, with its epoch.
    pub next_xid: u64,
    /// The settings that the WAL tells.
    pub parameters: Parameters,
}

/// A fork that exists, and its length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ForkSize {
    /// The relation.
    pub node: RelNode,
    /// The fork.
    pub fork: Fork,
    /// In blocks.
    pub blocks: u32,
}

/// Blocks of one fork that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRange {
    /// The relation.
    pub node: RelNode,
    /// The fork.
    pub fork: Fork,
    /// The first block.
    pub first: u32,
    /// How many.
    pub count: u32,
}
