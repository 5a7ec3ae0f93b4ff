//! The versioned manifest: what exists (I3), who may change it (I6), and how a change is committed (I5).

pub mod boundary;
mod branches;
pub mod change;
pub mod check;
pub mod codec;
pub mod commit;
pub mod entry;
mod envelope;
pub mod error;
pub mod horizon;
pub mod identity;
pub mod index;
pub mod names;
pub mod parquet_pages;
pub mod pins;
pub mod root;
mod sequence;
mod spill;
pub mod store;
#[cfg(test)]
mod testing;
mod watermark;

pub use boundary::raise_boundary;
pub use branches::{Branch, Deleted, Known, MAX_ANCESTORS};
pub use change::{Change, Refusal, Slice, apply};
pub use commit::Committed;
pub use entry::{BaseId, KeyBytes, LayerEntry, LayerKind};
pub use error::{CommitError, ManifestError};
pub use horizon::raise_horizon;
pub use identity::Identity;
pub use names::{NameError, NameState, Names};
pub use pins::{Holder, Pin};
pub use root::{
    Ancestor, BaseImage, BaseKind, Epochs, IndexPageRef, ReadableRange, Role, Root, SlicedPosition,
    TliSwitch, Unreadable,
};
pub use store::ManifestStore;
