//! A place to store layers in tests: in memory, with an environment that repeats.

use crate::error::LayerError;
use crate::reader::{CacheOptions, LayerCaches, LayerStore};
use crate::row::Row;
use crate::writer::{FinishedLayer, LayerWriter, WriterOptions, store_layer};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use std::sync::Arc;
use uuid::Uuid;
use zenith_manifest::LayerEntry;
use zenith_store::{ClusterPaths, CountingStore, Env, TimelineId};
use zenith_testkit::env::test_env;

/// A timeline's layers in memory, with a count of requests.
pub(crate) struct Place {
    pub(crate) env: Env,
    pub(crate) objects: Arc<CountingStore>,
    pub(crate) store: Arc<LayerStore>,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place::with_caches(LayerCaches::new(CacheOptions::default()))
    }

    pub(crate) fn with_caches(caches: LayerCaches) -> Place {
        Place::over(Arc::new(InMemory::new()), 0, caches)
    }

    /// One of several places whose caches are shared.
    pub(crate) fn numbered(number: u128, caches: LayerCaches) -> Place {
        Place::over(Arc::new(InMemory::new()), number, caches)
    }

    pub(crate) fn over(objects: Arc<dyn ObjectStore>, number: u128, caches: LayerCaches) -> Place {
        let objects = Arc::new(CountingStore::new(objects));
        let id = TimelineId(Uuid::from_u128(number));
        let paths = ClusterPaths::new(&Path::from("test"), "main").timeline(id);
        let store = LayerStore::reading_ahead(Arc::clone(&objects) as Arc<dyn ObjectStore>, paths, caches, 1);
        Place { env: test_env(number as u64), objects, store }
    }

    /// The same objects with empty caches; layers of up to `whole_bytes` are read whole.
    pub(crate) fn cold(&self, whole_bytes: u64) -> Arc<LayerStore> {
        let caches = LayerCaches::new(CacheOptions { whole_bytes, ..CacheOptions::default() });
        LayerStore::new(Arc::clone(self.store.object_store()), self.store.paths().clone(), caches)
    }

    pub(crate) async fn store(&self, layer: &FinishedLayer) -> Result<LayerEntry, LayerError> {
        store_layer(&**self.store.object_store(), self.store.paths(), &self.env, layer).await
    }

    /// Stores rows as one layer.
    pub(crate) async fn layer(&self, options: WriterOptions, rows: &[Row]) -> Arc<LayerEntry> {
        Arc::new(self.store(&written(options, rows)).await.unwrap())
    }

    /// Requests that read, so far.
    pub(crate) fn gets(&self) -> u64 {
        self.objects.counts().snapshot().gets
    }
}

/// Rows as one finished layer.
pub(crate) fn written(options: WriterOptions, rows: &[Row]) -> FinishedLayer {
    let mut writer = LayerWriter::new(options).unwrap();
    for row in rows {
        writer.push(row).unwrap();
    }
    writer.finish().unwrap()
}
