//! Work that a signal may end at any moment, and a folder for its temporary files that goes with it.

use anyhow::Context;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long threads that are at work when a command ends are waited for. They read and write files; only a file system that
/// hangs takes longer.
const GRACE: Duration = Duration::from_secs(10);

/// A signal ended the work.
#[derive(Debug, thiserror::Error)]
#[error("ended by {signal}: nothing is left behind")]
pub struct Interrupted {
    /// `SIGINT` or `SIGTERM`.
    pub signal: &'static str,
}

/// SIGINT and SIGTERM, listened to from the command's beginning to its end: between two stretches of work none is lost.
#[derive(Debug)]
pub struct Signals {
    int: Signal,
    term: Signal,
}

impl Signals {
    /// From now on; in a runtime.
    pub fn listen() -> std::io::Result<Signals> {
        Ok(Signals { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Interrupted {
        let signal = tokio::select! {
            _ = self.int.recv() => "SIGINT",
            _ = self.term.recv() => "SIGTERM",
        };
        Interrupted { signal }
    }
}

/// Waits for SIGINT or SIGTERM, from its first poll on; gives its name.
pub async fn interrupted() -> &'static str {
    match Signals::listen() {
        Ok(mut signals) => signals.next().await.signal,
        Err(_) => std::future::pending().await,
    }
}

/// What a command works with that a signal may end.
#[derive(Debug)]
pub struct Interruptible {
    signals: tokio::sync::Mutex<Signals>,
    scratch: Option<TempDir>,
    place: PathBuf,
}

impl Interruptible {
    /// Listens from now on, and makes the folder; in a runtime.
    pub(crate) fn begin() -> anyhow::Result<Interruptible> {
        // Listened to before there is anything to take back.
        let signals = Signals::listen().context("cannot listen to signals")?;
        // Not every command needs one: where none can be made, whoever needs it says so.
        let scratch = tempfile::Builder::new().prefix("zenith-").tempdir().ok();
        let place = scratch.as_ref().map_or_else(std::env::temp_dir, |scratch| scratch.path().to_path_buf());
        Ok(Interruptible { signals: signals.into(), scratch, place })
    }

    /// A folder for temporary files, which goes with the command.
    pub fn scratch(&self) -> &Path {
        &self.place
    }

    /// The result of `work`, or [`Interrupted`] once a signal comes: `work` is dropped then, and what it would leave behind
    /// has to go with it. Each signal ends one stretch of work.
    pub async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            // Signals first: one that is there already ends the work before it begins.
            biased;
            interrupted = async { self.signals.lock().await.next().await } => Err(interrupted.into()),
            result = work => result,
        }
    }
}

/// Runs a command's work on `threads` threads. Its folder for temporary files lies below the system's (`TMPDIR`) and is gone
/// when this returns.
pub fn run<T>(
    threads: usize,
    work: impl AsyncFnOnce(&Interruptible) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let runtime = super::exit::runtime(threads)?;
    let mut scratch = None;
    let result = runtime.block_on(async {
        let work_with = Interruptible::begin()?;
        let result = work(&work_with).await;
        scratch = work_with.scratch;
        result
    });
    // A thread that still writes for work that was dropped would make files in a folder that is being removed.
    runtime.shutdown_timeout(GRACE);
    if let Some(scratch) = scratch {
        let path = scratch.path().display().to_string();
        if let Err(error) = scratch.close() {
            tracing::error!("{path} could not be removed: {error}; remove it by hand");
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_gone_with_what_a_thread_wrote_after_the_work_had_ended() {
        let mut seen = None;
        let result = run(1, async |work| {
            seen = Some(work.scratch().to_path_buf());
            let (folder, (begun, begins)) = (work.scratch().to_path_buf(), tokio::sync::oneshot::channel());
            let (end, ended) = std::sync::mpsc::channel::<()>();
            // Begun, and not waited for.
            drop(tokio::task::spawn_blocking(move || {
                begun.send(()).expect("waited for");
                // Until the other end is dropped, with the work.
                assert!(ended.recv().is_err());
                std::fs::create_dir_all(folder.join("late")).expect("made");
                std::fs::write(folder.join("late/file"), "x").expect("written");
            }));
            begins.await.expect("begun");
            drop(end);
            Err::<(), _>(Interrupted { signal: "SIGINT" }.into())
        });
        assert!(result.expect_err("ended").is::<Interrupted>());
        assert!(!seen.expect("work was done").exists());
    }

    #[tokio::test]
    async fn a_signal_between_two_stretches_of_work_ends_the_next_one() {
        // Two that no other test of this process listens to.
        let (int, term) = (signal(SignalKind::user_defined1()), signal(SignalKind::user_defined2()));
        let signals = Signals { int: int.expect("listens"), term: term.expect("listens") };
        let work = Interruptible { signals: signals.into(), scratch: None, place: PathBuf::new() };
        work.unless_interrupted(async { Ok(()) }).await.expect("undisturbed");
        // SAFETY: raise has no preconditions; the signal is listened to, so that it does not end this process.
        assert_eq!(unsafe { libc::raise(libc::SIGUSR2) }, 0);
        let next = work.unless_interrupted(std::future::pending::<anyhow::Result<()>>()).await;
        assert_eq!(next.expect_err("ended").to_string(), "ended by SIGTERM: nothing is left behind");
        work.unless_interrupted(async { Ok(()) }).await.expect("one signal ends one stretch");
    }
}
