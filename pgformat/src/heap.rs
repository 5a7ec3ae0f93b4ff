//! Heap tuples on a page, as far as reading a system catalog needs (access/htup_details.h, storage/itemid.h).

use crate::page::{PAGE_HEADER_LEN, PageHeader};
use crate::{Page, Xid, le};

/// `LP_NORMAL`.
const LP_NORMAL: u32 = 1;
/// `SizeofHeapTupleHeader`.
const TUPLE_HEADER: usize = 23;
const XMAX_KEYSHR_LOCK: u16 = 0x0010;
const XMAX_EXCL_LOCK: u16 = 0x0040;
const XMAX_LOCK_ONLY: u16 = 0x0080;
const XMIN_COMMITTED: u16 = 0x0100;
const XMIN_INVALID: u16 = 0x0200;
const XMIN_FROZEN: u16 = XMIN_COMMITTED | XMIN_INVALID;
const XMAX_COMMITTED: u16 = 0x0400;
const XMAX_INVALID: u16 = 0x0800;
const XMAX_IS_MULTI: u16 = 0x1000;
/// `BootstrapTransactionId`, `FrozenTransactionId` (access/transam.h): committed, and in no commit log.
const PERMANENT_XIDS: std::ops::RangeInclusive<Xid> = 1..=2;

/// A tuple.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple<'a> {
    /// What made it.
    pub made: Cause,
    /// What deleted or replaced it.
    pub deleted: Cause,
    /// Its columns, from the first one on.
    pub data: &'a [u8],
}

/// Whose doing something was, and what its hint bits tell of that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// It happened, for everybody.
    Done,
    /// It did not.
    NotDone,
    /// It did if this transaction committed.
    Xid(Xid),
    /// It did if the transaction that updated, among the members of this multixact, committed.
    Multi(u32),
}

/// The tuples that line pointers point to. Line pointers and tuples that reach out of their space are passed over: a page's
/// checksum, its row's CRC and redo have vouched for it before.
pub fn tuples(page: &Page) -> impl Iterator<Item = Tuple<'_>> {
    let lower = usize::from(PageHeader::decode(page).lower).min(page.len());
    (PAGE_HEADER_LEN..lower).step_by(4).filter_map(move |at| {
        // ItemIdData: 15 bits of offset, 2 of flags, 15 of length.
        let pointer = le::u32(page, at).filter(|_| at + 4 <= lower)?;
        let (offset, length) = ((pointer & 0x7FFF) as usize, (pointer >> 17) as usize);
        (pointer >> 15 & 3 == LP_NORMAL).then(|| page.get(offset..offset + length)).flatten().and_then(tuple)
    })
}

fn tuple(bytes: &[u8]) -> Option<Tuple<'_>> {
    let (xmin, xmax, infomask) = (le::u32(bytes, 0)?, le::u32(bytes, 4)?, le::u16(bytes, 20)?);
    let header = usize::from(*bytes.get(22)?);
    let data = bytes.get(header..).filter(|_| header >= TUPLE_HEADER)?;
    Some(Tuple { made: made(xmin, infomask), deleted: deleted(xmax, infomask), data })
}

fn made(xmin: Xid, infomask: u16) -> Cause {
    match infomask & XMIN_FROZEN {
        XMIN_INVALID => Cause::NotDone,
        0 if !PERMANENT_XIDS.contains(&xmin) => Cause::Xid(xmin),
        _ => Cause::Done,
    }
}

fn deleted(xmax: Xid, infomask: u16) -> Cause {
    // HEAP_XMAX_IS_LOCKED_ONLY
    let locks = infomask & (XMAX_IS_MULTI | XMAX_EXCL_LOCK | XMAX_KEYSHR_LOCK);
    let only_locked = infomask & XMAX_LOCK_ONLY != 0 || locks == XMAX_EXCL_LOCK;
    if xmax == 0 || only_locked || infomask & XMAX_INVALID != 0 {
        Cause::NotDone
    } else if infomask & XMAX_IS_MULTI != 0 {
        Cause::Multi(xmax)
    } else if infomask & XMAX_COMMITTED != 0 {
        Cause::Done
    } else {
        Cause::Xid(xmax)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BLCKSZ;
    use proptest::prelude::*;

    /// A page with these tuples, whose columns are one byte each.
    fn page_of(tuples: &[(Xid, Xid, u16, u8)]) -> Page {
        let mut page = [0; BLCKSZ];
        le::put(&mut page, 12, &((PAGE_HEADER_LEN + 4 * tuples.len()) as u16).to_le_bytes());
        for (index, (xmin, xmax, infomask, data)) in tuples.iter().enumerate() {
            let offset = BLCKSZ - 32 * (index + 1);
            let pointer = offset as u32 | LP_NORMAL << 15 | 25 << 17;
            le::put(&mut page, PAGE_HEADER_LEN + 4 * index, &pointer.to_le_bytes());
            le::put(&mut page, offset, &xmin.to_le_bytes());
            le::put(&mut page, offset + 4, &xmax.to_le_bytes());
            le::put(&mut page, offset + 20, &infomask.to_le_bytes());
            page[offset + 22] = 24;
            page[offset + 24] = *data;
        }
        page
    }

    #[test]
    fn hint_bits_tell_what_is_known_and_leave_the_rest_to_the_commit_log() {
        let page = page_of(&[
            (700, 0, 0, 1),
            (700, 0, XMIN_COMMITTED | XMAX_INVALID, 2),
            (700, 701, XMIN_FROZEN, 3),
            (1, 701, XMAX_COMMITTED, 4),
            (700, 0, XMIN_INVALID, 5),
            (700, 701, XMIN_COMMITTED | XMAX_LOCK_ONLY, 6),
            (700, 701, XMIN_COMMITTED | XMAX_EXCL_LOCK, 7),
            (700, 9, XMIN_COMMITTED | XMAX_IS_MULTI, 8),
            (700, 9, XMIN_COMMITTED | XMAX_IS_MULTI | XMAX_EXCL_LOCK | XMAX_KEYSHR_LOCK, 9),
        ]);
        let found: Vec<(Cause, Cause, u8)> =
            tuples(&page).map(|tuple| (tuple.made, tuple.deleted, tuple.data[0])).collect();
        use Cause::{Done, Multi, NotDone, Xid};
        let expected = [
            (Xid(700), NotDone, 1),
            (Done, NotDone, 2),
            (Done, Xid(701), 3),
            (Done, Done, 4),
            (NotDone, NotDone, 5),
            (Done, NotDone, 6),
            (Done, NotDone, 7),
            (Done, Multi(9), 8),
            (Done, Multi(9), 9),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn line_pointers_without_a_tuple_are_passed_over() {
        let mut page = page_of(&[(700, 0, 0, 1), (700, 0, 0, 2), (700, 0, 0, 3)]);
        let pointer =
            |offset: u32, flags: u32, length: u32| (offset | flags << 15 | length << 17).to_le_bytes();
        // A redirection, and one that leaves the page.
        le::put(&mut page, PAGE_HEADER_LEN, &pointer(2, 2, 0));
        le::put(&mut page, PAGE_HEADER_LEN + 4, &pointer(8190, LP_NORMAL, 40));
        assert_eq!(tuples(&page).map(|tuple| tuple.data[0]).collect::<Vec<u8>>(), [3]);
    }

    proptest! {
        #[test]
        fn no_page_makes_it_panic(seed: [u8; 32], lower: u16) {
            let mut page = [0; BLCKSZ];
            for (index, byte) in page.iter_mut().enumerate() {
                *byte = seed[index % 32].wrapping_mul((index / 32) as u8 | 1);
            }
            le::put(&mut page, 12, &lower.to_le_bytes());
            tuples(&page).for_each(drop);
        }
    }
}
