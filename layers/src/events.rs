//! The events layer: what happened when. Commits, aborts, restore points and checkpoints, for targets given as a
//! time, a name or a transaction, and for people who ask "commits by minute".

use crate::error::LayerError;
use crate::writer::FinishedLayer;
use zenith_pgformat::{Lsn, Tli, Xid};

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EventKind {
    /// `COMMIT`.
    Commit,
    /// `ROLLBACK` of a transaction that had an id.
    Abort,
    /// `COMMIT PREPARED`.
    CommitPrepared,
    /// `ROLLBACK PREPARED`.
    AbortPrepared,
    /// `pg_create_restore_point`.
    RestorePoint,
    /// A checkpoint, online or at a shutdown.
    Checkpoint,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Where its record starts: a target "just before it" is this LSN.
    pub start: Lsn,
    /// Where its record ends: a target "with it" is this LSN.
    pub lsn: Lsn,
    /// What happened.
    pub kind: EventKind,
    /// The transaction (of a prepared one its own, not that of the record); 0 if none.
    pub xid: Xid,
    /// When, in microseconds since 2000-01-01 UTC (`TimestampTz`).
    pub time: i64,
    /// The restore point's name, or the prepared transaction's `gid`; otherwise empty.
    pub name: String,
    /// How many subtransactions ended with it.
    pub subxacts: u32,
}

/// Writes an events layer.
#[derive(Debug)]
pub struct EventWriter {
    tli: Tli,
}

impl EventWriter {
    /// For events with `lsn_from < lsn <= lsn_to`.
    pub fn new(tli: Tli, lsn_from: Lsn, lsn_to: Lsn) -> Result<EventWriter, LayerError> {
        let _ = (lsn_from, lsn_to);
        Ok(EventWriter { tli })
    }

    /// Adds an event; LSNs ascend strictly.
    pub fn push(&mut self, event: &Event) -> Result<(), LayerError> {
        Err(LayerError::Refused(format!("{} {}", self.tli, event.lsn)))
    }

    /// Number of events so far.
    pub fn rows(&self) -> u64 {
        0
    }

    /// About how large the object would be if it were finished now.
    pub fn estimated_bytes(&self) -> u64 {
        0
    }

    /// Ends the layer. A layer without events is refused: ask [`EventWriter::rows`].
    pub fn finish(self) -> Result<FinishedLayer, LayerError> {
        Err(LayerError::Refused("it has no rows".to_owned()))
    }
}
