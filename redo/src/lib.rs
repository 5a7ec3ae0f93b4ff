//! Base page + records → page: PostgreSQL's own redo functions inside sandboxed stock processes, and native edits.
//!
//! A [`RedoPool`] keeps a few `postgres` processes of the installed PostgreSQL 15, each with a private throw-away data
//! directory, no files, no network and a seccomp filter, that have loaded our library (`worker/`). Pages go to and fro
//! through shared memory. A record that crashes its process, or never ends, costs one page.

mod batch;
mod locate;
pub mod native;
pub mod page;
mod pool;
mod process;
mod request;
pub mod sandbox;
pub mod selftest;
pub mod shm;
pub mod stamps;
mod start;
mod workdir;

pub use locate::LIBRARY_NAME;
pub use pool::{PageResult, RedoPool};
pub use request::{BlockName, Change, ChangeBody, PageRequest, RedoError};
pub use start::{RedoOptions, StartError};
