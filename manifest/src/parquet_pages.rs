//! What stands between Parquet's reader and bytes from outside.
//!
//! Every object carries checksums that are compared first, so damage never gets to that reader. What somebody wrote on
//! purpose does: some of it makes the reader panic, take whatever memory a page header claims, or go through a list of whatever
//! length before it finds out (`tests/hostile/findings`).

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Structures and lists in one another: a footer has eight levels, down to the encodings of a column's pages.
const DEPTH_MAX: u32 = 12;
/// A Parquet object ends with the footer's length in four bytes and these.
const MAGIC: &[u8; 4] = b"PAR1";

/// What Parquet's reader made of bytes from outside; a panic of it is an error too, though its
/// message still goes to standard error. `decode` must leave nothing behind but its result.
pub fn decode_foreign<T, E: Display>(decode: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(decoded) => decoded.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("the decoder stopped: {}", message(&*panic))),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}

/// Refuses an object whose footer is no structure of Thrift's compact protocol, or claims lists longer than itself. `tail` is
/// the object, or its end with all of the footer.
pub fn footer_is_sound(tail: &[u8]) -> Result<(), String> {
    let cut = || "the footer is cut off".to_owned();
    let (rest, magic) = tail.split_last_chunk::<4>().ok_or_else(cut)?;
    let (rest, length) = rest.split_last_chunk::<4>().ok_or_else(cut)?;
    if magic != MAGIC {
        return Err("this is no Parquet object".to_owned());
    }
    let length = u32::from_le_bytes(*length) as usize;
    let footer = rest.len().checked_sub(length).and_then(|start| rest.get(start..)).ok_or_else(cut)?;
    structure_is_sound(footer)
}

/// Refuses what is no structure of Thrift's compact protocol, or claims lists longer than itself.
pub fn structure_is_sound(bytes: &[u8]) -> Result<(), String> {
    Thrift { bytes }.skip(STRUCT, 0).ok_or_else(|| "it is no Thrift structure".to_owned())
}

/// Refuses column chunks whose page headers claim more than `max` bytes together: the reader allocates what they claim.
///
/// `chunks` are pages one after the other, as one column chunk or several that follow one another hold them.
pub fn pages_within(max: u64, mut chunks: &[u8]) -> Result<u64, String> {
    let mut claimed = 0u64;
    while !chunks.is_empty() {
        let (header, rest) = PageHeader::decode(chunks).ok_or("a page header is unreadable")?;
        let size = |size: Option<i64>| size.and_then(|size| u64::try_from(size).ok());
        let (Some(uncompressed), Some(compressed)) = (size(header.uncompressed), size(header.compressed))
        else {
            return Err("a page header has no sizes".to_owned());
        };
        claimed = claimed.saturating_add(uncompressed);
        if claimed > max {
            return Err(format!("its pages claim more than {max} bytes"));
        }
        let body = usize::try_from(compressed).ok().and_then(|length| rest.get(length..));
        chunks = body.ok_or("a page goes past the end of its column")?;
    }
    Ok(claimed)
}

/// What a page header says, as far as it is of interest here (parquet.thrift `PageHeader`).
#[derive(Clone, Copy, Default, Debug)]
pub struct PageHeader {
    /// `PageType`: 0 for a data page V1.
    pub page_type: Option<i64>,
    /// Bytes of the page once it is decompressed.
    pub uncompressed: Option<i64>,
    /// Bytes that follow the header.
    pub compressed: Option<i64>,
    /// Of a data page V1: how many values.
    pub values: Option<i64>,
    /// Of a data page V1: `Encoding`, 0 for PLAIN.
    pub encoding: Option<i64>,
}

impl PageHeader {
    /// The header and what follows it.
    pub fn decode(bytes: &[u8]) -> Option<(PageHeader, &[u8])> {
        let mut header = PageHeader::default();
        let mut input = Thrift { bytes };
        input.fields(|input, id, kind| {
            match (id, kind) {
                (1, I32) => header.page_type = Some(input.zigzag()?),
                (2, I32) => header.uncompressed = Some(input.zigzag()?),
                (3, I32) => header.compressed = Some(input.zigzag()?),
                (5, STRUCT) => header.data_page(input)?,
                (_, kind) => input.skip(kind, 0)?,
            }
            Some(())
        })?;
        Some((header, input.bytes))
    }

    /// `DataPageHeader`.
    fn data_page(&mut self, input: &mut Thrift<'_>) -> Option<()> {
        input.fields(|input, id, kind| {
            match (id, kind) {
                (1, I32) => self.values = Some(input.zigzag()?),
                (2, I32) => self.encoding = Some(input.zigzag()?),
                (_, kind) => input.skip(kind, 0)?,
            }
            Some(())
        })
    }
}

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const STRUCT: u8 = 12;

/// Thrift's compact protocol, as much of it as a page header can hold.
struct Thrift<'a> {
    bytes: &'a [u8],
}

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Number and type of the next field; `Some(None)` at the structure's end.
    fn field(&mut self, last: i64) -> Option<Option<(i64, u8)>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Some(None);
        }
        let id = match byte >> 4 {
            0 => self.zigzag()?,
            delta => last.checked_add(i64::from(delta))?,
        };
        Some(Some((id, byte & 15)))
    }

    /// A structure: `read` takes the value of each field, by its number and type.
    fn fields(&mut self, mut read: impl FnMut(&mut Self, i64, u8) -> Option<()>) -> Option<()> {
        let mut id = 0;
        while let Some((next, kind)) = self.field(id)? {
            id = next;
            read(self, id, kind)?;
        }
        Some(())
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        match kind {
            TRUE | FALSE => {}
            BYTE => {
                self.byte()?;
            }
            I16 | I32 | I64 => {
                self.varint()?;
            }
            DOUBLE => self.bytes = self.bytes.get(8..)?,
            BINARY => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.bytes = self.bytes.get(length..)?;
            }
            LIST | SET => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                for _ in 0..count {
                    // In a list a truth value takes a byte, so every element takes at least one.
                    if matches!(head & 15, TRUE | FALSE) {
                        self.byte()?;
                    } else {
                        self.skip(head & 15, depth + 1)?
                    }
                }
            }
            STRUCT => self.fields(|input, _, kind| input.skip(kind, depth + 1))?,
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A page header with these two sizes, and a body.
    fn page(uncompressed: u8, body: &[u8]) -> Vec<u8> {
        let mut page = vec![0x15, 0x00, 0x15, uncompressed * 2, 0x15, body.len() as u8 * 2, 0x00];
        page.extend_from_slice(body);
        page
    }

    #[test]
    fn pages_that_claim_too_much_together_are_refused_before_anything_is_allocated() {
        let pages = [page(50, b"abc"), page(14, b""), page(1, b"x")].concat();
        assert_eq!(pages_within(65, &pages), Ok(65));
        assert!(pages_within(64, &pages).is_err());
        assert!(pages_within(65, &pages[..pages.len() - 1]).is_err(), "cut");
        assert!(pages_within(65, &[0x15, 0x00, 0x00]).is_err(), "no sizes");
        let negative = [0x15, 0x00, 0x15, 0x01, 0x15, 0x00, 0x00];
        assert!(pages_within(65, &negative).is_err(), "a size below 0");
    }

    #[test]
    fn a_list_longer_than_the_bytes_that_hold_it_is_refused_at_once() {
        // Field 1, a list of 2^31 - 1 truth values: elements that take no byte each for some readers.
        let footer = [0x19, 0xF1, 0xFF, 0xFF, 0xFF, 0xFF, 0x07, 0x00];
        assert!(structure_is_sound(&footer).is_err());
        let sound = [0x19, 0x21, 0x01, 0x02, 0x00];
        assert_eq!(structure_is_sound(&sound), Ok(()));
        let object =
            |footer: &[u8]| [&b"PAR1"[..], footer, &(footer.len() as u32).to_le_bytes(), MAGIC].concat();
        assert_eq!(footer_is_sound(&object(&sound)), Ok(()));
        assert!(footer_is_sound(&object(&footer)).is_err());
        for cut in 0..8 {
            assert!(footer_is_sound(&object(&sound)[cut + 6..]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_panic_of_a_decoder_is_an_error_that_says_why() {
        assert_eq!(decode_foreign::<_, String>(|| Ok(1)), Ok(1));
        assert_eq!(decode_foreign::<(), String>(|| Err("short".to_owned())), Err("short".to_owned()));
        let stopped = decode_foreign::<(), String>(|| panic!("no page {}", 7));
        assert_eq!(stopped, Err("the decoder stopped: no page 7".to_owned()));
        let stopped = decode_foreign::<(), String>(|| panic!("no page"));
        assert_eq!(stopped, Err("the decoder stopped: no page".to_owned()));
    }

    proptest! {
        #[test]
        fn hostile_pages_never_panic(bytes: Vec<u8>, max: u64) {
            drop(pages_within(max, &bytes));
            drop(footer_is_sound(&bytes));
            drop(structure_is_sound(&bytes));
        }
    }
}
