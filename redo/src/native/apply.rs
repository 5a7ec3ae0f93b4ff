//! Edits on pages, byte by byte as PostgreSQL 15 lays them out.

use super::{
    COMMIT_TS_PER_PAGE, Edit, EditError, HEAP_BLOCKS_PER_MAP_PAGE, MEMBERS_PER_PAGE, Member,
    OFFSETS_PER_PAGE, VISIBILITY_BITS, XACTS_PER_PAGE, XactStatus,
};
use crate::page;
use zenith_pgformat::{BLCKSZ, Lsn, Page};

/// Where a map page's bits begin (`MAXALIGN(SizeOfPageHeaderData)`).
const MAP_START: usize = page::HEADER_SIZE;
/// Bits of one heap block (`BITS_PER_HEAPBLOCK`).
const BITS_PER_HEAP_BLOCK: u32 = 2;
/// `HEAPBLOCKS_PER_BYTE`
const HEAP_BLOCKS_PER_BYTE: u32 = 4;
/// `CLOG_XACTS_PER_BYTE`
const XACTS_PER_BYTE: u32 = 4;
/// Four bytes of status and four transaction ids (`MULTIXACT_MEMBERGROUP_SIZE`).
const MEMBER_GROUP_SIZE: usize = 20;
/// `MULTIXACT_MEMBERS_PER_MEMBERGROUP`
const MEMBERS_PER_GROUP: usize = 4;
/// A `TimestampTz` and a `RepOriginId` (`SizeOfCommitTimestampEntry`).
const COMMIT_TS_SIZE: usize = 10;
/// `sizeof(GinPageOpaqueData)`
const GIN_OPAQUE_SIZE: u16 = 8;
/// Where `flags` lies in `GinPageOpaqueData`.
const GIN_FLAGS_OFFSET: usize = 6;
/// `GIN_INCOMPLETE_SPLIT`, access/ginblock.h
const GIN_INCOMPLETE_SPLIT: u16 = 1 << 6;

impl Edit {
    /// Applies the edit of the record that ends at `lsn`. On an error the page may be half changed: discard it.
    pub fn apply(&self, page: &mut Page, lsn: Lsn) -> Result<(), EditError> {
        match self {
            Edit::ClearVisibility { blocks } => {
                blocks.iter().try_for_each(|(block, bits)| clear_visibility(page, *block, *bits))
            }
            Edit::TruncateVisibility { first_removed } => truncate_visibility(page, *first_removed),
            Edit::XactStatus { status, slots } => {
                slots.iter().try_for_each(|slot| set_xact_status(page, *slot, *status))
            }
            Edit::MultiXactOffsets { entries } => {
                entries.iter().try_for_each(|(slot, offset)| set_offset(page, *slot, *offset))
            }
            Edit::MultiXactMembers { members } => {
                members.iter().try_for_each(|member| set_member(page, *member))
            }
            Edit::CommitTs { time, origin, slots } => {
                slots.iter().try_for_each(|slot| set_commit_ts(page, *slot, *time, *origin))
            }
            Edit::GinFinishSplit => finish_gin_split(page, lsn),
        }
    }
}

/// A position that is below its limit.
fn checked(what: &'static str, slot: u16, limit: u32) -> Result<u32, EditError> {
    let slot = u32::from(slot);
    if slot < limit { Ok(slot) } else { Err(EditError::Position { what, slot, limit }) }
}

/// The byte at a position that `checked` has let through.
fn byte_mut(page: &mut Page, position: usize) -> Result<&mut u8, EditError> {
    page.get_mut(position).ok_or(EditError::Position {
        what: "byte",
        slot: u32::try_from(position).unwrap_or(u32::MAX),
        limit: 8192,
    })
}

/// Writes `bytes` at a position that `checked` has let through.
fn put(page: &mut Page, position: usize, bytes: &[u8]) -> Result<(), EditError> {
    for (index, byte) in bytes.iter().enumerate() {
        *byte_mut(page, position + index)? = *byte;
    }
    Ok(())
}

/// A page of zeros has no bits to clear, and PostgreSQL does not write one that it only initialised to look at.
fn clear_visibility(page: &mut Page, block: u16, bits: u8) -> Result<(), EditError> {
    let block = checked("heap block", block, HEAP_BLOCKS_PER_MAP_PAGE)?;
    let shift = (block % HEAP_BLOCKS_PER_BYTE) * BITS_PER_HEAP_BLOCK;
    let position = MAP_START + (block / HEAP_BLOCKS_PER_BYTE) as usize;
    *byte_mut(page, position)? &= !((bits & VISIBILITY_BITS) << shift);
    Ok(())
}

/// Unlike a clear, PostgreSQL's truncation writes the page in any case: a new one comes out initialised.
fn truncate_visibility(page: &mut Page, first_removed: u16) -> Result<(), EditError> {
    let block = checked("heap block", first_removed, HEAP_BLOCKS_PER_MAP_PAGE)?;
    if block == 0 {
        // The whole page is cut off: PostgreSQL drops the block and writes nothing.
        page.get_mut(MAP_START..).unwrap_or_default().fill(0);
        return Ok(());
    }
    if page::is_new(page) {
        page::init(page);
    }
    let kept_bits = (block % HEAP_BLOCKS_PER_BYTE) * BITS_PER_HEAP_BLOCK;
    let position = MAP_START + (block / HEAP_BLOCKS_PER_BYTE) as usize;
    *byte_mut(page, position)? &= !(0xFF_u8 << kept_bits);
    page.get_mut(position + 1..).unwrap_or_default().fill(0);
    Ok(())
}

fn set_xact_status(page: &mut Page, slot: u16, status: XactStatus) -> Result<(), EditError> {
    let slot = checked("transaction", slot, XACTS_PER_PAGE)?;
    let shift = (slot % XACTS_PER_BYTE) * 2;
    let byte = byte_mut(page, (slot / XACTS_PER_BYTE) as usize)?;
    let current = (*byte >> shift) & 0b11;
    // In recovery a committed transaction is never set back to the first step of its two-step commit.
    if status == XactStatus::SubCommitted && current == XactStatus::Committed as u8 {
        return Ok(());
    }
    *byte = (*byte & !(0b11 << shift)) | ((status as u8) << shift);
    Ok(())
}

fn set_offset(page: &mut Page, slot: u16, offset: u32) -> Result<(), EditError> {
    let slot = checked("multixact", slot, OFFSETS_PER_PAGE)?;
    put(page, slot as usize * 4, &offset.to_le_bytes())
}

fn set_member(page: &mut Page, member: Member) -> Result<(), EditError> {
    let slot = checked("multixact member", member.slot, MEMBERS_PER_PAGE)? as usize;
    let (group, within) = (slot / MEMBERS_PER_GROUP * MEMBER_GROUP_SIZE, slot % MEMBERS_PER_GROUP);
    *byte_mut(page, group + within)? = member.status;
    put(page, group + MEMBERS_PER_GROUP + within * 4, &member.xid.to_le_bytes())
}

fn set_commit_ts(page: &mut Page, slot: u16, time: i64, origin: u16) -> Result<(), EditError> {
    let position = checked("transaction", slot, COMMIT_TS_PER_PAGE)? as usize * COMMIT_TS_SIZE;
    put(page, position, &time.to_le_bytes())?;
    put(page, position + 8, &origin.to_le_bytes())
}

fn finish_gin_split(page: &mut Page, lsn: Lsn) -> Result<(), EditError> {
    const NAME: &str = "the end of a GIN split";
    if page::is_new(page) {
        return Err(EditError::LostBase(NAME));
    }
    if page::lsn(page) >= lsn {
        return Ok(());
    }
    let special = page::special(page);
    if usize::from(special) != BLCKSZ - usize::from(GIN_OPAQUE_SIZE) {
        return Err(EditError::NotGin { edit: NAME, special });
    }
    let position = usize::from(special) + GIN_FLAGS_OFFSET;
    let mask = (!GIN_INCOMPLETE_SPLIT).to_le_bytes();
    for (index, bits) in mask.into_iter().enumerate() {
        *byte_mut(page, position + index)? &= bits;
    }
    page::set_lsn(page, lsn);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{ALL_FROZEN, ALL_VISIBLE};
    use super::*;

    const LSN: Lsn = Lsn(0x1_0000_0028);

    fn map_page(fill: u8) -> Page {
        let mut page = [fill; BLCKSZ];
        page[..page::HEADER_SIZE].fill(0);
        page::init_header(&mut page);
        page
    }

    #[test]
    fn clearing_visibility_touches_the_named_bits_and_not_the_lsn() {
        let mut page = map_page(0xFF);
        let edit = Edit::ClearVisibility { blocks: vec![(5, VISIBILITY_BITS), (32_671, ALL_FROZEN)] };
        edit.apply(&mut page, LSN).unwrap();
        let mut expected = map_page(0xFF);
        expected[24 + 1] = 0b1111_0011;
        expected[8191] = 0b0111_1111;
        assert_eq!(page, expected);
        assert_eq!(page::lsn(&page), Lsn(0));
    }

    #[test]
    fn clearing_visibility_leaves_a_page_of_zeros_all_zeros() {
        let mut page = [0; BLCKSZ];
        Edit::ClearVisibility { blocks: vec![(9, ALL_VISIBLE)] }.apply(&mut page, LSN).unwrap();
        assert_eq!(page, [0; BLCKSZ]);
    }

    #[test]
    fn truncation_keeps_the_bits_below_the_first_removed_block() {
        let mut page = map_page(0xFF);
        Edit::TruncateVisibility { first_removed: 6 }.apply(&mut page, LSN).unwrap();
        let mut expected = map_page(0);
        expected[24] = 0xFF;
        expected[25] = 0b0000_1111;
        assert_eq!(page, expected);
    }

    #[test]
    fn truncation_initialises_a_page_of_zeros_as_postgresql_does() {
        let mut page = [0; BLCKSZ];
        Edit::TruncateVisibility { first_removed: 1 }.apply(&mut page, LSN).unwrap();
        assert_eq!(page, map_page(0));
    }

    #[test]
    fn a_status_takes_two_bits_and_commitment_is_never_taken_back() {
        let mut page = [0; BLCKSZ];
        let set = |page: &mut Page, status, slots: &[u16]| {
            Edit::XactStatus { status, slots: slots.to_vec() }.apply(page, LSN).unwrap();
        };
        set(&mut page, XactStatus::SubCommitted, &[0, 1]);
        assert_eq!(page[0], 0b0000_1111);
        set(&mut page, XactStatus::Committed, &[0]);
        set(&mut page, XactStatus::Aborted, &[3, 32_767]);
        assert_eq!((page[0], page[8191]), (0b1000_1101, 0b1000_0000));
        set(&mut page, XactStatus::SubCommitted, &[0]);
        assert_eq!(page[0], 0b1000_1101);
    }

    #[test]
    fn members_lie_in_groups_of_four_behind_their_status_bytes() {
        let mut page = [0; BLCKSZ];
        let members = vec![
            Member { slot: 0, xid: 0x0102_0304, status: 5 },
            Member { slot: 6, xid: 0xAABB_CCDD, status: 1 },
            Member { slot: 1635, xid: 7, status: 2 },
        ];
        Edit::MultiXactMembers { members }.apply(&mut page, LSN).unwrap();
        assert_eq!((page[0], &page[4..8]), (5, [4, 3, 2, 1].as_slice()));
        assert_eq!((page[22], &page[32..36]), (1, [0xDD, 0xCC, 0xBB, 0xAA].as_slice()));
        assert_eq!((page[8163], &page[8176..8180]), (2, [7, 0, 0, 0].as_slice()));
    }

    #[test]
    fn offsets_and_commit_times_lie_where_postgresql_reads_them() {
        let mut page = [0; BLCKSZ];
        Edit::MultiXactOffsets { entries: vec![(2047, 9)] }.apply(&mut page, LSN).unwrap();
        assert_eq!(page[8188..], [9, 0, 0, 0]);
        let mut page = [0; BLCKSZ];
        Edit::CommitTs { time: -2, origin: 3, slots: vec![1, 818] }.apply(&mut page, LSN).unwrap();
        assert_eq!(page[10..20], [0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 3, 0]);
        assert_eq!(page[8180..8190], page[10..20]);
    }

    #[test]
    fn a_position_past_the_page_is_an_error_and_never_a_panic() {
        let beyond = [
            Edit::ClearVisibility { blocks: vec![(32_672, 3)] },
            Edit::TruncateVisibility { first_removed: u16::MAX },
            Edit::XactStatus { status: XactStatus::Aborted, slots: vec![32_768] },
            Edit::MultiXactOffsets { entries: vec![(2_048, 0)] },
            Edit::MultiXactMembers { members: vec![Member { slot: 1_636, xid: 0, status: 0 }] },
            Edit::CommitTs { time: 0, origin: 0, slots: vec![819] },
        ];
        for edit in beyond {
            let outcome = edit.apply(&mut [0; BLCKSZ], LSN);
            assert!(matches!(outcome, Err(EditError::Position { .. })), "{edit:?}: {outcome:?}");
        }
    }

    #[test]
    fn the_end_of_a_gin_split_needs_its_page_and_is_done_once() {
        let lost = Edit::GinFinishSplit.apply(&mut [0; BLCKSZ], LSN);
        assert_eq!(lost, Err(EditError::LostBase("the end of a GIN split")));

        let mut page = map_page(0);
        assert!(matches!(Edit::GinFinishSplit.apply(&mut page, LSN), Err(EditError::NotGin { .. })));

        page[16..18].copy_from_slice(&8184_u16.to_le_bytes());
        page[8190] = 0b0100_0010;
        Edit::GinFinishSplit.apply(&mut page, LSN).unwrap();
        assert_eq!((page[8190], page::lsn(&page)), (0b0000_0010, LSN));

        page[8190] = 0b0100_0010;
        Edit::GinFinishSplit.apply(&mut page, LSN).unwrap();
        assert_eq!(page[8190], 0b0100_0010, "already applied: pd_lsn says so");
    }
}
