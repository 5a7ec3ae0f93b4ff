//! The caches: one small trait, so that the implementation can be replaced, and moka behind it.
//!
//! What every implementation keeps: a value is loaded once however many ask for it at the same time; a failed
//! load reaches all who waited and is not kept; a value counts with the bytes that it really holds.

use futures::future::BoxFuture;
use std::hash::Hash;
use std::sync::Arc;

/// Bytes of memory that a cached value holds on to, its own allocations included.
pub trait Weighed {
    /// The number of bytes.
    fn weight(&self) -> usize;
}

/// A cache of values, bounded in bytes. Values are cheap to clone (`Arc` or `Bytes` inside).
pub trait ByteCache<K, V, E>: Send + Sync {
    /// The value, if it is there now.
    fn get<'a>(&'a self, key: &'a K) -> BoxFuture<'a, Option<V>>;

    /// The value; `load` makes it if it is not there and nobody is making it. An error is given to everyone who
    /// waits and forgotten.
    fn get_or_load<'a>(
        &'a self,
        key: K,
        load: BoxFuture<'a, Result<V, E>>,
    ) -> BoxFuture<'a, Result<V, Arc<E>>>;

    /// Bytes held at the moment, roughly.
    fn weighted_bytes(&self) -> u64;
}

/// What one entry costs moka beyond its key and value (measured about 150-200 bytes).
const MOKA_ENTRY_BYTES: usize = 192;

/// [`ByteCache`] on moka's TinyLFU cache.
pub struct MokaCache<K, V> {
    inner: moka::future::Cache<K, V>,
}

impl<K, V> MokaCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Weighed + Clone + Send + Sync + 'static,
{
    /// A cache of about `max_bytes`; one that moka has not tidied yet may hold a little more for a moment.
    pub fn new(name: &str, max_bytes: u64) -> MokaCache<K, V> {
        let inner = moka::future::Cache::builder()
            .name(name)
            .max_capacity(max_bytes)
            .weigher(|_: &K, value: &V| {
                let bytes = value.weight().saturating_add(size_of::<K>() + MOKA_ENTRY_BYTES);
                u32::try_from(bytes).unwrap_or(u32::MAX)
            })
            .build();
        MokaCache { inner }
    }

    /// Does pending evictions now; for tests and for exact numbers.
    pub async fn settle(&self) {
        self.inner.run_pending_tasks().await;
    }
}

impl<K, V, E> ByteCache<K, V, E> for MokaCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Weighed + Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn get<'a>(&'a self, key: &'a K) -> BoxFuture<'a, Option<V>> {
        Box::pin(self.inner.get(key))
    }

    fn get_or_load<'a>(
        &'a self,
        key: K,
        load: BoxFuture<'a, Result<V, E>>,
    ) -> BoxFuture<'a, Result<V, Arc<E>>> {
        Box::pin(self.inner.try_get_with(key, load))
    }

    fn weighted_bytes(&self) -> u64 {
        self.inner.weighted_size()
    }
}
