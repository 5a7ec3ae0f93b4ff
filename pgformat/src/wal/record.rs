//! A decoded WAL record (`DecodedXLogRecord`, access/xlogreader.h; layout: access/xlogrecord.h).

use super::RmgrId;
use crate::{Fork, Lsn, RelNode, Xid};
use bytes::Bytes;

/// One WAL record, taken apart. Cheap to clone: all bytes are slices of one buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where the record starts (`ReadRecPtr`).
    pub lsn: Lsn,
    /// Where the next one may start (`EndRecPtr`); what redo puts into `pd_lsn`.
    pub end: Lsn,
    /// Start of the previous record (`xl_prev`).
    pub prev: Lsn,
    /// The transaction, 0 when there is none (`xl_xid`).
    pub xid: Xid,
    /// Resource manager (`xl_rmid`).
    pub rmgr: RmgrId,
    /// `xl_info`, all 8 bits: the upper four belong to the resource manager.
    pub info: u8,
    /// Replication origin (`XLR_BLOCK_ID_ORIGIN`).
    pub origin: Option<u16>,
    /// Top-level transaction (`XLR_BLOCK_ID_TOPLEVEL_XID`).
    pub top_xid: Option<Xid>,
    /// Block references in the record's order.
    pub blocks: Vec<BlockRef>,
    /// The record's own data.
    pub main_data: Bytes,
    /// The whole record as it stands in the WAL, page headers taken out: `xl_tot_len` bytes.
    pub raw: Bytes,
}

/// One block that a record refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRef {
    /// The reference's number (`XLogRecordBlockHeader.id`).
    pub id: u8,
    /// The relation.
    pub node: RelNode,
    /// The fork.
    pub fork: Fork,
    /// The block.
    pub block: u32,
    /// Redo builds the page from nothing (`BKPBLOCK_WILL_INIT`).
    pub will_init: bool,
    /// The page's image, if the record carries one.
    pub image: Option<BlockImage>,
    /// The data registered for this block; `None` differs from empty (`BKPBLOCK_HAS_DATA`).
    pub data: Option<Bytes>,
}

impl BlockRef {
    /// Whether redo of this reference needs no older page: it initialises it, or restores an image.
    pub fn starts_history(&self) -> bool {
        self.will_init || self.image.as_ref().is_some_and(|image| image.apply)
    }
}

/// A full-page image as the record carries it (`XLogRecordBlockImageHeader`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockImage {
    /// The bytes, compressed and without the hole.
    pub bytes: Bytes,
    /// Where the hole begins.
    pub hole_offset: u16,
    /// How long the hole is.
    pub hole_length: u16,
    /// `bimg_info`.
    pub info: u8,
    /// Redo restores the image; otherwise it is for `wal_consistency_checking` only (`BKPIMAGE_APPLY`).
    pub apply: bool,
}
