//! The two things a process takes from its surroundings that would otherwise make a run unrepeatable: the time
//! and fresh ids. Both are injected; tests give their own.

use std::sync::Arc;
use std::time::{Duration, SystemTime};
use uuid::{NoContext, Timestamp, Uuid};

/// Time. Used for pauses, time-outs and labels, never to decide what is safe (I7).
#[async_trait::async_trait]
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Wall-clock time, for labels that people read.
    fn now(&self) -> SystemTime;
    /// Time since some fixed moment of this process; never goes back.
    fn elapsed(&self) -> Duration;
    /// Waits.
    async fn sleep(&self, pause: Duration);
}

/// Fresh unique ids, for objects and commits.
pub trait IdSource: Send + Sync + std::fmt::Debug {
    /// An id that was never given before, by any process.
    fn fresh(&self) -> Uuid;
}

/// What a process takes from its surroundings.
#[derive(Clone, Debug)]
pub struct Env {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ids.
    pub ids: Arc<dyn IdSource>,
}

impl Env {
    /// The real clock and random ids, for programs.
    pub fn system() -> Env {
        Env { clock: Arc::new(SystemClock::new()), ids: Arc::new(RandomIds) }
    }
}

/// The machine's clock.
#[derive(Debug)]
struct SystemClock {
    start: std::time::Instant,
}

#[allow(clippy::disallowed_methods, reason = "the one place where the real clock is read")]
impl SystemClock {
    fn new() -> SystemClock {
        SystemClock { start: std::time::Instant::now() }
    }
}

#[async_trait::async_trait]
#[allow(clippy::disallowed_methods, reason = "the one place where the real clock is read")]
impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, pause: Duration) {
        tokio::time::sleep(pause).await;
    }
}

/// Version-7 UUIDs: sorted roughly by time in a listing, and unique by 74 random bits, whatever the clock says.
#[derive(Debug)]
struct RandomIds;

#[allow(clippy::disallowed_methods, reason = "the one place where ids are drawn")]
impl IdSource for RandomIds {
    fn fresh(&self) -> Uuid {
        id_at(SystemTime::now())
    }
}

/// A clock before 1970 counts as 1970.
fn id_at(now: SystemTime) -> Uuid {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, since.as_secs(), since.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_unique_however_often_the_clock_says_the_same_time_or_one_that_there_was_never() {
        let year = Duration::from_secs(365 * 86400);
        let epoch = SystemTime::UNIX_EPOCH;
        let times = [epoch, epoch - year, epoch + 57 * year, epoch + 300 * year, epoch + 100_000 * year];
        let drawn = (0..1000).flat_map(|_| times).map(id_at);
        assert_eq!(drawn.collect::<BTreeSet<Uuid>>().len(), 5000);
        assert!(id_at(epoch + year) < id_at(epoch + 2 * year));
    }
}
