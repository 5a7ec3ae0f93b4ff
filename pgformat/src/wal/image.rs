//! Full-page images back to pages (`RestoreBlockImage`, xlogreader.c).

use super::record::{BKPIMAGE_COMPRESS_LZ4, BKPIMAGE_COMPRESS_PGLZ, BKPIMAGE_COMPRESS_ZSTD, BlockImage};
use super::{WalError, pglz};
use crate::{BLCKSZ, Page};

/// The page that an image holds, as it was logged: its LSN and checksum are stale (redo stamps the record's end, unless
/// the page is all new).
///
/// # Errors
/// [`WalError::Image`] when the bytes do not decompress to exactly the page without its hole.
pub fn restore(image: &BlockImage) -> Result<Box<Page>, WalError> {
    let wrong = |what| Err(WalError::Image { what });
    let (hole, hole_length) = (usize::from(image.hole_offset), usize::from(image.hole_length));
    let Some(kept) = BLCKSZ.checked_sub(hole_length).filter(|kept| hole <= *kept) else {
        return wrong("the hole does not lie inside the page");
    };
    let mut page = Box::new([0; BLCKSZ]);
    if image.is_compressed() {
        decompress(image, &mut page[..kept])?;
    } else if image.bytes.len() == kept {
        page[..kept].copy_from_slice(&image.bytes);
    } else {
        return wrong("image and hole together are not a page");
    }
    if hole_length > 0 {
        page.copy_within(hole..kept, hole + hole_length);
        page[hole..hole + hole_length].fill(0);
    }
    Ok(page)
}

/// Decompresses the image into exactly `out`.
fn decompress(image: &BlockImage, out: &mut [u8]) -> Result<(), WalError> {
    const ALL: u8 = BKPIMAGE_COMPRESS_PGLZ | BKPIMAGE_COMPRESS_LZ4 | BKPIMAGE_COMPRESS_ZSTD;
    let wrong = |what| Err(WalError::Image { what });
    match image.info & ALL {
        BKPIMAGE_COMPRESS_PGLZ => match pglz::decompress(&image.bytes, out) {
            Some(()) => Ok(()),
            None => wrong("its pglz data is damaged"),
        },
        BKPIMAGE_COMPRESS_LZ4 => match lz4_flex::block::decompress_into(&image.bytes, out) {
            Ok(len) if len == out.len() => Ok(()),
            _ => wrong("its lz4 data is damaged"),
        },
        BKPIMAGE_COMPRESS_ZSTD => match zstd::bulk::decompress_to_buffer(&image.bytes, out) {
            Ok(len) if len == out.len() => Ok(()),
            _ => wrong("its zstd data is damaged"),
        },
        _ => wrong("it names more than one compression method"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{BKPIMAGE_APPLY, BKPIMAGE_HAS_HOLE};
    use super::*;
    use bytes::Bytes;

    fn page() -> Page {
        let mut page = [0; BLCKSZ];
        for (at, byte) in page.iter_mut().enumerate() {
            *byte = if (100..8000).contains(&at) { 0 } else { (at % 251) as u8 };
        }
        page
    }

    fn without_hole() -> Vec<u8> {
        [&page()[..100], &page()[8000..]].concat()
    }

    fn image(bytes: Vec<u8>, method: u8) -> BlockImage {
        BlockImage {
            bytes: Bytes::from(bytes),
            hole_offset: 100,
            hole_length: 7900,
            info: BKPIMAGE_HAS_HOLE | BKPIMAGE_APPLY | method,
            apply: true,
        }
    }

    #[test]
    fn every_compression_method_gives_the_page_back() {
        let zstd = zstd::bulk::compress(&without_hole(), 1).unwrap();
        let lz4 = lz4_flex::block::compress(&without_hole());
        let pglz: Vec<u8> = without_hole().chunks(8).flat_map(|chunk| [&[0], chunk].concat()).collect();
        for (bytes, method) in [
            (without_hole(), 0),
            (zstd, BKPIMAGE_COMPRESS_ZSTD),
            (lz4, BKPIMAGE_COMPRESS_LZ4),
            (pglz, BKPIMAGE_COMPRESS_PGLZ),
        ] {
            assert_eq!(*restore(&image(bytes, method)).expect("sound"), page(), "method {method}");
        }
    }

    #[test]
    fn an_image_that_is_not_exactly_a_page_is_refused() {
        let mut short = without_hole();
        short.pop();
        assert!(restore(&image(short.clone(), 0)).is_err());
        assert!(restore(&image(zstd::bulk::compress(&short, 1).unwrap(), BKPIMAGE_COMPRESS_ZSTD)).is_err());
        assert!(restore(&image(lz4_flex::block::compress(&short), BKPIMAGE_COMPRESS_LZ4)).is_err());
        let outside = BlockImage { hole_offset: 400, ..image(without_hole(), 0) };
        assert!(restore(&outside).is_err());
        let both = BKPIMAGE_COMPRESS_ZSTD | BKPIMAGE_COMPRESS_LZ4;
        assert!(restore(&image(short, both)).is_err());
    }
}
