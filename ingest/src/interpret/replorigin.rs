//! Progress of replication origins (`replorigin_redo`, `replorigin_advance`, replication/logical/origin.c).

use super::draft::Draft;
use crate::error::IngestError;
use crate::model::ReplOrigin;
use zenith_pgformat::Lsn;
use zenith_pgformat::wal::replorigin::{self, ReplOriginRecord};

/// `DoNotReplicateId`: kept by nobody.
const DO_NOT_REPLICATE: u16 = u16::MAX;

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    match replorigin::parse(draft.record)? {
        ReplOriginRecord::Set { node, remote_lsn, force } => advance(draft, node, remote_lsn, force),
        ReplOriginRecord::Drop { node } => match draft.origin(node) {
            Some(_) => draft.set_origin(node, None),
            None => Ok(()),
        },
    }
}

/// Only forwards, unless it is forced.
pub(crate) fn advance(
    draft: &mut Draft<'_>,
    node: u16,
    remote_lsn: Lsn,
    backward: bool,
) -> Result<(), IngestError> {
    if node == DO_NOT_REPLICATE {
        return Ok(());
    }
    let end = draft.record.end;
    let known = draft.origin(node);
    let mut progress = known.unwrap_or(ReplOrigin { remote_lsn: Lsn::INVALID, local_lsn: Lsn::INVALID });
    if backward || progress.remote_lsn < remote_lsn {
        progress.remote_lsn = remote_lsn;
    }
    if backward || progress.local_lsn < end {
        progress.local_lsn = end;
    }
    if known == Some(progress) {
        return Ok(());
    }
    draft.set_origin(node, Some(progress))
}
