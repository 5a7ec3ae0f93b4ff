//! The ends of transactions (`xact_redo`, xact.c) and prepared ones (twophase.c).

use super::{clog, commit_ts, draft::Draft, replorigin};
use crate::error::{InRecord, IngestError};
use bytes::Bytes;
use zenith_layers::EventKind;
use zenith_pgformat::wal::xact::{self, Completion, Prepare, XactRecord};
use zenith_pgformat::{Fork, two_phase};
use zenith_redo::native::XactStatus;

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    match xact::parse(draft.record)? {
        XactRecord::Commit(completion) => commit(draft, &completion),
        XactRecord::Abort(completion) => {
            let kind = if completion.two_phase { EventKind::AbortPrepared } else { EventKind::Abort };
            ended(draft, &completion, XactStatus::Aborted, kind)
        }
        XactRecord::Prepare(prepare) => prepared(draft, &prepare),
        // What standbys keep in memory.
        XactRecord::Assignment { .. } | XactRecord::Invalidations { .. } => Ok(()),
    }
}

fn commit(draft: &mut Draft<'_>, completion: &Completion) -> Result<(), IngestError> {
    let kind = if completion.two_phase { EventKind::CommitPrepared } else { EventKind::Commit };
    ended(draft, completion, XactStatus::Committed, kind)?;
    let time = completion.origin.map_or(completion.time, |origin| origin.time);
    let origin = draft.record.origin.unwrap_or(0);
    commit_ts::committed(draft, completion.xid, &completion.subxacts, time, origin)
}

fn ended(
    draft: &mut Draft<'_>,
    completion: &Completion,
    status: XactStatus,
    kind: EventKind,
) -> Result<(), IngestError> {
    let xid = completion.xid;
    draft.see_xid(xid);
    for subxact in &completion.subxacts {
        draft.see_xid(*subxact);
    }
    // A transaction without an id leaves no status (an asynchronous invalidation of a standby's caches, say).
    if xid != 0 {
        clog::set_status(draft, xid, &completion.subxacts, status)?;
    }
    if let (Some(progress), Some(origin)) = (completion.origin, draft.record.origin) {
        replorigin::advance(draft, origin, progress.lsn, false)?;
    }
    for node in &completion.dropped {
        for fork in Fork::ALL {
            draft.forget_invalid_pages(*node, fork, 0);
            if draft.rel_size(*node, fork)?.is_some() {
                draft.set_rel_size(*node, fork, None)?;
            }
        }
    }
    let mut name = String::new();
    if completion.two_phase {
        draft.unprepare(xid)?;
        name = completion
            .gid
            .as_deref()
            .map(|gid| String::from_utf8_lossy(gid).into_owned())
            .unwrap_or_default();
    }
    let subxacts = u32::try_from(completion.subxacts.len()).unwrap_or(u32::MAX);
    draft.event(kind, xid, completion.time, name, subxacts);
    Ok(())
}

/// The record is the state file but for its checksum.
fn prepared(draft: &mut Draft<'_>, prepare: &Prepare) -> Result<(), IngestError> {
    let file = two_phase::file_from_prepare(&draft.record.main_data).of(draft.record)?;
    draft.see_xid(prepare.xid);
    for subxact in &prepare.subxacts {
        draft.see_xid(*subxact);
    }
    if let Some(origin) = draft.record.origin {
        replorigin::advance(draft, origin, prepare.origin.lsn, false)?;
    }
    draft.prepare(prepare.xid, Bytes::from(file))
}
