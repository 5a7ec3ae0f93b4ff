//! The two things a process takes from its surroundings that would otherwise make a run unrepeatable: the time
//! and fresh ids. Both are injected; tests give their own.

use std::sync::Arc;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

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

/// Version-7 UUIDs: unique, and sorted roughly by time in a listing.
#[derive(Debug)]
struct RandomIds;

#[allow(clippy::disallowed_methods, reason = "the one place where ids are drawn")]
impl IdSource for RandomIds {
    fn fresh(&self) -> Uuid {
        Uuid::now_v7()
    }
}
