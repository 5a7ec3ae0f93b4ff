//! What reading and committing can end in.

use crate::change::Refusal;
use zenith_store::StoreError;

/// Something of the manifest cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ManifestError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object is not what was written. A copy of the store may hold it whole; nothing else helps (I9).
    #[error("{object} is damaged: {reason}; restore it from a copy of the store")]
    Damaged {
        /// Which object.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The object was written by a newer Zenith.
    #[error("{object} has format {found}, this program knows up to {known}; upgrade it")]
    Newer {
        /// Which object.
        object: String,
        /// Its format.
        found: u16,
        /// The newest known one.
        known: u16,
    },
    /// The object is encrypted.
    #[error("{object} is encrypted (algorithm {algorithm}), which this program does not know; upgrade it")]
    Encrypted {
        /// Which object.
        object: String,
        /// With what.
        algorithm: u16,
    },
    /// An object that something else names is not there.
    #[error("{object} is missing, although {named_by} names it: restore it from a copy of the store")]
    Missing {
        /// Which object.
        object: String,
        /// What names it.
        named_by: String,
    },
    /// A version that must exist is not there. To go on from an older one would silently forget what it held (I9).
    #[error("{object} is missing, although {evidence}: restore it from a copy of the store")]
    Lost {
        /// Which object.
        object: String,
        /// How that is known.
        evidence: String,
    },
    /// A version was asked for that does not exist.
    #[error("{object} is not in the store: there is no manifest version of that number, or it was lost")]
    NoVersion {
        /// Which object.
        object: String,
    },
}

/// A commit that did not happen, or of which that is not known (I5).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommitError {
    /// Others committed first, again and again. Nothing was committed; try again later.
    #[error("{timeline}: others committed first {tries} times in a row; try again")]
    Conflict {
        /// Which timeline.
        timeline: String,
        /// How often it was tried.
        tries: u32,
    },
    /// Another process has taken the role over; stop and do not take it back (I6).
    #[error(transparent)]
    Fenced(Refusal),
    /// Whether it was committed is not known, and reading back did not tell. Delete nothing; start again from the
    /// newest manifest.
    #[error("whether version {version} was committed is not known: {source}")]
    Unknown {
        /// The version that may or may not be there.
        version: u64,
        /// The last failure.
        source: StoreError,
    },
    /// The rules do not allow the change; nothing was committed.
    #[error(transparent)]
    Refused(Refusal),
    /// The manifest cannot be read, or the store definitely refused to write; nothing was committed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> CommitError {
        CommitError::Manifest(ManifestError::Store(error))
    }
}

impl From<Refusal> for CommitError {
    fn from(refusal: Refusal) -> CommitError {
        match refusal {
            Refusal::Fenced { .. } => CommitError::Fenced(refusal),
            _ => CommitError::Refused(refusal),
        }
    }
}
