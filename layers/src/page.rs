//! One data page of the `payload` column, decoded: the unit that the block cache holds.
//!
//! Parquet's own reader goes through its general machinery for every page; a point read needs one page of one column
//! in one known shape (data page V1, required byte arrays, PLAIN, zstd), so that shape is decoded here. Whatever does
//! not fit is an error; what is decoded is checked by the rows' CRCs afterwards.

use crate::cache::Weighed;
use bytes::Bytes;
use std::cell::RefCell;
use zenith_manifest::parquet_pages::PageHeader;

/// Where a data page of the `payload` column lies and what is in it: verified with the footer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageRef {
    /// Offset in the object.
    pub(crate) offset: u64,
    /// Stored size, header included.
    pub(crate) size: u32,
    /// Number of the first row, in the row group.
    pub(crate) first_row: u32,
    /// Number of rows.
    pub(crate) rows: u32,
    /// Size of the decoded page: four bytes of length and the value, for every row.
    pub(crate) decoded: u32,
}

/// The payloads of the rows of one data page.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Box<[u8]>,
    /// Where each value's length begins.
    offsets: Box<[u32]>,
}

impl Block {
    /// Decodes the stored bytes of a page. `Err` says what does not fit.
    pub(crate) fn decode(page: &PageRef, stored: &[u8]) -> Result<Block, String> {
        let (header, body) = PageHeader::decode(stored).ok_or("a page header is unreadable")?;
        let fits = header.page_type == Some(DATA_PAGE)
            && header.uncompressed.map(u32::try_from) == Some(Ok(page.decoded))
            && header.compressed.map(usize::try_from) == Some(Ok(body.len()))
            && header.values.map(u32::try_from) == Some(Ok(page.rows))
            && header.encoding == Some(PLAIN);
        if !fits {
            return Err("a page header contradicts the page index".to_owned());
        }
        let bytes = decompress(body, page.decoded as usize)?;
        let mut offsets = Vec::with_capacity(page.rows as usize);
        let mut at = 0usize;
        for _ in 0..page.rows {
            let length = length_at(&bytes, at).ok_or("a page ends inside a value")?;
            offsets.push(u32::try_from(at).map_err(|_| "a page is too large")?);
            at = at.saturating_add(4).saturating_add(length);
        }
        if at != bytes.len() {
            return Err("a page does not end with its last value".to_owned());
        }
        Ok(Block { bytes: bytes.into(), offsets: offsets.into() })
    }

    /// The payload of a row, by its number in the page, in memory of its own.
    pub(crate) fn get(&self, row: u32) -> Option<Bytes> {
        let at = *self.offsets.get(row as usize)? as usize;
        let length = length_at(&self.bytes, at)?;
        let start = at.checked_add(4)?;
        self.bytes.get(start..start.checked_add(length)?).map(Bytes::copy_from_slice)
    }
}

impl Weighed for Block {
    fn weight(&self) -> usize {
        size_of::<Block>() + self.bytes.len() + size_of_val(&*self.offsets)
    }
}

fn length_at(bytes: &[u8], at: usize) -> Option<usize> {
    let length = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*length)).ok()
}

/// `decoded` comes from the verified page index and bounds the allocation.
fn decompress(body: &[u8], decoded: usize) -> Result<Vec<u8>, String> {
    thread_local! {
        // Making a context costs as much as decoding a small page.
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        let decompressor = match context {
            Some(decompressor) => decompressor,
            None => context.insert(zstd::bulk::Decompressor::new().map_err(|error| error.to_string())?),
        };
        let bytes = decompressor
            .decompress(body, decoded)
            .map_err(|error| format!("a page does not decompress: {error}"))?;
        if bytes.len() == decoded { Ok(bytes) } else { Err("a page is shorter than it should be".to_owned()) }
    })
}

const DATA_PAGE: i64 = 0;
const PLAIN: i64 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(values: &[&[u8]]) -> (PageRef, Vec<u8>) {
        let mut plain = Vec::new();
        for value in values {
            plain.extend_from_slice(&(value.len() as u32).to_le_bytes());
            plain.extend_from_slice(value);
        }
        let body = zstd::bulk::compress(&plain, 1).unwrap();
        let mut stored = vec![0x15, 0x00];
        for size in [plain.len(), body.len()] {
            stored.push(0x15);
            let mut left = size as u64 * 2;
            while left >= 0x80 {
                stored.push(left as u8 | 0x80);
                left >>= 7;
            }
            stored.push(left as u8);
        }
        // DataPageHeader as field 5: values, encoding, two level encodings, an empty statistics structure.
        stored.extend([0x2C, 0x15, values.len() as u8 * 2, 0x15, 0, 0x15, 6, 0x15, 6, 0x1C, 0, 0, 0]);
        stored.extend(&body);
        let page = PageRef {
            offset: 4,
            size: stored.len() as u32,
            first_row: 0,
            rows: values.len() as u32,
            decoded: plain.len() as u32,
        };
        (page, stored)
    }

    #[test]
    fn a_page_gives_back_its_values() {
        let (page, stored) = page(&[b"one", b"", b"three"]);
        let block = Block::decode(&page, &stored).unwrap();
        let values: Vec<Option<Bytes>> = (0..4).map(|row| block.get(row)).collect();
        assert_eq!(values, [Some("one".into()), Some("".into()), Some("three".into()), None]);
    }

    #[test]
    fn a_page_that_contradicts_its_index_is_refused() {
        let (good, stored) = page(&[b"one", b"two"]);
        assert!(Block::decode(&PageRef { rows: 1, ..good }, &stored).is_err());
        assert!(Block::decode(&PageRef { decoded: 1 << 30, ..good }, &stored).is_err());
        assert!(Block::decode(&good, &stored[..stored.len() - 1]).is_err());
        let (_, more) = page(&[b"one", b"tw"]);
        assert!(Block::decode(&good, &more).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            rows in 0u32..10,
            decoded in 0u32..1000,
        ) {
            let page = PageRef { offset: 0, size: bytes.len() as u32, first_row: 0, rows, decoded };
            let _ = Block::decode(&page, &bytes);
        }

        #[test]
        fn a_changed_byte_makes_an_error_or_a_readable_block(at in 0usize..60, flip in 1u8..=255) {
            let (page, mut stored) = page(&[b"some value", b"some other value", b""]);
            let at = at % stored.len();
            stored[at] ^= flip;
            if let Ok(block) = Block::decode(&page, &stored) {
                for row in 0..4 {
                    let _ = block.get(row);
                }
            }
        }
    }
}
