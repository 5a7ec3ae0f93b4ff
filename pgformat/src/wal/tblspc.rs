//! Creation and removal of tablespaces (commands/tablespace.h; `tblspc_redo`, tablespace.c).

use super::fields::Fields;
use super::{Record, RmgrId, WalError};
use crate::Oid;

const XLOG_TBLSPC_CREATE: u8 = 0x00;
const XLOG_TBLSPC_DROP: u8 = 0x10;

/// A tablespace record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TblspcRecord {
    /// `CREATE TABLESPACE` (`xl_tblspc_create_rec`).
    Create {
        /// The tablespace.
        spc: Oid,
        /// Its directory on the server, in the server's encoding.
        path: Vec<u8>,
    },
    /// `DROP TABLESPACE` (`xl_tblspc_drop_rec`).
    Drop {
        /// The tablespace.
        spc: Oid,
    },
}

/// Parses a tablespace record.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<TblspcRecord, WalError> {
    record.expect_rmgr(RmgrId::TBLSPC)?;
    let mut fields = Fields::new(&record.main_data, record.lsn, "tablespace record");
    let parsed = match record.op() {
        XLOG_TBLSPC_CREATE => TblspcRecord::Create { spc: fields.u32()?, path: fields.c_string()?.to_vec() },
        XLOG_TBLSPC_DROP => TblspcRecord::Drop { spc: fields.u32()? },
        _ => return Err(record.unknown()),
    };
    fields.end()?;
    Ok(parsed)
}
