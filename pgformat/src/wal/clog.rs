//! The commit log's own records (access/clog.h; `clog_redo`, clog.c). Transactions set their status by theirs.

use super::fields::Fields;
use super::{Record, RmgrId, WalError};
use crate::{Oid, Xid};

const CLOG_ZEROPAGE: u8 = 0x00;
const CLOG_TRUNCATE: u8 = 0x10;

/// A commit log record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClogRecord {
    /// A page of `pg_xact` becomes zeros.
    ZeroPage {
        /// Page number, counted over all segments.
        page: u32,
    },
    /// Segments before a page are removed (`xl_clog_truncate`).
    Truncate {
        /// The first page that is kept.
        page: u32,
        /// The new oldest transaction.
        oldest_xid: Xid,
        /// The database that holds it back.
        oldest_xid_db: Oid,
    },
}

/// Parses a commit log record.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<ClogRecord, WalError> {
    record.expect_rmgr(RmgrId::CLOG)?;
    let mut fields = Fields::new(&record.main_data, record.lsn, "commit log record");
    let parsed = match record.op() {
        CLOG_ZEROPAGE => ClogRecord::ZeroPage { page: fields.page_number()? },
        CLOG_TRUNCATE => ClogRecord::Truncate {
            page: fields.page_number()?,
            oldest_xid: fields.u32()?,
            oldest_xid_db: fields.u32()?,
        },
        _ => return Err(record.unknown()),
    };
    fields.end()?;
    Ok(parsed)
}
