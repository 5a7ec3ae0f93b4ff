//! The object store: opening it by URL, where things lie in it, what a conditional put can end in, and the
//! injected clock and ids. Knows nothing of PostgreSQL.

mod clocks;
pub mod count;
pub mod env;
pub mod error;
mod forward;
pub mod get;
mod http;
pub mod open;
mod opened;
mod owner;
pub mod paths;
pub mod probe;
pub mod put;
pub mod settings;

pub use count::{CountingStore, Counts, CountsSnapshot};
pub use env::{Clock, Env, IdSource};
pub use error::StoreError;
pub use get::{
    Coalescing, get, get_if_present, get_range, get_ranges, head, is_same, last_listed, list, list_after,
};
pub use open::{Store, StoreKind};
pub use paths::{ClusterPaths, TimelineId, TimelinePaths};
pub use probe::probe_conditional_writes;
pub use put::{Creation, PutOutcome, create, put_hint, put_if_absent};
pub use settings::StoreSettings;
