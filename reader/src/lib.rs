//! A timeline at an LSN: any page, relation sizes, listings, small files, and what a restore target means.
//!
//! [`Timeline::open`] reads one manifest version; [`Timeline::snapshot`] gives the state at an LSN (I8: one answer from any
//! reader, cache state and arrangement of layers); [`Timeline::resolve`] turns a restore target into that LSN. Nothing
//! here writes to the store.

mod assemble;
mod catalog;
pub mod consistency;
pub mod drops;
pub mod error;
pub mod explain;
mod locate;
mod meaning;
pub mod options;
pub mod pages;
mod plan;
pub mod relations;
mod replay;
pub mod service;
mod slru;
pub mod snapshot;
pub mod tail;
pub mod target;
pub mod time;
pub mod timeline;
mod visibility;
pub mod wal;
mod warm;

pub use consistency::{CheckOptions, WalCheck};
pub use drops::{Loss, Lost, LostRelation};
pub use error::{ReadError, TargetError};
pub use explain::{ExplainedLayer, ExplainedRow, Explanation, PageStart};
pub use meaning::Meaning;
pub use options::{ReaderCaches, ReaderOptions, RedoCounts, RedoSource, TimelineRef};
pub use pages::{BlockRange, MAX_BLOCKS};
pub use relations::Relation;
pub use snapshot::{DatabaseEntry, Snapshot};
pub use tail::Tail;
pub use target::{Resolved, RestorePoint, Target};
pub use timeline::{Readable, Timeline};
pub use wal::LastRecord;
pub use zenith_ingest::slicer::Stopped;
pub use zenith_layers::RowLimit;
