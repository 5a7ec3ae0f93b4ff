//! Judging the page after one record: pure.

use super::report::Problem;
use zenith_pgformat::mask::{self, PageKind};
use zenith_pgformat::page::{self, PAGE_HEADER_LEN};
use zenith_pgformat::wal::{BlockRef, Record, image};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, Page};
use zenith_redo::stamps::Stamp;

/// One block reference and the pages around it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Redone<'a> {
    pub(super) record: &'a Record,
    pub(super) block: &'a BlockRef,
    /// Whether hint bits are logged there.
    pub(super) hint_bits_logged: bool,
    /// The page before; zeros where there was none.
    pub(super) before: &'a Page,
    /// The page after redo of the whole record.
    pub(super) whole: &'a Page,
    /// The page after the value that is stored.
    pub(super) stored: &'a Page,
}

impl Redone<'_> {
    /// What redo does to the page's LSN; `None` where it begins a history and there is no choice.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let Redone { record, block, .. } = self;
        (!block.starts_history())
            .then(|| Stamp::of(record.rmgr, record.info, block.id, self.hint_bits_logged))
    }

    /// What is wrong with it.
    pub(super) fn problem(&self) -> Option<Problem> {
        let offset = first_difference(self.whole, self.stored);
        let stored = offset.map(|offset| Problem::Stored { offset });
        self.image_problem().or(stored).or_else(|| self.stamp_problem())
    }

    /// The page that the server logged for checking, if it did.
    pub(super) fn has_check(&self) -> bool {
        self.block.image.as_ref().is_some_and(|image| !image.apply)
    }

    fn image_problem(&self) -> Option<Problem> {
        let image = self.block.image.as_ref().filter(|image| !image.apply)?;
        let theirs = match image::restore(image) {
            Ok(theirs) => theirs,
            Err(error) => return Some(Problem::BadImage { message: error.to_string() }),
        };
        // `heap_mask` takes the bits of a visibility map for unused space: they are held against each other elsewhere.
        let offset = match PageKind::of_records(self.record.rmgr) {
            Some(kind) => mask::first_difference(self.whole, &theirs, kind, self.block.block),
            None => first_difference(self.whole, &theirs),
        };
        offset.map(|offset| Problem::Image { offset })
    }

    fn stamp_problem(&self) -> Option<Problem> {
        let (before, found, end) = (page::lsn(self.before), page::lsn(self.whole), self.record.end);
        let wrong = |expected: Lsn| (found != expected).then_some(Problem::Stamp { expected, found });
        match self.stamp() {
            // What an image of a new page restores to has no LSN.
            None if page::is_new(self.whole) => None,
            None | Some(Stamp::Moved) => wrong(end),
            Some(Stamp::Kept) => wrong(before),
            Some(Stamp::LockedOnly) => {
                first_difference(self.before, self.whole).map(|offset| Problem::Touched { offset })
            }
            Some(Stamp::VisibilityMap) if found == before => None,
            Some(Stamp::VisibilityMap) => wrong(end),
        }
    }
}

/// The first byte at which two pages differ.
pub(super) fn first_difference(ours: &Page, theirs: &Page) -> Option<usize> {
    if ours == theirs { None } else { ours.iter().zip(theirs.iter()).position(|(a, b)| a != b) }
}

/// As [`first_difference`], without the checksum: what is read from the store has one of its own.
pub(super) fn first_difference_but_checksum(ours: &Page, theirs: &Page) -> Option<usize> {
    let differs = |at: &usize| ours.get(*at) != theirs.get(*at) && !(8..10).contains(at);
    if ours == theirs { None } else { (0..BLCKSZ).find(differs) }
}

/// Bits of a visibility map page that ours has and theirs has not: they would be wrong answers, while missing ones are
/// always safe.
pub(super) fn excess_bits(ours: &Page, theirs: &Page) -> Vec<(usize, u8)> {
    let bytes = ours.iter().zip(theirs.iter()).enumerate().skip(PAGE_HEADER_LEN);
    bytes.map(|(at, (a, b))| (at, a & !b)).filter(|(_, excess)| *excess != 0).collect()
}

/// Whether the reference is to a page of a visibility map that the server logged for checking.
pub(super) fn is_checked_map(block: &BlockRef) -> bool {
    block.fork == Fork::Vm && block.image.as_ref().is_some_and(|image| !image.apply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use zenith_pgformat::wal::encode::{Parts, encode_with_blocks};
    use zenith_pgformat::wal::{BlockImage, RmgrId};
    use zenith_pgformat::{BLCKSZ, RelNode};

    const END: Lsn = Lsn(0x200);

    fn record(rmgr: RmgrId, info: u8, id: u8, image: Option<BlockImage>) -> Record {
        let node = RelNode { spc: 1663, db: 5, rel: 16384 };
        let block = BlockRef { id, node, fork: Fork::Main, block: 7, will_init: false, image, data: None };
        let parts = Parts { rmgr, info, xid: 7, prev: Lsn(8), origin: None, top_xid: None, main_data: &[] };
        let raw = encode_with_blocks(&parts, std::iter::once(&block));
        Record::decode(Bytes::from(raw), Lsn(0x100), END).expect("sound")
    }

    fn image(page: &Page, apply: bool) -> Option<BlockImage> {
        let bytes = Bytes::copy_from_slice(page);
        Some(BlockImage { bytes, hole_offset: 0, hole_length: 0, info: if apply { 2 } else { 0 }, apply })
    }

    /// A heap page of no items; the byte makes it differ where that counts.
    fn page(lsn: Lsn, byte: u8) -> Page {
        let mut page = [0; BLCKSZ];
        for (at, value) in [(12, 24u16), (14, 8000), (16, 8192), (18, 8192 | 4)] {
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        page::set_lsn(&mut page, lsn);
        page[8100] = byte;
        page
    }

    fn judged(record: &Record, before: &Page, whole: &Page, stored: &Page) -> Option<Problem> {
        let block = &record.blocks[0];
        Redone { record, block, hint_bits_logged: false, before, whole, stored }.problem()
    }

    #[test]
    fn redo_must_give_the_servers_page_but_for_what_may_differ() {
        let theirs = page(Lsn(0x50), 1);
        let insert = record(RmgrId::HEAP, 0, 0, image(&theirs, false));
        let before = page(Lsn(0x50), 0);
        let right = page(END, 1);
        assert_eq!(judged(&insert, &before, &right, &right), None);
        let mut unused = right;
        unused[4000] = 9;
        assert_eq!(judged(&insert, &before, &unused, &unused), None, "unused space");
        let wrong = page(END, 2);
        assert_eq!(judged(&insert, &before, &wrong, &wrong), Some(Problem::Image { offset: 8100 }));
        let applied = record(RmgrId::HEAP, 0, 0, image(&theirs, true));
        assert_eq!(judged(&applied, &before, &wrong, &wrong), None, "an applied image checks nothing");
    }

    #[test]
    fn the_stored_value_must_give_the_same_bytes_even_where_a_mask_would_hide_them() {
        let insert = record(RmgrId::HEAP, 0, 0, None);
        let (right, mut stored) = (page(END, 1), page(END, 1));
        stored[4000] = 9;
        let problem = judged(&insert, &page(Lsn(0x50), 0), &right, &stored);
        assert_eq!(problem, Some(Problem::Stored { offset: 4000 }));
    }

    #[test]
    fn pages_get_the_lsn_that_the_table_of_stamps_says() {
        let (old, moved) = (page(Lsn(0x50), 1), page(END, 1));
        let stamp = |expected, found| Some(Problem::Stamp { expected, found });
        let insert = record(RmgrId::HEAP, 0, 0, None);
        assert_eq!(judged(&insert, &old, &moved, &moved), None);
        assert_eq!(judged(&insert, &old, &old, &old), stamp(END, Lsn(0x50)));
        // XLOG_HEAP2_VISIBLE, without hint bit logging: the heap page keeps its LSN, the map's may.
        let visible = record(RmgrId::HEAP2, 0x40, 1, None);
        assert_eq!(judged(&visible, &old, &old, &old), None);
        assert_eq!(judged(&visible, &old, &moved, &moved), stamp(Lsn(0x50), END));
        let map = record(RmgrId::HEAP2, 0x40, 0, None);
        assert_eq!((judged(&map, &old, &old, &old), judged(&map, &old, &moved, &moved)), (None, None));
        let later = page(Lsn(0x208), 1);
        assert_eq!(judged(&map, &old, &later, &later), stamp(END, Lsn(0x208)));
    }

    #[test]
    fn a_bucket_that_is_only_locked_must_not_change() {
        // XLOG_HASH_DELETE
        let delete = record(RmgrId::HASH, 0x90, 0, None);
        let (old, other) = (page(Lsn(0x50), 1), page(Lsn(0x50), 2));
        assert_eq!(judged(&delete, &old, &old, &old), None);
        assert_eq!(judged(&delete, &old, &other, &other), Some(Problem::Touched { offset: 8100 }));
    }

    #[test]
    fn the_checksum_is_the_readers_own() {
        let (ours, mut read) = (page(END, 1), page(END, 1));
        read[8..10].fill(0xFF);
        assert_eq!(first_difference_but_checksum(&ours, &read), None);
        read[10] = 1;
        assert_eq!(first_difference_but_checksum(&ours, &read), Some(10));
    }
}
