//! The header of a data page and its checksum (storage/bufpage.h, storage/checksum_impl.h).

use crate::{BLCKSZ, Lsn, Page, Xid, le};

/// `SizeOfPageHeaderData`.
pub const PAGE_HEADER_LEN: usize = 24;
/// `PG_PAGE_LAYOUT_VERSION`.
pub const PAGE_LAYOUT_VERSION: u8 = 4;
/// `PD_VALID_FLAG_BITS`.
const VALID_FLAGS: u16 = 0x0007;

const CHECKSUM_OFFSET: usize = 8;
const UPPER_OFFSET: usize = 14;

/// `PageHeaderData` without the line pointers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageHeader {
    /// End of the last record that changed the page.
    pub lsn: Lsn,
    /// `pd_checksum`.
    pub checksum: u16,
    /// `pd_flags`.
    pub flags: u16,
    /// End of the line pointers.
    pub lower: u16,
    /// Start of the items; 0 on a new page.
    pub upper: u16,
    /// Start of the access method's own space.
    pub special: u16,
    /// `pd_pagesize_version`.
    pub page_size_version: u16,
    /// `pd_prune_xid`.
    pub prune_xid: Xid,
}

/// Why a page cannot be what PostgreSQL wrote. Callers add the relation and file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PageError {
    /// The checksum does not fit page and block number.
    #[error("block {block}: checksum {stored:04X} on the page, computed {computed:04X}")]
    Checksum {
        /// The block's number in its fork.
        block: u32,
        /// What the page says.
        stored: u16,
        /// What its bytes give.
        computed: u16,
    },
    /// The header contradicts itself.
    #[error(
        "block {block}: damaged page header (lower {lower}, upper {upper}, special {special}, flags {flags:#06x})"
    )]
    Header {
        /// The block's number in its fork.
        block: u32,
        /// `pd_lower`.
        lower: u16,
        /// `pd_upper`.
        upper: u16,
        /// `pd_special`.
        special: u16,
        /// `pd_flags`.
        flags: u16,
    },
}

impl PageHeader {
    /// Reads the header. Any bytes have one: [`verify`] judges it.
    pub fn decode(page: &Page) -> PageHeader {
        let field = |offset| le::u16(page, offset).unwrap_or_default();
        PageHeader {
            lsn: lsn(page),
            checksum: field(CHECKSUM_OFFSET),
            flags: field(10),
            lower: field(12),
            upper: field(UPPER_OFFSET),
            special: field(16),
            page_size_version: field(18),
            prune_xid: le::u32(page, 20).unwrap_or_default(),
        }
    }

    /// Whether the fields can belong together (`PageIsVerifiedExtended`, bufpage.c).
    pub fn is_sane(&self) -> bool {
        self.flags & !VALID_FLAGS == 0
            && self.lower <= self.upper
            && self.upper <= self.special
            && usize::from(self.special) <= BLCKSZ
            && self.special.is_multiple_of(8)
    }
}

/// `PageGetLSN`: the high half comes first, each half in the machine's byte order (`PageXLogRecPtr`).
pub fn lsn(page: &Page) -> Lsn {
    let half = |offset| u64::from(le::u32(page, offset).unwrap_or_default());
    Lsn(half(0) << 32 | half(4))
}

/// `PageSetLSN`.
pub fn set_lsn(page: &mut Page, lsn: Lsn) {
    le::put(page, 0, &((lsn.0 >> 32) as u32).to_le_bytes());
    le::put(page, 4, &(lsn.0 as u32).to_le_bytes());
}

/// `PageIsNew`: nothing was ever initialised here (`pd_upper` is 0). A page may be new without being all zeros.
pub fn is_new(page: &Page) -> bool {
    le::u16(page, UPPER_OFFSET) == Some(0)
}

/// Whether every byte is zero: what a hole in a file reads as, and never what PostgreSQL has initialised.
pub fn is_all_zeros(page: &Page) -> bool {
    page.iter().all(|byte| *byte == 0)
}

/// `pg_checksum_page`: the checksum that belongs on this page as block `block` of its fork (counted over all
/// segment files). The field on the page does not matter.
pub fn checksum(page: &Page, block: u32) -> u16 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: this processor has what the function was compiled for.
        return unsafe { checksum_by_avx2(page, block) };
    }
    checksum_by_lanes(page, block)
}

/// [`checksum_by_lanes`] with eight lanes to an instruction: every page of a restore and of a base image is summed up, and
/// this is four times as fast as what every processor of the architecture can do.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn checksum_by_avx2(page: &Page, block: u32) -> u16 {
    checksum_by_lanes(page, block)
}

#[inline(always)]
fn checksum_by_lanes(page: &Page, block: u32) -> u16 {
    let mut sums = CHECKSUM_BASES;
    for (index, row) in page.as_chunks::<{ 4 * LANES }>().0.iter().enumerate() {
        let mut words = [0u32; LANES];
        for (word, bytes) in words.iter_mut().zip(row.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        if index == 0 {
            words[CHECKSUM_OFFSET / 4] &= 0xFFFF_0000; // The checksum itself counts as zero.
        }
        for (sum, word) in sums.iter_mut().zip(&words) {
            *sum = mix(*sum, *word);
        }
    }
    let folded = sums.iter().fold(0, |folded, sum| folded ^ mix(mix(*sum, 0), 0));
    ((folded ^ block) % 65_535 + 1) as u16
}

/// Puts the right checksum on a page (`PageSetChecksumInplace`); new pages carry none.
pub fn set_checksum(page: &mut Page, block: u32) {
    if !is_new(page) {
        let checksum = checksum(page, block);
        put_checksum(page, checksum);
    }
}

/// Puts this checksum on a page that is not new.
pub fn put_checksum(page: &mut Page, checksum: u16) {
    le::put(page, CHECKSUM_OFFSET, &checksum.to_le_bytes());
}

/// What PostgreSQL checks when it reads a page (`PageIsVerifiedExtended`): all zeros, or a sane header and, in a
/// cluster with checksums, the right one.
pub fn verify(page: &Page, block: u32, checksums: bool) -> Result<(), PageError> {
    if is_new(page) && is_all_zeros(page) {
        return Ok(());
    }
    let header = PageHeader::decode(page);
    let PageHeader { checksum: stored, lower, upper, special, flags, .. } = header;
    if is_new(page) || !header.is_sane() {
        return Err(PageError::Header { block, lower, upper, special, flags });
    }
    let computed = if checksums { checksum(page, block) } else { stored };
    if stored == computed { Ok(()) } else { Err(PageError::Checksum { block, stored, computed }) }
}

/// Parallel sums (`N_SUMS`).
const LANES: usize = 32;

/// `CHECKSUM_COMP`: one step of FNV-1a with the high bits folded back.
#[inline(always)]
fn mix(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(16_777_619) ^ (mixed >> 17)
}

/// `checksumBaseOffsets`.
const CHECKSUM_BASES: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heap_page() -> Page {
        let mut page = [0; BLCKSZ];
        set_lsn(&mut page, Lsn(0x1_0000_0028));
        le::put(&mut page, 12, &28u16.to_le_bytes());
        le::put(&mut page, 14, &8160u16.to_le_bytes());
        le::put(&mut page, 16, &8192u16.to_le_bytes());
        le::put(&mut page, 18, &(8192u16 | 4).to_le_bytes());
        page
    }

    #[test]
    fn the_lsn_is_stored_high_half_first() {
        let mut page = [0; BLCKSZ];
        set_lsn(&mut page, Lsn(0x0000_0001_0203_0405));
        assert_eq!(page[..8], [1, 0, 0, 0, 5, 4, 3, 2]);
        assert_eq!(lsn(&page), Lsn(0x0000_0001_0203_0405));
    }

    #[test]
    fn a_checksum_belongs_to_its_block_number() {
        let mut page = heap_page();
        set_checksum(&mut page, 7);
        assert_eq!(verify(&page, 7, true), Ok(()));
        assert!(matches!(verify(&page, 8, true), Err(PageError::Checksum { block: 8, .. })));
        assert_eq!(verify(&page, 8, false), Ok(()));
    }

    #[test]
    fn the_stored_checksum_does_not_change_the_computed_one() {
        let mut page = heap_page();
        let before = checksum(&page, 3);
        set_checksum(&mut page, 3);
        assert_eq!(checksum(&page, 3), before);
    }

    #[test]
    fn zeros_are_valid_and_get_no_checksum() {
        let mut page = [0; BLCKSZ];
        set_checksum(&mut page, 3);
        assert!(is_all_zeros(&page) && is_new(&page));
        assert_eq!(verify(&page, 3, true), Ok(()));
    }

    #[test]
    fn a_new_page_that_is_not_all_zeros_is_refused() {
        let mut page = [0; BLCKSZ];
        page[8000] = 1;
        assert!(matches!(verify(&page, 0, false), Err(PageError::Header { upper: 0, .. })));
    }

    #[test]
    fn a_header_that_contradicts_itself_is_refused() {
        let mut page = heap_page();
        le::put(&mut page, 12, &8164u16.to_le_bytes());
        assert!(matches!(verify(&page, 0, false), Err(PageError::Header { lower: 8164, .. })));
    }

    proptest! {
        #[test]
        fn any_bit_flip_fails_the_checksum(bit in 0usize..BLCKSZ * 8) {
            let mut page = heap_page();
            set_checksum(&mut page, 11);
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(verify(&page, 11, true).is_err());
        }

        #[test]
        fn hostile_bytes_never_panic(seed in prop::collection::vec(any::<u8>(), 64), block in any::<u32>()) {
            let mut page = [0; BLCKSZ];
            for (index, byte) in page.iter_mut().enumerate() {
                *byte = seed[index % 64];
            }
            let _ = verify(&page, block, true);
            let _ = PageHeader::decode(&page);
            set_checksum(&mut page, block);
        }
    }
}
