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

#[cfg(test)]
mod tests {
    use super::super::record::test::{record, words};
    use super::*;

    #[test]
    fn zeroed_pages_and_truncations_are_read_and_other_layouts_refused() {
        let parsed = |info, data: &[u32]| parse(&record(RmgrId::COMMIT_TS, info, &words(data)));
        assert_eq!(parsed(COMMIT_TS_ZEROPAGE, &[9]), Ok(CommitTsRecord::ZeroPage { page: 9 }));
        let truncate = CommitTsRecord::Truncate { page: 4, oldest_xid: 131_072 };
        assert_eq!(parsed(COMMIT_TS_TRUNCATE, &[4, 131_072]), Ok(truncate));
        assert!(parsed(COMMIT_TS_TRUNCATE, &[4]).is_err());
        assert!(matches!(parsed(0x20, &[9]), Err(WalError::UnknownRecord { .. })));
    }
}
