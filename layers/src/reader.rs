//! Where layers are opened: one object store, one timeline's paths, shared caches.

use object_store::ObjectStore;
use std::sync::Arc;
use zenith_store::TimelinePaths;

/// Bounds of the caches that all [`LayerStore`]s of a process share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheOptions {
    /// Bytes for key columns and footers.
    pub index_bytes: u64,
    /// Bytes for decoded payload pages.
    pub block_bytes: u64,
    /// Requests to the store at the same time.
    pub requests: usize,
}

impl Default for CacheOptions {
    fn default() -> CacheOptions {
        CacheOptions { index_bytes: 256 << 20, block_bytes: 128 << 20, requests: 64 }
    }
}

/// The caches of a process. A clone shares them.
#[derive(Clone)]
pub struct LayerCaches {
    options: CacheOptions,
}

impl LayerCaches {
    /// Empty caches.
    pub fn new(options: CacheOptions) -> LayerCaches {
        LayerCaches { options }
    }

    /// Their bounds.
    pub fn options(&self) -> CacheOptions {
        self.options
    }
}

/// Opens the layers of one timeline in one object store.
pub struct LayerStore {
    store: Arc<dyn ObjectStore>,
    paths: TimelinePaths,
    caches: LayerCaches,
}

impl LayerStore {
    /// The layers of `paths` in `store`.
    pub fn new(store: Arc<dyn ObjectStore>, paths: TimelinePaths, caches: LayerCaches) -> Arc<LayerStore> {
        Arc::new(LayerStore { store, paths, caches })
    }

    /// The object store.
    pub fn object_store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Where its layers lie.
    pub fn paths(&self) -> &TimelinePaths {
        &self.paths
    }

    /// The caches, to share them with another store.
    pub fn caches(&self) -> &LayerCaches {
        &self.caches
    }
}
