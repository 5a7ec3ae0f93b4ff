//! PostgreSQL's own compression, the reading half (the format is described in common/pg_lzcompress.c; interface:
//! common/pg_lzcompress.h).
//!
//! A control byte announces eight items, lowest bit first: 0 is a literal byte, 1 a back reference of two or three
//! bytes. Its first byte holds the upper four bits of the offset and the length minus 3, its second the lower eight
//! bits of the offset; a length of 18 is followed by a byte to add.

/// The length field's value that announces an additional length byte.
const LONG_LENGTH: usize = 18;

/// Decompresses into exactly `out`. `None` when the input is damaged, or does not fill `out` with its last byte.
pub(crate) fn decompress(input: &[u8], out: &mut [u8]) -> Option<()> {
    let mut input = input.iter().copied();
    let mut filled = 0;
    while filled < out.len() {
        let mut control = input.next()?;
        for _ in 0..8 {
            if filled == out.len() {
                break;
            }
            if control & 1 == 0 {
                *out.get_mut(filled)? = input.next()?;
                filled += 1;
            } else {
                let (first, second) = (usize::from(input.next()?), usize::from(input.next()?));
                let mut length = (first & 0x0F) + 3;
                let offset = (first & 0xF0) << 4 | second;
                if length == LONG_LENGTH {
                    length += usize::from(input.next()?);
                }
                filled = copy_back(out, filled, offset, length)?;
            }
            control >>= 1;
        }
    }
    input.next().is_none().then_some(())
}

/// Repeats `length` bytes from `offset` before `filled`, byte by byte where the two overlap; what passes the end of `out`
/// is cut off, as PostgreSQL does. Returns the new fill.
fn copy_back(out: &mut [u8], filled: usize, offset: usize, length: usize) -> Option<usize> {
    let from = filled.checked_sub(offset).filter(|_| offset > 0)?;
    let length = length.min(out.len() - filled);
    if offset >= length {
        out.copy_within(from..from + length, filled);
    } else {
        for at in 0..length {
            out[filled + at] = out[from + at];
        }
    }
    Some(filled + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(input: &[u8], len: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; len];
        decompress(input, &mut out).map(|()| out)
    }

    #[test]
    fn literals_and_references_come_out_as_the_format_says() {
        assert_eq!(run(b"\x00abc", 3).as_deref(), Some(&b"abc"[..]));
        // Three literals, then 6 bytes from 3 back: an overlap.
        assert_eq!(run(b"\x08abc\x03\x03", 9).as_deref(), Some(&b"abcabcabc"[..]));
        // A long length: 18 + 2 bytes from 1 back.
        assert_eq!(run(b"\x02x\x0F\x01\x02", 21).as_deref(), Some(&[b'x'; 21][..]));
        assert_eq!(run(b"", 0).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn an_offset_above_255_uses_the_upper_four_bits() {
        let mut input = Vec::new();
        for chunk in 0..38 {
            input.push(0);
            input.extend((0..8).map(|byte| (chunk * 8 + byte) as u8));
        }
        // 304 literals, then 3 bytes from 0x123 back.
        input.extend([1, 0x10, 0x23]);
        let out = run(&input, 307).expect("sound");
        assert_eq!(out[304..], out[304 - 0x123..304 - 0x123 + 3]);
    }

    /// The image of a B-tree's metapage as PostgreSQL 15.20 logged it, the hole from byte 72 to 8176 taken out. The test
    /// over real WAL (tests/waldump.rs) compares such images with the server's own files.
    const METAPAGE: [u8; 45] = [
        0x02, 0x00, 0x08, 0x01, 0x48, 0x00, 0xF0, 0x1F, 0xF0, 0x1F, 0x04, 0x04, 0x20, 0x01, 0x0C, 0x62, 0x31,
        0x05, 0x00, 0x04, 0x00, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0x01, 0x13, 0x08, 0x08, 0x0B, 0x01,
        0xF0, 0xBF, 0x0F, 0x14, 0x00, 0x00, 0x00, 0x08, 0x01, 0x00, 0x05,
    ];

    #[test]
    fn a_real_servers_image_comes_out_whole() {
        let page = run(&METAPAGE, 88).expect("sound");
        let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(
            page[12..20],
            [0x48, 0, 0xF0, 0x1F, 0xF0, 0x1F, 0x04, 0x20],
            "lower, upper, special, size"
        );
        // BTMetaPageData: magic, version, root, level, fast root, fast level.
        assert_eq!([24, 28, 32, 36, 40, 44].map(word), [0x05_3162, 4, 3, 1, 3, 1]);
        assert_eq!(page[56..64], (-1.0_f64).to_le_bytes(), "btm_last_cleanup_num_heap_tuples");
        assert_eq!(word(84), 8, "BTP_META in the special space behind the hole");
        for cut in 0..METAPAGE.len() {
            assert_eq!(run(&METAPAGE[..cut], 88), None);
        }
    }

    #[test]
    fn damaged_input_is_refused() {
        assert_eq!(run(b"\x01\x00\x01", 3), None, "a reference before the first byte");
        assert_eq!(run(b"\x02x\x00\x00", 4), None, "offset 0");
        assert_eq!(run(b"\x00ab", 3), None, "too short");
        assert_eq!(run(b"\x00abcd", 3), None, "bytes left over");
        assert_eq!(run(b"\x02x\x0F\x01", 21), None, "the length byte is missing");
    }
}
