//! The parts of a regular page that each kind masks.

use super::PageKind;
use crate::page::{PAGE_HEADER_LEN, PageHeader};
use crate::{BLCKSZ, Page, le};

/// `PD_HAS_FREE_LINES`, `PD_PAGE_FULL` and `PD_ALL_VISIBLE`: hints, all of them.
const HINT_FLAGS: u16 = 0x0007;
/// `LP_NORMAL`, storage/itemid.h.
const LP_NORMAL: u32 = 1;
/// `SizeofHeapTupleHeader`
const TUPLE_HEADER: usize = 23;
/// `HEAP_XMIN_FROZEN`, access/htup_details.h; and the masks below.
const XMIN_FROZEN: u16 = 0x0300;
const XMAX_HINTS: u16 = 0x0C00;
const XACT_MASK: u16 = 0xFFF0;
/// `SpecTokenOffsetNumber`, storage/itemptr.h.
const SPECULATIVE: u16 = 0xFFFE;
/// access/nbtree.h
const BTP_LEAF: u16 = 1 << 0;
const BTP_SPLIT_END: u16 = 1 << 5;
const BTP_HAS_GARBAGE: u16 = 1 << 6;
/// access/hash.h: `LH_PAGE_TYPE` and its values, `LH_PAGE_HAS_DEAD_TUPLES`.
const LH_PAGE_TYPE: u16 = 0x000F;
const LH_OVERFLOW: u16 = 1 << 0;
const LH_BUCKET: u16 = 1 << 1;
const LH_HAS_DEAD_TUPLES: u16 = 1 << 7;
/// `GIN_DELETED`, access/ginblock.h.
const GIN_DELETED: u16 = 1 << 2;
/// access/gist.h
const GIST_LEAF: u16 = 1 << 0;
const GIST_TUPLES_DELETED: u16 = 1 << 2;
const GIST_FOLLOW_RIGHT: u16 = 1 << 3;
const GIST_HAS_GARBAGE: u16 = 1 << 4;
/// access/brin_page.h
const BRIN_META: u16 = 0xF091;
const BRIN_REGULAR: u16 = 0xF093;
const BRIN_EVACUATE: u16 = 1 << 0;
/// `SPGIST_META`, access/spgist_private.h.
const SPGIST_META: u16 = 1 << 0;

/// Masks a page whose header is regular, LSN and checksum aside.
pub(super) fn mask(page: &mut Page, header: &PageHeader, kind: PageKind, block: u32) {
    if !matches!(kind, PageKind::Sequence | PageKind::Generic) {
        clear_hint_bits(page);
    }
    let special = usize::from(header.special);
    // Some pages keep pd_lower unset: then their whole middle is content.
    let lower_is_set = usize::from(header.lower) > PAGE_HEADER_LEN;
    match kind {
        PageKind::Heap => {
            clear_unused_space(page, header);
            mask_tuples(page, header, block);
        }
        PageKind::Btree => mask_btree(page, header, special),
        PageKind::Hash => mask_hash(page, header, special),
        PageKind::Gin if flags(page, special + 6) & GIN_DELETED != 0 => clear_content(page),
        PageKind::Gin if lower_is_set => clear_unused_space(page, header),
        PageKind::Gin => {}
        PageKind::Gist => mask_gist(page, header, special),
        PageKind::SpGist => mask_spgist(page, header, special),
        PageKind::Brin => {
            let page_type = flags(page, BLCKSZ - 2);
            if page_type == BRIN_REGULAR || page_type == BRIN_META && lower_is_set {
                clear_unused_space(page, header);
            }
            clear_flags(page, BLCKSZ - 4, BRIN_EVACUATE);
        }
        PageKind::Sequence | PageKind::Generic => clear_unused_space(page, header),
    }
}

fn mask_btree(page: &mut Page, header: &PageHeader, special: usize) {
    clear_unused_space(page, header);
    if flags(page, special + 12) & BTP_LEAF != 0 {
        clear_line_pointer_flags(page, header);
    }
    // Redo of a split leaves the cycle id and the end mark of the right sibling out.
    clear_flags(page, special + 12, BTP_HAS_GARBAGE | BTP_SPLIT_END);
    le::put(page, special + 14, &[0; 2]);
}

fn mask_hash(page: &mut Page, header: &PageHeader, special: usize) {
    clear_unused_space(page, header);
    match flags(page, special + 12) & LH_PAGE_TYPE {
        0 => clear_content(page),
        LH_OVERFLOW | LH_BUCKET => clear_line_pointer_flags(page, header),
        _ => {}
    }
    clear_flags(page, special + 12, LH_HAS_DEAD_TUPLES);
}

fn mask_gist(page: &mut Page, header: &PageHeader, special: usize) {
    clear_unused_space(page, header);
    // The NSN is an LSN.
    le::put(page, special, &[0; 8]);
    if flags(page, special + 12) & GIST_LEAF != 0 {
        clear_line_pointer_flags(page, header);
    }
    // Beyond `gist_mask`: redo by 15.18 sets the mark of deleted tuples where the server that wrote the record did not, redo by
    // 15.20 does not.
    clear_flags(page, special + 12, GIST_FOLLOW_RIGHT | GIST_HAS_GARBAGE | GIST_TUPLES_DELETED);
}

/// Beyond `spg_mask`: the metapage's list of last used pages (behind its magic number) is a cache of which the WAL never
/// tells (`SpGistUpdateMetaPage`, spgutils.c); no record refers to that page once the index is built.
fn mask_spgist(page: &mut Page, header: &PageHeader, special: usize) {
    if flags(page, special) & SPGIST_META != 0 {
        clear(page, PAGE_HEADER_LEN + 4, special);
    } else {
        clear_unused_space(page, header);
    }
}

/// The loop of `heap_mask`.
fn mask_tuples(page: &mut Page, header: &PageHeader, block: u32) {
    for (index, at) in line_pointers(header).enumerate() {
        let pointer = le::u32(page, at).unwrap_or_default();
        let (tuple, state, length) =
            ((pointer & 0x7FFF) as usize, (pointer >> 15) & 3, (pointer >> 17) as usize);
        if length == 0 {
            continue;
        }
        clear(page, tuple + length, tuple + length.next_multiple_of(8));
        if state != LP_NORMAL || length < TUPLE_HEADER {
            continue;
        }
        let frozen = flags(page, tuple + 20) & XMIN_FROZEN == XMIN_FROZEN;
        clear_flags(page, tuple + 20, if frozen { XMAX_HINTS } else { XACT_MASK });
        // The command id: redo writes the first one.
        clear(page, tuple + 8, tuple + 12);
        if flags(page, tuple + 16) == SPECULATIVE {
            // Redo points the tuple to itself where the server still has the insertion's token.
            le::put(page, tuple + 12, &((block >> 16) as u16).to_le_bytes());
            le::put(page, tuple + 14, &(block as u16).to_le_bytes());
            le::put(page, tuple + 16, &(index as u16 + 1).to_le_bytes());
        }
    }
}

/// Where the line pointers stand.
fn line_pointers(header: &PageHeader) -> impl Iterator<Item = usize> + use<> {
    (PAGE_HEADER_LEN..usize::from(header.lower)).step_by(4)
}

/// `mask_page_hint_bits`
fn clear_hint_bits(page: &mut Page) {
    le::put(page, 20, &[0; 4]);
    clear_flags(page, 10, HINT_FLAGS);
}

/// `mask_unused_space`
fn clear_unused_space(page: &mut Page, header: &PageHeader) {
    clear(page, header.lower.into(), header.upper.into());
}

/// `mask_page_content`
fn clear_content(page: &mut Page) {
    clear(page, PAGE_HEADER_LEN, BLCKSZ);
    le::put(page, 12, &[0; 4]);
}

/// `mask_lp_flags`
fn clear_line_pointer_flags(page: &mut Page, header: &PageHeader) {
    for at in line_pointers(header) {
        let pointer = le::u32(page, at).unwrap_or_default() & !(3 << 15);
        le::put(page, at, &pointer.to_le_bytes());
    }
}

fn clear(page: &mut Page, from: usize, to: usize) {
    if let Some(bytes) = page.get_mut(from..to.min(BLCKSZ)) {
        bytes.fill(0);
    }
}

/// A field of two bytes; 0 past the end.
fn flags(page: &Page, at: usize) -> u16 {
    le::u16(page, at).unwrap_or_default()
}

fn clear_flags(page: &mut Page, at: usize, mask: u16) {
    let kept = flags(page, at) & !mask;
    le::put(page, at, &kept.to_le_bytes());
}
