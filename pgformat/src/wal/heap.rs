//! What heap records do to the visibility map (access/heapam_xlog.h; `heap_redo`, `heap2_redo`, heapam.c).
//!
//! The heap's own pages are redone by PostgreSQL's code. But a change of an all-visible page clears bits of the
//! visibility map without a block reference to the map's page: only the heap block's reference and a flag tell.

use super::fields::Fields;
use super::record::XLR_INFO_MASK;
use super::{Record, RmgrId, WalError};
use crate::RelNode;

pub(crate) const XLOG_HEAP_INSERT: u8 = 0x00;
pub(crate) const XLOG_HEAP_DELETE: u8 = 0x10;
pub(crate) const XLOG_HEAP_UPDATE: u8 = 0x20;
pub(crate) const XLOG_HEAP_TRUNCATE: u8 = 0x30;
pub(crate) const XLOG_HEAP_HOT_UPDATE: u8 = 0x40;
pub(crate) const XLOG_HEAP_CONFIRM: u8 = 0x50;
pub(crate) const XLOG_HEAP_LOCK: u8 = 0x60;
pub(crate) const XLOG_HEAP_INPLACE: u8 = 0x70;
pub(crate) const XLOG_HEAP_INIT_PAGE: u8 = 0x80;

pub(crate) const XLOG_HEAP2_REWRITE: u8 = 0x00;
pub(crate) const XLOG_HEAP2_PRUNE: u8 = 0x10;
pub(crate) const XLOG_HEAP2_VACUUM: u8 = 0x20;
pub(crate) const XLOG_HEAP2_FREEZE_PAGE: u8 = 0x30;
/// `XLOG_HEAP2_VISIBLE`: block 0 is the map's page, block 1 the heap's.
pub const XLOG_HEAP2_VISIBLE: u8 = 0x40;
pub(crate) const XLOG_HEAP2_MULTI_INSERT: u8 = 0x50;
pub(crate) const XLOG_HEAP2_LOCK_UPDATED: u8 = 0x60;
pub(crate) const XLOG_HEAP2_NEW_CID: u8 = 0x70;

/// `XLH_INSERT_ALL_VISIBLE_CLEARED`, the same bit for a delete and for an update's old page.
const ALL_VISIBLE_CLEARED: u8 = 1 << 0;
/// `XLH_UPDATE_NEW_ALL_VISIBLE_CLEARED`.
const NEW_ALL_VISIBLE_CLEARED: u8 = 1 << 1;
/// `XLH_LOCK_ALL_FROZEN_CLEARED`.
const ALL_FROZEN_CLEARED: u8 = 1 << 0;

/// `VISIBILITYMAP_ALL_FROZEN` (access/visibilitymapdefs.h).
pub const VISIBILITYMAP_ALL_FROZEN: u8 = 0x02;
/// `VISIBILITYMAP_VALID_BITS`: all-visible and all-frozen.
pub const VISIBILITYMAP_VALID_BITS: u8 = 0x03;

/// What a heap record does beside changing the pages it refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapRecord {
    /// Bits of the visibility map that it clears: none, one heap block's, or two different ones'.
    pub clears: Vec<VisibilityClear>,
}

/// Bits of one heap block that are cleared in the visibility map (`visibilitymap_clear`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VisibilityClear {
    /// The relation.
    pub node: RelNode,
    /// The block of its main fork that the bits are about.
    pub heap_block: u32,
    /// Which: [`VISIBILITYMAP_VALID_BITS`] or [`VISIBILITYMAP_ALL_FROZEN`].
    pub bits: u8,
}

/// Whether a record of this resource manager and `xl_info` overwrote a tuple where it was, outside of any transaction
/// (`heap_inplace_update`).
pub fn is_inplace_update(rmgr: RmgrId, info: u8) -> bool {
    rmgr == RmgrId::HEAP && info & !XLR_INFO_MASK & !XLOG_HEAP_INIT_PAGE == XLOG_HEAP_INPLACE
}

/// Parses a record of the heap's two resource managers.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<HeapRecord, WalError> {
    if record.rmgr == RmgrId::HEAP2 {
        return parse_heap2(record);
    }
    record.expect_rmgr(RmgrId::HEAP)?;
    let init = record.op() & XLOG_HEAP_INIT_PAGE != 0;
    match record.op() & !XLOG_HEAP_INIT_PAGE {
        XLOG_HEAP_INSERT => cleared(record, 2, ALL_VISIBLE_CLEARED, VISIBILITYMAP_VALID_BITS),
        XLOG_HEAP_UPDATE | XLOG_HEAP_HOT_UPDATE => update(record),
        XLOG_HEAP_DELETE if !init => cleared(record, 7, ALL_VISIBLE_CLEARED, VISIBILITYMAP_VALID_BITS),
        XLOG_HEAP_LOCK if !init => cleared(record, 7, ALL_FROZEN_CLEARED, VISIBILITYMAP_ALL_FROZEN),
        XLOG_HEAP_TRUNCATE | XLOG_HEAP_CONFIRM | XLOG_HEAP_INPLACE if !init => Ok(HeapRecord::default()),
        _ => Err(record.unknown()),
    }
}

fn parse_heap2(record: &Record) -> Result<HeapRecord, WalError> {
    const MULTI_INSERT_INIT: u8 = XLOG_HEAP2_MULTI_INSERT | XLOG_HEAP_INIT_PAGE;
    match record.op() {
        XLOG_HEAP2_MULTI_INSERT | MULTI_INSERT_INIT => {
            cleared(record, 0, ALL_VISIBLE_CLEARED, VISIBILITYMAP_VALID_BITS)
        }
        XLOG_HEAP2_LOCK_UPDATED => cleared(record, 7, ALL_FROZEN_CLEARED, VISIBILITYMAP_ALL_FROZEN),
        XLOG_HEAP2_REWRITE
        | XLOG_HEAP2_PRUNE
        | XLOG_HEAP2_VACUUM
        | XLOG_HEAP2_FREEZE_PAGE
        | XLOG_HEAP2_VISIBLE
        | XLOG_HEAP2_NEW_CID => Ok(HeapRecord::default()),
        _ => Err(record.unknown()),
    }
}

/// A record whose flags stand `flags_at` bytes into its data and are about block reference 0.
fn cleared(record: &Record, flags_at: usize, flag: u8, bits: u8) -> Result<HeapRecord, WalError> {
    let mut fields = Fields::new(&record.main_data, record.lsn, "heap record");
    fields.take(flags_at)?;
    if fields.u8()? & flag == 0 {
        return Ok(HeapRecord::default());
    }
    Ok(HeapRecord { clears: vec![heap_block(record, 0)?.clear(bits)] })
}

/// `xl_heap_update`: block 0 is the new row's page, block 1 the old row's if that is another.
fn update(record: &Record) -> Result<HeapRecord, WalError> {
    let mut fields = Fields::new(&record.main_data, record.lsn, "heap update record");
    fields.take(7)?;
    let flags = fields.u8()?;
    fields.take(6)?;
    let mut clears = Vec::new();
    if flags & ALL_VISIBLE_CLEARED != 0 {
        let old = if record.block(1).is_some() { 1 } else { 0 };
        clears.push(heap_block(record, old)?.clear(VISIBILITYMAP_VALID_BITS));
    }
    if flags & NEW_ALL_VISIBLE_CLEARED != 0 {
        let new = heap_block(record, 0)?.clear(VISIBILITYMAP_VALID_BITS);
        if !clears.contains(&new) {
            clears.push(new);
        }
    }
    Ok(HeapRecord { clears })
}

struct HeapBlock {
    node: RelNode,
    block: u32,
}

impl HeapBlock {
    fn clear(&self, bits: u8) -> VisibilityClear {
        VisibilityClear { node: self.node, heap_block: self.block, bits }
    }
}

fn heap_block(record: &Record, id: u8) -> Result<HeapBlock, WalError> {
    match record.block(id) {
        Some(block) => Ok(HeapBlock { node: block.node, block: block.block }),
        None => Err(WalError::invalid(record.lsn, format!("heap record without block reference {id}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::BlockRef;
    use super::super::encode::{Parts, encode_with_blocks};
    use super::*;
    use crate::{Fork, Lsn};
    use bytes::Bytes;

    const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16384 };

    fn parse_of(
        rmgr: RmgrId,
        info: u8,
        main_data: &[u8],
        heap_blocks: &[u32],
    ) -> Result<HeapRecord, WalError> {
        let blocks: Vec<BlockRef> = (0..)
            .zip(heap_blocks)
            .map(|(id, block)| BlockRef {
                id,
                node: NODE,
                fork: Fork::Main,
                block: *block,
                will_init: false,
                image: None,
                data: None,
            })
            .collect();
        let parts = Parts { rmgr, info, xid: 9, prev: Lsn(8), origin: None, top_xid: None, main_data };
        let raw = encode_with_blocks(&parts, blocks.iter());
        parse(&Record::decode(Bytes::from(raw), Lsn(64), Lsn(128)).expect("sound"))
    }

    fn clear(heap_block: u32, bits: u8) -> VisibilityClear {
        VisibilityClear { node: NODE, heap_block, bits }
    }

    #[test]
    fn each_record_type_clears_the_bits_of_its_own_heap_block() {
        let all = VISIBILITYMAP_VALID_BITS;
        for (rmgr, info, data, bits) in [
            (RmgrId::HEAP, XLOG_HEAP_INSERT, &[1, 0, 1][..], all),
            (RmgrId::HEAP, XLOG_HEAP_INSERT | XLOG_HEAP_INIT_PAGE, &[1, 0, 1], all),
            (RmgrId::HEAP, XLOG_HEAP_DELETE, &[0, 0, 0, 0, 1, 0, 0, 1], all),
            (RmgrId::HEAP, XLOG_HEAP_LOCK, &[0, 0, 0, 0, 1, 0, 0, 1], VISIBILITYMAP_ALL_FROZEN),
            (RmgrId::HEAP2, XLOG_HEAP2_LOCK_UPDATED, &[0, 0, 0, 0, 1, 0, 0, 1], VISIBILITYMAP_ALL_FROZEN),
            (RmgrId::HEAP2, XLOG_HEAP2_MULTI_INSERT, &[1, 0, 1, 0], all),
        ] {
            let parsed = parse_of(rmgr, info, data, &[77]).expect("sound");
            assert_eq!(parsed.clears, [clear(77, bits)], "{rmgr} {info:X}");
            let flag = if info == XLOG_HEAP2_MULTI_INSERT { 0 } else { data.len() - 1 };
            let mut unset = data.to_vec();
            unset[flag] = 0xFE;
            assert_eq!(parse_of(rmgr, info, &unset, &[77]).expect("sound").clears, []);
            assert!(parse_of(rmgr, info, data, &[]).is_err(), "no block reference");
        }
    }

    #[test]
    fn an_update_clears_the_old_and_the_new_page() {
        let data = |flags| [0, 0, 0, 0, 1, 0, 0, flags, 0, 0, 0, 0, 2, 0];
        let all = VISIBILITYMAP_VALID_BITS;
        let clears = |flags, blocks: &[u32]| {
            parse_of(RmgrId::HEAP, XLOG_HEAP_UPDATE, &data(flags), blocks).expect("sound").clears
        };
        assert_eq!(clears(1, &[5, 3]), [clear(3, all)]);
        assert_eq!(clears(2, &[5, 3]), [clear(5, all)]);
        assert_eq!(clears(3, &[5, 3]), [clear(3, all), clear(5, all)]);
        assert_eq!(clears(1, &[5]), [clear(5, all)]);
        assert_eq!(clears(3, &[5]), [clear(5, all)], "one clear a page");
    }

    #[test]
    fn types_that_postgresql_15_does_not_have_are_refused() {
        for (rmgr, info) in
            [(RmgrId::HEAP, XLOG_HEAP_DELETE | 0x80), (RmgrId::HEAP2, 0x80), (RmgrId::HEAP2, 0xC0)]
        {
            let parsed = parse_of(rmgr, info, &[0; 8], &[1]);
            assert!(matches!(parsed, Err(WalError::UnknownRecord { .. })), "{rmgr} {info:X}");
        }
    }
}
