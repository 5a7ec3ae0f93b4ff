//! Arithmetic of the SLRUs: which page and segment hold a transaction's or multixact's entry, what precedes what
//! when counters wrap, and which segments a truncation removes (access/slru.h, slru.c, clog.c, multixact.c,
//! commit_ts.c, transam.c).
//!
//! Page numbers here are absolute (counted over all segments), as PostgreSQL's `pageno`.

use crate::{BLCKSZ, Xid};

pub mod clog;
pub mod commit_ts;
pub mod multixact;

/// `SLRU_PAGES_PER_SEGMENT`: 32 pages, 256 kB a file.
pub const PAGES_PER_SEGMENT: u32 = 32;
/// The length of a full segment file.
pub const SEGMENT_LEN: usize = PAGES_PER_SEGMENT as usize * BLCKSZ;

/// `FirstNormalTransactionId`.
pub const FIRST_NORMAL_XID: Xid = 3;

/// The segment that holds a page.
pub fn segment_of(page: u32) -> u32 {
    page / PAGES_PER_SEGMENT
}

/// The page's position in its segment file.
pub fn page_in_segment(page: u32) -> u32 {
    page % PAGES_PER_SEGMENT
}

/// A segment's file name (`SlruFileName`): at least four hexadecimal digits.
pub fn segment_name(segment: u32) -> String {
    format!("{segment:04X}")
}

/// The segment that a file name names; `None` for other files. Accepts what `SlruScanDirectory` accepts
/// (4 to 6 upper-case digits) in the form in which [`segment_name`] writes it.
pub fn parse_segment_name(name: &str) -> Option<u32> {
    let well_formed = (4..=6).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
        && (name.len() == 4 || !name.starts_with('0'));
    if well_formed { u32::from_str_radix(name, 16).ok() } else { None }
}

/// `TransactionIdPrecedes`: modulo 2^32 between normal ids; a permanent id (0 to 2) precedes every normal one.
pub fn xid_precedes(first: Xid, second: Xid) -> bool {
    if first < FIRST_NORMAL_XID || second < FIRST_NORMAL_XID {
        first < second
    } else {
        precedes_modulo(first, second)
    }
}

/// `TransactionIdPrecedesOrEquals`.
pub fn xid_precedes_or_equals(first: Xid, second: Xid) -> bool {
    first == second || xid_precedes(first, second)
}

/// `TransactionIdAdvance`: the next id, stepping over the permanent ones.
pub fn xid_advance(xid: Xid) -> Xid {
    xid.wrapping_add(1).max(FIRST_NORMAL_XID)
}

/// The full id (with epoch) that 32-bit `xid` has when `next` is the next full id to be given
/// (`FullTransactionIdFromAllowableAt` and its siblings: at most 2^31 behind or ahead). Saturates at epoch 0.
pub fn full_xid_near(next: u64, xid: Xid) -> u64 {
    let ahead = i64::from(xid.wrapping_sub(next as u32).cast_signed());
    next.checked_add_signed(ahead).unwrap_or(u64::from(xid))
}

/// `(int32) (first - second) < 0`: order modulo 2^32.
pub(crate) fn precedes_modulo(first: u32, second: u32) -> bool {
    first.wrapping_sub(second).cast_signed() < 0
}

/// `SlruMayDeleteSegment`: whether all of a segment precedes the cutoff page, given the SLRU's own order of pages
/// ([`clog::page_precedes`] and its siblings).
pub fn may_delete_segment(precedes: fn(u32, u32) -> bool, segment: u32, cutoff_page: u32) -> bool {
    let first = segment.saturating_mul(PAGES_PER_SEGMENT);
    let last = first.saturating_add(PAGES_PER_SEGMENT - 1);
    precedes(first, cutoff_page) && precedes(last, cutoff_page)
}

#[cfg(test)]
mod tests;
