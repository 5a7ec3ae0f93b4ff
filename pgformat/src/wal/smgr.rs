//! Creation and truncation of relation files (catalog/storage_xlog.h; `smgr_redo`, storage.c).

use super::fields::Fields;
use super::{Record, RmgrId, WalError};
use crate::{Fork, RelNode};

const XLOG_SMGR_CREATE: u8 = 0x10;
const XLOG_SMGR_TRUNCATE: u8 = 0x20;

/// `SMGR_TRUNCATE_HEAP`: the main fork.
pub const SMGR_TRUNCATE_HEAP: u32 = 0x0001;
/// `SMGR_TRUNCATE_VM`: the visibility map.
pub const SMGR_TRUNCATE_VM: u32 = 0x0002;
/// `SMGR_TRUNCATE_FSM`: the free-space map.
pub const SMGR_TRUNCATE_FSM: u32 = 0x0004;
const SMGR_TRUNCATE_ALL: u32 = SMGR_TRUNCATE_HEAP | SMGR_TRUNCATE_VM | SMGR_TRUNCATE_FSM;

/// A record of the storage manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmgrRecord {
    /// A fork of a relation exists from here on, empty if it is new (`xl_smgr_create`).
    Create {
        /// The relation.
        node: RelNode,
        /// The fork.
        fork: Fork,
    },
    /// A relation is cut (`xl_smgr_truncate`).
    Truncate {
        /// The relation.
        node: RelNode,
        /// Blocks that the main fork keeps; the maps keep what covers them.
        blocks: u32,
        /// Which forks: `SMGR_TRUNCATE_*`.
        flags: u32,
    },
}

/// Parses a storage manager record.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<SmgrRecord, WalError> {
    record.expect_rmgr(RmgrId::SMGR)?;
    let mut fields = Fields::new(&record.main_data, record.lsn, "storage manager record");
    let parsed = match record.op() {
        XLOG_SMGR_CREATE => {
            let (node, number) = (fields.rel_node()?, fields.u32()?);
            let fork = u8::try_from(number).ok().and_then(Fork::from_number);
            let fork = fork.ok_or_else(|| fields.wrong(format_args!("fork {number}")))?;
            SmgrRecord::Create { node, fork }
        }
        XLOG_SMGR_TRUNCATE => {
            let (blocks, node, flags) = (fields.u32()?, fields.rel_node()?, fields.u32()?);
            if flags & !SMGR_TRUNCATE_ALL != 0 {
                return Err(fields.wrong(format_args!("truncation flags {flags:X}")));
            }
            SmgrRecord::Truncate { node, blocks, flags }
        }
        _ => return Err(record.unknown()),
    };
    fields.end()?;
    Ok(parsed)
}
