//! Where layers are opened: one object store, one timeline's paths, shared caches.

use crate::ahead::{Ahead, Pieces, pieces};
use crate::cache::{ByteCache, MokaCache, Weighed};
use crate::error::LayerError;
use crate::footer::{Footer, tail_range};
use crate::index::{GroupDetails, GroupKeys};
use crate::layer::Layer;
use crate::meter;
use crate::page::Block;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::ObjectStore;
use object_store::path::Path;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::Semaphore;
use uuid::Uuid;
use zenith_manifest::LayerEntry;
use zenith_store::TimelinePaths;

/// Bounds of the caches that all [`LayerStore`]s of a process share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheOptions {
    /// Bytes for key columns, footers and rows' CRCs.
    pub index_bytes: u64,
    /// Bytes for decoded payload pages.
    pub block_bytes: u64,
    /// Layers of at most this many bytes are read whole, by one request, and stay so in the index.
    pub whole_bytes: u64,
    /// Requests to the store at the same time.
    pub requests: usize,
    /// Bytes for stored pieces of layers that are read ahead by those who read nearly everything, in the order of keys; none
    /// for those who read single pages.
    pub ahead_bytes: u64,
}

impl Default for CacheOptions {
    fn default() -> CacheOptions {
        CacheOptions {
            index_bytes: 256 << 20,
            block_bytes: 128 << 20,
            whole_bytes: 128 << 10,
            requests: 64,
            ahead_bytes: 0,
        }
    }
}

/// A part of a layer that the index cache holds. Ids of layers are unique among all stores and timelines.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum IndexKey {
    Footer(Uuid),
    Keys(Uuid, u32),
    Details(Uuid, u32),
    Crcs(Uuid, u32),
}

#[derive(Clone)]
pub(crate) enum IndexPart {
    Footer(Arc<Footer>),
    Keys(Arc<GroupKeys>),
    Details(Arc<GroupDetails>),
    Crcs(Arc<[u32]>),
}

impl Weighed for IndexPart {
    fn weight(&self) -> usize {
        match self {
            IndexPart::Footer(part) => part.weight(),
            IndexPart::Keys(part) => part.weight(),
            IndexPart::Details(part) => part.weight(),
            IndexPart::Crcs(part) => size_of_val(&**part),
        }
    }
}

impl<T: Weighed> Weighed for Arc<T> {
    fn weight(&self) -> usize {
        T::weight(self)
    }
}

/// A payload page: layer, and position among the layer's pages.
pub(crate) type BlockKey = (Uuid, u32);

struct Caches {
    options: CacheOptions,
    index: Box<dyn ByteCache<IndexKey, IndexPart, LayerError>>,
    /// Decoded pages, not stored ones: a hit then costs a copy of one value instead of decompressing 64 KiB, and
    /// pages of WAL records, which are read most, shrink to a third only.
    blocks: Box<dyn ByteCache<BlockKey, Arc<Block>, LayerError>>,
    /// Stored bytes.
    pieces: Pieces,
    requests: Semaphore,
}

/// The caches of a process. A clone shares them.
#[derive(Clone)]
pub struct LayerCaches {
    inner: Arc<Caches>,
}

impl LayerCaches {
    /// Empty caches.
    pub fn new(options: CacheOptions) -> LayerCaches {
        let inner = Caches {
            options,
            index: Box::new(MokaCache::new("layer index", options.index_bytes)),
            blocks: Box::new(MokaCache::new("layer blocks", options.block_bytes)),
            pieces: pieces(options.ahead_bytes),
            requests: Semaphore::new(options.requests.clamp(1, Semaphore::MAX_PERMITS)),
        };
        LayerCaches { inner: Arc::new(inner) }
    }

    /// Their bounds.
    pub fn options(&self) -> CacheOptions {
        self.inner.options
    }

    /// Bytes that footers, key columns and small layers hold at the moment.
    pub async fn index_bytes(&self) -> u64 {
        self.inner.index.weighted_bytes().await
    }

    /// Bytes that decoded payload pages hold at the moment.
    pub async fn block_bytes(&self) -> u64 {
        self.inner.blocks.weighted_bytes().await
    }
}

impl std::fmt::Debug for LayerCaches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerCaches").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

/// Opens the layers of one timeline in one object store.
#[derive(Debug)]
pub struct LayerStore {
    store: Arc<dyn ObjectStore>,
    paths: TimelinePaths,
    caches: LayerCaches,
    ahead: Option<Arc<Ahead>>,
}

impl LayerStore {
    /// The layers of `paths` in `store`.
    pub fn new(store: Arc<dyn ObjectStore>, paths: TimelinePaths, caches: LayerCaches) -> Arc<LayerStore> {
        Arc::new(LayerStore { store, paths, caches, ahead: None })
    }

    /// The same, which reads ahead where [`CacheOptions::ahead_bytes`] leaves room for so many layers.
    pub fn reading_ahead(
        store: Arc<dyn ObjectStore>,
        paths: TimelinePaths,
        caches: LayerCaches,
        layers: usize,
    ) -> Arc<LayerStore> {
        let ahead = Ahead::new(&caches.inner.pieces, caches.inner.options.ahead_bytes, layers);
        Arc::new(LayerStore { store, paths, caches, ahead })
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

    /// Opens a layer: one request for its footer, unless that is in the cache.
    pub async fn open(self: &Arc<Self>, entry: &Arc<LayerEntry>) -> Result<Layer, LayerError> {
        meter::layer();
        let path = self.path(entry);
        let key = IndexKey::Footer(entry.id);
        if let Some(IndexPart::Footer(footer)) = self.cached_part(key).await {
            return Ok(Layer::new(Arc::clone(self), Arc::clone(entry), path, footer));
        }
        let load = self.load_footer(&path, entry).boxed();
        match self.index_part(key, load).await? {
            IndexPart::Footer(footer) => Ok(Layer::new(Arc::clone(self), Arc::clone(entry), path, footer)),
            _ => Err(LayerError::damaged(&path, "the cache holds another part of it")),
        }
    }

    async fn load_footer(&self, path: &Path, entry: &LayerEntry) -> Result<IndexPart, LayerError> {
        let object = path.as_ref();
        let tail = tail_range(object, entry)?;
        let whole = entry.bytes <= self.caches.inner.options.whole_bytes;
        let bytes = self.get_exactly(entry, if whole { 0..entry.bytes } else { tail }).await?;
        Ok(IndexPart::Footer(Arc::new(Footer::decode(object, entry, &bytes)?)))
    }

    /// Where a layer lies.
    pub(crate) fn path(&self, entry: &LayerEntry) -> Path {
        self.paths.layer(entry.id)
    }

    /// Some bytes of a layer.
    pub(crate) async fn get(
        self: &Arc<Self>,
        entry: &Arc<LayerEntry>,
        range: Range<u64>,
    ) -> Result<Bytes, LayerError> {
        match &self.ahead {
            Some(ahead) => ahead.get(self, entry, range).await,
            None => self.get_exactly(entry, range).await,
        }
    }

    /// Some bytes of a layer, as one of a bounded number of requests.
    pub(crate) async fn get_exactly(
        &self,
        entry: &LayerEntry,
        range: Range<u64>,
    ) -> Result<Bytes, LayerError> {
        // The semaphore is never closed.
        let _permit = self.caches.inner.requests.acquire().await.ok();
        let path = self.path(entry);
        meter::request();
        zenith_store::get_range(&*self.store, &path, range).await.map_err(LayerError::reading)
    }

    pub(crate) async fn cached_part(&self, key: IndexKey) -> Option<IndexPart> {
        self.caches.inner.index.get(&key).await
    }

    pub(crate) async fn index_part(
        &self,
        key: IndexKey,
        load: BoxFuture<'_, Result<IndexPart, LayerError>>,
    ) -> Result<IndexPart, LayerError> {
        self.caches.inner.index.get_or_load(key, load).await.map_err(Arc::unwrap_or_clone)
    }

    pub(crate) async fn cached_block(&self, key: BlockKey) -> Option<Arc<Block>> {
        self.caches.inner.blocks.get(&key).await
    }

    pub(crate) async fn block(
        &self,
        key: BlockKey,
        load: BoxFuture<'_, Result<Arc<Block>, LayerError>>,
    ) -> Result<Arc<Block>, LayerError> {
        self.caches.inner.blocks.get_or_load(key, load).await.map_err(Arc::unwrap_or_clone)
    }
}
