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

#[cfg(test)]
mod tests {
    use super::super::record::test::{record, words};
    use super::*;

    #[test]
    fn zeroed_pages_and_truncations_are_read_and_other_layouts_refused() {
        let parsed = |info, data: &[u32]| parse(&record(RmgrId::CLOG, info, &words(data)));
        assert_eq!(parsed(CLOG_ZEROPAGE, &[9]), Ok(ClogRecord::ZeroPage { page: 9 }));
        let truncate = ClogRecord::Truncate { page: 4, oldest_xid: 131_072, oldest_xid_db: 5 };
        assert_eq!(parsed(CLOG_TRUNCATE, &[4, 131_072, 5]), Ok(truncate));
        assert!(parsed(CLOG_TRUNCATE, &[4, 131_072]).is_err());
        assert!(parsed(CLOG_ZEROPAGE, &[9, 0]).is_err());
        assert!(parsed(CLOG_ZEROPAGE, &[u32::MAX]).is_err(), "a negative page");
        assert!(matches!(parsed(0x20, &[9]), Err(WalError::UnknownRecord { .. })));
    }
}
