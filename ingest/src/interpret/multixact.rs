//! Multixacts (`multixact_redo`, `RecordNewMultiXact`, multixact.c as of 15.18).

use super::draft::Draft;
use super::xlog::later_next_multi;
use crate::error::IngestError;
use std::collections::BTreeMap;
use zenith_layers::Slru;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::slru::may_delete_segment;
use zenith_pgformat::slru::multixact::{
    MEMBERS_PER_PAGE, OFFSETS_PER_PAGE, member_page, member_segments_removed, next_multi, offset_page,
    offset_page_precedes, offsets_cutoff_page,
};
use zenith_pgformat::wal::multixact::{self, Create, MultiXactRecord, Truncate};
use zenith_redo::native::{Edit, Member};

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    match multixact::parse(draft.record)? {
        MultiXactRecord::ZeroOffsetsPage { page } => {
            let begun = draft.pre_initialized_offsets_page();
            if begun.is_some() {
                draft.set_pre_initialized_offsets_page(None);
            }
            if begun == Some(page) { Ok(()) } else { draft.zero_slru_page(Slru::MultiXactOffsets, page) }
        }
        MultiXactRecord::ZeroMembersPage { page } => draft.zero_slru_page(Slru::MultiXactMembers, page),
        MultiXactRecord::Create(create) => record_new(draft, &create),
        MultiXactRecord::Truncate(truncate) => truncated(draft, &truncate),
    }
}

/// Since 15.18 a new multixact sets two offsets: its own and, as the end of its members, the next one's, which may
/// lie on the next page. WAL of an older release has not begun that page yet.
fn record_new(draft: &mut Draft<'_>, create: &Create) -> Result<(), IngestError> {
    if draft.pre_initialized_offsets_page().is_some() {
        draft.set_pre_initialized_offsets_page(None);
    }
    let (multi, next) = (create.mid, next_multi(create.mid));
    let count = u32::try_from(create.members.len()).map_err(|e| draft.error(e))?;
    let end = create.offset.wrapping_add(count);
    // Like GetNewMultiXactId: offset 0 means "not set" and is skipped.
    let next_offset = end.max(1);
    let mut pages: BTreeMap<u32, Vec<(u16, u32)>> = BTreeMap::new();
    for (multi, offset) in [(multi, create.offset), (next, next_offset)] {
        pages.entry(offset_page(multi)).or_default().push(((multi % OFFSETS_PER_PAGE) as u16, offset));
    }
    let next_page = offset_page(next);
    if next_page != offset_page(multi) && !draft.slru_page_exists(Slru::MultiXactOffsets, next_page) {
        draft.set_pre_initialized_offsets_page(Some(next_page));
    }
    for (page, entries) in pages {
        draft.edit_slru_page(Slru::MultiXactOffsets, page, &Edit::MultiXactOffsets { entries })?;
    }
    set_members(draft, create)?;

    let known = draft.checkpoint();
    let (next_multi, next_multi_offset) = later_next_multi(&known, multi.wrapping_add(1), end);
    draft.set_checkpoint(CheckPoint { next_multi, next_multi_offset, ..known });
    for member in &create.members {
        draft.see_xid(member.xid);
    }
    Ok(())
}

fn set_members(draft: &mut Draft<'_>, create: &Create) -> Result<(), IngestError> {
    let mut pages: BTreeMap<u32, Vec<Member>> = BTreeMap::new();
    let mut offset = create.offset;
    for member in &create.members {
        pages.entry(member_page(offset)).or_default().push(Member {
            slot: (offset % MEMBERS_PER_PAGE) as u16,
            xid: member.xid,
            status: member.status,
        });
        offset = offset.wrapping_add(1);
    }
    for (page, members) in pages {
        draft.edit_slru_page(Slru::MultiXactMembers, page, &Edit::MultiXactMembers { members })?;
    }
    Ok(())
}

fn truncated(draft: &mut Draft<'_>, truncate: &Truncate) -> Result<(), IngestError> {
    draft.set_checkpoint(CheckPoint {
        oldest_multi: truncate.end_offsets,
        oldest_multi_db: truncate.oldest_multi_db,
        ..draft.checkpoint()
    });
    for segment in member_segments_removed(truncate.start_members, truncate.end_members) {
        draft.drop_slru_segment(Slru::MultiXactMembers, segment)?;
    }
    let cutoff = offsets_cutoff_page(truncate.end_offsets);
    for segment in draft.slru_segments(Slru::MultiXactOffsets) {
        if may_delete_segment(offset_page_precedes, segment, cutoff) {
            draft.drop_slru_segment(Slru::MultiXactOffsets, segment)?;
        }
    }
    Ok(())
}
