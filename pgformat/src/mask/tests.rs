use super::*;
use crate::Lsn;
use proptest::prelude::*;

/// A page with two items of 28 and 24 bytes and a special space.
fn regular(special: u16) -> Page {
    let mut page = [0; BLCKSZ];
    page::set_lsn(&mut page, Lsn(0x1234));
    let upper = 8192 - special - 56;
    for (at, value) in [(12, 32), (14, upper), (16, 8192 - special), (18, 8192 | 4)] {
        le::put(&mut page, at, &value.to_le_bytes());
    }
    for (at, offset, length) in [(24, upper, 28u32), (28, upper + 32, 24)] {
        let pointer = u32::from(offset) | 1 << 15 | length << 17;
        le::put(&mut page, at, &pointer.to_le_bytes());
    }
    page
}

/// The first tuple of a heap page.
const TUPLE: usize = 8192 - 56;

fn heap() -> Page {
    regular(0)
}

/// A page of 16 bytes of special space with flags at 12 and a mark at 14.
fn index(flags: u16, id: u16) -> Page {
    let mut page = regular(16);
    le::put(&mut page, BLCKSZ - 4, &flags.to_le_bytes());
    le::put(&mut page, BLCKSZ - 2, &id.to_le_bytes());
    page
}

/// Pages of 8 bytes of special space that end with two fields.
fn short_special(before: u16, last: u16) -> Page {
    let mut page = regular(8);
    le::put(&mut page, BLCKSZ - 4, &before.to_le_bytes());
    le::put(&mut page, BLCKSZ - 2, &last.to_le_bytes());
    page
}

/// Whether a change of one byte is seen.
fn seen(page: &Page, kind: PageKind, at: usize, flip: u8) -> bool {
    let mut other = *page;
    other[at] ^= flip;
    match first_difference(page, &other, kind, 7) {
        Some(found) => {
            assert_eq!(found, at, "{kind:?}");
            true
        }
        None => false,
    }
}

#[test]
fn lsn_checksum_and_unused_space_differ_freely_and_items_do_not() {
    for kind in PageKind::ALL {
        let page = if kind == PageKind::Heap { heap() } else { index(BTP_INNER, BRIN_REGULAR_ID) };
        assert!((0..10).all(|at| !seen(&page, kind, at, 0xFF)), "{kind:?}");
        assert!(!seen(&page, kind, 1000, 0xFF), "{kind:?}");
        assert!(seen(&page, kind, 18, 0xFF), "{kind:?}: the layout version counts");
        assert!(seen(&page, kind, BLCKSZ - 20, 1), "{kind:?}: items count");
    }
}

/// Not a leaf of any kind, a bucket or a deleted page.
const BTP_INNER: u16 = 1 << 7 | 1 << 3;
const BRIN_REGULAR_ID: u16 = 0xF093;

#[test]
fn hints_of_the_header_count_only_for_sequences_and_generic_pages() {
    for kind in PageKind::ALL {
        let counts = matches!(kind, PageKind::Sequence | PageKind::Generic);
        let page = index(BTP_INNER, BRIN_REGULAR_ID);
        assert!([1, 2, 4].iter().all(|bit| seen(&page, kind, 10, *bit) == counts), "{kind:?}");
        assert_eq!(seen(&page, kind, 20, 1), counts, "{kind:?}: pd_prune_xid");
        assert!(seen(&page, kind, 10, 8), "{kind:?}: an unknown flag");
    }
}

#[test]
fn of_a_heap_tuple_hint_bits_command_id_and_padding_differ_freely() {
    let page = heap();
    assert!((8..12).all(|at| !seen(&page, PageKind::Heap, TUPLE + at, 0xFF)), "the command id");
    assert!((28..32).all(|at| !seen(&page, PageKind::Heap, TUPLE + at, 0xFF)), "padding");
    assert!(!seen(&page, PageKind::Heap, TUPLE + 20, 0xF0) && !seen(&page, PageKind::Heap, TUPLE + 21, 0xFE));
    assert!(seen(&page, PageKind::Heap, TUPLE + 20, 1), "whether it has nulls");
    for at in [0, 4, 12, 16, 18, 22, 24] {
        assert!(seen(&page, PageKind::Heap, TUPLE + at, 1), "byte {at} of a tuple");
    }
}

#[test]
fn whether_a_tuple_is_frozen_counts() {
    let mut frozen = heap();
    frozen[TUPLE + 21] = 0x03;
    assert!(seen(&frozen, PageKind::Heap, TUPLE + 21, 0x01));
    assert!(!seen(&frozen, PageKind::Heap, TUPLE + 21, 0x0C));
}

#[test]
fn a_speculative_tuple_is_taken_to_point_to_itself() {
    let (mut token, mut itself) = (heap(), heap());
    token[TUPLE + 12..TUPLE + 18].copy_from_slice(&[9, 9, 9, 9, 0xFE, 0xFF]);
    itself[TUPLE + 12..TUPLE + 18].copy_from_slice(&[3, 0, 1, 0, 1, 0]);
    assert_eq!(first_difference(&token, &itself, PageKind::Heap, 0x0003_0001), None);
    assert_eq!(first_difference(&token, &itself, PageKind::Heap, 0x0003_0002), Some(TUPLE + 14));
}

#[test]
fn btree_leaves_differ_in_dead_marks_and_inner_pages_do_not() {
    let (leaf, inner) = (index(1, 0), index(0, 0));
    for (page, counts) in [(leaf, false), (inner, true)] {
        assert_eq!(seen(&page, PageKind::Btree, 25, 0x80), counts, "line pointer state");
        assert!(!seen(&page, PageKind::Btree, BLCKSZ - 4, 0x60), "garbage and split end");
        assert!(!seen(&page, PageKind::Btree, BLCKSZ - 2, 0xFF), "cycle id");
        assert!(seen(&page, PageKind::Btree, BLCKSZ - 4, 0x80), "incomplete split");
    }
}

#[test]
fn of_an_unused_hash_page_only_header_and_flags_count() {
    let unused = index(0, 0xFF80);
    assert!(!seen(&unused, PageKind::Hash, BLCKSZ - 20, 0xFF));
    let bucket = index(2, 0xFF80);
    assert!(
        seen(&bucket, PageKind::Hash, BLCKSZ - 20, 0xFF) && seen(&bucket, PageKind::Hash, BLCKSZ - 4, 0x10)
    );
    assert!(!seen(&bucket, PageKind::Hash, BLCKSZ - 4, 0x80) && !seen(&bucket, PageKind::Hash, 25, 0x80));
    assert!(seen(&index(4, 0xFF80), PageKind::Hash, 25, 0x80), "a bitmap page has no dead items");
}

#[test]
fn of_a_gist_page_nsn_and_passing_flags_differ_freely() {
    let leaf = index(1, 0xFF81);
    assert!((0..8).all(|at| !seen(&leaf, PageKind::Gist, BLCKSZ - 16 + at, 0xFF)), "NSN");
    assert!(!seen(&leaf, PageKind::Gist, BLCKSZ - 4, 0x1C), "tuples deleted, follow right and garbage");
    assert!(seen(&leaf, PageKind::Gist, BLCKSZ - 4, 0x02), "deleted");
    assert!(seen(&leaf, PageKind::Gist, BLCKSZ - 8, 1), "right link");
}

#[test]
fn a_gin_page_without_lower_counts_whole_and_a_deleted_one_not_at_all() {
    let mut meta = short_special(0, 8);
    le::put(&mut meta, 12, &24u16.to_le_bytes());
    assert!(seen(&meta, PageKind::Gin, 1000, 1));
    assert!(!seen(&short_special(0, 2), PageKind::Gin, 1000, 1));
    assert!(!seen(&short_special(0, 4), PageKind::Gin, BLCKSZ - 12, 1));
}

#[test]
fn brin_revmaps_count_whole_and_evacuation_is_a_hint() {
    let revmap = short_special(0, 0xF092);
    assert!(seen(&revmap, PageKind::Brin, 1000, 1) && !seen(&revmap, PageKind::Brin, BLCKSZ - 4, 1));
}

#[test]
fn the_pages_that_an_spgist_index_used_last_are_a_cache() {
    let mut meta = regular(8);
    le::put(&mut meta, BLCKSZ - 8, &1u16.to_le_bytes());
    assert!(!seen(&meta, PageKind::SpGist, 40, 1) && seen(&meta, PageKind::SpGist, 24, 1));
}

#[test]
fn kinds_are_told_from_the_special_space() {
    for (page, kind) in [
        (heap(), PageKind::Heap),
        (index(1, 0), PageKind::Btree),
        (index(2, 0xFF80), PageKind::Hash),
        (index(1, 0xFF81), PageKind::Gist),
        (short_special(0, 0xFF82), PageKind::SpGist),
        (short_special(0, 0xF093), PageKind::Brin),
        (short_special(0, 2), PageKind::Gin),
    ] {
        assert_eq!(PageKind::guess(&page), kind);
    }
    let mut sequence = regular(8);
    sequence[BLCKSZ - 8..].copy_from_slice(&[0x17, 0x17, 0, 0, 0, 0, 0, 0]);
    assert_eq!(PageKind::guess(&sequence), PageKind::Sequence);
}

#[test]
fn a_page_without_a_regular_header_is_compared_as_it_is() {
    let mut zeros = [0; BLCKSZ];
    mask(&mut zeros, PageKind::Heap, 0);
    assert!(page::is_all_zeros(&zeros));
    for kind in PageKind::ALL {
        assert!(seen(&[0; BLCKSZ], kind, 5000, 1) && !seen(&[0; BLCKSZ], kind, 0, 1));
    }
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(seed in prop::collection::vec(any::<u8>(), 97), header in any::<[u16; 4]>()) {
        let mut page = [0; BLCKSZ];
        for (index, byte) in page.iter_mut().enumerate() {
            *byte = seed[index % 97];
        }
        for (index, value) in header.iter().enumerate() {
            le::put(&mut page, 12 + 2 * index, &(value % 8200).to_le_bytes());
        }
        for kind in PageKind::ALL {
            let mut masked = page;
            mask(&mut masked, kind, u32::MAX);
            prop_assert_eq!(first_difference(&page, &page, PageKind::guess(&page), 0), None);
        }
    }
}
