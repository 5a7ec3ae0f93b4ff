//! The object store: opening it by URL, where things lie in it, what a conditional put can end in, and the
//! injected clock and ids. Knows nothing of PostgreSQL.

pub mod env;
pub mod paths;

pub use env::{Clock, Env, IdSource};
pub use paths::{ClusterPaths, TimelineId, TimelinePaths};
