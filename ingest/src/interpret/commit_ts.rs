//! Commit timestamps (commit_ts.c).

use super::draft::Draft;
use crate::error::IngestError;
use std::collections::BTreeMap;
use zenith_layers::Slru;
use zenith_pgformat::Xid;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::slru::commit_ts::{XACTS_PER_PAGE, page_of, page_precedes};
use zenith_pgformat::slru::{may_delete_segment, xid_precedes};
use zenith_pgformat::wal::commit_ts::{self, CommitTsRecord};
use zenith_redo::native::Edit;

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    match commit_ts::parse(draft.record)? {
        CommitTsRecord::ZeroPage { page } => draft.zero_slru_page(Slru::CommitTs, page),
        CommitTsRecord::Truncate { page, oldest_xid } => {
            advance_oldest(draft, oldest_xid);
            for segment in draft.slru_segments(Slru::CommitTs) {
                if may_delete_segment(page_precedes, segment, page) {
                    draft.drop_slru_segment(Slru::CommitTs, segment)?;
                }
            }
            Ok(())
        }
    }
}

/// `AdvanceOldestCommitTsXid`.
fn advance_oldest(draft: &mut Draft<'_>, oldest: Xid) {
    let known = draft.checkpoint();
    if known.oldest_commit_ts_xid != 0 && xid_precedes(known.oldest_commit_ts_xid, oldest) {
        draft.set_checkpoint(CheckPoint { oldest_commit_ts_xid: oldest, ..known });
    }
}

/// The time of a committed transaction and its subtransactions, if the cluster keeps times
/// (`TransactionTreeSetCommitTsData`). It moves the counters' newest transaction with every commit.
pub(crate) fn committed(
    draft: &mut Draft<'_>,
    xid: Xid,
    subxacts: &[Xid],
    time: i64,
    origin: u16,
) -> Result<(), IngestError> {
    if !draft.parameters().track_commit_timestamp {
        return Ok(());
    }
    let mut pages: BTreeMap<u32, Vec<u16>> = BTreeMap::new();
    for xid in std::iter::once(&xid).chain(subxacts) {
        pages.entry(page_of(*xid)).or_default().push((xid % XACTS_PER_PAGE) as u16);
    }
    for (page, slots) in pages {
        draft.edit_slru_page(Slru::CommitTs, page, &Edit::CommitTs { time, origin, slots })?;
    }
    let newest = subxacts.last().copied().unwrap_or(xid);
    let known = draft.checkpoint();
    if xid_precedes(known.newest_commit_ts_xid, newest) {
        draft.set_checkpoint(CheckPoint { newest_commit_ts_xid: newest, ..known });
    }
    Ok(())
}

/// `ActivateCommitTs`: times are kept from the next transaction on.
pub(crate) fn activate(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    let next = draft.next_xid().xid();
    let known = draft.checkpoint();
    if known.oldest_commit_ts_xid == 0 {
        draft.set_checkpoint(CheckPoint { oldest_commit_ts_xid: next, newest_commit_ts_xid: next, ..known });
    }
    let page = page_of(next);
    if draft.slru_page_exists(Slru::CommitTs, page) {
        return Ok(());
    }
    draft.zero_slru_page(Slru::CommitTs, page)
}

/// `DeactivateCommitTs`: all times are gone.
pub(crate) fn deactivate(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    draft.set_checkpoint(CheckPoint {
        oldest_commit_ts_xid: 0,
        newest_commit_ts_xid: 0,
        ..draft.checkpoint()
    });
    for segment in draft.slru_segments(Slru::CommitTs) {
        draft.drop_slru_segment(Slru::CommitTs, segment)?;
    }
    Ok(())
}
