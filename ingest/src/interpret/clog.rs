//! The commit log (`clog_redo`, clog.c; `SimpleLruTruncate`, slru.c).

use super::draft::Draft;
use crate::error::IngestError;
use std::collections::BTreeMap;
use zenith_layers::Slru;
use zenith_pgformat::Xid;
use zenith_pgformat::slru::clog::{XACTS_PER_PAGE, page_of, page_precedes};
use zenith_pgformat::slru::may_delete_segment;
use zenith_pgformat::wal::clog::{self, ClogRecord};
use zenith_redo::native::{Edit, XactStatus};

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    match clog::parse(draft.record)? {
        ClogRecord::ZeroPage { page } => draft.zero_slru_page(Slru::Xact, page),
        // The oldest transaction of the counters is a checkpoint's business, not this record's.
        ClogRecord::Truncate { page, .. } => truncate(draft, page),
    }
}

fn truncate(draft: &mut Draft<'_>, cutoff: u32) -> Result<(), IngestError> {
    // "Apparent wraparound": the page in use must not be among those that go.
    if page_precedes(page_of(draft.next_xid().xid()), cutoff) {
        tracing::warn!(lsn = %draft.record.lsn, cutoff, "pg_xact is not truncated: apparent wraparound");
        return Ok(());
    }
    for segment in draft.slru_segments(Slru::Xact) {
        if may_delete_segment(page_precedes, segment, cutoff) {
            draft.drop_slru_segment(Slru::Xact, segment)?;
        }
    }
    Ok(())
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
