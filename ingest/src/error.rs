//! What stops ingest, and what to do about it (I9: it stops rather than guesses).

use crate::archive::ArchiveError;
use crate::base::BaseError;
use crate::model::ModelError;
use zenith_layers::{Key, LayerError};
use zenith_manifest::{CommitError, ManifestError, Refusal};
use zenith_pgformat::checkpoint::CheckPointError;
use zenith_pgformat::two_phase::TwoPhaseError;
use zenith_pgformat::wal::{RmgrId, WalError};
use zenith_pgformat::{Lsn, Tli};
use zenith_store::StoreError;

/// An error of turning WAL into values.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IngestError {
    /// WAL that cannot be read, or a record type that PostgreSQL 15 does not have.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// A record whose content contradicts itself.
    #[error("record at {lsn} ({rmgr}, info {info:02X}): {what}")]
    Record {
        /// Where the record starts.
        lsn: Lsn,
        /// Its resource manager.
        rmgr: RmgrId,
        /// Its `xl_info`.
        info: u8,
        /// What is wrong.
        what: String,
    },
    /// A record needs a page that does not exist (PostgreSQL: "WAL contains references to invalid pages").
    #[error(
        "record at {lsn} ({rmgr}) changes {page}, which does not exist: the WAL and the base image do not belong \
         together, or a part of the WAL is missing; take a new base image"
    )]
    MissingPage {
        /// Where the record starts.
        lsn: Lsn,
        /// Its resource manager.
        rmgr: RmgrId,
        /// The page.
        page: Key,
    },
    /// Pages that were missing inside a base image's fuzzy window and that no record explained away.
    #[error(
        "at the end of the base image, {at}, {count} page(s) that records changed never came to exist, the first of \
         them {first} (changed at {lsn}): the image and the WAL do not belong together; take a new base image"
    )]
    InvalidPages {
        /// The end of the base image.
        at: Lsn,
        /// How many.
        count: usize,
        /// The first of them.
        first: Key,
        /// The first record that changed it.
        lsn: Lsn,
    },
    /// WAL past the end of a base image that it never ended.
    #[error(
        "the WAL from {redo} on does not hold the end of base image {base} (at {end}): it is not the WAL of the server \
         that the image was taken of; take a new base image, or push this one to a timeline of its own"
    )]
    BaseEndNotMet {
        /// The base image.
        base: uuid::Uuid,
        /// Where its WAL begins.
        redo: Lsn,
        /// Where it should end.
        end: Lsn,
    },
    /// More missing pages in a fuzzy window than can be remembered.
    #[error(
        "at {lsn}: more than {limit} pages changed by the WAL do not exist in the base image; take a new one"
    )]
    TooManyInvalidPages {
        /// Where.
        lsn: Lsn,
        /// The bound.
        limit: usize,
    },
    /// A state that every timeline has is not in its layers.
    #[error("the layers hold no {0} at {1}: the base image is incomplete; take a new one")]
    MissingState(Key, Lsn),
    /// Two values of one key at one LSN: a mistake of this program.
    #[error("the record that ends at {lsn} gave two values of {key}: please report this")]
    Duplicate {
        /// The record's end.
        lsn: Lsn,
        /// The key.
        key: Key,
    },
    /// A state was asked for that was not loaded: a mistake of this program.
    #[error("{0} was not loaded before the record that needs it: please report this")]
    NotLoaded(Key),
    /// A state value that cannot be decoded.
    #[error("{key} at {lsn}: {source}")]
    Model {
        /// Whose value.
        key: Key,
        /// Of which LSN.
        lsn: Lsn,
        /// What is wrong.
        source: ModelError,
    },
    /// The timeline went on from a point that was sliced past.
    #[error(
        "the archive holds the history of timeline {tli}, which leaves timeline {from} at {switch}, but timeline \
         {from} is sliced to {sliced} already: what is sliced is never rewritten. Give the server of timeline \
         {tli} a timeline of its own (zenith_push base --timeline NEW --create) and archive to that"
    )]
    Diverged {
        /// The new timeline.
        tli: Tli,
        /// The one that was sliced.
        from: Tli,
        /// Where they part.
        switch: Lsn,
        /// How far slicing went.
        sliced: Lsn,
    },
    /// Two histories claim to continue this one.
    #[error(
        "the archive holds the histories of timelines {first} and {second}, and neither continues the other: two \
         servers archive to one timeline. Give one of them a timeline of its own"
    )]
    TwoHistories {
        /// One.
        first: Tli,
        /// The other.
        second: Tli,
    },
    /// The archive does not hold what the manifest says was sliced.
    #[error(
        "{name} is not in the archive, but slicing must begin in it (at {lsn}): archive it, or take a new base image"
    )]
    NoSegment {
        /// The segment.
        name: String,
        /// Where slicing stands.
        lsn: Lsn,
    },
    /// Slicing was asked for before there is anything to begin with.
    #[error("the timeline has no base image: take one with zenith_push base")]
    NoBase,
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Layers.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another slicer took over (I6): stop, and do not take the role back.
    #[error("{0}")]
    Fenced(String),
    /// Reading the manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Committing to the manifest; never [`CommitError::Fenced`].
    #[error(transparent)]
    Commit(CommitError),
    /// What a base image carries beside its layers.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// Local work failed: a task that ended early, say.
    #[error("{0}")]
    Internal(String),
}

impl IngestError {
    /// Whether the same work may succeed later though nobody mends anything but the store: it did not answer, or has
    /// no room, or somebody else's commit came first. A new slicer then goes on where the newest manifest stands. WAL,
    /// layers and histories that are wrong stay wrong, and a role that was taken over stays lost (I6).
    pub fn may_pass(&self) -> bool {
        match self {
            IngestError::Store(error) | IngestError::Archive(ArchiveError::Store(error)) => passes(error),
            IngestError::Layer(LayerError::Store { source, .. }) => passes(source),
            IngestError::Base(
                BaseError::Store(error) | BaseError::Layer(LayerError::Store { source: error, .. }),
            ) => passes(error),
            IngestError::Manifest(error) => manifest_passes(error),
            IngestError::Commit(error) => commit_passes(error),
            _ => false,
        }
    }

    /// A record whose content contradicts itself.
    #[allow(clippy::needless_pass_by_value, reason = "errors and texts alike are handed over")]
    pub(crate) fn record(record: &zenith_pgformat::wal::Record, what: impl ToString) -> IngestError {
        IngestError::Record { lsn: record.lsn, rmgr: record.rmgr, info: record.info, what: what.to_string() }
    }
}

/// See [`IngestError::may_pass`].
pub fn passes(error: &StoreError) -> bool {
    error.is_transient() || matches!(error, StoreError::Full { .. })
}

/// See [`IngestError::may_pass`].
pub fn manifest_passes(error: &ManifestError) -> bool {
    matches!(error, ManifestError::Store(error) if passes(error))
}

/// See [`IngestError::may_pass`].
pub fn commit_passes(error: &CommitError) -> bool {
    match error {
        CommitError::Conflict { .. } | CommitError::Unknown { .. } => true,
        // The epoch is still this slicer's: a commit of its own, of which it did not learn, was made after all.
        CommitError::Refused(Refusal::NotContiguous { .. }) => true,
        CommitError::Manifest(error) => manifest_passes(error),
        CommitError::Fenced(_) | CommitError::Refused(_) => false,
    }
}

/// What the small formats say about a record's content, with the record's name.
pub(crate) trait InRecord<T> {
    /// Adds the record.
    fn of(self, record: &zenith_pgformat::wal::Record) -> Result<T, IngestError>;
}

impl<T> InRecord<T> for Result<T, CheckPointError> {
    fn of(self, record: &zenith_pgformat::wal::Record) -> Result<T, IngestError> {
        self.map_err(|e| IngestError::record(record, e))
    }
}

impl<T> InRecord<T> for Result<T, TwoPhaseError> {
    fn of(self, record: &zenith_pgformat::wal::Record) -> Result<T, IngestError> {
        self.map_err(|e| IngestError::record(record, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_passes_and_what_is_wrong_or_lost_does_not() {
        let away = || StoreError::Unavailable { object: "x".to_owned(), reason: "no answer".to_owned() };
        let full = StoreError::Full { object: "x".to_owned(), reason: "no room".to_owned() };
        for passing in [
            IngestError::Store(away()),
            IngestError::Store(full),
            IngestError::Archive(ArchiveError::Store(away())),
            IngestError::Layer(LayerError::Store { doing: "reading", source: away() }),
            IngestError::Base(BaseError::Store(away())),
            IngestError::Manifest(ManifestError::Store(away())),
            IngestError::Commit(CommitError::Unknown { version: 3, source: away() }),
        ] {
            assert!(passing.may_pass(), "{passing}");
        }
        let damaged = || StoreError::Corrupt { object: "x".to_owned(), reason: "cut".to_owned() };
        for lasting in [
            IngestError::Store(damaged()),
            IngestError::Store(StoreError::Denied { object: "x".to_owned(), reason: "403".to_owned() }),
            IngestError::Fenced("epoch 2".to_owned()),
            IngestError::Wal(WalError::NoRecord { lsn: Lsn(8) }),
            IngestError::TwoHistories { first: 2, second: 3 },
            IngestError::Manifest(ManifestError::Store(damaged())),
            IngestError::NoBase,
        ] {
            assert!(!lasting.may_pass(), "{lasting}");
        }
    }
}
