//! The few fields of a page header that this crate reads and writes (`PageHeaderData`, storage/bufpage.h).

use zenith_pgformat::{BLCKSZ, Lsn, Page};

/// `SizeOfPageHeaderData`, which is `MAXALIGN`ed already.
pub const HEADER_SIZE: usize = 24;
/// `PG_PAGE_LAYOUT_VERSION` in the low byte of `pd_pagesize_version`.
const LAYOUT_VERSION: u16 = 4;

fn u16_at(page: &Page, at: usize) -> u16 {
    match page.get(at..at + 2) {
        Some([a, b]) => u16::from_le_bytes([*a, *b]),
        _ => 0,
    }
}

/// `pd_lsn`: the high half first, each half little-endian.
pub fn lsn(page: &Page) -> Lsn {
    let [a, b, c, d, e, f, g, h, ..] = *page;
    let high = u64::from(u32::from_le_bytes([a, b, c, d]));
    let low = u64::from(u32::from_le_bytes([e, f, g, h]));
    Lsn(high << 32 | low)
}

/// `PageSetLSN`
pub fn set_lsn(page: &mut Page, lsn: Lsn) {
    let [low @ .., e, f, g, h] = lsn.0.to_le_bytes();
    if let Some(field) = page.first_chunk_mut::<8>() {
        let [a, b, c, d] = low;
        *field = [e, f, g, h, a, b, c, d];
    }
}

/// `pd_special`
pub fn special(page: &Page) -> u16 {
    u16_at(page, 16)
}

/// `PageIsNew`: `pd_upper` is 0.
pub fn is_new(page: &Page) -> bool {
    u16_at(page, 14) == 0
}

/// `PageInit` without special space.
pub fn init(page: &mut Page) {
    page.fill(0);
    init_header(page);
}

/// The header of an empty page without special space; the rest of the page is left as it is.
pub fn init_header(page: &mut Page) {
    const SIZE: u16 = BLCKSZ as u16;
    let fields = [(12, HEADER_SIZE as u16), (14, SIZE), (16, SIZE), (18, SIZE | LAYOUT_VERSION)];
    for (at, value) in fields {
        if let Some(field) = page.get_mut(at..at + 2) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_lies_high_half_first() {
        let mut page = [0; BLCKSZ];
        set_lsn(&mut page, Lsn(0x0102_0304_0506_0708));
        assert_eq!(page[..8], [4, 3, 2, 1, 8, 7, 6, 5]);
        assert_eq!(lsn(&page), Lsn(0x0102_0304_0506_0708));
    }

    #[test]
    fn an_initialised_page_is_not_new_any_more() {
        let mut page = [0; BLCKSZ];
        assert!(is_new(&page));
        init(&mut page);
        assert!(!is_new(&page));
        assert_eq!(special(&page), 8192);
    }
}
