//! Creation and removal of databases (commands/dbcommands_xlog.h; `dbase_redo`, dbcommands.c).

use super::fields::Fields;
use super::{Record, RmgrId, WalError};
use crate::Oid;

const XLOG_DBASE_CREATE_FILE_COPY: u8 = 0x00;
const XLOG_DBASE_CREATE_WAL_LOG: u8 = 0x10;
const XLOG_DBASE_DROP: u8 = 0x20;

/// A database's directory in one tablespace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DatabaseDir {
    /// The tablespace.
    pub spc: Oid,
    /// The database.
    pub db: Oid,
}

/// A database record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DbaseRecord {
    /// `STRATEGY file_copy`, and `ALTER DATABASE … SET TABLESPACE`: all files of `source` as they are now, on disk, not in
    /// the WAL (`xl_dbase_create_file_copy_rec`).
    CreateFileCopy {
        /// The new directory.
        target: DatabaseDir,
        /// What is copied.
        source: DatabaseDir,
    },
    /// `STRATEGY wal_log`: an empty directory; everything in it is logged (`xl_dbase_create_wal_log_rec`).
    CreateWalLog(DatabaseDir),
    /// The database's directories are removed (`xl_dbase_drop_rec`).
    Drop {
        /// The database.
        db: Oid,
        /// In these tablespaces.
        tablespaces: Vec<Oid>,
    },
}

/// Parses a database record.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<DbaseRecord, WalError> {
    record.expect_rmgr(RmgrId::DBASE)?;
    let mut fields = Fields::new(&record.main_data, record.lsn, "database record");
    let parsed = match record.op() {
        XLOG_DBASE_CREATE_FILE_COPY => {
            let (target, source) = (directory(&mut fields)?, directory(&mut fields)?);
            DbaseRecord::CreateFileCopy { target, source }
        }
        XLOG_DBASE_CREATE_WAL_LOG => DbaseRecord::CreateWalLog(directory(&mut fields)?),
        XLOG_DBASE_DROP => {
            let (db, count) = (fields.u32()?, fields.count()?);
            DbaseRecord::Drop { db, tablespaces: fields.array_of(count, 4, Fields::u32)? }
        }
        _ => return Err(record.unknown()),
    };
    fields.end()?;
    Ok(parsed)
}

/// Database before tablespace, as the structs have it.
fn directory(fields: &mut Fields<'_>) -> Result<DatabaseDir, WalError> {
    let (db, spc) = (fields.u32()?, fields.u32()?);
    Ok(DatabaseDir { spc, db })
}
