//! WAL in, keyed values out: the raw archive, what each WAL record changes, the slicer that turns segments into
//! layers and commits them, and the base image that slicing begins at.

pub mod archive;
pub mod base;
pub mod error;
pub mod interpret;
pub mod model;
pub mod slicer;

pub use error::IngestError;
