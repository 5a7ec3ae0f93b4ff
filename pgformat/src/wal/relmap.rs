//! Relation maps (utils/relmapper.h; `relmap_redo`, relmapper.c).

use super::fields::Fields;
use super::{Record, RmgrId, WalError};
use crate::Oid;
use bytes::Bytes;

const XLOG_RELMAP_UPDATE: u8 = 0x00;
/// `offsetof(xl_relmap_update, data)`.
const HEADER: usize = 12;

/// `xl_relmap_update`: a whole relation map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelmapUpdate {
    /// The database, 0 for the shared map.
    pub db: Oid,
    /// Its default tablespace, `pg_global` for the shared map.
    pub spc: Oid,
    /// `pg_filenode.map` as it becomes. Redo puts a checksum of its own into it, equal to the one that is there.
    pub map: Bytes,
}

/// Parses a relation map record.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<RelmapUpdate, WalError> {
    record.expect_rmgr(RmgrId::RELMAP)?;
    if record.op() != XLOG_RELMAP_UPDATE {
        return Err(record.unknown());
    }
    let mut fields = Fields::new(&record.main_data, record.lsn, "relation map record");
    let (db, spc, len) = (fields.u32()?, fields.u32()?, fields.count()?);
    fields.take(len)?;
    fields.end()?;
    Ok(RelmapUpdate { db, spc, map: record.main_data.slice(HEADER..) })
}
