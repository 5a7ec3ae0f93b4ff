//! Timelines and snapshots of one cluster, opened when they are asked for and kept.

use crate::error::ReadError;
use crate::options::{ReaderOptions, TimelineRef};
use crate::snapshot::Snapshot;
use crate::timeline::Timeline;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use zenith_layers::{ByteCache, MokaCache, Weighed};
use zenith_manifest::Names;
use zenith_pgformat::Lsn;
use zenith_store::{Clock, ClusterPaths, Store, TimelineId};

/// A timeline that does not hold an LSN is opened anew, if that was not done within this time.
const REOPEN: Duration = Duration::from_secs(1);
/// Timelines that are open at a time.
const TIMELINES: usize = 16;
/// Snapshots that are kept, those used last, and what one holds at most.
const SNAPSHOTS: u64 = 16;
const SNAPSHOT_BYTES: usize = 9 << 20;

impl Weighed for Snapshot {
    fn weight(&self) -> usize {
        SNAPSHOT_BYTES
    }
}

/// What a service reads from: one cluster of one store.
///
/// Memory: 16 timelines with their manifests, 16 snapshots of 9 MB at most, and the caches of its [`ReaderOptions`].
pub struct Source {
    store: Store,
    cluster: String,
    options: ReaderOptions,
    opened: Mutex<HashMap<TimelineId, Arc<Opened>>>,
    snapshots: Arc<dyn ByteCache<(TimelineId, Lsn), Snapshot, ReadError>>,
}

/// A timeline, once it is open, and when it was opened.
#[derive(Default)]
struct Opened {
    timeline: Mutex<Option<(Timeline, Duration)>>,
    /// Held by whoever opens it: others go on with what is there, if that is good enough for them.
    opening: tokio::sync::Mutex<()>,
    used: Mutex<Duration>,
}

impl Source {
    /// Nothing is opened yet.
    pub fn new(store: Store, cluster: &str, options: ReaderOptions) -> Source {
        let snapshots: MokaCache<(TimelineId, Lsn), Snapshot> =
            MokaCache::recent("snapshots", SNAPSHOTS * (SNAPSHOT_BYTES as u64 + (1 << 10)));
        Source {
            store,
            cluster: cluster.to_owned(),
            options,
            opened: Mutex::default(),
            snapshots: Arc::new(snapshots),
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

    /// A timeline as it is now, or was within the last second.
    pub async fn timeline(&self, id: TimelineId) -> Result<Timeline, ReadError> {
        self.holding(id, |_| false).await
    }

    /// A timeline at an LSN. One that was opened before the LSN was sliced is opened anew.
    ///
    /// # Errors
    /// As [`Timeline::snapshot`].
    pub async fn snapshot(&self, id: TimelineId, lsn: Lsn) -> Result<Snapshot, ReadError> {
        let load = async {
            let timeline = self.holding(id, |timeline| timeline.check(lsn).is_ok()).await?;
            timeline.snapshot(lsn).await
        };
        self.snapshots.get_or_load((id, lsn), Box::pin(load)).await.map_err(ReadError::Shared)
    }

    /// A timeline that is good, else one that was opened within the last second.
    async fn holding(
        &self,
        id: TimelineId,
        is_good: impl Fn(&Timeline) -> bool,
    ) -> Result<Timeline, ReadError> {
        let opened = self.place(id);
        let there = || opened.there(self.clock().elapsed(), &is_good);
        if let Some(timeline) = there() {
            return Ok(timeline);
        }
        let _opening = opened.opening.lock().await;
        if let Some(timeline) = there() {
            return Ok(timeline);
        }
        let now = self.clock().elapsed();
        let which = TimelineRef::Id(id);
        let timeline = Timeline::open(&self.store, &self.cluster, &which, self.options.clone()).await?;
        *opened.timeline.lock().unwrap_or_else(PoisonError::into_inner) = Some((timeline.clone(), now));
        Ok(timeline)
    }

    /// Where a timeline is kept. What was not used for longest makes room.
    fn place(&self, id: TimelineId) -> Arc<Opened> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if !opened.contains_key(&id) && opened.len() >= TIMELINES {
            let oldest = opened.iter().min_by_key(|(_, one)| one.used()).map(|(id, _)| *id);
            oldest.and_then(|oldest| opened.remove(&oldest));
        }
        let place = Arc::clone(opened.entry(id).or_default());
        *place.used.lock().unwrap_or_else(PoisonError::into_inner) = self.clock().elapsed();
        place
    }
}

impl Opened {
    /// What was opened, if it is good or that was within the last second.
    fn there(&self, now: Duration, is_good: impl Fn(&Timeline) -> bool) -> Option<Timeline> {
        let timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
        let (timeline, at) = timeline.as_ref()?;
        (is_good(timeline) || now.saturating_sub(*at) < REOPEN).then(|| timeline.clone())
    }

    fn used(&self) -> Duration {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
