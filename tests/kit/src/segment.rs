//! WAL segments made by hand, for tests that archive them and never read a record.

use zenith_pgformat::wal::page::{LongHeader, PageHeader};
use zenith_pgformat::wal_name::WalSegSize;

/// Segment `number` of TLI 1 of a cluster: the header of its first page, and then nothing but `fill`.
pub fn filled_segment(size: WalSegSize, number: u64, system_identifier: u64, fill: u8) -> Vec<u8> {
    let bytes = size.bytes() as usize;
    let header = PageHeader {
        info: 0,
        tli: 1,
        page_addr: size.start_of(number),
        rem_len: 0,
        long: Some(LongHeader { system_identifier, seg_size: bytes as u32, xlog_blcksz: 8192 }),
    };
    let mut content = header.encode();
    content.resize(bytes, fill);
    content
}
