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

    #[test]
    fn damaged_input_is_refused() {
        assert_eq!(run(b"\x01\x00\x01", 3), None, "a reference before the first byte");
        assert_eq!(run(b"\x02x\x00\x00", 4), None, "offset 0");
        assert_eq!(run(b"\x00ab", 3), None, "too short");
        assert_eq!(run(b"\x00abcd", 3), None, "bytes left over");
        assert_eq!(run(b"\x02x\x0F\x01", 21), None, "the length byte is missing");
    }
}
