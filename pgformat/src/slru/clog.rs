//! `pg_xact`: two bits a transaction (access/clog.h, clog.c).

use super::{FIRST_NORMAL_XID, xid_precedes};
use crate::{BLCKSZ, Xid};

/// `CLOG_XACTS_PER_BYTE`.
pub const XACTS_PER_BYTE: u32 = 4;
/// `CLOG_XACTS_PER_PAGE`.
pub const XACTS_PER_PAGE: u32 = BLCKSZ as u32 * XACTS_PER_BYTE;

/// `TRANSACTION_STATUS_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum XactStatus {
    /// Running, or lost in a crash.
    InProgress = 0,
    /// Committed.
    Committed = 1,
    /// Aborted.
    Aborted = 2,
    /// A subtransaction that is done; its parent decides.
    SubCommitted = 3,
}

/// The page that holds a transaction's status (`TransactionIdToPage`).
pub fn page_of(xid: Xid) -> u32 {
    xid / XACTS_PER_PAGE
}

/// Byte on the page and bit shift of a transaction's status.
pub fn position(xid: Xid) -> (usize, u32) {
    let index = xid % XACTS_PER_PAGE;
    ((index / XACTS_PER_BYTE) as usize, index % XACTS_PER_BYTE * 2)
}

/// A transaction's status on its page; `None` when the page is cut.
pub fn status(page: &[u8], xid: Xid) -> Option<XactStatus> {
    let (byte, shift) = position(xid);
    Some(match page.get(byte)? >> shift & 3 {
        0 => XactStatus::InProgress,
        1 => XactStatus::Committed,
        2 => XactStatus::Aborted,
        _ => XactStatus::SubCommitted,
    })
}

/// Sets a transaction's status on its page; a cut page stays as it is.
pub fn set_status(page: &mut [u8], xid: Xid, status: XactStatus) {
    let (byte, shift) = position(xid);
    if let Some(byte) = page.get_mut(byte) {
        *byte = *byte & !(3 << shift) | (status as u8) << shift;
    }
}

/// `CLOGPagePrecedes`: whether every transaction of page `first` is older than every one of page `second`.
pub fn page_precedes(first: u32, second: u32) -> bool {
    let start = |page: u32| page.wrapping_mul(XACTS_PER_PAGE).wrapping_add(FIRST_NORMAL_XID + 1);
    let (first, second) = (start(first), start(second));
    xid_precedes(first, second) && xid_precedes(first, second.wrapping_add(XACTS_PER_PAGE - 1))
}
