//! What a reader takes from its surroundings: caches, redo, a folder to work in.

use crate::error::ReadError;
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::OnceCell;
use zenith_layers::{ByteCache, CacheOptions, Key, LayerCaches, MokaCache, RowLimit, Weighed};
use zenith_manifest::BaseId;
use zenith_pgformat::{BLCKSZ, Lsn};
use zenith_redo::{PageRequest, PageResult, RedoOptions, RedoPool};
use zenith_store::{Clock, Env, TimelineId};

/// Bytes for built pages unless told otherwise.
const DEFAULT_PAGE_BYTES: u64 = 64 << 20;
/// Rows of pages' histories that one call holds at a time, unless told otherwise. Every row costs about 250 bytes beside its
/// payload.
const DEFAULT_ROWS: RowLimit = RowLimit { rows: 8192, bytes: 4 << 20 };

/// Which timeline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TimelineRef {
    /// By its name, "main" say.
    Name(String),
    /// By its id.
    Id(TimelineId),
}

/// How a timeline is read.
#[derive(Clone)]
pub struct ReaderOptions {
    /// Time and ids.
    pub env: Env,
    /// The caches, which any number of timelines may share.
    pub caches: ReaderCaches,
    /// PostgreSQL's redo.
    pub redo: RedoSource,
    /// Where WAL that is not sliced yet is sliced into, in a private folder of its own that goes with the
    /// timeline. Created if need be.
    pub work_dir: PathBuf,
    /// The manifest version to read; `None`: the newest.
    pub version: Option<u64>,
    /// How much of pages' histories one call holds at a time, however long they are: 8192 rows and 4 MB of payload pages as
    /// a rule. Less costs more requests and smaller batches of redo, and changes no answer.
    pub rows: RowLimit,
}

impl ReaderOptions {
    /// The system's clock and ids, caches and reads of the default size, redo as Debian's packages have it,
    /// the newest manifest version.
    pub fn new(work_dir: impl Into<PathBuf>) -> ReaderOptions {
        ReaderOptions {
            env: Env::system(),
            caches: ReaderCaches::new(CacheOptions::default(), DEFAULT_PAGE_BYTES),
            redo: RedoSource::lazy(RedoOptions::default()),
            work_dir: work_dir.into(),
            version: None,
            rows: DEFAULT_ROWS,
        }
    }
}

/// Names a built page. `GetPage` of one key at one LSN has one answer whatever the layers' arrangement (I8), as long
/// as the same base image is used: another one differs in hint bits. A page is kept under the LSN that was asked for:
/// a later request LSN with the same answer is another entry, which costs memory and never correctness.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageKey {
    pub(crate) timeline: TimelineId,
    pub(crate) base: BaseId,
    pub(crate) key: Key,
    pub(crate) lsn: Lsn,
}

/// A built page in the cache.
#[derive(Clone, Debug)]
pub struct CachedPage(pub(crate) Bytes);

impl Weighed for CachedPage {
    fn weight(&self) -> usize {
        BLCKSZ + size_of::<CachedPage>()
    }
}

/// The caches of a process. A clone shares them.
#[derive(Clone)]
pub struct ReaderCaches {
    pub(crate) layers: LayerCaches,
    pub(crate) pages: Arc<dyn ByteCache<PageKey, CachedPage, ReadError>>,
}

impl ReaderCaches {
    /// Empty ones: `layers` bounds what is kept of layers, `page_bytes` built pages.
    pub fn new(layers: CacheOptions, page_bytes: u64) -> ReaderCaches {
        let pages: MokaCache<PageKey, CachedPage> = MokaCache::new("pages", page_bytes);
        ReaderCaches { layers: LayerCaches::new(layers), pages: Arc::new(pages) }
    }
}

/// PostgreSQL's redo, started when the first page needs it. A clone is the same pool.
#[derive(Clone)]
pub struct RedoSource {
    options: Arc<RedoOptions>,
    pool: Arc<OnceCell<RedoPool>>,
    counted: Arc<Counted>,
}

#[derive(Default)]
struct Counted {
    pages: AtomicU64,
    nanoseconds: AtomicU64,
}

/// What was asked of redo so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RedoCounts {
    /// Pages that were asked for.
    pub pages: u64,
    /// How long those who asked waited, all together.
    pub time: Duration,
}

impl RedoSource {
    /// A pool that is started when it is needed.
    pub fn lazy(options: RedoOptions) -> RedoSource {
        RedoSource { options: Arc::new(options), pool: Arc::default(), counted: Arc::default() }
    }

    /// A pool that runs already.
    pub fn running(pool: RedoPool) -> RedoSource {
        let cell = OnceCell::new_with(Some(pool));
        RedoSource { options: Arc::default(), pool: Arc::new(cell), counted: Arc::default() }
    }

    /// What was asked so far, of this and every clone.
    pub fn counts(&self) -> RedoCounts {
        let nanoseconds = self.counted.nanoseconds.load(Ordering::Relaxed);
        let pages = self.counted.pages.load(Ordering::Relaxed);
        RedoCounts { pages, time: Duration::from_nanos(nanoseconds) }
    }

    /// Builds pages, in the order of the requests; `clock` measures how long that takes, the start of the pool left out.
    pub(crate) async fn redo(
        &self,
        clock: &dyn Clock,
        requests: Vec<PageRequest>,
    ) -> Result<Vec<PageResult>, ReadError> {
        let (pool, pages) = (self.pool().await?, requests.len());
        let begun = clock.elapsed();
        let results = pool.redo(requests).await;
        let took = clock.elapsed().saturating_sub(begun);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.counted.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        self.counted.pages.fetch_add(pages as u64, Ordering::Relaxed);
        Ok(results)
    }

    /// The pool; starts it if need be. A failure is not remembered.
    pub(crate) async fn pool(&self) -> Result<&RedoPool, ReadError> {
        self.pool.get_or_try_init(|| self.start()).await
    }

    async fn start(&self) -> Result<RedoPool, ReadError> {
        let options = RedoOptions::clone(&self.options);
        let started = tokio::task::spawn_blocking(move || RedoPool::start(&options)).await;
        started.map_err(|error| ReadError::Interrupted(error.to_string()))?.map_err(ReadError::RedoStart)
    }
}
