//! Records as `pg_waldump` prints them (`XLogDumpDisplayRecord`, pg_waldump.c; `XLogRecGetBlockRefInfo`,
//! xlogdesc.c; `rm_identify` of each resource manager).

use super::record::{BKPIMAGE_COMPRESS_LZ4, BKPIMAGE_COMPRESS_PGLZ, BKPIMAGE_COMPRESS_ZSTD, XLR_INFO_MASK};
use super::xact::XLOG_XACT_OPMASK;
use super::{BlockRef, Record, RmgrId, WalError};
use crate::{BLCKSZ, Lsn};
use std::fmt;

/// The record types of one resource manager: `xl_info` without the machinery's bits, and the name.
type Types = &'static [(u8, &'static str)];

/// PostgreSQL 15's record types, by resource manager in `rmgrlist.h`'s order. Generic's has but one.
const TYPES: [Types; 22] = [
    &[
        (0x00, "CHECKPOINT_SHUTDOWN"),
        (0x10, "CHECKPOINT_ONLINE"),
        (0x20, "NOOP"),
        (0x30, "NEXTOID"),
        (0x40, "SWITCH"),
        (0x50, "BACKUP_END"),
        (0x60, "PARAMETER_CHANGE"),
        (0x70, "RESTORE_POINT"),
        (0x80, "FPW_CHANGE"),
        (0x90, "END_OF_RECOVERY"),
        (0xA0, "FPI_FOR_HINT"),
        (0xB0, "FPI"),
        (0xD0, "OVERWRITE_CONTRECORD"),
    ],
    &[
        (0x00, "COMMIT"),
        (0x10, "PREPARE"),
        (0x20, "ABORT"),
        (0x30, "COMMIT_PREPARED"),
        (0x40, "ABORT_PREPARED"),
        (0x50, "ASSIGNMENT"),
        (0x60, "INVALIDATION"),
    ],
    &[(0x10, "CREATE"), (0x20, "TRUNCATE")],
    &[(0x00, "ZEROPAGE"), (0x10, "TRUNCATE")],
    &[(0x00, "CREATE_FILE_COPY"), (0x10, "CREATE_WAL_LOG"), (0x20, "DROP")],
    &[(0x00, "CREATE"), (0x10, "DROP")],
    &[(0x00, "ZERO_OFF_PAGE"), (0x10, "ZERO_MEM_PAGE"), (0x20, "CREATE_ID"), (0x30, "TRUNCATE_ID")],
    &[(0x00, "UPDATE")],
    &[(0x00, "LOCK"), (0x10, "RUNNING_XACTS"), (0x20, "INVALIDATIONS")],
    &[
        (0x00, "REWRITE"),
        (0x10, "PRUNE"),
        (0x20, "VACUUM"),
        (0x30, "FREEZE_PAGE"),
        (0x40, "VISIBLE"),
        (0x50, "MULTI_INSERT"),
        (0x60, "LOCK_UPDATED"),
        (0x70, "NEW_CID"),
        (0xD0, "MULTI_INSERT+INIT"),
    ],
    &[
        (0x00, "INSERT"),
        (0x10, "DELETE"),
        (0x20, "UPDATE"),
        (0x30, "TRUNCATE"),
        (0x40, "HOT_UPDATE"),
        (0x50, "HEAP_CONFIRM"),
        (0x60, "LOCK"),
        (0x70, "INPLACE"),
        (0x80, "INSERT+INIT"),
        (0xA0, "UPDATE+INIT"),
        (0xC0, "HOT_UPDATE+INIT"),
    ],
    &[
        (0x00, "INSERT_LEAF"),
        (0x10, "INSERT_UPPER"),
        (0x20, "INSERT_META"),
        (0x30, "SPLIT_L"),
        (0x40, "SPLIT_R"),
        (0x50, "INSERT_POST"),
        (0x60, "DEDUP"),
        (0x70, "DELETE"),
        (0x80, "UNLINK_PAGE"),
        (0x90, "UNLINK_PAGE_META"),
        (0xA0, "NEWROOT"),
        (0xB0, "MARK_PAGE_HALFDEAD"),
        (0xC0, "VACUUM"),
        (0xD0, "REUSE_PAGE"),
        (0xE0, "META_CLEANUP"),
    ],
    &[
        (0x00, "INIT_META_PAGE"),
        (0x10, "INIT_BITMAP_PAGE"),
        (0x20, "INSERT"),
        (0x30, "ADD_OVFL_PAGE"),
        (0x40, "SPLIT_ALLOCATE_PAGE"),
        (0x50, "SPLIT_PAGE"),
        (0x60, "SPLIT_COMPLETE"),
        (0x70, "MOVE_PAGE_CONTENTS"),
        (0x80, "SQUEEZE_PAGE"),
        (0x90, "DELETE"),
        (0xA0, "SPLIT_CLEANUP"),
        (0xB0, "UPDATE_META_PAGE"),
        (0xC0, "VACUUM_ONE_PAGE"),
    ],
    &[
        (0x10, "CREATE_PTREE"),
        (0x20, "INSERT"),
        (0x30, "SPLIT"),
        (0x40, "VACUUM_PAGE"),
        (0x50, "DELETE_PAGE"),
        (0x60, "UPDATE_META_PAGE"),
        (0x70, "INSERT_LISTPAGE"),
        (0x80, "DELETE_LISTPAGE"),
        (0x90, "VACUUM_DATA_LEAF_PAGE"),
    ],
    &[
        (0x00, "PAGE_UPDATE"),
        (0x10, "DELETE"),
        (0x20, "PAGE_REUSE"),
        (0x30, "PAGE_SPLIT"),
        (0x60, "PAGE_DELETE"),
        (0x70, "ASSIGN_LSN"),
    ],
    &[(0x00, "LOG")],
    &[
        (0x10, "ADD_LEAF"),
        (0x20, "MOVE_LEAFS"),
        (0x30, "ADD_NODE"),
        (0x40, "SPLIT_TUPLE"),
        (0x50, "PICKSPLIT"),
        (0x60, "VACUUM_LEAF"),
        (0x70, "VACUUM_ROOT"),
        (0x80, "VACUUM_REDIRECT"),
    ],
    &[
        (0x00, "CREATE_INDEX"),
        (0x10, "INSERT"),
        (0x20, "UPDATE"),
        (0x30, "SAMEPAGE_UPDATE"),
        (0x40, "REVMAP_EXTEND"),
        (0x50, "DESUMMARIZE"),
        (0x90, "INSERT+INIT"),
        (0xA0, "UPDATE+INIT"),
    ],
    &[(0x00, "ZEROPAGE"), (0x10, "TRUNCATE")],
    &[(0x00, "SET"), (0x10, "DROP")],
    &[(0x00, "Generic")],
    &[(0x00, "MESSAGE")],
];

/// The name of a record type, as `pg_waldump` prints it; `None` for one that PostgreSQL 15 does not have, and for all of
/// an extension's resource manager.
pub fn type_name(rmgr: RmgrId, info: u8) -> Option<&'static str> {
    let types = TYPES.get(usize::from(rmgr.0))?;
    let op = if rmgr == RmgrId::XACT { info & XLOG_XACT_OPMASK } else { info & !XLR_INFO_MASK };
    types.iter().find(|(known, _)| *known == op).map(|(_, name)| *name)
}

/// Stops at a record that this version of Zenith knows nothing of (invariant I9).
///
/// # Errors
/// [`WalError::UnknownRecord`] for an unknown type of a built-in resource manager, and for any record of an extension's.
pub fn check_known(record: &Record) -> Result<(), WalError> {
    match type_name(record.rmgr, record.info) {
        Some(_) => Ok(()),
        None => Err(record.unknown()),
    }
}

/// Bytes of the record that are full-page images, checks included (`XLogRecGetLen`).
fn images_len(record: &Record) -> usize {
    record.blocks.iter().filter_map(|block| block.image.as_ref()).map(|image| image.bytes.len()).sum()
}

/// Displays a record as `pg_waldump --bkp-details` does, its resource manager's details left out: one line for the
/// record, one for each block reference.
pub struct Described<'a>(pub &'a Record);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.0;
        write!(
            f,
            "rmgr: {:<11} len (rec/tot): {:>6}/{:>6}, tx: {:>10}, lsn: {}, prev {}, desc: ",
            record.rmgr.to_string(),
            record.raw.len().saturating_sub(images_len(record)),
            record.raw.len(),
            record.xid,
            Padded(record.lsn),
            Padded(record.prev),
        )?;
        match type_name(record.rmgr, record.info) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "UNKNOWN ({:X})", record.op())?,
        }
        record.blocks.iter().try_for_each(|block| write!(f, "\n\t{}", DescribedBlock(block)))
    }
}

/// An LSN with the lower half padded, as these lines have it.
struct Padded(Lsn);

impl fmt::Display for Padded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:08X}", self.0.0 >> 32, self.0.0 & 0xFFFF_FFFF)
    }
}

struct DescribedBlock<'a>(&'a BlockRef);

impl fmt::Display for DescribedBlock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BlockRef { id, node, fork, block, .. } = self.0;
        write!(f, "blkref #{id}: rel {node} fork {} blk {block}", fork.name())?;
        let Some(image) = &self.0.image else { return Ok(()) };
        let check = if image.apply { "" } else { " for WAL verification" };
        write!(f, " (FPW{check}); hole: offset: {}, length: {}", image.hole_offset, image.hole_length)?;
        let method = match image.info {
            info if info & BKPIMAGE_COMPRESS_PGLZ != 0 => "pglz",
            info if info & BKPIMAGE_COMPRESS_LZ4 != 0 => "lz4",
            info if info & BKPIMAGE_COMPRESS_ZSTD != 0 => "zstd",
            _ => return Ok(()),
        };
        let kept = BLCKSZ.saturating_sub(usize::from(image.hole_length));
        write!(f, ", compression saved: {}, method: {method}", kept.saturating_sub(image.bytes.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_from_the_bits_of_the_machinery() {
        assert_eq!(type_name(RmgrId::HEAP, 0x80 | 0x03), Some("INSERT+INIT"));
        assert_eq!(type_name(RmgrId::XACT, 0x80), Some("COMMIT"), "0x80 only says that more follows");
        assert_eq!(type_name(RmgrId::SMGR, 0x21), Some("TRUNCATE"));
    }

    #[test]
    fn unknown_types_and_resource_managers_have_no_name() {
        for (rmgr, info) in [
            (RmgrId::XLOG, 0xC0),
            (RmgrId::XACT, 0x70),
            (RmgrId::HEAP, 0x90),
            (RmgrId::GIN, 0),
            (RmgrId(22), 0),
            (RmgrId(128), 0),
        ] {
            assert_eq!(type_name(rmgr, info), None, "{rmgr} {info:X}");
        }
    }
}
