//! PostgreSQL 15's on-disk and WAL formats as pure functions: no I/O, no clock, no async.
//!
//! Everything here takes bytes from outside as hostile: a decoder returns an error, never panics and never
//! allocates more than a bound derived from the length it was given. Field names, constants and rules name the
//! PostgreSQL 15 header or source file they come from.

mod le;

pub mod backup_label;
pub mod catalog;
pub mod checkpoint;
pub mod control;
pub mod heap;
pub mod history;
pub mod lsn;
pub mod mask;
pub mod page;
pub mod rel;
pub mod relmap;
pub mod slru;
pub mod two_phase;
pub mod wal;
pub mod wal_name;

pub use lsn::Lsn;
pub use rel::{Fork, RelNode};

/// An object identifier (`Oid`, postgres_ext.h).
pub type Oid = u32;
/// A transaction id without its epoch (`TransactionId`, c.h).
pub type Xid = u32;
/// PostgreSQL's timeline number (`TimeLineID`, xlogdefs.h). Not to be confused with Zenith's timeline id.
pub type Tli = u32;

/// The block size of relations and of WAL pages; a cluster built with another one is refused by name.
pub const BLCKSZ: usize = 8192;
/// `XLOG_BLCKSZ` (pg_config.h).
pub const XLOG_BLCKSZ: usize = 8192;
/// Blocks in one segment file of a relation, 1 GiB (`RELSEG_SIZE`, pg_config.h).
pub const RELSEG_SIZE: u32 = 131_072;

/// One page, as PostgreSQL holds it.
pub type Page = [u8; BLCKSZ];
