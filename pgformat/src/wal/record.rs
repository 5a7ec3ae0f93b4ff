//! A decoded WAL record (`DecodedXLogRecord`, access/xlogreader.h; layout: access/xlogrecord.h).

use super::fields::Fields;
use super::{RmgrId, WalError};
use crate::{BLCKSZ, Fork, Lsn, RelNode, Xid};
use bytes::Bytes;

/// `SizeOfXLogRecord`: the fixed part at the front of a record.
pub const RECORD_HEADER: usize = 24;
/// Where `xl_crc` stands; the checksum covers everything else.
pub(crate) const CRC_OFFSET: usize = 20;
/// The longest record: PostgreSQL 15 reads a record into one `palloc`ed buffer, and `MaxAllocSize` is the most that
/// can be (utils/memutils.h). No server could replay a longer one, so a longer length is damage.
pub const MAX_RECORD_LEN: u32 = 0x3FFF_FFFF;

/// `XLR_INFO_MASK`: the bits of `xl_info` that belong to the WAL machinery.
pub const XLR_INFO_MASK: u8 = 0x0F;
/// `XLR_SPECIAL_REL_UPDATE`: relation files change in ways that block references do not show.
pub const XLR_SPECIAL_REL_UPDATE: u8 = 0x01;
/// `XLR_CHECK_CONSISTENCY`: the record carries images for `wal_consistency_checking`.
pub const XLR_CHECK_CONSISTENCY: u8 = 0x02;

pub(crate) const XLR_MAX_BLOCK_ID: u8 = 32;
pub(crate) const XLR_BLOCK_ID_DATA_SHORT: u8 = 255;
pub(crate) const XLR_BLOCK_ID_DATA_LONG: u8 = 254;
pub(crate) const XLR_BLOCK_ID_ORIGIN: u8 = 253;
pub(crate) const XLR_BLOCK_ID_TOPLEVEL_XID: u8 = 252;

pub(crate) const BKPBLOCK_FORK_MASK: u8 = 0x0F;
pub(crate) const BKPBLOCK_HAS_IMAGE: u8 = 0x10;
pub(crate) const BKPBLOCK_HAS_DATA: u8 = 0x20;
pub(crate) const BKPBLOCK_WILL_INIT: u8 = 0x40;
pub(crate) const BKPBLOCK_SAME_REL: u8 = 0x80;

/// `BKPIMAGE_HAS_HOLE`: the middle of the page is zeros and left out.
pub const BKPIMAGE_HAS_HOLE: u8 = 0x01;
/// `BKPIMAGE_APPLY`: redo restores the image.
pub const BKPIMAGE_APPLY: u8 = 0x02;
/// `BKPIMAGE_COMPRESS_PGLZ`.
pub const BKPIMAGE_COMPRESS_PGLZ: u8 = 0x04;
/// `BKPIMAGE_COMPRESS_LZ4`.
pub const BKPIMAGE_COMPRESS_LZ4: u8 = 0x08;
/// `BKPIMAGE_COMPRESS_ZSTD`.
pub const BKPIMAGE_COMPRESS_ZSTD: u8 = 0x10;
const BKPIMAGE_COMPRESSED: u8 = BKPIMAGE_COMPRESS_PGLZ | BKPIMAGE_COMPRESS_LZ4 | BKPIMAGE_COMPRESS_ZSTD;

/// One WAL record, taken apart. Cheap to clone: all bytes are slices of one buffer.
///
/// That buffer is the whole segment when the record lies inside one page: who keeps a few bytes of a record for
/// long copies them (`Bytes::copy_from_slice`), or the segment stays in memory with them.
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

impl BlockImage {
    /// Whether the bytes are compressed (`BKPIMAGE_COMPRESSED`).
    pub fn is_compressed(&self) -> bool {
        self.info & BKPIMAGE_COMPRESSED != 0
    }
}

/// The fixed part of a record (`XLogRecord`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHeader {
    pub(crate) tot_len: u32,
    pub(crate) xid: Xid,
    pub(crate) prev: Lsn,
    pub(crate) info: u8,
    pub(crate) rmgr: RmgrId,
    pub(crate) crc: u32,
}

impl RecordHeader {
    /// Decodes the first [`RECORD_HEADER`] bytes of the record at `lsn` and checks what can be checked of them alone
    /// (`ValidXLogRecordHeader`, its check of `xl_prev` aside).
    pub(crate) fn decode(raw: &[u8], lsn: Lsn) -> Result<RecordHeader, WalError> {
        let mut fields = Fields::new(raw, lsn, "WAL record header");
        let (tot_len, xid, prev) = (fields.u32()?, fields.u32()?, fields.lsn()?);
        let (info, rmgr) = (fields.u8()?, RmgrId(fields.u8()?));
        fields.take(2)?;
        let header = RecordHeader { tot_len, xid, prev, info, rmgr, crc: fields.u32()? };
        check_length(tot_len, lsn)?;
        if !rmgr.is_built_in() && !rmgr.is_custom() {
            return Err(fields.wrong(format_args!("invalid resource manager id {}", rmgr.0)));
        }
        Ok(header)
    }
}

/// Whether `xl_tot_len` can be a record's at all. 0 is what a WAL that was never written says.
pub(crate) fn check_length(tot_len: u32, lsn: Lsn) -> Result<(), WalError> {
    match tot_len {
        0 => Err(WalError::NoRecord { lsn }),
        _ if (tot_len as usize) < RECORD_HEADER => {
            Err(WalError::invalid(lsn, format!("record length {tot_len} is less than a header's")))
        }
        _ if tot_len > MAX_RECORD_LEN => {
            Err(WalError::invalid(lsn, format!("record length {tot_len} is more than PostgreSQL can replay")))
        }
        _ => Ok(()),
    }
}

/// The checksum that a record's `xl_crc` must hold: CRC-32C over what follows the header, then over the header up to
/// `xl_crc` (`ValidXLogRecord`). 0 for bytes too short to be a record.
pub(crate) fn record_crc(raw: &[u8]) -> u32 {
    match (raw.get(RECORD_HEADER..), raw.get(..CRC_OFFSET)) {
        (Some(body), Some(head)) => crc32c::crc32c_append(crc32c::crc32c(body), head),
        _ => 0,
    }
}

impl Record {
    /// Takes a whole record apart: `raw` is `xl_tot_len` bytes without page headers, `lsn` where it starts and `end` where
    /// it ends. Checks its checksum and everything `DecodeXLogRecord` checks.
    ///
    /// # Errors
    /// [`WalError::Invalid`] or [`WalError::NoRecord`] with `lsn`.
    pub fn decode(raw: Bytes, lsn: Lsn, end: Lsn) -> Result<Record, WalError> {
        let header = RecordHeader::decode(&raw, lsn)?;
        if header.tot_len as usize != raw.len() {
            return Err(WalError::invalid(
                lsn,
                format!("{} bytes of a record of length {}", raw.len(), header.tot_len),
            ));
        }
        if record_crc(&raw) != header.crc {
            return Err(WalError::invalid(lsn, "wrong checksum in record"));
        }
        Body::decode(&raw, lsn)?.into_record(header, raw, lsn, end)
    }

    /// For a parser of one resource manager: the record is one of its own.
    pub(crate) fn expect_rmgr(&self, rmgr: RmgrId) -> Result<(), WalError> {
        if self.rmgr == rmgr {
            Ok(())
        } else {
            Err(WalError::invalid(self.lsn, format!("a {} record where {rmgr} is expected", self.rmgr)))
        }
    }

    /// For a parser that has run out of record types.
    pub(crate) fn unknown(&self) -> WalError {
        WalError::UnknownRecord { lsn: self.lsn, rmgr: self.rmgr, info: self.info }
    }

    /// The resource manager's part of `xl_info` (without `XLR_INFO_MASK`).
    pub fn op(&self) -> u8 {
        self.info & !XLR_INFO_MASK
    }

    /// The block reference with this number, if the record has it (`XLogRecGetBlockTagExtended`).
    pub fn block(&self, id: u8) -> Option<&BlockRef> {
        self.blocks.iter().find(|block| block.id == id)
    }
}

/// What follows a record's header: first all fragment headers, then the bytes they describe, in the same order.
#[derive(Default)]
struct Body {
    origin: Option<u16>,
    top_xid: Option<Xid>,
    blocks: Vec<BlockHeader>,
    main_len: usize,
    /// Where the bytes begin.
    payload_at: usize,
}

/// One block's fragment header.
struct BlockHeader {
    id: u8,
    node: RelNode,
    fork: Fork,
    block: u32,
    will_init: bool,
    image: Option<ImageHeader>,
    data_len: u16,
}

/// One image's fragment header.
struct ImageHeader {
    len: u16,
    hole_offset: u16,
    hole_length: u16,
    info: u8,
}

impl Body {
    fn decode(raw: &[u8], lsn: Lsn) -> Result<Body, WalError> {
        let mut fields = Fields::new(raw, lsn, "WAL record");
        fields.take(RECORD_HEADER)?;
        let mut body = Body::default();
        let mut payload = 0_usize;
        // The main data's header is by convention the last one; a record may end without it.
        while fields.remaining() > payload {
            match fields.u8()? {
                XLR_BLOCK_ID_DATA_SHORT => {
                    body.main_len = usize::from(fields.u8()?);
                    payload += body.main_len;
                    break;
                }
                XLR_BLOCK_ID_DATA_LONG => {
                    body.main_len = fields.u32()? as usize;
                    payload = payload.saturating_add(body.main_len);
                    break;
                }
                XLR_BLOCK_ID_ORIGIN => body.origin = Some(fields.u16()?),
                XLR_BLOCK_ID_TOPLEVEL_XID => body.top_xid = Some(fields.u32()?),
                id if id <= XLR_MAX_BLOCK_ID => {
                    if let Some(last) = body.blocks.last().filter(|last| id <= last.id) {
                        return Err(fields.wrong(format_args!("block reference {id} after {}", last.id)));
                    }
                    let header = BlockHeader::decode(id, &mut fields, body.blocks.last())?;
                    payload += header.payload();
                    body.blocks.push(header);
                }
                id => return Err(fields.wrong(format_args!("invalid block reference {id}"))),
            }
        }
        if fields.remaining() != payload {
            return Err(fields.wrong(format_args!(
                "its headers describe {payload} bytes, {} are there",
                fields.remaining()
            )));
        }
        body.payload_at = raw.len() - payload;
        Ok(body)
    }

    fn into_record(self, header: RecordHeader, raw: Bytes, lsn: Lsn, end: Lsn) -> Result<Record, WalError> {
        let mut rest = raw.clone();
        drop(cut(&mut rest, self.payload_at, lsn)?);
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in self.blocks {
            let image = match block.image {
                Some(image) => Some(BlockImage {
                    bytes: cut(&mut rest, usize::from(image.len), lsn)?,
                    hole_offset: image.hole_offset,
                    hole_length: image.hole_length,
                    info: image.info,
                    apply: image.info & BKPIMAGE_APPLY != 0,
                }),
                None => None,
            };
            let data = match usize::from(block.data_len) {
                0 => None,
                len => Some(cut(&mut rest, len, lsn)?),
            };
            let BlockHeader { id, node, fork, block, will_init, .. } = block;
            blocks.push(BlockRef { id, node, fork, block, will_init, image, data });
        }
        let RecordHeader { xid, prev, info, rmgr, .. } = header;
        let (origin, top_xid) = (self.origin, self.top_xid);
        Ok(Record { lsn, end, prev, xid, rmgr, info, origin, top_xid, blocks, main_data: rest, raw })
    }
}

/// Takes `len` bytes off the front of `rest` without copying.
fn cut(rest: &mut Bytes, len: usize, lsn: Lsn) -> Result<Bytes, WalError> {
    if len <= rest.len() {
        Ok(rest.split_to(len))
    } else {
        Err(WalError::invalid(lsn, "the record is shorter than its headers say"))
    }
}

impl BlockHeader {
    fn decode(
        id: u8,
        fields: &mut Fields<'_>,
        previous: Option<&BlockHeader>,
    ) -> Result<BlockHeader, WalError> {
        let (flags, data_len) = (fields.u8()?, fields.u16()?);
        let fork = flags & BKPBLOCK_FORK_MASK;
        let fork = Fork::from_number(fork)
            .ok_or_else(|| fields.wrong(format_args!("block reference {id} with fork {fork}")))?;
        match (flags & BKPBLOCK_HAS_DATA != 0, data_len) {
            (true, 0) => return Err(fields.wrong("BKPBLOCK_HAS_DATA set, but no data included")),
            (false, len) if len != 0 => {
                return Err(fields.wrong(format_args!("BKPBLOCK_HAS_DATA not set, but data length is {len}")));
            }
            _ => {}
        }
        let image = if flags & BKPBLOCK_HAS_IMAGE != 0 { Some(ImageHeader::decode(fields)?) } else { None };
        let node = match previous {
            _ if flags & BKPBLOCK_SAME_REL == 0 => fields.rel_node()?,
            Some(previous) => previous.node,
            None => return Err(fields.wrong("BKPBLOCK_SAME_REL set but no previous relation")),
        };
        let will_init = flags & BKPBLOCK_WILL_INIT != 0;
        Ok(BlockHeader { id, node, fork, block: fields.u32()?, will_init, image, data_len })
    }

    /// Bytes that the header describes.
    fn payload(&self) -> usize {
        self.image.as_ref().map_or(0, |image| usize::from(image.len)) + usize::from(self.data_len)
    }
}

impl ImageHeader {
    /// Decodes and cross-checks. PostgreSQL computes the hole of an uncompressed image from its length; a length above
    /// `BLCKSZ` would wrap there and is refused here.
    fn decode(fields: &mut Fields<'_>) -> Result<ImageHeader, WalError> {
        let (len, hole_offset, info) = (fields.u16()?, fields.u16()?, fields.u8()?);
        let compressed = info & BKPIMAGE_COMPRESSED != 0;
        let has_hole = info & BKPIMAGE_HAS_HOLE != 0;
        let hole_length = match (compressed, has_hole) {
            (true, true) => fields.u16()?,
            (true, false) => 0,
            (false, _) => (BLCKSZ as u16).saturating_sub(len),
        };
        let full = usize::from(len) >= BLCKSZ;
        let sound = usize::from(len) <= BLCKSZ
            && usize::from(hole_offset) + usize::from(hole_length) <= BLCKSZ
            && if has_hole {
                hole_offset != 0 && hole_length != 0 && !full
            } else {
                hole_offset == 0 && hole_length == 0 && (compressed != full)
            };
        if !sound {
            return Err(fields.wrong(format_args!(
                "full-page image with info {info:02X}, length {len}, hole offset {hole_offset}, hole length {hole_length}"
            )));
        }
        Ok(ImageHeader { len, hole_offset, hole_length, info })
    }
}

#[cfg(test)]
pub(crate) mod test {
    use super::*;

    /// A record without block references, for tests of what its main data says.
    pub(crate) fn record(rmgr: RmgrId, info: u8, main_data: &[u8]) -> Record {
        let raw = crate::wal::encode::encode_record(rmgr, info, 700, Lsn(8), main_data);
        Record::decode(Bytes::from(raw), Lsn(64), Lsn(128)).expect("sound")
    }

    /// 32-bit fields as main data.
    pub(crate) fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}
