//! Multixacts (access/multixact.h; `multixact_redo`, multixact.c).

use super::fields::Fields;
use super::{Record, RmgrId, WalError};
use crate::{Oid, Xid};

const XLOG_MULTIXACT_ZERO_OFF_PAGE: u8 = 0x00;
const XLOG_MULTIXACT_ZERO_MEM_PAGE: u8 = 0x10;
const XLOG_MULTIXACT_CREATE_ID: u8 = 0x20;
const XLOG_MULTIXACT_TRUNCATE_ID: u8 = 0x30;
/// `MaxMultiXactStatus`.
const MAX_STATUS: u32 = 5;

/// A multixact record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MultiXactRecord {
    /// A page of `pg_multixact/offsets` becomes zeros.
    ZeroOffsetsPage {
        /// Page number, counted over all segments.
        page: u32,
    },
    /// A page of `pg_multixact/members` becomes zeros.
    ZeroMembersPage {
        /// Page number, counted over all segments.
        page: u32,
    },
    /// A multixact is recorded.
    Create(Create),
    /// Old ones are removed.
    Truncate(Truncate),
}

/// `xl_multixact_create`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// The new multixact.
    pub mid: u32,
    /// Where its members begin.
    pub offset: u32,
    /// Its members.
    pub members: Vec<Member>,
}

/// `MultiXactMember`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The transaction.
    pub xid: Xid,
    /// How it holds the row (`MultiXactStatus`, 0 to 5).
    pub status: u8,
}

/// `xl_multixact_truncate`: ranges without their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate {
    /// The database that holds the oldest multixact back.
    pub oldest_multi_db: Oid,
    /// First multixact that is removed.
    pub start_offsets: u32,
    /// The new oldest multixact.
    pub end_offsets: u32,
    /// First member that is removed.
    pub start_members: u32,
    /// First member that is kept.
    pub end_members: u32,
}

/// Parses a multixact record.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<MultiXactRecord, WalError> {
    record.expect_rmgr(RmgrId::MULTIXACT)?;
    let mut fields = Fields::new(&record.main_data, record.lsn, "multixact record");
    let parsed = match record.op() {
        XLOG_MULTIXACT_ZERO_OFF_PAGE => MultiXactRecord::ZeroOffsetsPage { page: fields.page_number()? },
        XLOG_MULTIXACT_ZERO_MEM_PAGE => MultiXactRecord::ZeroMembersPage { page: fields.page_number()? },
        XLOG_MULTIXACT_CREATE_ID => {
            let (mid, offset, count) = (fields.u32()?, fields.u32()?, fields.count()?);
            MultiXactRecord::Create(Create { mid, offset, members: fields.array_of(count, 8, member)? })
        }
        XLOG_MULTIXACT_TRUNCATE_ID => MultiXactRecord::Truncate(Truncate {
            oldest_multi_db: fields.u32()?,
            start_offsets: fields.u32()?,
            end_offsets: fields.u32()?,
            start_members: fields.u32()?,
            end_members: fields.u32()?,
        }),
        _ => return Err(record.unknown()),
    };
    fields.end()?;
    Ok(parsed)
}

fn member(fields: &mut Fields<'_>) -> Result<Member, WalError> {
    let (xid, status) = (fields.u32()?, fields.u32()?);
    if status > MAX_STATUS {
        return Err(fields.wrong(format_args!("member status {status}")));
    }
    Ok(Member { xid, status: status as u8 })
}

#[cfg(test)]
mod tests {
    use super::super::record::test::{record, words};
    use super::*;

    #[test]
    fn members_and_truncations_are_read_and_other_layouts_refused() {
        let parsed = |info, data: &[u32]| parse(&record(RmgrId::MULTIXACT, info, &words(data)));
        let member = |xid, status| Member { xid, status };
        let create = Create { mid: 7, offset: 20, members: vec![member(700, 0), member(701, 5)] };
        assert_eq!(
            parsed(XLOG_MULTIXACT_CREATE_ID, &[7, 20, 2, 700, 0, 701, 5]),
            Ok(MultiXactRecord::Create(create))
        );
        assert!(parsed(XLOG_MULTIXACT_CREATE_ID, &[7, 20, 1, 700, 6]).is_err(), "no such status");
        assert!(parsed(XLOG_MULTIXACT_CREATE_ID, &[7, 20, 0x7FFF_FFFF, 700, 0]).is_err());
        let truncate = Truncate {
            oldest_multi_db: 5,
            start_offsets: 1,
            end_offsets: 65_536,
            start_members: 2,
            end_members: 3,
        };
        assert_eq!(
            parsed(XLOG_MULTIXACT_TRUNCATE_ID, &[5, 1, 65_536, 2, 3]),
            Ok(MultiXactRecord::Truncate(truncate))
        );
        assert_eq!(
            parsed(XLOG_MULTIXACT_ZERO_OFF_PAGE, &[3]),
            Ok(MultiXactRecord::ZeroOffsetsPage { page: 3 })
        );
    }
}
