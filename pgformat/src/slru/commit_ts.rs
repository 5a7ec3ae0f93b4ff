//! `pg_commit_ts`: ten bytes a transaction, `TimestampTz` and replication origin (`CommitTimestampEntry`, commit_ts.c).

use super::{FIRST_NORMAL_XID, xid_precedes};
use crate::{BLCKSZ, Xid, le};

/// `SizeOfCommitTimestampEntry`.
pub const ENTRY_LEN: usize = 10;
/// `COMMIT_TS_XACTS_PER_PAGE`.
pub const XACTS_PER_PAGE: u32 = (BLCKSZ / ENTRY_LEN) as u32;

/// The page that holds a transaction's timestamp (`TransactionIdToCTsPage`).
pub fn page_of(xid: Xid) -> u32 {
    xid / XACTS_PER_PAGE
}

/// Where on its page a transaction's entry begins.
pub fn position(xid: Xid) -> usize {
    (xid % XACTS_PER_PAGE) as usize * ENTRY_LEN
}

/// A transaction's time (microseconds since 2000-01-01 UTC; 0: none) and origin; `None` when the page is cut.
pub fn entry(page: &[u8], xid: Xid) -> Option<(i64, u16)> {
    let offset = position(xid);
    Some((le::u64(page, offset)?.cast_signed(), le::u16(page, offset + 8)?))
}

/// Sets a transaction's time and origin; a cut page stays as it is.
pub fn set_entry(page: &mut [u8], xid: Xid, time: i64, origin: u16) {
    let offset = position(xid);
    if page.len() >= offset + ENTRY_LEN {
        le::put(page, offset, &time.to_le_bytes());
        le::put(page, offset + 8, &origin.to_le_bytes());
    }
}

/// `CommitTsPagePrecedes`.
pub fn page_precedes(first: u32, second: u32) -> bool {
    let start = |page: u32| page.wrapping_mul(XACTS_PER_PAGE).wrapping_add(FIRST_NORMAL_XID + 1);
    let (first, second) = (start(first), start(second));
    xid_precedes(first, second) && xid_precedes(first, second.wrapping_add(XACTS_PER_PAGE - 1))
}
