//! `zenith_push`: WAL files and base images into the store.

pub mod base;
pub mod command;
pub mod origin;
pub mod wal;
