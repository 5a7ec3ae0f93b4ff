//! A limit on how long a command may take, told with what it was doing.

use std::sync::{Arc, Mutex};
use std::time::Duration;
use zenith_store::Env;

/// `archive_command` and `restore_command` answer within a minute (DESIGN.md §7).
pub const ARCHIVING: Duration = Duration::from_secs(50);

/// What the command is doing at the moment, for the message if it takes too long.
#[derive(Clone, Debug, Default)]
pub struct Step(Arc<Mutex<String>>);

impl Step {
    /// Begins the next step.
    pub fn begin(&self, what: impl Into<String>) {
        if let Ok(mut step) = self.0.lock() {
            *step = what.into();
        }
    }

    fn current(&self) -> String {
        self.0.lock().map(|step| step.clone()).unwrap_or_default()
    }
}

/// Runs `work`, at most for `limit`.
pub async fn within<T>(
    env: &Env,
    limit: Duration,
    step: &Step,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        biased;
        result = work => result,
        () = env.clock.sleep(limit) => Err(anyhow::anyhow!(
            "gave up after {} s while {}: check that the store can be reached",
            limit.as_secs(),
            step.current(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct NoTime;

    #[async_trait::async_trait]
    impl zenith_store::Clock for NoTime {
        fn now(&self) -> std::time::SystemTime {
            std::time::UNIX_EPOCH
        }
        fn elapsed(&self) -> Duration {
            Duration::ZERO
        }
        async fn sleep(&self, _: Duration) {}
    }

    #[tokio::test]
    async fn a_command_that_hangs_ends_and_says_in_which_step() {
        let env = Env { clock: Arc::new(NoTime), ..Env::system() };
        let step = Step::default();
        let hang = async {
            step.begin("reading the identity");
            std::future::pending::<anyhow::Result<()>>().await
        };
        let error = within(&env, ARCHIVING, &step, hang).await.expect_err("ended");
        assert!(error.to_string().contains("50 s while reading the identity"), "{error}");
    }
}
