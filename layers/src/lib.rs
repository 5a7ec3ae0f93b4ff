//! The layer object: an immutable, sorted Parquet file of keyed values, how it is written, and how the layers of
//! a manifest version are searched. What a value means is its writer's business.

pub mod cache;
pub mod error;
pub mod events;
pub mod key;
pub mod map;
pub mod reader;
pub mod row;
pub mod set;
pub mod writer;

pub use cache::{ByteCache, MokaCache, Weighed};
pub use error::LayerError;
pub use events::{Event, EventKind, EventWriter};
pub use key::{Key, KeyClass, KeyRange, Slru};
pub use map::{ReadMode, UsedBase};
pub use reader::{CacheOptions, LayerCaches, LayerStore};
pub use row::{Row, Source, Value};
pub use set::{EventLayer, HistoryChunk, KeyHistory, LayerSet};
pub use writer::{FinishedLayer, LayerWriter, WriterOptions, store_layer};
