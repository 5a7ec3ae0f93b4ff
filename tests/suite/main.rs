//! Whole-system tests: a real PostgreSQL 15, the commands as a user runs them, a folder store and a real MinIO.

mod admin;
mod bad_input;
mod clocks;
mod debian;
mod documents;
mod edges;
#[path = "../differential/files.rs"]
mod files;
mod harness;
mod moments;
mod oracle;
mod queries;
mod restore;
mod synced;
mod timelines;
mod truncations;
mod verify;
mod windows;
mod workload;
