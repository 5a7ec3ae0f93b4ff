//! A limit on how long a command may take, told with what it was doing.

use super::exit;
use anyhow::Context;
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

/// Runs `work` on a thread of its own and answers with what it came to, after `limit` at the latest.
///
/// A call that hangs in a dead file system (a store in a folder of a server that is gone, say, or the configuration
/// file) holds up that thread and not the answer. The thread ends with the process.
pub fn answer_within<T: Send + 'static>(
    env: &Env,
    limit: Duration,
    step: &Step,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("work".to_owned());
    let thread = thread.spawn(move || drop(answer.send(work()))).context("cannot start a thread")?;
    let waiting = within(env, limit, step, async { Ok(answered.await) });
    match exit::runtime(0)?.block_on(waiting)? {
        Ok(result) => result,
        Err(_) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => anyhow::bail!("the work ended without a result; please report this"),
        },
    }
}

/// Runs `work`, at most for `limit`.
async fn within<T>(
    env: &Env,
    limit: Duration,
    step: &Step,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        biased;
        result = work => result,
        () = env.clock.sleep(limit) => Err(anyhow::anyhow!(
            "gave up after {} s while {}: check that the store, and every file system in use, can be reached",
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

    #[test]
    fn work_that_blocks_its_thread_does_not_hold_up_the_answer() {
        let env = Env { clock: Arc::new(NoTime), ..Env::system() };
        let step = Step::default();
        step.begin("reading a file");
        let (release, held) = std::sync::mpsc::channel::<()>();
        let error = answer_within(&env, ARCHIVING, &step, move || Ok(held.recv()?)).expect_err("ended");
        assert!(error.to_string().contains("50 s while reading a file"), "{error}");
        drop(release);
    }

    #[test]
    fn work_that_ends_in_time_gives_its_own_answer() {
        let answer = |work: fn() -> anyhow::Result<u8>| {
            answer_within(&Env::system(), ARCHIVING, &Step::default(), work)
                .map_err(|error| error.to_string())
        };
        assert_eq!(answer(|| Ok(7)), Ok(7));
        assert_eq!(answer(|| anyhow::bail!("refused")), Err("refused".to_owned()));
    }

    #[test]
    #[should_panic(expected = "a fault")]
    fn a_panic_of_the_work_goes_on_where_its_status_is_chosen() {
        let work = || -> anyhow::Result<()> { panic!("a fault") };
        let _ = answer_within(&Env::system(), ARCHIVING, &Step::default(), work);
    }
}
