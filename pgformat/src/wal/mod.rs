//! WAL: pages, records and what they carry (access/xlogrecord.h, access/xlog_internal.h, xlogreader.c).
//!
//! - [`stream::WalStream`] turns segments into [`Record`]s; [`page`] knows the headers of WAL pages.
//! - [`record`] takes one record apart, [`image`] restores full-page images, [`trim`] cuts a record down to what
//!   redo of one block reads, [`encode`] builds records and lays them over pages.
//! - One module for each resource manager whose records carry more than block references parses the main data:
//!   [`xlog`], [`xact`], [`smgr`], [`dbase`], [`tblspc`], [`clog`], [`multixact`], [`relmap`], [`standby`], [`heap`],
//!   [`commit_ts`], [`replorigin`], [`logicalmsg`].
//! - [`describe`] names record types as `pg_waldump` does, and tells an unknown one.

pub mod clog;
pub mod commit_ts;
pub mod dbase;
pub mod describe;
pub mod encode;
pub mod error;
mod fields;
pub mod heap;
pub mod image;
pub mod logicalmsg;
pub mod multixact;
pub mod page;
mod pglz;
pub mod record;
pub mod relmap;
pub mod replorigin;
pub mod rmgr;
pub mod smgr;
pub mod standby;
pub mod stream;
pub mod tblspc;
pub mod trim;
pub mod xact;
pub mod xlog;

pub use error::WalError;
pub use record::{BlockImage, BlockRef, Record};
pub use rmgr::RmgrId;
pub use stream::{StreamStart, WalStream};
