//! `zenith_push`: WAL files and base images into the store.

pub mod base;
