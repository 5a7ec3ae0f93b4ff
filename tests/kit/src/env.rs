//! A clock that nobody waits for and ids that repeat: a run with the same seed is the same run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use uuid::Uuid;
use zenith_store::{Clock, Env, IdSource};

/// A clock whose time passes only by sleeping, and whose sleeps return at once.
#[derive(Debug, Default)]
pub struct JumpingClock {
    elapsed: Mutex<Duration>,
}

impl JumpingClock {
    fn add(&self, pause: Duration) -> Duration {
        let mut elapsed = self.elapsed.lock().unwrap_or_else(PoisonError::into_inner);
        *elapsed = elapsed.saturating_add(pause);
        *elapsed
    }
}

#[async_trait::async_trait]
impl Clock for JumpingClock {
    fn now(&self) -> SystemTime {
        // 2026-01-01 UTC, so that labels do not change from run to run.
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600) + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        self.add(Duration::ZERO)
    }

    async fn sleep(&self, pause: Duration) {
        self.add(pause);
        tokio::task::yield_now().await;
    }
}

/// Ids drawn from a seed; different seeds never give the same one.
#[derive(Debug)]
pub struct SeededIds {
    seed: u64,
    drawn: AtomicU64,
}

impl SeededIds {
    /// The ids of this seed.
    pub fn new(seed: u64) -> SeededIds {
        SeededIds { seed, drawn: AtomicU64::new(0) }
    }
}

impl IdSource for SeededIds {
    fn fresh(&self) -> Uuid {
        let drawn = self.drawn.fetch_add(1, Ordering::Relaxed);
        // Mixing is a bijection of 64 bits, so (seed, number drawn) stays unique.
        Uuid::from_u64_pair(mix(self.seed), mix(drawn))
    }
}

/// The finaliser of splitmix64: spreads consecutive numbers over all 64 bits, each to another one.
pub fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// An environment that repeats: no test waits for its pauses.
pub fn test_env(seed: u64) -> Env {
    Env { clock: Arc::new(JumpingClock::default()), ids: Arc::new(SeededIds::new(seed)) }
}
