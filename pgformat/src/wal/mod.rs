//! WAL: pages, records and what they carry (access/xlogrecord.h, access/xlog_internal.h, xlogreader.c).

pub mod record;
pub mod rmgr;

pub use record::{BlockImage, BlockRef, Record};
pub use rmgr::RmgrId;
