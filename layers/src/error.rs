//! What can go wrong with layers, and what the caller can do about it.

use zenith_manifest::BaseId;
use zenith_pgformat::Lsn;
use zenith_store::StoreError;

/// An error of writing, storing or reading layers. Cheap to clone: one failed load is told to everyone who
/// waited for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LayerError {
    /// A manifest names the object and the store has none. Not worth trying again with the same manifest
    /// version: read the newest one; if that names it too, the history is damaged.
    #[error(
        "layer {object} is named by the manifest but the store does not have it: read the newest manifest \
         version; if it still names the layer, restore the object from a copy of the store"
    )]
    Missing {
        /// Its path.
        object: String,
    },
    /// Checksums or structure are wrong: nothing of the object may be used.
    #[error("layer {object} is damaged ({what}): restore the object from a copy of the store")]
    Damaged {
        /// Its path.
        object: String,
        /// What does not fit.
        what: String,
    },
    /// Written by a version of Zenith that knows more.
    #[error(
        "layer {object} has format {found}; this program reads format {known}: use a newer release of Zenith"
    )]
    UnknownFormat {
        /// Its path.
        object: String,
        /// What it says.
        found: String,
        /// What we know.
        known: u16,
    },
    /// The store did not answer as it should, or the outcome of a put stayed unknown; [`StoreError`] says what to
    /// do about it.
    #[error("{doing} a layer: {source}")]
    Store {
        /// What was being done: "reading", "storing".
        doing: &'static str,
        /// The store's own error, which names the object.
        source: StoreError,
    },
    /// Two layers hold a value of the same key at the same LSN.
    #[error("layers {first} and {second} both hold {key} at {lsn}: the manifest is damaged")]
    Overlap {
        /// One layer.
        first: String,
        /// The other.
        second: String,
        /// The key.
        key: String,
        /// The LSN.
        lsn: Lsn,
    },
    /// A manifest's entry contradicts itself or others.
    #[error("the manifest's entry of layer {object} is damaged: {what}")]
    BadEntry {
        /// The layer's id.
        object: String,
        /// What does not fit.
        what: String,
    },
    /// `ReadMode::From` names a base image that is not among the layers, or lies above the LSN.
    #[error("base image {} is not among the layers at or below {upto}", base.0)]
    NoSuchBase {
        /// Which.
        base: BaseId,
        /// Where it was looked for.
        upto: Lsn,
    },
    /// The writer was given rows that it must not write; a mistake of the caller.
    #[error("a layer cannot be written: {0}")]
    Refused(String),
    /// Encoding failed.
    #[error("a layer cannot be encoded: {0}")]
    Encode(String),
}

impl LayerError {
    /// Whether the same call may succeed later without anything being mended.
    pub fn may_retry(&self) -> bool {
        matches!(self, LayerError::Store { source, .. } if source.is_transient())
    }

    /// A damaged object.
    pub(crate) fn damaged(object: &(impl ToString + ?Sized), what: impl Into<String>) -> LayerError {
        LayerError::Damaged { object: object.to_string(), what: what.into() }
    }

    /// A failed read: an object that is absent or too short is the layer's damage, not the store's.
    pub(crate) fn reading(source: StoreError) -> LayerError {
        match source {
            StoreError::NotFound { object, .. } => LayerError::Missing { object },
            StoreError::Corrupt { object, reason } => LayerError::Damaged { object, what: reason },
            source => LayerError::Store { doing: "reading", source },
        }
    }
}
