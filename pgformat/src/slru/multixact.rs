//! `pg_multixact`: four bytes a multixact in `offsets`; in `members` groups of four flag bytes and four transaction
//! ids (access/multixact.h, multixact.c).

use super::{PAGES_PER_SEGMENT, precedes_modulo};
use crate::{BLCKSZ, Xid, le};

/// `FirstMultiXactId`; 0 is no multixact.
pub const FIRST_MULTI: u32 = 1;
/// `MULTIXACT_OFFSETS_PER_PAGE`.
pub const OFFSETS_PER_PAGE: u32 = (BLCKSZ / 4) as u32;
/// `MULTIXACT_FLAGBYTES_PER_GROUP`, `MULTIXACT_MEMBERS_PER_MEMBERGROUP`.
pub const MEMBERS_PER_GROUP: u32 = 4;
/// `MULTIXACT_MEMBERGROUP_SIZE`.
pub const GROUP_LEN: u32 = MEMBERS_PER_GROUP + 4 * MEMBERS_PER_GROUP;
/// `MULTIXACT_MEMBERGROUPS_PER_PAGE`; 12 bytes at the end of a page stay unused.
pub const GROUPS_PER_PAGE: u32 = BLCKSZ as u32 / GROUP_LEN;
/// `MULTIXACT_MEMBERS_PER_PAGE`.
pub const MEMBERS_PER_PAGE: u32 = GROUPS_PER_PAGE * MEMBERS_PER_GROUP;
/// `MultiXactStatusForUpdate`: members with a higher status updated (`ISUPDATE_from_mxstatus`).
const FOR_UPDATE: u8 = 3;

/// `MultiXactIdPrecedes`.
pub fn multi_precedes(first: u32, second: u32) -> bool {
    precedes_modulo(first, second)
}

/// `MultiXactIdPrecedesOrEquals`.
pub fn multi_precedes_or_equals(first: u32, second: u32) -> bool {
    first == second || precedes_modulo(first, second)
}

/// `MultiXactOffsetPrecedes`.
pub fn offset_precedes(first: u32, second: u32) -> bool {
    precedes_modulo(first, second)
}

/// `NextMultiXactId`: the next multixact, stepping over 0.
pub fn next_multi(multi: u32) -> u32 {
    multi.wrapping_add(1).max(FIRST_MULTI)
}

/// `PreviousMultiXactId`: the one before, stepping over 0.
pub fn previous_multi(multi: u32) -> u32 {
    if multi <= FIRST_MULTI { u32::MAX } else { multi - 1 }
}

/// The page of `offsets` that holds a multixact's entry (`MultiXactIdToOffsetPage`).
pub fn offset_page(multi: u32) -> u32 {
    multi / OFFSETS_PER_PAGE
}

/// Where on its page a multixact's entry begins, in bytes.
pub fn offset_position(multi: u32) -> usize {
    (multi % OFFSETS_PER_PAGE) as usize * 4
}

/// The page of `members` that holds a member (`MXOffsetToMemberPage`).
pub fn member_page(offset: u32) -> u32 {
    offset / MEMBERS_PER_PAGE
}

/// The segment of `members` that holds a member (`MXOffsetToMemberSegment`).
pub fn member_segment(offset: u32) -> u32 {
    member_page(offset) / PAGES_PER_SEGMENT
}

/// Where on its page a member's transaction id begins, in bytes (`MXOffsetToMemberOffset`).
pub fn member_position(offset: u32) -> usize {
    let group = offset / MEMBERS_PER_GROUP % GROUPS_PER_PAGE;
    (group * GROUP_LEN + MEMBERS_PER_GROUP + offset % MEMBERS_PER_GROUP * 4) as usize
}

/// Where on its page a member's flag byte lies (`MXOffsetToFlagsOffset` plus `MXOffsetToFlagsBitShift` in bytes).
pub fn member_flag_position(offset: u32) -> usize {
    let group = offset / MEMBERS_PER_GROUP % GROUPS_PER_PAGE;
    (group * GROUP_LEN + offset % MEMBERS_PER_GROUP) as usize
}

/// Where a multixact's members begin, by its page of `offsets`; `None` if the page is too short.
pub fn offset(page: &[u8], multi: u32) -> Option<u32> {
    le::u32(page, offset_position(multi))
}

/// The member at this offset, if it updated, by its page of `members`.
pub fn updater(page: &[u8], offset: u32) -> Option<Xid> {
    let status = page.get(member_flag_position(offset))?;
    (*status > FOR_UPDATE).then(|| le::u32(page, member_position(offset))).flatten()
}

/// `MultiXactOffsetPagePrecedes`.
pub fn offset_page_precedes(first: u32, second: u32) -> bool {
    let start = |page: u32| page.wrapping_mul(OFFSETS_PER_PAGE).wrapping_add(FIRST_MULTI + 1);
    let (first, second) = (start(first), start(second));
    multi_precedes(first, second) && multi_precedes(first, second.wrapping_add(OFFSETS_PER_PAGE - 1))
}

/// `MultiXactMemberPagePrecedes`.
pub fn member_page_precedes(first: u32, second: u32) -> bool {
    let start = |page: u32| page.wrapping_mul(MEMBERS_PER_PAGE);
    let (first, second) = (start(first), start(second));
    offset_precedes(first, second) && offset_precedes(first, second.wrapping_add(MEMBERS_PER_PAGE - 1))
}

/// Where truncation of `offsets` cuts: pages before this one go (`PerformOffsetsTruncation`). It keeps the page of
/// the multixact before the oldest, which is where the next one's members begin.
pub fn offsets_cutoff_page(oldest_multi: u32) -> u32 {
    offset_page(previous_multi(oldest_multi))
}

/// The segments of `members` that truncation from one oldest offset to a newer one removes
/// (`PerformMembersTruncation`): from the old one's up to, not including, the new one's, over the wrap.
pub fn member_segments_removed(old_oldest: u32, new_oldest: u32) -> MemberSegments {
    MemberSegments { next: member_segment(old_oldest), end: member_segment(new_oldest) }
}

/// Iterator of [`member_segments_removed`].
#[derive(Clone, Debug)]
pub struct MemberSegments {
    next: u32,
    end: u32,
}

impl Iterator for MemberSegments {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.next == self.end {
            return None;
        }
        let segment = self.next;
        self.next = if segment == member_segment(u32::MAX) { 0 } else { segment + 1 };
        Some(segment)
    }
}
