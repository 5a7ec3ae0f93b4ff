//! What the tests of several crates share: a private PostgreSQL 15, a real MinIO, a store that injects faults.

#![allow(clippy::unwrap_used, reason = "only tests use this: a broken expectation is a failed test")]

pub mod clock;
pub mod commands;
pub mod conformance;
pub mod control;
#[cfg(feature = "containers")]
pub mod disk;
pub mod env;
pub mod faults;
pub mod flips;
pub mod lost_record;
pub mod mask;
#[cfg(feature = "containers")]
pub mod minio;
pub mod oracle;
pub mod outcome;
pub mod pg;
pub mod segment;
#[cfg(feature = "containers")]
pub mod store;
pub mod unconditional;
