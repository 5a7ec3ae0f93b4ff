//! What is asked of the pool, and what can go wrong with it.

use crate::start::StartError;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use zenith_pgformat::{Fork, Lsn, RelNode};

/// A block of a relation, as errors name it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockName {
    /// The relation.
    pub node: RelNode,
    /// The fork.
    pub fork: Fork,
    /// The block.
    pub block: u32,
}

impl fmt::Display for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "relation {} fork {} block {}", self.node, self.fork.name(), self.block)
    }
}

/// One page to build: `changes` on top of `base`.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// The relation.
    pub node: RelNode,
    /// The fork.
    pub fork: Fork,
    /// The block.
    pub block: u32,
    /// The page before the first change: 8192 bytes; `None` or no bytes for a page of zeros. The caller has made
    /// sure that this *is* the page's base (I9): redo only notices when a record needs more than zeros.
    pub base: Option<Bytes>,
    /// Oldest first.
    pub changes: Vec<Change>,
    /// Whether the cluster, at these LSNs, protects hint bits by WAL: it has data checksums or `wal_log_hints`
    /// (`XLogHintBitIsNeeded`). Decides the heap page's LSN after a VISIBLE record.
    pub hint_bits_logged: bool,
}

impl PageRequest {
    /// The block's name.
    pub fn name(&self) -> BlockName {
        BlockName { node: self.node, fork: self.fork, block: self.block }
    }
}

/// One change of the page.
#[derive(Clone, Debug)]
pub struct Change {
    /// End of the record that the change comes from.
    pub end: Lsn,
    /// The change.
    pub body: ChangeBody,
}

/// What changes the page.
#[derive(Clone, Debug)]
pub enum ChangeBody {
    /// A raw WAL record that refers to the block, whole or trimmed to it
    /// (`zenith_pgformat::wal::trim::for_block`): PostgreSQL's own redo applies it.
    Record(Bytes),
    /// A native edit, encoded ([`crate::native::Edit::encode`]).
    Edit(Bytes),
}

impl Change {
    /// A record, raw or trimmed, that ends at `end`.
    pub fn record(end: Lsn, raw: Bytes) -> Change {
        Change { end, body: ChangeBody::Record(raw) }
    }

    /// An encoded native edit of the record that ends at `end`.
    pub fn edit(end: Lsn, encoded: Bytes) -> Change {
        Change { end, body: ChangeBody::Edit(encoded) }
    }

    /// The bytes of the record or edit.
    pub fn bytes(&self) -> &Bytes {
        match &self.body {
            ChangeBody::Record(bytes) | ChangeBody::Edit(bytes) => bytes,
        }
    }
}

/// Why one page could not be built. The other pages of a batch are not touched by it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RedoError {
    /// Redo had no page to work on (I9).
    #[error(
        "{key}: the page that the WAL record ending at {lsn} changes is not there: its base page is lost. \
         The layers that should hold it are missing or were written by a faulty slicer"
    )]
    LostBase {
        /// The block.
        key: BlockName,
        /// End of the record.
        lsn: Lsn,
    },
    /// PostgreSQL's redo raised an error.
    #[error("{key}: PostgreSQL's redo of the WAL record ending at {lsn} failed: {message}")]
    Failed {
        /// The block.
        key: BlockName,
        /// End of the record.
        lsn: Lsn,
        /// PostgreSQL's message.
        message: String,
    },
    /// The process died while it worked on this page; it has been replaced.
    #[error("{key}: PostgreSQL's redo of the WAL record ending at {lsn} crashed ({message})")]
    Crashed {
        /// The block.
        key: BlockName,
        /// End of the record.
        lsn: Lsn,
        /// How it ended, and what it said last.
        message: String,
    },
    /// The process did not finish the page in time; it has been killed and replaced.
    #[error("{key}: PostgreSQL's redo of the WAL record ending at {lsn} did not finish within {limit:?}")]
    TimedOut {
        /// The block.
        key: BlockName,
        /// End of the record that it was working on.
        lsn: Lsn,
        /// [`crate::RedoOptions::timeout`]
        limit: Duration,
    },
    /// A record that cannot be redone for this block: damaged, of a resource manager that changes no pages, or not
    /// referring to the block.
    #[error("{key}: the WAL record ending at {lsn} cannot be applied: {message}")]
    BadRecord {
        /// The block.
        key: BlockName,
        /// End of the record.
        lsn: Lsn,
        /// What is wrong with it.
        message: String,
    },
    /// A record that is longer than any that changes pages can be.
    #[error(
        "{key}: the WAL record ending at {lsn} has {length} bytes, more than the {limit} that redo takes"
    )]
    RecordTooLong {
        /// The block.
        key: BlockName,
        /// End of the record.
        lsn: Lsn,
        /// Its length.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// An edit that cannot be decoded, or that does not fit the page.
    #[error("{key}: {message} (edit of the WAL record ending at {lsn})")]
    BadEdit {
        /// The block.
        key: BlockName,
        /// End of the record.
        lsn: Lsn,
        /// What is wrong with it.
        message: String,
    },
    /// A base page that is not a page.
    #[error("{key}: the base page has {length} bytes instead of 8192: the layer that holds it is damaged")]
    BadBase {
        /// The block.
        key: BlockName,
        /// Its length.
        length: usize,
    },
    /// The caller's runtime is shutting down.
    #[error("{key}: not redone: the program is shutting down")]
    ShuttingDown {
        /// The block.
        key: BlockName,
    },
    /// No redo process could be started in place of one that ended.
    #[error("{key}: no redo process is left: {source}")]
    Unavailable {
        /// The block.
        key: BlockName,
        /// Why.
        source: Arc<StartError>,
    },
}
