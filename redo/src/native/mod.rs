//! Changes that WAL describes without a block reference, done natively: visibility maps, transaction status,
//! multixacts, commit timestamps.
//!
//! `ingest` makes them, a layer keeps them encoded ([`Edit::encode`]), a reader applies them to the page before
//! them ([`Edit::apply`]). Positions are those *within one page*, so that an edit means the same wherever it is
//! applied; which page a position belongs to is `ingest`'s arithmetic.

mod apply;
mod codec;

pub use codec::DecodeError;

use zenith_pgformat::Xid;

/// `ALL_VISIBLE` (`VISIBILITYMAP_ALL_VISIBLE`, access/visibilitymapdefs.h).
pub const ALL_VISIBLE: u8 = 0x01;
/// `ALL_FROZEN` (`VISIBILITYMAP_ALL_FROZEN`).
pub const ALL_FROZEN: u8 = 0x02;
/// Both bits (`VISIBILITYMAP_VALID_BITS`): what every record but a lock clears.
pub const VISIBILITY_BITS: u8 = ALL_VISIBLE | ALL_FROZEN;

/// Heap blocks that one page of a visibility map describes (`HEAPBLOCKS_PER_PAGE`, visibilitymap.c).
pub const HEAP_BLOCKS_PER_MAP_PAGE: u32 = 32_672;
/// Transactions on one page of `pg_xact` (`CLOG_XACTS_PER_PAGE`, clog.c).
pub const XACTS_PER_PAGE: u32 = 32_768;
/// Multixacts on one page of `pg_multixact/offsets` (`MULTIXACT_OFFSETS_PER_PAGE`, multixact.c).
pub const OFFSETS_PER_PAGE: u32 = 2_048;
/// Members on one page of `pg_multixact/members` (`MULTIXACT_MEMBERS_PER_PAGE`, multixact.c).
pub const MEMBERS_PER_PAGE: u32 = 1_636;
/// Transactions on one page of `pg_commit_ts` (`COMMIT_TS_XACTS_PER_PAGE`, commit_ts.c).
pub const COMMIT_TS_PER_PAGE: u32 = 819;

/// One native change of one page by one WAL record. Several changes that one record makes to one page belong into
/// one edit: `(key, LSN)` is unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Clears bits of a visibility map page, as redo of a heap record does (`visibilitymap_clear`). It applies
    /// whatever the page's LSN is, and leaves that LSN alone.
    ClearVisibility {
        /// Heap blocks, relative to the first that this map page describes
        /// (`heap block % HEAP_BLOCKS_PER_MAP_PAGE`), with the bits to clear.
        blocks: Vec<(u16, u8)>,
    },
    /// Clears the tail of the last visibility map page that a truncation keeps (`visibilitymap_prepare_truncate`).
    TruncateVisibility {
        /// The first heap block that is gone, relative to the first that this map page describes; 0 clears all.
        first_removed: u16,
    },
    /// Sets the status of transactions on one page of `pg_xact` (`TransactionIdSetStatusBit`).
    XactStatus {
        /// The status, the same for all of them.
        status: XactStatus,
        /// `xid % XACTS_PER_PAGE`.
        slots: Vec<u16>,
    },
    /// Sets where the members of multixacts begin, on one page of `pg_multixact/offsets`.
    MultiXactOffsets {
        /// `(multixact % OFFSETS_PER_PAGE, offset)`.
        entries: Vec<(u16, u32)>,
    },
    /// Sets members on one page of `pg_multixact/members`.
    MultiXactMembers {
        /// The members.
        members: Vec<Member>,
    },
    /// Sets commit timestamps on one page of `pg_commit_ts` (`TransactionIdSetCommitTs`).
    CommitTs {
        /// When the transaction committed (`TimestampTz`).
        time: i64,
        /// Its replication origin, 0 for none.
        origin: u16,
        /// `xid % COMMIT_TS_PER_PAGE` of the transaction and its subtransactions.
        slots: Vec<u16>,
    },
    /// Clears the mark of an incomplete split on the child page of a GIN split (block reference 3 of `GIN SPLIT`,
    /// `ginRedoClearIncompleteSplit`), which PostgreSQL's own redo does only beside whole images of the other
    /// blocks. Skipped when the page's LSN says that it has been done.
    GinFinishSplit,
}

/// The status of a transaction in `pg_xact` (access/clog.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum XactStatus {
    /// `TRANSACTION_STATUS_COMMITTED`
    Committed = 1,
    /// `TRANSACTION_STATUS_ABORTED`
    Aborted = 2,
    /// `TRANSACTION_STATUS_SUB_COMMITTED`
    SubCommitted = 3,
}

/// One member of a multixact (`MultiXactMember`, access/multixact.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// `offset % MEMBERS_PER_PAGE`.
    pub slot: u16,
    /// The transaction.
    pub xid: Xid,
    /// `MultiXactStatus`.
    pub status: u8,
}

/// An edit that does not fit the page it is applied to. The caller adds the page's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// A position past the end of the page.
    #[error(
        "{what} {slot} lies past the end of its page ({limit} fit): the layer that holds this edit was written by a faulty slicer"
    )]
    Position {
        /// What was positioned.
        what: &'static str,
        /// Where.
        slot: u32,
        /// How many there are.
        limit: u32,
    },
    /// An edit that needs an older page met a page of zeros.
    #[error("{0} meets a page of zeros: its base page is lost")]
    LostBase(&'static str),
    /// The page is not what the edit is for.
    #[error("{edit} meets a page whose special space begins at byte {special}: not a GIN page")]
    NotGin {
        /// The edit.
        edit: &'static str,
        /// `pd_special`.
        special: u16,
    },
}
