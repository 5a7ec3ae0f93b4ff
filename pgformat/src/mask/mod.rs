//! What two right copies of one page may differ in: PostgreSQL's own `rm_mask` of every resource manager
//! (access/common/bufmask.c, `heap_mask`, `btree_mask`, `hash_mask`, `gin_mask`, `gist_mask`, `seq_mask`, `spg_mask`,
//! `brin_mask`, `generic_mask`). A page that redo has built and the page that the server had differ in hint bits, for those are set
//! without a word in the WAL, and in what lies in unused space.

mod contents;

use crate::page::{self, PageHeader};
use crate::wal::RmgrId;
use crate::{BLCKSZ, Page, le};

/// Whose page it is, as far as masking goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageKind {
    /// A table, or a page without special space.
    Heap,
    /// B-tree.
    Btree,
    /// Hash index.
    Hash,
    /// GIN.
    Gin,
    /// GiST.
    Gist,
    /// SP-GiST.
    SpGist,
    /// BRIN.
    Brin,
    /// Sequence.
    Sequence,
    /// A page of an extension that writes generic records.
    Generic,
}

impl PageKind {
    /// All of them.
    pub const ALL: [PageKind; 9] = [
        PageKind::Heap,
        PageKind::Btree,
        PageKind::Hash,
        PageKind::Gin,
        PageKind::Gist,
        PageKind::SpGist,
        PageKind::Brin,
        PageKind::Sequence,
        PageKind::Generic,
    ];

    /// The kind of the pages that a resource manager's records are about; `None` for those without `rm_mask`.
    pub fn of_records(rmgr: RmgrId) -> Option<PageKind> {
        Some(match rmgr {
            RmgrId::HEAP | RmgrId::HEAP2 => PageKind::Heap,
            RmgrId::BTREE => PageKind::Btree,
            RmgrId::HASH => PageKind::Hash,
            RmgrId::GIN => PageKind::Gin,
            RmgrId::GIST => PageKind::Gist,
            RmgrId::SEQ => PageKind::Sequence,
            RmgrId::SPGIST => PageKind::SpGist,
            RmgrId::BRIN => PageKind::Brin,
            RmgrId::GENERIC => PageKind::Generic,
            _ => return None,
        })
    }

    /// From the special space, as `pg_filedump` tells access methods apart. An extension's pages may pass for another
    /// kind's: for pages whose records are not at hand.
    pub fn guess(page: &Page) -> PageKind {
        let special = usize::from(PageHeader::decode(page).special);
        let tail = le::u16(page, BLCKSZ - 2).unwrap_or_default();
        let sequence = [0x17, 0x17, 0, 0, 0, 0, 0, 0];
        match BLCKSZ.saturating_sub(special) {
            16 if tail == 0xFF80 => PageKind::Hash,
            16 if tail == 0xFF81 => PageKind::Gist,
            16 => PageKind::Btree,
            8 if tail == 0xFF82 => PageKind::SpGist,
            8 if (0xF091..=0xF093).contains(&tail) => PageKind::Brin,
            8 if page.ends_with(&sequence) => PageKind::Sequence,
            8 => PageKind::Gin,
            _ => PageKind::Heap,
        }
    }
}

/// Clears what two right copies of block `block` may differ in. A page whose header makes no sense, a new one above
/// all, keeps everything but its LSN and checksum (PostgreSQL stops with an error there).
pub fn mask(page: &mut Page, kind: PageKind, block: u32) {
    // mask_page_lsn_and_checksum
    le::put(page, 0, &[0; 10]);
    let header = PageHeader::decode(page);
    let regular = page::PAGE_HEADER_LEN <= usize::from(header.lower)
        && header.lower <= header.upper
        && header.upper <= header.special
        && usize::from(header.special) <= BLCKSZ;
    if regular {
        contents::mask(page, &header, kind, block);
    }
}

/// The first offset at which two copies of block `block` differ after masking.
pub fn first_difference(ours: &Page, theirs: &Page, kind: PageKind, block: u32) -> Option<usize> {
    if ours == theirs {
        return None;
    }
    let (mut ours, mut theirs) = (Box::new(*ours), Box::new(*theirs));
    mask(&mut ours, kind, block);
    mask(&mut theirs, kind, block);
    ours.iter().zip(theirs.iter()).position(|(a, b)| a != b)
}

#[cfg(test)]
mod tests;
