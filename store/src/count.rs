//! A store that counts what it is asked: for `--explain`, and for tests that hold a budget of requests.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    GetOptions, GetResult, ListResult, ObjectMeta, ObjectStore, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Requests and bytes so far; retries inside the store's client are not seen.
#[derive(Debug, Default)]
pub struct Counts {
    puts: AtomicU64,
    gets: AtomicU64,
    heads: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    others: AtomicU64,
    bytes_put: AtomicU64,
    bytes_got: AtomicU64,
    waves: AtomicU64,
}

/// [`Counts`] at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CountsSnapshot {
    /// Objects written, or tried to.
    pub puts: u64,
    /// Objects or ranges read.
    pub gets: u64,
    /// Objects asked for their size.
    pub heads: u64,
    /// Listings begun.
    pub lists: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Everything else: copies, renames, multipart uploads.
    pub others: u64,
    /// Bytes sent.
    pub bytes_put: u64,
    /// Bytes that answers promised.
    pub bytes_got: u64,
    /// The longest chain of requests of which each began after the one before had ended: round trips that had to be waited
    /// for one after the other. Requests that run beside one another are one wave.
    pub waves: u64,
}

impl Counts {
    /// The counts now.
    pub fn snapshot(&self) -> CountsSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CountsSnapshot {
            puts: read(&self.puts),
            gets: read(&self.gets),
            heads: read(&self.heads),
            lists: read(&self.lists),
            deletes: read(&self.deletes),
            others: read(&self.others),
            bytes_put: read(&self.bytes_put),
            bytes_got: read(&self.bytes_got),
            waves: read(&self.waves),
        }
    }
}

/// A request on its way.
struct Request {
    counts: Arc<Counts>,
    wave: u64,
}

impl Request {
    fn begin(counts: &Arc<Counts>) -> Request {
        Request { counts: Arc::clone(counts), wave: counts.waves.load(Ordering::Relaxed) + 1 }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.counts.waves.fetch_max(self.wave, Ordering::Relaxed);
    }
}

impl CountsSnapshot {
    /// What was added after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &CountsSnapshot) -> CountsSnapshot {
        CountsSnapshot {
            puts: self.puts.saturating_sub(earlier.puts),
            gets: self.gets.saturating_sub(earlier.gets),
            heads: self.heads.saturating_sub(earlier.heads),
            lists: self.lists.saturating_sub(earlier.lists),
            deletes: self.deletes.saturating_sub(earlier.deletes),
            others: self.others.saturating_sub(earlier.others),
            bytes_put: self.bytes_put.saturating_sub(earlier.bytes_put),
            bytes_got: self.bytes_got.saturating_sub(earlier.bytes_got),
            waves: self.waves.saturating_sub(earlier.waves),
        }
    }

    /// Requests of all kinds.
    pub fn requests(&self) -> u64 {
        self.puts + self.gets + self.heads + self.lists + self.deletes + self.others
    }
}

/// See the module.
pub struct CountingStore {
    inner: Arc<dyn ObjectStore>,
    counts: Arc<Counts>,
}

impl CountingStore {
    /// Counts what goes to `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>) -> CountingStore {
        CountingStore { inner, counts: Arc::new(Counts::default()) }
    }

    /// The counts, which stay readable when the store is shared.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    fn listing<T: 'static>(&self, listing: BoxStream<'static, T>) -> BoxStream<'static, T> {
        add(&self.counts.lists, 1);
        let request = Request::begin(&self.counts);
        listing.inspect(move |_| _ = &request).boxed()
    }

    fn count_other(&self) {
        add(&self.counts.others, 1);
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl fmt::Debug for CountingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counting {}", self.inner)
    }
}

impl fmt::Display for CountingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

crate::forward_object_store! {
    impl ObjectStore for CountingStore by inner {
        forward put_multipart_opts(count_other), copy_opts(count_other), rename_opts(count_other);

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.listing(self.inner.list(prefix))
        }

        fn list_with_offset(
            &self,
            prefix: Option<&Path>,
            offset: &Path,
        ) -> BoxStream<'static, Result<ObjectMeta>> {
            self.listing(self.inner.list_with_offset(prefix, offset))
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            add(&self.counts.lists, 1);
            let _request = Request::begin(&self.counts);
            self.inner.list_with_delimiter(prefix).await
        }

        async fn put_opts(
            &self,
            location: &Path,
            payload: PutPayload,
            opts: PutOptions,
        ) -> Result<PutResult> {
            add(&self.counts.puts, 1);
            add(&self.counts.bytes_put, payload.content_length() as u64);
            let _request = Request::begin(&self.counts);
            self.inner.put_opts(location, payload, opts).await
        }

        async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
            let head = options.head;
            add(if head { &self.counts.heads } else { &self.counts.gets }, 1);
            let _request = Request::begin(&self.counts);
            let result = self.inner.get_opts(location, options).await?;
            if !head {
                add(&self.counts.bytes_got, result.range.end.saturating_sub(result.range.start));
            }
            Ok(result)
        }

        async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
            add(&self.counts.gets, 1);
            let _request = Request::begin(&self.counts);
            let parts = self.inner.get_ranges(location, ranges).await?;
            add(&self.counts.bytes_got, parts.iter().map(|part| part.len() as u64).sum());
            Ok(parts)
        }

        fn delete_stream(
            &self,
            locations: BoxStream<'static, Result<Path>>,
        ) -> BoxStream<'static, Result<Path>> {
            let (counts, request) = (Arc::clone(&self.counts), Request::begin(&self.counts));
            let deleted = self.inner.delete_stream(locations.inspect(move |_| add(&counts.deletes, 1)).boxed());
            deleted.inspect(move |_| _ = &request).boxed()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn requests_that_run_beside_one_another_are_one_wave_and_dependent_ones_are_several() {
        let store = CountingStore::new(Arc::new(InMemory::new()));
        let path = Path::from("object");
        store.put(&path, Bytes::from_static(b"0123456789").into()).await.unwrap();
        let before = store.counts().snapshot();
        // A store in memory answers at once: nothing would run beside anything.
        let beside: Vec<Request> = (0..4).map(|_| Request::begin(&store.counts())).collect();
        drop(beside);
        assert_eq!(store.counts().snapshot().since(&before).waves, 1);
        store.get_range(&path, 0..1).await.unwrap();
        assert_eq!(store.list(None).count().await, 1);
        assert_eq!(store.counts().snapshot().since(&before).waves, 3);
    }
}
