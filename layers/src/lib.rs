//! The layer object: an immutable, sorted Parquet file of keyed values, how it is written, and how the layers of
//! a manifest version are searched. What a value means is its writer's business.

mod ahead;
pub mod cache;
mod chunk;
mod columns;
pub mod error;
pub mod events;
mod footer;
mod group;
mod index;
pub mod key;
pub mod layer;
#[cfg(test)]
mod layer_tests;
pub mod map;
mod merge;
mod meter;
mod object;
mod packed;
mod page;
mod point;
pub mod reader;
pub mod row;
pub mod schema;
pub mod set;
#[cfg(test)]
mod set_tests;
#[cfg(test)]
mod store_tests;
pub mod stream;
#[cfg(test)]
mod test_env;
#[cfg(test)]
mod test_rows;
mod warm;
pub mod writer;

pub use cache::{ByteCache, MokaCache, Weighed};
pub use error::LayerError;
pub use events::{Event, EventFilter, EventKind, EventWriter};
pub use key::{Key, KeyClass, KeyRange, Slru};
pub use layer::Layer;
pub use map::{LayerMap, ReadMode, UsedBase};
pub use meter::{Looked, metered};
pub use reader::{CacheOptions, LayerCaches, LayerStore};
pub use row::{Row, Source, Value};
pub use set::{EventLayer, HistoryChunk, KeyHistory, LayerSet};
pub use stream::{RowChunk, RowLimit, Span};
pub use writer::{FinishedLayer, LayerWriter, WriterOptions, store_layer};
