//! Messages of applications for logical decoding (replication/message.h). Redo does nothing with them.

use super::fields::Fields;
use super::{Record, RmgrId, WalError};
use crate::Oid;
use bytes::Bytes;

const XLOG_LOGICAL_MESSAGE: u8 = 0x00;
/// `SizeOfLogicalMessage`.
const HEADER: usize = 24;

/// `xl_logical_message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalMessage {
    /// The database it was sent in.
    pub db: Oid,
    /// It belongs to its transaction.
    pub transactional: bool,
    /// Who it is for, in the server's encoding.
    pub prefix: Vec<u8>,
    /// What it says.
    pub message: Bytes,
}

/// Parses a logical message.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<LogicalMessage, WalError> {
    record.expect_rmgr(RmgrId::LOGICALMSG)?;
    if record.op() != XLOG_LOGICAL_MESSAGE {
        return Err(record.unknown());
    }
    let mut fields = Fields::new(&record.main_data, record.lsn, "logical message");
    let (db, transactional) = (fields.u32()?, fields.bool()?);
    fields.take(3)?;
    let (prefix_len, message_len) = (fields.u64()?, fields.u64()?);
    let too_long = || WalError::invalid(record.lsn, "logical message: longer than its record");
    let prefix_len = usize::try_from(prefix_len).map_err(|_| too_long())?;
    let message_len = usize::try_from(message_len).map_err(|_| too_long())?;
    let prefix = fields.take(prefix_len)?;
    let prefix = prefix.strip_suffix(&[0]).ok_or_else(|| fields.wrong("prefix without an end"))?.to_vec();
    fields.take(message_len)?;
    fields.end()?;
    Ok(LogicalMessage { db, transactional, prefix, message: record.main_data.slice(HEADER + prefix_len..) })
}
