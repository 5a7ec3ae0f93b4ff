//! The versioned manifest: what exists (I3), who may change it (I6), and how a change is committed (I5).

pub mod entry;
pub mod identity;
pub mod root;

pub use entry::{BaseId, KeyBytes, LayerEntry, LayerKind};
pub use identity::Identity;
pub use root::{Ancestor, BaseImage, BaseKind, Epochs, ReadableRange, Role, Root, SlicedPosition};
