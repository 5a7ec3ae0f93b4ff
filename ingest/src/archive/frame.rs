//! Archived files are zstd frames with a content checksum, so that plain `zstd -d` reads them too.

use bytes::Bytes;
use std::io::{Read, Write};

/// Fast, and half as good again as any other level at a tenth of the time: archiving must keep up with a writer.
const LEVEL: i32 = 1;

/// One frame with the content's length and checksum.
pub(crate) fn compress(content: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = encoder(content.len() as u64, 0)?;
    encoder.write_all(content)?;
    encoder.finish().map(Bytes::from)
}

/// What makes such a frame of content that comes in parts, of this length together: with that many threads besides the one
/// that writes, or by itself for 0.
pub(crate) fn encoder(
    length: u64,
    threads: u32,
) -> std::io::Result<zstd::stream::write::Encoder<'static, Vec<u8>>> {
    let capacity = usize::try_from(length / 4).unwrap_or_default();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::with_capacity(capacity), LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(length))?;
    if threads > 0 {
        encoder.multithread(threads)?;
    }
    Ok(encoder)
}

/// The longest that [`compress`] can make of `content_max` bytes (`ZSTD_compressBound`, and the checksum).
pub(crate) fn compressed_max(content_max: u64) -> u64 {
    content_max + content_max / 256 + 4096
}

/// The content, at most `content_max` bytes of it in memory; longer content is an error.
pub(crate) fn decompress(frame: &[u8], content_max: u64) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    decompress_into(frame, content_max, &mut content)?;
    Ok(content)
}

/// As [`decompress`], into memory that is there already. After an error its content is of no use.
pub(crate) fn decompress_into(frame: &[u8], content_max: u64, content: &mut Vec<u8>) -> Result<(), String> {
    content.clear();
    // What the frame says of its length is believed up to the limit: in one piece it is unpacked in half the time.
    let told = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten();
    if let Some(length) = told.filter(|length| *length <= content_max) {
        content.reserve_exact(usize::try_from(length).map_err(|e| e.to_string())?);
        let whole = zstd::bulk::Decompressor::new().and_then(|mut d| d.decompress_to_buffer(frame, content));
        if whole.is_ok_and(|whole| whole as u64 == length) {
            return Ok(());
        }
        content.clear();
    }
    let decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(|e| e.to_string())?;
    let limit = content_max.saturating_add(1);
    decoder.take(limit).read_to_end(content).map_err(|e| e.to_string())?;
    if content.len() as u64 > content_max {
        return Err(format!("more than {content_max} bytes of content"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_beyond_the_limit_is_refused_without_being_unpacked() {
        let bomb = compress(&vec![0; 1 << 20]).unwrap();
        assert!(bomb.len() < 1000);
        assert!(decompress(&bomb, 1 << 10).is_err());
        assert_eq!(decompress(&bomb, 1 << 20).unwrap().len(), 1 << 20);
    }

    #[test]
    fn a_flipped_bit_in_stored_content_is_noticed() {
        let content: Vec<u8> = (0..20_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let frame = compress(&content).unwrap();
        for position in [5, frame.len() / 2, frame.len() - 1] {
            let mut damaged = frame.to_vec();
            damaged[position] ^= 1;
            assert_ne!(decompress(&damaged, 1 << 20).ok(), Some(content.clone()));
            assert!(decompress(&damaged, 1 << 20).is_err(), "byte {position}");
        }
    }

    #[test]
    fn frames_that_do_not_say_how_long_they_are_and_several_in_a_row_are_unpacked_too() {
        let mut untold = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).unwrap();
        untold.write_all(&[5; 9_000]).unwrap();
        let untold = untold.finish().unwrap();
        assert_eq!(decompress(&untold, 9_000).unwrap(), [5; 9_000]);
        assert!(decompress(&untold, 8_999).is_err());
        let two = [compress(&[1; 700]).unwrap(), compress(&[2; 300]).unwrap()].concat();
        assert_eq!(decompress(&two, 1_000).unwrap(), [[1; 700].as_slice(), &[2; 300]].concat());
        assert!(decompress(&two, 999).is_err());
    }

    #[test]
    fn memory_is_used_again_whatever_was_in_it() {
        let frame = compress(&[3; 500]).unwrap();
        let mut content = vec![9; 10_000];
        let address = content.as_ptr();
        decompress_into(&frame, 500, &mut content).unwrap();
        assert_eq!((content.as_slice(), content.as_ptr()), ([3; 500].as_slice(), address));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            drop(decompress(&bytes, 1 << 16));
        }

        #[test]
        fn the_bound_of_a_frame_holds(content: Vec<u8>) {
            let frame = compress(&content).unwrap();
            prop_assert!(frame.len() as u64 <= compressed_max(content.len() as u64));
        }
    }
}
