//! State values: what the small keys of a timeline hold. Every value is written with a version byte of its own,
//! so that one can change without the others; the layouts are listed in `docs/formats.md`.
//!
//! Raw PostgreSQL structures are kept raw where PostgreSQL itself keeps them in a file: a checkpoint
//! (`CheckPoint`, catalog/pg_control.h), a relation map (`RelMapFile`, utils/cache/relmapper.c: 512 bytes) and a
//! prepared transaction (the file of `pg_twophase`, its CRC included).

pub(crate) mod codec;
mod database;
mod misc;
mod relation;

pub use codec::ModelError;
pub use database::{Alias, Database, Tablespace};
pub use misc::{NextXid, Parameters, ReplOrigin, SlruSize};
pub use relation::{RelEvent, RelSize};
