//! Whole-system tests; `suite/main.rs` lists them.
