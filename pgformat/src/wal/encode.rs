//! Building records (`XLogRecordAssemble`, xloginsert.c) and laying them over pages (`CopyXLogRecordToWAL`, xlog.c).

use super::page::{LONG_HEADER, LongHeader, PageHeader, SHORT_HEADER, XLP_FIRST_IS_CONTRECORD};
use super::record::{
    BKPBLOCK_HAS_DATA, BKPBLOCK_HAS_IMAGE, BKPBLOCK_SAME_REL, BKPBLOCK_WILL_INIT, BKPIMAGE_HAS_HOLE,
    BlockImage, BlockRef, CRC_OFFSET, RECORD_HEADER, XLR_BLOCK_ID_DATA_LONG, XLR_BLOCK_ID_DATA_SHORT,
    XLR_BLOCK_ID_ORIGIN, XLR_BLOCK_ID_TOPLEVEL_XID, XLR_INFO_MASK, record_crc,
};
use super::xlog::XLOG_SWITCH;
use super::{RmgrId, WalError};
use crate::wal_name::WalSegSize;
use crate::{Lsn, Tli, XLOG_BLCKSZ, Xid};

/// Everything that a record consists of, its place in the WAL aside.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// `xl_rmid`.
    pub rmgr: RmgrId,
    /// `xl_info`.
    pub info: u8,
    /// `xl_xid`.
    pub xid: Xid,
    /// `xl_prev`.
    pub prev: Lsn,
    /// Replication origin.
    pub origin: Option<u16>,
    /// Top-level transaction.
    pub top_xid: Option<Xid>,
    /// The record's own data.
    pub main_data: &'a [u8],
}

/// A record without block references, checksum included: `xl_tot_len` bytes.
pub fn encode_record(rmgr: RmgrId, info: u8, xid: Xid, prev: Lsn, main_data: &[u8]) -> Vec<u8> {
    let parts = Parts { rmgr, info, xid, prev, origin: None, top_xid: None, main_data };
    encode_with_blocks(&parts, std::iter::empty())
}

/// A record with block references, in ascending order of their numbers.
///
/// Lengths must fit the format, as those of a decoded record do: block data and images below 64 kB, all below 4 GB.
pub fn encode_with_blocks<'a>(
    parts: &Parts<'_>,
    blocks: impl Iterator<Item = &'a BlockRef> + Clone,
) -> Vec<u8> {
    encode_parts(parts, blocks.map(BlockParts::whole))
}

/// A block reference, and what it carries in the record that is built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockParts<'a> {
    /// Its own image and data do not count.
    pub(crate) block: &'a BlockRef,
    pub(crate) image: Option<&'a BlockImage>,
    pub(crate) data: Option<&'a [u8]>,
}

impl<'a> BlockParts<'a> {
    fn whole(block: &'a BlockRef) -> BlockParts<'a> {
        BlockParts { block, image: block.image.as_ref(), data: block.data.as_deref() }
    }
}

/// See [`encode_with_blocks`].
pub(crate) fn encode_parts<'a>(
    parts: &Parts<'_>,
    blocks: impl Iterator<Item = BlockParts<'a>> + Clone,
) -> Vec<u8> {
    let payload: usize = blocks.clone().map(payload_len).sum();
    let mut raw = Vec::with_capacity(RECORD_HEADER + 64 + payload + parts.main_data.len());
    raw.extend([0; RECORD_HEADER]);
    let mut previous = None;
    for block in blocks.clone() {
        let node = block.block.node;
        put_block_header(&mut raw, block, previous == Some(node));
        previous = Some(node);
    }
    if let Some(origin) = parts.origin {
        raw.push(XLR_BLOCK_ID_ORIGIN);
        raw.extend(origin.to_le_bytes());
    }
    if let Some(top_xid) = parts.top_xid {
        raw.push(XLR_BLOCK_ID_TOPLEVEL_XID);
        raw.extend(top_xid.to_le_bytes());
    }
    match (u8::try_from(parts.main_data.len()), parts.main_data.len() as u32) {
        (Ok(0), _) => {}
        (Ok(short), _) => raw.extend([XLR_BLOCK_ID_DATA_SHORT, short]),
        (Err(_), long) => {
            raw.push(XLR_BLOCK_ID_DATA_LONG);
            raw.extend(long.to_le_bytes());
        }
    }
    for block in blocks {
        raw.extend_from_slice(block.image.map_or(&[][..], |image| &image.bytes));
        raw.extend_from_slice(block.data.unwrap_or_default());
    }
    raw.extend_from_slice(parts.main_data);
    put_record_header(&mut raw, parts);
    raw
}

fn payload_len(block: BlockParts<'_>) -> usize {
    block.image.map_or(0, |image| image.bytes.len()) + block.data.map_or(0, <[u8]>::len)
}

fn put_block_header(raw: &mut Vec<u8>, parts: BlockParts<'_>, same_rel: bool) {
    let BlockParts { block, image, data } = parts;
    let data = data.unwrap_or_default();
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    raw.push(block.id);
    raw.push(
        block.fork as u8
            | flag(image.is_some(), BKPBLOCK_HAS_IMAGE)
            | flag(!data.is_empty(), BKPBLOCK_HAS_DATA)
            | flag(block.will_init, BKPBLOCK_WILL_INIT)
            | flag(same_rel, BKPBLOCK_SAME_REL),
    );
    raw.extend((data.len() as u16).to_le_bytes());
    if let Some(image) = image {
        raw.extend((image.bytes.len() as u16).to_le_bytes());
        raw.extend(image.hole_offset.to_le_bytes());
        raw.push(image.info);
        if image.is_compressed() && image.info & BKPIMAGE_HAS_HOLE != 0 {
            raw.extend(image.hole_length.to_le_bytes());
        }
    }
    if !same_rel {
        for oid in [block.node.spc, block.node.db, block.node.rel] {
            raw.extend(oid.to_le_bytes());
        }
    }
    raw.extend(block.block.to_le_bytes());
}

/// Fills in the fixed part, when everything after it stands.
fn put_record_header(raw: &mut [u8], parts: &Parts<'_>) {
    raw[4..8].copy_from_slice(&parts.xid.to_le_bytes());
    raw[8..16].copy_from_slice(&parts.prev.0.to_le_bytes());
    raw[16..18].copy_from_slice(&[parts.info, parts.rmgr.0]);
    seal(raw);
}

/// Makes length and checksum in the header of `raw` right for its bytes; nothing when it is shorter than a header.
pub fn seal(raw: &mut [u8]) {
    let tot_len = (raw.len() as u32).to_le_bytes();
    if let Some(length) = raw.get_mut(..tot_len.len()) {
        length.copy_from_slice(&tot_len);
    }
    let crc = record_crc(raw).to_le_bytes();
    if let Some(field) = raw.get_mut(CRC_OFFSET..RECORD_HEADER) {
        field.copy_from_slice(&crc);
    }
}

/// Where and in which WAL a [`WalWriter`] writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriterStart {
    /// Where the first record may start; rounded up to 8, and past a page header.
    pub lsn: Lsn,
    /// Start of the record before.
    pub prev: Lsn,
    /// The timeline that new page headers name.
    pub tli: Tli,
    /// The cluster's segment size.
    pub seg_size: WalSegSize,
    /// The cluster's system identifier.
    pub system_identifier: u64,
}

/// Where a record was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Its first byte.
    pub lsn: Lsn,
    /// Where the next one may start.
    pub end: Lsn,
}

/// Lays records over pages and segments as PostgreSQL does. All that is written is kept in memory.
#[derive(Debug)]
pub struct WalWriter {
    start: WriterStart,
    /// The bytes from `from` on; ends where the next record may start.
    bytes: Vec<u8>,
    from: Lsn,
    prev: Lsn,
}

impl WalWriter {
    /// A writer that begins at `start.lsn`, without the WAL before it: what lies between the segment's start and there
    /// looks like the rest of an older record, zeros, so that readers that begin at the segment or at any of its pages
    /// come to `start.lsn`.
    ///
    /// # Errors
    /// [`WalError::Invalid`] when `start.lsn` lies inside a page header.
    pub fn new(start: WriterStart) -> Result<WalWriter, WalError> {
        let lsn = start.lsn.max_align();
        let from = start.seg_size.start_of(start.seg_size.segment_of(lsn));
        let offset = lsn.since(from) as usize;
        let mut writer = WalWriter { start, bytes: Vec::with_capacity(offset), from, prev: start.prev };
        let headers = match offset.div_ceil(XLOG_BLCKSZ) {
            0 => 0,
            pages => LONG_HEADER + (pages - 1) * SHORT_HEADER,
        };
        let own_header = if offset < XLOG_BLCKSZ { LONG_HEADER } else { SHORT_HEADER };
        if (1..own_header).contains(&(offset % XLOG_BLCKSZ)) {
            return Err(inside_header(lsn));
        }
        writer.put(&vec![0; offset.saturating_sub(headers)]);
        if writer.position() < lsn {
            // Only the header of its page is missing.
            writer.begin_page(0);
        }
        Ok(writer)
    }

    /// A writer that goes on in a segment whose bytes up to `start.lsn` are `head`: a promotion copies them so.
    ///
    /// # Errors
    /// [`WalError::Feed`] when `head` does not end at `start.lsn`; [`WalError::Invalid`] when it ends in a page that is not
    /// WAL, or inside its header.
    pub fn continue_segment(start: WriterStart, head: &[u8]) -> Result<WalWriter, WalError> {
        let lsn = start.lsn.max_align();
        let offset = start.seg_size.offset_of(lsn);
        let mut bytes = head.to_vec();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        if bytes.len() as u64 != offset {
            let what = format!("{} bytes of the segment are given, {offset} lie before", head.len());
            return Err(WalError::Feed { lsn, what });
        }
        let in_page = bytes.len() % XLOG_BLCKSZ;
        if in_page > 0 {
            let page = bytes.get(bytes.len() - in_page..).unwrap_or_default();
            if PageHeader::decode(page)?.size() > in_page {
                return Err(inside_header(lsn));
            }
        }
        let from = start.seg_size.start_of(start.seg_size.segment_of(lsn));
        Ok(WalWriter { start, bytes, from, prev: start.prev })
    }

    /// Where the next record may start: the end of the last one.
    pub fn position(&self) -> Lsn {
        Lsn(self.from.0.saturating_add(self.bytes.len() as u64))
    }

    /// Start of the last record.
    pub fn prev(&self) -> Lsn {
        self.prev
    }

    /// Builds a record without block references and writes it.
    pub fn append(&mut self, rmgr: RmgrId, info: u8, xid: Xid, main_data: &[u8]) -> Placed {
        let raw = encode_record(rmgr, info, xid, self.prev, main_data);
        self.append_raw(&raw)
    }

    /// Writes a finished record. Its `xl_prev` is the caller's affair: [`WalWriter::prev`] is what it should name.
    /// `XLOG_SWITCH` leaves the rest of its segment empty.
    pub fn append_raw(&mut self, raw: &[u8]) -> Placed {
        if self.page_room() == 0 {
            self.begin_page(0);
        }
        let lsn = self.position();
        self.put(raw);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        if raw.get(16..18).is_some_and(|kind| kind[0] & !XLR_INFO_MASK == XLOG_SWITCH && kind[1] == 0) {
            self.fill_segment();
        }
        self.prev = lsn;
        Placed { lsn, end: self.position() }
    }

    /// The bytes from the start of the first segment on, the last segment filled up with zeros.
    pub fn finish(mut self) -> Vec<u8> {
        self.fill_segment();
        self.bytes
    }

    /// Lays bytes over pages; those that begin a page are the rest of a record.
    fn put(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            if self.page_room() == 0 {
                self.begin_page(rest.len() as u32);
            }
            let (part, later) = rest.split_at(rest.len().min(self.page_room()));
            self.bytes.extend_from_slice(part);
            rest = later;
        }
    }

    fn fill_segment(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(self.start.seg_size.bytes() as usize), 0);
    }

    /// Bytes left on the page that is being written; 0 when the next byte needs a new one.
    fn page_room(&self) -> usize {
        self.bytes.len().wrapping_neg() % XLOG_BLCKSZ
    }

    fn begin_page(&mut self, rem_len: u32) {
        let header = self.page_header(rem_len).encode();
        self.bytes.extend(header);
    }

    /// The header of the page that begins at the current position.
    fn page_header(&self, rem_len: u32) -> PageHeader {
        let page_addr = self.position();
        let first = self.start.seg_size.offset_of(page_addr) == 0;
        PageHeader {
            info: if rem_len > 0 { XLP_FIRST_IS_CONTRECORD } else { 0 },
            tli: self.start.tli,
            page_addr,
            rem_len,
            long: first.then_some(LongHeader {
                system_identifier: self.start.system_identifier,
                seg_size: self.start.seg_size.bytes() as u32,
                xlog_blcksz: XLOG_BLCKSZ as u32,
            }),
        }
    }
}

fn inside_header(lsn: Lsn) -> WalError {
    WalError::invalid(lsn, "a record cannot begin inside a page header")
}

#[cfg(test)]
mod tests {
    use super::super::xlog::XLOG_NOOP;
    use super::super::{Record, StreamStart, WalStream};
    use super::*;
    use bytes::Bytes;

    const SYSTEM: u64 = 0x1234_5678_9ABC;

    fn start(lsn: u64) -> WriterStart {
        let seg_size = WalSegSize::new(1 << 20).expect("valid");
        WriterStart { lsn: Lsn(lsn), prev: Lsn(8), tli: 2, seg_size, system_identifier: SYSTEM }
    }

    /// Decodes what a writer wrote from `start` on.
    fn read(start: &WriterStart, wal: &[u8]) -> Vec<Record> {
        let WriterStart { lsn, prev, tli, seg_size, system_identifier } = *start;
        let mut stream = WalStream::new(StreamStart { lsn, prev, tli, seg_size, system_identifier });
        let mut records = Vec::new();
        for segment in wal.chunks(1 << 20) {
            stream.feed(stream.wants(), Bytes::copy_from_slice(segment)).expect("contiguous");
            while let Ok(Some(record)) = stream.next() {
                records.push(record);
            }
        }
        records
    }

    #[test]
    fn records_over_pages_and_segments_read_back_where_they_were_placed() {
        for lsn in [0x10_0000, 0x10_0028, 0x10_0030, 0x10_2000, 0x10_2018, 0x1F_FFF8, 0x30_1230] {
            let start = start(lsn);
            let mut writer = WalWriter::new(start).expect("outside headers");
            let lengths = [0, 1, 255, 256, 8000, 8160, 9000, 3_000_000, 7, 13];
            let placed: Vec<Placed> =
                lengths.iter().map(|len| writer.append(RmgrId::XLOG, XLOG_NOOP, 0, &vec![7; *len])).collect();
            let records = read(&start, &writer.finish());
            assert_eq!(records.len(), lengths.len());
            for ((record, placed), len) in records.iter().zip(placed).zip(lengths) {
                assert_eq!((record.lsn, record.end, record.main_data.len()), (placed.lsn, placed.end, len));
            }
        }
    }

    #[test]
    fn a_switch_ends_its_segment() {
        let start = start(0x10_0000);
        let mut writer = WalWriter::new(start).expect("outside headers");
        let switch = writer.append(RmgrId::XLOG, XLOG_SWITCH, 0, &[]);
        assert_eq!(switch.end, Lsn(0x20_0000));
        let next = writer.append(RmgrId::XLOG, XLOG_NOOP, 0, b"x");
        assert_eq!(next.lsn, Lsn(0x20_0028));
        let records = read(&start, &writer.finish());
        assert_eq!(records.iter().map(|r| r.end).collect::<Vec<_>>(), [switch.end, next.end]);
    }

    #[test]
    fn a_segment_goes_on_after_the_bytes_of_its_parent() {
        let parent = WriterStart { tli: 1, ..start(0x10_0000) };
        let mut writer = WalWriter::new(parent).expect("outside headers");
        let last = writer.append(RmgrId::XLOG, XLOG_NOOP, 0, &[1; 20_000]);
        let head = writer.finish();
        let child = WriterStart { lsn: last.end, prev: last.lsn, ..start(0) };
        let mut writer =
            WalWriter::continue_segment(child, &head[..(last.end.0 - 0x10_0000) as usize]).expect("fits");
        writer.append(RmgrId::XLOG, XLOG_NOOP, 0, &[2; 20_000]);
        let whole = WriterStart { tli: 2, ..parent };
        assert_eq!(read(&whole, &writer.finish()).len(), 2);
        assert!(WalWriter::continue_segment(child, &head[..1000]).is_err());
    }

    #[test]
    fn no_record_begins_inside_a_page_header() {
        assert!(WalWriter::new(start(0x10_0010)).is_err());
        assert!(WalWriter::new(start(0x10_2010)).is_err());
    }
}
