//! The commands: what each does lies here, so that tests can call it; `src/bin` holds only their entry points.

pub mod admin;
pub mod cli;
pub mod page_service;
pub mod push;
pub mod replay;
pub mod restore;
pub mod restore_command;
pub mod restore_wal;
pub mod slicedice;
