//! What a lazy compute's data directory holds beside PostgreSQL's own files (docs/lazy-computes.md): the formats that its
//! restorer writes and the extension reads. Pure: bytes in, values out.

pub mod compute;
pub mod journal;
pub mod limits;

pub use compute::{Compute, Reader};

/// Zenith's own folder, below the data directory as every path here.
pub const FOLDER: &str = "zenith";
/// What the directory is of, and how to reach its pages ([`Compute`]).
pub const COMPUTE: &str = "zenith/compute.json";
/// The limit of every fork ([`limits`]).
pub const LIMITS: &str = "zenith/limits";
/// The number in the private reader's socket: `zenith/.s.PGSQL.1`.
pub const PRIVATE_PORT: u16 = 1;
/// Held by whoever starts the private reader.
pub const READER_LOCK: &str = "zenith/reader.lock";
/// The private reader's stderr.
pub const READER_LOG: &str = "zenith/reader.log";
/// [`COMPUTE`] once all pages are here.
pub const FILLED: &str = "zenith/filled.json";
/// The id of the pin that keeps the directory's LSN, if it has one.
pub const PIN: &str = "zenith/pin";

/// The guard: PostgreSQL reads it at every start, and ends, because it is no backup label.
pub const GUARD: &str = "backup_label";
/// What it says.
pub const GUARD_TEXT: &str = "\
This is not a backup label. Not all pages of this PostgreSQL data directory are here yet: the others lie in an
object store, and Zenith's extension fetches them when they are touched. A server that starts without the extension
would take them for empty, and so every such start ends here, with nothing changed.
Start it with the extension in shared_preload_libraries, as zenith_restore --lazy wrote it there. This file goes when
all pages are here. Do not remove it: that would lose data.
";
/// A file of mode 000, at which BASE_BACKUP ends with an error: a copy would get a backup label of its own, and no guard.
pub const NO_COPIES: &str = "zenith.half_filled";
