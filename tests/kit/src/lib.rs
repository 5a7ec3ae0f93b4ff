//! What the tests of several crates share: a private PostgreSQL 15, a real MinIO, a store that injects faults.

pub mod mask;
pub mod pg;
