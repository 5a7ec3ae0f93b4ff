//! WAL: pages, records and what they carry (access/xlogrecord.h, access/xlog_internal.h, xlogreader.c).

pub mod error;
mod fields;
pub mod page;
pub mod record;
pub mod rmgr;
pub mod stream;
pub mod xlog;

pub use error::WalError;
pub use record::{BlockImage, BlockRef, Record};
pub use rmgr::RmgrId;
pub use stream::{StreamStart, WalStream};
