//! The WAL machinery's own records, treated as `xlog_redo` (xlog.c) treats them.

use super::{blocks, commit_ts, draft::Draft};
use crate::error::{InRecord, IngestError};
use crate::model::{NextXid, Parameters};
use zenith_layers::EventKind;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::slru::{multixact, xid_precedes};
use zenith_pgformat::wal::xlog::{self, ParameterChange, XlogRecord};

/// `POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE` in seconds: 2000-01-01 UTC.
const POSTGRES_EPOCH: i64 = 946_684_800;

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    match xlog::parse(draft.record)? {
        XlogRecord::CheckpointShutdown(bytes) => {
            let record = CheckPoint::decode(&bytes).of(draft.record)?;
            shutdown_checkpoint(draft, &record);
            draft.shutdown_checkpoint();
        }
        XlogRecord::CheckpointOnline(bytes) => {
            let record = CheckPoint::decode(&bytes).of(draft.record)?;
            online_checkpoint(draft, &record);
        }
        XlogRecord::NextOid(next_oid) => {
            draft.set_checkpoint(CheckPoint { next_oid, ..draft.checkpoint() });
        }
        XlogRecord::BackupEnd(start) => draft.backup_end(start),
        XlogRecord::ParameterChange(change) => parameter_change(draft, &change)?,
        XlogRecord::RestorePoint(point) => {
            let name = String::from_utf8_lossy(&point.name).into_owned();
            draft.event(EventKind::RestorePoint, 0, point.time, name, 0);
        }
        XlogRecord::FpwChange(full_page_writes) => {
            draft.set_checkpoint(CheckPoint { full_page_writes, ..draft.checkpoint() });
        }
        XlogRecord::Fpi => {
            if draft.record.blocks.iter().any(|block| !block.image.as_ref().is_some_and(|image| image.apply))
            {
                return Err(draft.error("a full-page image record without an image"));
            }
            blocks::interpret_images(draft)?;
        }
        XlogRecord::FpiForHint => blocks::interpret_images(draft)?,
        // The reader has dealt with what these say: where WAL goes on.
        XlogRecord::Noop
        | XlogRecord::Switch
        | XlogRecord::EndOfRecovery(_)
        | XlogRecord::OverwriteContrecord(_) => {}
    }
    Ok(())
}

/// The counters are exact, the oldest transaction and multixact only advance.
fn shutdown_checkpoint(draft: &mut Draft<'_>, record: &CheckPoint) {
    let known = draft.checkpoint();
    draft.set_next_xid(NextXid(record.next_xid));
    let (oldest_multi, oldest_multi_db) = later_oldest_multi(&known, record);
    // A crash makes the server forget that it advanced with a truncation of pg_xact (`clog_redo` leaves it alone), so that the
    // checkpoint at the end of its recovery may name one whose status is gone.
    let (oldest_xid, oldest_xid_db) = if xid_precedes(record.oldest_xid, known.oldest_xid) {
        (known.oldest_xid, known.oldest_xid_db)
    } else {
        (record.oldest_xid, record.oldest_xid_db)
    };
    let counters = copy_commit_ts(record, &known);
    let merged = CheckPoint { oldest_multi, oldest_multi_db, oldest_xid, oldest_xid_db, ..counters };
    finish_checkpoint(draft, record, merged);
}

/// The transaction and multixact counters are minima, and the next OID is stale: `NEXTOID` records count.
fn online_checkpoint(draft: &mut Draft<'_>, record: &CheckPoint) {
    let known = draft.checkpoint();
    draft.set_next_xid(draft.next_xid().max(NextXid(record.next_xid)));
    let (next_multi, next_multi_offset) =
        later_next_multi(&known, record.next_multi, record.next_multi_offset);
    let (oldest_multi, oldest_multi_db) = later_oldest_multi(&known, record);
    let (oldest_xid, oldest_xid_db) = if xid_precedes(known.oldest_xid, record.oldest_xid) {
        (record.oldest_xid, record.oldest_xid_db)
    } else {
        (known.oldest_xid, known.oldest_xid_db)
    };
    let merged = CheckPoint {
        next_oid: known.next_oid,
        next_multi,
        next_multi_offset,
        oldest_multi,
        oldest_multi_db,
        oldest_xid,
        oldest_xid_db,
        ..copy_commit_ts(record, &known)
    };
    finish_checkpoint(draft, record, merged);
}

/// Redo takes no commit-timestamp limits from checkpoints: they follow the commits and truncations themselves.
fn copy_commit_ts(record: &CheckPoint, known: &CheckPoint) -> CheckPoint {
    CheckPoint {
        oldest_commit_ts_xid: known.oldest_commit_ts_xid,
        newest_commit_ts_xid: known.newest_commit_ts_xid,
        ..*record
    }
}

fn finish_checkpoint(draft: &mut Draft<'_>, record: &CheckPoint, merged: CheckPoint) {
    draft.set_checkpoint(merged);
    let time = record.time.saturating_sub(POSTGRES_EPOCH).saturating_mul(1_000_000);
    draft.event(EventKind::Checkpoint, 0, time, String::new(), 0);
}

/// `MultiXactAdvanceNextMXact`: each of the two only forwards.
pub(crate) fn later_next_multi(known: &CheckPoint, multi: u32, offset: u32) -> (u32, u32) {
    let later_multi =
        if multixact::multi_precedes(known.next_multi, multi) { multi } else { known.next_multi };
    let later_offset = if multixact::offset_precedes(known.next_multi_offset, offset) {
        offset
    } else {
        known.next_multi_offset
    };
    (later_multi, later_offset)
}

/// `MultiXactAdvanceOldest`.
fn later_oldest_multi(known: &CheckPoint, record: &CheckPoint) -> (u32, u32) {
    if multixact::multi_precedes(known.oldest_multi, record.oldest_multi) {
        (record.oldest_multi, record.oldest_multi_db)
    } else {
        (known.oldest_multi, known.oldest_multi_db)
    }
}

fn parameter_change(draft: &mut Draft<'_>, change: &ParameterChange) -> Result<(), IngestError> {
    let tracked = draft.parameters().track_commit_timestamp;
    draft.set_parameters(Parameters {
        max_connections: change.max_connections,
        max_worker_processes: change.max_worker_processes,
        max_wal_senders: change.max_wal_senders,
        max_prepared_transactions: change.max_prepared_xacts,
        max_locks_per_transaction: change.max_locks_per_xact,
        wal_level: change.wal_level,
        wal_log_hints: change.wal_log_hints,
        track_commit_timestamp: change.track_commit_timestamp,
    })?;
    match (tracked, change.track_commit_timestamp) {
        (false, true) => commit_ts::activate(draft),
        (true, false) => commit_ts::deactivate(draft),
        _ => Ok(()),
    }
}
