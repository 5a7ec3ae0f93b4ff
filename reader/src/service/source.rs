//! Timelines and snapshots of one cluster, opened when they are asked for and kept.

use super::metrics::{Held, Metrics};
use crate::error::ReadError;
use crate::options::{ReaderCaches, ReaderOptions, TimelineRef};
use crate::snapshot::Snapshot;
use crate::timeline::Timeline;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use zenith_layers::{ByteCache, MokaCache, Weighed};
use zenith_manifest::Names;
use zenith_pgformat::Lsn;
use zenith_store::{Clock, ClusterPaths, CountingStore, Counts, Store, TimelineId};

/// A timeline that does not hold an LSN is opened anew, if that was not done within this time.
const REOPEN: Duration = Duration::from_secs(1);
/// Timelines that are open at a time.
const TIMELINES: usize = 16;
/// Snapshots that are kept, those used last, and what one holds at most.
const SNAPSHOTS: u64 = 16;
const SNAPSHOT_BYTES: usize = 9 << 20;
/// Snapshots that are made at the same time.
const LOADING: usize = 8;
/// Requests that are worked on at the same time; each may hold 14 MB of rows.
pub const WORKING: usize = 64;

impl Weighed for Snapshot {
    fn weight(&self) -> usize {
        SNAPSHOT_BYTES
    }
}

/// What a service reads from: one cluster of one store.
///
/// Memory: 16 timelines with their manifests, and those of 16 snapshots, of 9 MB each at most; 8 snapshots that are being made; 64
/// requests that are worked on, of 14 MB at most, mostly some KB; and the caches of its [`ReaderOptions`].
pub struct Source {
    store: Store,
    /// Of all requests to the store.
    counts: Arc<Counts>,
    metrics: Metrics,
    cluster: String,
    options: ReaderOptions,
    opened: Mutex<HashMap<TimelineId, Arc<Opened>>>,
    snapshots: Arc<dyn ByteCache<(TimelineId, Lsn, u64), Snapshot, ReadError>>,
    loading: Semaphore,
    working: Semaphore,
    /// How often a timeline was found to be outdated. Snapshots of before are not used any more.
    renewed: AtomicU64,
}

/// One timeline.
#[derive(Default)]
struct Opened {
    state: Mutex<State>,
    /// Held by whoever opens it: others go on with what is there, if that is good enough for them.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// The newest that could be opened, and when its opening began.
    timeline: Option<(Timeline, Duration)>,
    /// What the last opening ended in, and its number.
    last: Option<(Result<Timeline, Arc<ReadError>>, u64)>,
    /// Openings that have begun.
    begun: u64,
    used: Duration,
}

impl Source {
    /// Nothing is opened yet.
    pub fn new(store: &Store, cluster: &str, options: ReaderOptions) -> Source {
        let snapshots: MokaCache<(TimelineId, Lsn, u64), Snapshot> =
            MokaCache::recent("snapshots", SNAPSHOTS * (SNAPSHOT_BYTES as u64 + (1 << 10)));
        let counting = CountingStore::new(Arc::clone(&store.objects));
        let counts = counting.counts();
        Source {
            store: store.wrapped(|_| counting),
            counts,
            metrics: Metrics::new(),
            cluster: cluster.to_owned(),
            options,
            opened: Mutex::default(),
            snapshots: Arc::new(snapshots),
            loading: Semaphore::new(LOADING),
            working: Semaphore::new(WORKING),
            renewed: AtomicU64::new(0),
        }
    }

    /// The clock that it goes by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.options.env.clock
    }

    /// The names of the cluster.
    pub fn names(&self) -> Names {
        let cluster = ClusterPaths::new(&self.store.prefix, &self.cluster);
        Names::new(Arc::clone(&self.store.objects), self.options.env.clone(), cluster)
    }

    /// The timeline with that id, else of that name.
    pub async fn find(&self, text: &str) -> Result<TimelineId, ReadError> {
        if let Ok(id) = text.parse() {
            self.names().identity(id).await?;
            return Ok(id);
        }
        Ok(self.names().resolve(text).await?)
    }

    /// A timeline as it is now, or was when it was opened last. Who only looks keeps none open.
    pub async fn look_at(&self, id: TimelineId) -> Result<Timeline, ReadError> {
        let kept = self.lock().get(&id).cloned();
        match kept {
            Some(opened) => self.holding(&opened, id, |_| false).await,
            None => self.open(id).await,
        }
    }

    /// A timeline at an LSN. One that was opened before the LSN was sliced is opened anew.
    ///
    /// # Errors
    /// As [`Timeline::snapshot`].
    pub async fn snapshot(&self, id: TimelineId, lsn: Lsn) -> Result<Snapshot, ReadError> {
        let load = async {
            let opened = self.place(id);
            let timeline = self.holding(&opened, id, |timeline| timeline.check(lsn).is_ok()).await?;
            // Never closed.
            let _loading = self.loading.acquire().await;
            timeline.snapshot(lsn).await
        };
        let key = (id, lsn, self.renewed());
        self.snapshots.get_or_load(key, Box::pin(load)).await.map_err(ReadError::Shared)
    }

    /// A place among the requests that are worked on.
    pub(super) async fn working(&self) -> (Option<SemaphorePermit<'_>>, Held) {
        // Never closed.
        let place = self.working.acquire().await.ok();
        (place, self.metrics.working())
    }

    /// What is counted.
    pub(super) fn counted(&self) -> &Metrics {
        &self.metrics
    }

    /// Takes over what the store, redo and the caches count themselves.
    pub(super) async fn update_metrics(&self) {
        let ReaderCaches { layers, pages } = &self.options.caches;
        let caches = [
            ("pages", pages.weighted_bytes().await),
            ("blocks", layers.block_bytes().await),
            ("index", layers.index_bytes().await),
            ("snapshots", self.snapshots.weighted_bytes().await),
        ];
        self.metrics.update(&self.counts.snapshot(), &self.options.redo.counts(), caches);
    }

    /// How often a timeline was opened anew because it was outdated: for [`Source::renew`].
    pub(super) fn renewed(&self) -> u64 {
        self.renewed.load(Ordering::Acquire)
    }

    /// Has a timeline opened anew that names what the store does not have any more: the one that was `used` for what failed, else
    /// the one that is open. `seen` is [`Source::renewed`] of before. `false`: it was opened within the last second, so that another
    /// would be no newer.
    pub(super) fn renew(&self, id: TimelineId, used: Option<&Timeline>, seen: u64) -> bool {
        if self.renewed() != seen {
            return true;
        }
        let Some(opened) = self.lock().get(&id).cloned() else { return true };
        let mut state = opened.lock();
        if let Some((timeline, at)) = &state.timeline
            && used.is_none_or(|used| timeline.is_same_opening(used))
        {
            if self.clock().elapsed().saturating_sub(*at) < REOPEN {
                return false;
            }
            state.timeline = None;
        }
        self.renewed.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// A timeline that is good, else one that was opened within the last second.
    async fn holding(
        &self,
        opened: &Opened,
        id: TimelineId,
        is_good: impl Fn(&Timeline) -> bool,
    ) -> Result<Timeline, ReadError> {
        let there = || opened.there(self.clock().elapsed(), &is_good);
        if let Some(timeline) = there() {
            return Ok(timeline);
        }
        let arrived = opened.lock().begun;
        let _opening = opened.opening.lock().await;
        // Whoever came at the same time goes on with what one of them found, be it that the store does not answer.
        if let Some(outcome) = opened.since(arrived) {
            return outcome.map_err(ReadError::Shared);
        }
        if let Some(timeline) = there() {
            return Ok(timeline);
        }
        let (number, now) = (opened.begin(), self.clock().elapsed());
        let outcome = self.open(id).await.map_err(Arc::new);
        let mut state = opened.lock();
        state.last = Some((outcome.clone(), number));
        if let Ok(timeline) = &outcome {
            state.timeline = Some((timeline.clone(), now));
        }
        outcome.map_err(ReadError::Shared)
    }

    async fn open(&self, id: TimelineId) -> Result<Timeline, ReadError> {
        Timeline::open(&self.store, &self.cluster, &TimelineRef::Id(id), self.options.clone()).await
    }

    /// Where a timeline is kept. What was not used for longest makes room.
    fn place(&self, id: TimelineId) -> Arc<Opened> {
        let mut opened = self.lock();
        if !opened.contains_key(&id) && opened.len() >= TIMELINES {
            let oldest = opened.iter().min_by_key(|(_, one)| one.lock().used).map(|(id, _)| *id);
            oldest.and_then(|oldest| opened.remove(&oldest));
        }
        let place = Arc::clone(opened.entry(id).or_default());
        place.lock().used = self.clock().elapsed();
        place
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TimelineId, Arc<Opened>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opened {
    /// What was opened, if it is good or that was within the last second.
    fn there(&self, now: Duration, is_good: impl Fn(&Timeline) -> bool) -> Option<Timeline> {
        let state = self.lock();
        let (timeline, at) = state.timeline.as_ref()?;
        (is_good(timeline) || now.saturating_sub(*at) < REOPEN).then(|| timeline.clone())
    }

    /// What an opening ended in that began when so many had begun already.
    fn since(&self, arrived: u64) -> Option<Result<Timeline, Arc<ReadError>>> {
        let state = self.lock();
        state.last.as_ref().filter(|(_, number)| *number >= arrived).map(|(outcome, _)| outcome.clone())
    }

    /// The number of an opening that begins.
    fn begin(&self) -> u64 {
        let mut state = self.lock();
        state.begun += 1;
        state.begun - 1
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
