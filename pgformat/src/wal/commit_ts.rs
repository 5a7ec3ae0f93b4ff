//! The commit timestamp log's own records (access/commit_ts.h; `commit_ts_redo`, commit_ts.c). Commits set theirs.

use super::fields::Fields;
use super::{Record, RmgrId, WalError};
use crate::Xid;

const COMMIT_TS_ZEROPAGE: u8 = 0x00;
const COMMIT_TS_TRUNCATE: u8 = 0x10;

/// A commit timestamp record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitTsRecord {
    /// A page of `pg_commit_ts` becomes zeros.
    ZeroPage {
        /// Page number, counted over all segments.
        page: u32,
    },
    /// Segments before a page are removed (`xl_commit_ts_truncate`).
    Truncate {
        /// The first page that is kept.
        page: u32,
        /// The oldest transaction that keeps its timestamp.
        oldest_xid: Xid,
    },
}

/// Parses a commit timestamp record.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<CommitTsRecord, WalError> {
    record.expect_rmgr(RmgrId::COMMIT_TS)?;
    let mut fields = Fields::new(&record.main_data, record.lsn, "commit timestamp record");
    let parsed = match record.op() {
        COMMIT_TS_ZEROPAGE => CommitTsRecord::ZeroPage { page: fields.page_number()? },
        COMMIT_TS_TRUNCATE => {
            CommitTsRecord::Truncate { page: fields.page_number()?, oldest_xid: fields.u32()? }
        }
        _ => return Err(record.unknown()),
    };
    fields.end()?;
    Ok(parsed)
}
