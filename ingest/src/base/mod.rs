//! A base image: files of a data directory in, image layers and one object of small files out.
//!
//! The caller (`zenith_push base`) brings every file of BASE_BACKUP's archives, or of a cleanly stopped data directory,
//! in any order; [`BaseBuilder`] decides what each of them is. Relation pages, SLRU pages and small states become rows
//! of image layers at the image's redo LSN; the rest goes into `base/<id>/files.zst`.
//!
//! The layers of a base never overlap, so that a page is looked up in exactly one of them. Large files are written
//! to layers of their own as they arrive; small ones are spooled, compressed, to a temporary file and written in
//! key order at the end. Memory: about 100 MB of rows and encoders, and 100 bytes for every file.

mod builder;
mod classify;
mod files;
mod ordered;
mod spool;
mod wal;

pub use builder::{BaseBuilder, BaseOptions, BaseProgress, FinishedBase};
pub use classify::{BaseFile, classify};
pub use files::{SmallFile, decode_small_files, encode_small_files, read_small_files};
pub use wal::read_base_wal;

use zenith_layers::LayerError;
use zenith_pgformat::control::ControlError;
use zenith_pgformat::page::PageError;
use zenith_pgformat::relmap::RelMapError;
use zenith_pgformat::two_phase::TwoPhaseError;
use zenith_store::StoreError;

/// What is wrong with a base image that is being taken or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BaseError {
    /// A page that nobody is writing fails its checksum, or is no page at all.
    #[error(
        "{file}: {source}. The page is damaged on the server: a base image of it is refused; repair or drop the relation"
    )]
    Page {
        /// Path below the data directory.
        file: String,
        /// Which block, and what is wrong with it.
        source: PageError,
    },
    /// The control file.
    #[error("global/pg_control: {0}")]
    Control(#[from] ControlError),
    /// A prepared transaction's file.
    #[error("{file}: {source}")]
    TwoPhase {
        /// Path below the data directory.
        file: String,
        /// What is wrong.
        source: TwoPhaseError,
    },
    /// A relation map.
    #[error("{file}: {source}")]
    RelMap {
        /// Path below the data directory.
        file: String,
        /// What is wrong.
        source: RelMapError,
    },
    /// A file that cannot be part of a data directory, or that was brought in a wrong way.
    #[error("{file}: {what}")]
    File {
        /// Path below the data directory.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// Files that every data directory has did not come.
    #[error("the base image is incomplete: {0} is missing")]
    Incomplete(&'static str),
    /// An object of a registered base image is gone.
    #[error(
        "{object} is missing, although the manifest names its base image: restore it from a copy of the store, or use \
         another base image"
    )]
    Missing {
        /// Its path.
        object: String,
    },
    /// An object of a finished base image that cannot be what was stored.
    #[error("{object} is damaged: {what}; restore it from a copy of the store, or use another base image")]
    Damaged {
        /// Its path.
        object: String,
        /// What is wrong.
        what: String,
    },
    /// The temporary file.
    #[error("temporary file in {folder}: {what}; choose a folder with enough space by TMPDIR")]
    Spool {
        /// The folder.
        folder: String,
        /// The system's words.
        what: String,
    },
    /// Layers.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}
