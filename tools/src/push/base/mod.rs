//! `zenith_push base`: a base image of a running server, or of a cleanly stopped data directory.

pub mod copydata;
pub mod libpq;
pub mod password;
pub mod preflight;
pub mod tar_stream;
