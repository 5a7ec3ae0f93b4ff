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
