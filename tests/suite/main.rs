//! Whole-system tests: a real PostgreSQL 15, the commands as a user runs them, a folder store and a real MinIO.

mod admin;
mod bad_input;
mod debian;
mod documents;
mod edges;
mod harness;
mod moments;
mod oracle;
mod queries;
mod restore;
mod synced;
mod timelines;
mod verify;
mod windows;
mod workload;
