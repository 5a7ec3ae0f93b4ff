//! The layer object: an immutable, sorted Parquet file of keyed values, how it is written, and how the layers of
//! a manifest version are searched. What a value means is its writer's business.

pub mod key;
pub mod row;

pub use key::{Key, KeyClass, KeyRange};
pub use row::{Row, Source, Value};
