//! Progress of replication origins (replication/origin.h; `replorigin_redo`, origin.c).

use super::fields::Fields;
use super::{Record, RmgrId, WalError};
use crate::Lsn;

const XLOG_REPLORIGIN_SET: u8 = 0x00;
const XLOG_REPLORIGIN_DROP: u8 = 0x10;

/// A replication origin record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplOriginRecord {
    /// `xl_replorigin_set`: the origin has been replayed up to an LSN of its own.
    Set {
        /// The origin.
        node: u16,
        /// Position on the origin's side.
        remote_lsn: Lsn,
        /// The position may go back.
        force: bool,
    },
    /// `xl_replorigin_drop`: the origin is forgotten.
    Drop {
        /// The origin.
        node: u16,
    },
}

/// Parses a replication origin record.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<ReplOriginRecord, WalError> {
    record.expect_rmgr(RmgrId::REPLORIGIN)?;
    let mut fields = Fields::new(&record.main_data, record.lsn, "replication origin record");
    let parsed = match record.op() {
        XLOG_REPLORIGIN_SET => {
            let (remote_lsn, node, force) = (fields.lsn()?, fields.u16()?, fields.bool()?);
            fields.take(5)?;
            ReplOriginRecord::Set { node, remote_lsn, force }
        }
        XLOG_REPLORIGIN_DROP => ReplOriginRecord::Drop { node: fields.u16()? },
        _ => return Err(record.unknown()),
    };
    fields.end()?;
    Ok(parsed)
}
