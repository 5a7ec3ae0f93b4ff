//! The caches: one small trait, so that the implementation can be replaced, and moka behind it.
//!
//! What every implementation keeps: a value is loaded once however many ask for it at the same time; a failed
//! load reaches all who waited and is not kept; a value counts with the bytes that it really holds.

use futures::future::BoxFuture;
use moka::policy::EvictionPolicy;
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

    /// Bytes held at the moment, after what is due to be evicted is gone.
    fn weighted_bytes(&self) -> BoxFuture<'_, u64>;
}

/// What one entry costs moka beyond its key and value (measured about 150-200 bytes).
const MOKA_ENTRY_BYTES: usize = 192;

/// [`ByteCache`] on moka's cache.
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
        MokaCache::evicting(name, max_bytes, EvictionPolicy::tiny_lfu())
    }

    /// The same for what is read once, in order: what was used last stays, however often other things were.
    pub fn recent(name: &str, max_bytes: u64) -> MokaCache<K, V> {
        MokaCache::evicting(name, max_bytes, EvictionPolicy::lru())
    }

    fn evicting(name: &str, max_bytes: u64, policy: EvictionPolicy) -> MokaCache<K, V> {
        let inner = moka::future::Cache::builder()
            .name(name)
            .eviction_policy(policy)
            .max_capacity(max_bytes)
            .weigher(|_: &K, value: &V| {
                let bytes = value.weight().saturating_add(size_of::<K>() + MOKA_ENTRY_BYTES);
                u32::try_from(bytes).unwrap_or(u32::MAX)
            })
            .build();
        MokaCache { inner }
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

    fn weighted_bytes(&self) -> BoxFuture<'_, u64> {
        Box::pin(async {
            self.inner.run_pending_tasks().await;
            self.inner.weighted_size()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::future::join_all;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[derive(Clone, PartialEq, Eq, Debug)]
    struct Value(usize);

    impl Weighed for Value {
        fn weight(&self) -> usize {
            self.0
        }
    }

    type Cache = Arc<dyn ByteCache<u32, Value, String>>;

    fn cache(bytes: u64) -> Cache {
        Arc::new(MokaCache::new("test", bytes))
    }

    /// Asks for one key from many tasks, all of which wait before the one load that runs ends.
    async fn ask_together(
        cache: &Cache,
        answer: Result<Value, String>,
    ) -> (usize, Vec<Result<Value, String>>) {
        let loads = Arc::new(AtomicUsize::new(0));
        let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let ask = || {
            let (cache, answer, loads) = (Arc::clone(cache), answer.clone(), Arc::clone(&loads));
            let (started, go) = (Arc::clone(&started), Arc::clone(&go));
            async move {
                let load = async {
                    loads.fetch_add(1, Ordering::SeqCst);
                    started.notify_one();
                    go.notified().await;
                    answer
                };
                cache.get_or_load(1, load.boxed()).await.map_err(Arc::unwrap_or_clone)
            }
        };
        let mut asked: Vec<_> = (0..20).map(|_| ask().boxed()).collect();
        // Polled once each, all of them wait: one for its load, the others for it.
        for ask in &mut asked {
            assert!(futures::poll!(ask.as_mut()).is_pending());
        }
        started.notified().await;
        go.notify_one();
        (loads.load(Ordering::SeqCst), join_all(asked).await)
    }

    #[tokio::test]
    async fn a_value_is_loaded_once_however_many_ask() {
        let cache = cache(1 << 20);
        let (loads, answers) = ask_together(&cache, Ok(Value(5))).await;
        assert_eq!(loads, 1);
        assert_eq!(answers, vec![Ok(Value(5)); 20]);
        assert_eq!(cache.get(&1).await, Some(Value(5)));
    }

    #[tokio::test]
    async fn an_error_reaches_all_who_wait_and_is_forgotten() {
        let cache = cache(1 << 20);
        let (loads, answers) = ask_together(&cache, Err("gone".to_owned())).await;
        assert_eq!(loads, 1);
        assert_eq!(answers, vec![Err("gone".to_owned()); 20]);
        assert_eq!(cache.get(&1).await, None);
        let again = cache.get_or_load(1, async { Ok(Value(6)) }.boxed()).await;
        assert_eq!(again, Ok(Value(6)));
    }

    #[tokio::test]
    async fn a_load_that_is_dropped_is_taken_over() {
        let cache = cache(1 << 20);
        let mut first = cache.get_or_load(1, futures::future::pending().boxed());
        assert!(futures::poll!(first.as_mut()).is_pending());
        let mut second = cache.get_or_load(1, async { Ok(Value(7)) }.boxed());
        assert!(futures::poll!(second.as_mut()).is_pending());
        drop(first);
        assert_eq!(second.await, Ok(Value(7)));
    }

    #[tokio::test]
    async fn the_cache_holds_no_more_bytes_than_it_may() {
        let cache = cache(100_000);
        for key in 0..1000 {
            cache.get_or_load(key, async { Ok(Value(1000)) }.boxed()).await.unwrap();
        }
        let bytes = cache.weighted_bytes().await;
        assert!(bytes > 50_000 && bytes <= 100_000, "{bytes}");
        let huge = cache.get_or_load(5000, async { Ok(Value(200_000)) }.boxed()).await;
        assert_eq!(huge, Ok(Value(200_000)));
        assert!(cache.weighted_bytes().await <= 100_000);
        assert_eq!(cache.get(&5000).await, None);
    }
}
