//! `zenith_push`: WAL files and base images into the store.

mod ahead;
pub mod base;
pub mod command;
pub mod origin;
pub mod wal;
