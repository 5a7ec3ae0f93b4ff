//! The commit log (`clog_redo`, clog.c; `SimpleLruTruncate`, slru.c).

use super::draft::Draft;
use crate::error::IngestError;
use std::collections::BTreeMap;
use zenith_layers::Slru;
use zenith_pgformat::slru::clog::{XACTS_PER_PAGE, page_of, page_precedes};
use zenith_pgformat::slru::{may_delete_segment, xid_precedes};
use zenith_pgformat::wal::clog::{self, ClogRecord};
use zenith_pgformat::{Oid, Xid};
use zenith_redo::native::{Edit, XactStatus};

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    match clog::parse(draft.record)? {
        ClogRecord::ZeroPage { page } => draft.zero_slru_page(Slru::Xact, page),
        ClogRecord::Truncate { page, oldest_xid, oldest_xid_db } => {
            if truncate(draft, page)? {
                advance_oldest(draft, oldest_xid, oldest_xid_db);
            }
            Ok(())
        }
    }
}

/// Redo leaves the counters alone here, but the server that wrote the record moved them with it
/// (`vac_truncate_clog`, vacuum.c), and a cluster is only whole with the status of its oldest transaction.
fn advance_oldest(draft: &mut Draft<'_>, oldest_xid: Xid, database: Oid) {
    let mut checkpoint = draft.checkpoint();
    if xid_precedes(checkpoint.oldest_xid, oldest_xid) {
        checkpoint.oldest_xid = oldest_xid;
        checkpoint.oldest_xid_db = database;
        draft.set_checkpoint(checkpoint);
    }
}

/// Removes the segments before the cutoff; `false` if redo leaves them alone.
fn truncate(draft: &mut Draft<'_>, cutoff: u32) -> Result<bool, IngestError> {
    // "Apparent wraparound": the page in use must not be among those that go.
    if page_precedes(page_of(draft.next_xid().xid()), cutoff) {
        tracing::warn!(lsn = %draft.record.lsn, cutoff, "pg_xact is not truncated: apparent wraparound");
        return Ok(false);
    }
    for segment in draft.slru_segments(Slru::Xact) {
        if may_delete_segment(page_precedes, segment, cutoff) {
            draft.drop_slru_segment(Slru::Xact, segment)?;
        }
    }
    Ok(true)
}

/// The status of a transaction and its subtransactions, one edit a page (`TransactionIdSetTreeStatus`; its
/// intermediate steps are invisible within one record).
pub(crate) fn set_status(
    draft: &mut Draft<'_>,
    xid: Xid,
    subxacts: &[Xid],
    status: XactStatus,
) -> Result<(), IngestError> {
    let mut pages: BTreeMap<u32, Vec<u16>> = BTreeMap::new();
    for xid in std::iter::once(&xid).chain(subxacts) {
        pages.entry(page_of(*xid)).or_default().push((xid % XACTS_PER_PAGE) as u16);
    }
    for (page, slots) in pages {
        draft.edit_slru_page(Slru::Xact, page, &Edit::XactStatus { status, slots })?;
    }
    Ok(())
}
