//! What redo of a record leaves on the page of each block reference: whether it moves `pd_lsn` to the record's end,
//! and whether it works on a page of zeros. Read in the redo routines of PostgreSQL 15; proven by the tests over real WAL.
//!
//! With it a skipped record is noticed: PostgreSQL's redo silently leaves a page of zeros alone
//! (`XLogReadBufferExtended` returns no buffer for a new page), which would turn a lost base page into an empty one (I9).

use zenith_pgformat::wal::RmgrId;

/// `XLOG_HEAP2_VISIBLE`, access/heapam_xlog.h
const HEAP2_VISIBLE: u8 = 0x40;
/// access/hash_xlog.h
const HASH_SPLIT_ALLOCATE_PAGE: u8 = 0x40;
const HASH_SPLIT_COMPLETE: u8 = 0x60;
const HASH_MOVE_PAGE_CONTENTS: u8 = 0x70;
const HASH_SQUEEZE_PAGE: u8 = 0x80;
const HASH_DELETE: u8 = 0x90;
/// access/gistxlog.h
const GIST_PAGE_UPDATE: u8 = 0x00;
const GIST_PAGE_SPLIT: u8 = 0x30;
/// access/ginxlog.h
const GIN_SPLIT: u8 = 0x30;
/// The bits of `xl_info` that belong to the resource manager (`~XLR_INFO_MASK`).
const RMGR_INFO: u8 = 0xF0;

/// What redo does to the page of one block reference that is neither initialised nor restored from an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stamp {
    /// The page's LSN becomes the record's end. The rule.
    Moved,
    /// The page changes but keeps its LSN: the heap page of a VISIBLE record, when hint bits are not logged
    /// (`heap_xlog_visible` asks `XLogHintBitIsNeeded`).
    Kept,
    /// The page is not changed at all: a hash index's primary bucket, registered only so that redo takes its
    /// cleanup lock before it works on the bucket's other pages.
    LockedOnly,
    /// The map page of a VISIBLE record: begins as zeros (visibility maps grow unlogged, and it is read with
    /// `RBM_ZERO_ON_ERROR`), and keeps its LSN when the bits are set already (`visibilitymap_set`).
    VisibilityMap,
}

impl Stamp {
    /// What redo of a record with this resource manager and `xl_info` does to the page of block reference `block_id`.
    pub fn of(rmgr: RmgrId, info: u8, block_id: u8, hint_bits_logged: bool) -> Stamp {
        match (rmgr, info & RMGR_INFO, block_id) {
            (RmgrId::HEAP2, HEAP2_VISIBLE, 0) => Stamp::VisibilityMap,
            (RmgrId::HEAP2, HEAP2_VISIBLE, _) if !hint_bits_logged => Stamp::Kept,
            (RmgrId::HASH, HASH_MOVE_PAGE_CONTENTS | HASH_SQUEEZE_PAGE | HASH_DELETE, 0) => Stamp::LockedOnly,
            _ => Stamp::Moved,
        }
    }

    /// Whether redo can begin with a page of zeros.
    pub fn begins_with_zeros(self) -> bool {
        self == Stamp::VisibilityMap
    }

    /// Whether the page's LSN is at least the record's end afterwards.
    pub fn moves_lsn(self) -> bool {
        self == Stamp::Moved
    }
}

/// Whether the image of this block reference is the page *after* the record. Where it is not, redo changes the restored
/// page (`gistRedoClearFollowRight`, `hash_xlog_split_allocate_page`, `hash_xlog_split_complete`), so that such a record has
/// to be redone, not replaced by its image.
pub fn image_is_final(rmgr: RmgrId, info: u8, block_id: u8) -> bool {
    !matches!(
        (rmgr, info & RMGR_INFO, block_id),
        (RmgrId::GIST, GIST_PAGE_UPDATE, 1)
            | (RmgrId::GIST, GIST_PAGE_SPLIT, 0)
            | (RmgrId::HASH, HASH_SPLIT_ALLOCATE_PAGE, 0)
            | (RmgrId::HASH, HASH_SPLIT_COMPLETE, 0 | 1)
    )
}

/// Whether this block reference is the child of a GIN split, whose redo needs the images of all other blocks: it is
/// [`crate::native::Edit::GinFinishSplit`] instead.
pub fn finishes_gin_split(rmgr: RmgrId, info: u8, block_id: u8) -> bool {
    rmgr == RmgrId::GIN && info & RMGR_INFO == GIN_SPLIT && block_id == 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heap_page_of_a_visible_record_is_stamped_only_when_hint_bits_are_logged() {
        assert_eq!(Stamp::of(RmgrId::HEAP2, 0x40, 1, true), Stamp::Moved);
        assert_eq!(Stamp::of(RmgrId::HEAP2, 0x40, 1, false), Stamp::Kept);
        assert_eq!(Stamp::of(RmgrId::HEAP2, 0x40, 0, true), Stamp::VisibilityMap);
        assert_eq!(Stamp::of(RmgrId::HEAP, 0x40, 1, false), Stamp::Moved);
    }

    #[test]
    fn a_bucket_that_is_only_locked_is_never_stamped_and_its_other_pages_always() {
        for info in [0x70, 0x80, 0x90] {
            assert_eq!(Stamp::of(RmgrId::HASH, info, 0, true), Stamp::LockedOnly);
            assert_eq!(Stamp::of(RmgrId::HASH, info, 1, true), Stamp::Moved);
        }
        assert_eq!(Stamp::of(RmgrId::HASH, 0x20, 0, true), Stamp::Moved);
    }

    #[test]
    fn the_low_bits_of_the_info_byte_do_not_matter() {
        assert_eq!(Stamp::of(RmgrId::HASH, 0x93, 0, true), Stamp::LockedOnly);
        assert!(!image_is_final(RmgrId::GIST, 0x32, 0));
    }

    #[test]
    fn images_that_redo_still_changes_are_told_apart() {
        assert!(image_is_final(RmgrId::GIST, GIST_PAGE_UPDATE, 0));
        assert!(!image_is_final(RmgrId::GIST, GIST_PAGE_UPDATE, 1));
        assert!(!image_is_final(RmgrId::HASH, HASH_SPLIT_COMPLETE, 1));
        assert!(image_is_final(RmgrId::HASH, HASH_SPLIT_ALLOCATE_PAGE, 2));
        assert!(image_is_final(RmgrId::XLOG, 0xB0, 0));
    }
}
