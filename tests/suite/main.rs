//! Whole-system tests: a real PostgreSQL 15, the commands as a user runs them, a folder store and a real MinIO.

mod bad_input;
mod harness;
mod queries;
mod restore;
mod workload;
