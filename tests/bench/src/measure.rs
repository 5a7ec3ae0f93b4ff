//! What one run of a command took, and what several runs took together.

use anyhow::{Context, bail};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What one run took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Took {
    /// From start to exit.
    pub(crate) wall: Duration,
    /// Of the process and the children it waited for, user and system.
    pub(crate) cpu: Duration,
    /// Peak resident memory of the largest of them, in bytes.
    pub(crate) memory: u64,
}

impl Took {
    /// One after the other.
    pub(crate) fn and_then(self, next: Took) -> Took {
        Took { wall: self.wall + next.wall, cpu: self.cpu + next.cpu, memory: self.memory.max(next.memory) }
    }
}

/// Runs a command to its end. Its output is shown only where it fails.
pub(crate) fn time(command: &mut Command) -> anyhow::Result<Took> {
    let mut said = tempfile::tempfile().context("a file for what it says")?;
    command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said.try_clone()?);
    let begun = now();
    let child = command.spawn().with_context(|| format!("{command:?}"))?;
    let (status, usage) = wait(child.id())?;
    let wall = begun.elapsed();
    if !status.success() {
        bail!("{command:?} ended with {status}:\n{}", text(&mut said)?);
    }
    let duration = |time: libc::timeval| {
        Duration::new(time.tv_sec.unsigned_abs(), 0) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    Ok(Took {
        wall,
        cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
        memory: usage.ru_maxrss.unsigned_abs() * 1024,
    })
}

/// The clock: what is measured here is time itself.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures the machine's own time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

fn text(said: &mut File) -> anyhow::Result<String> {
    let mut text = String::new();
    said.rewind()?;
    said.read_to_string(&mut text)?;
    Ok(text)
}

/// The standard library waits without asking what was used.
fn wait(pid: u32) -> anyhow::Result<(ExitStatus, libc::rusage)> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut status = 0;
    // SAFETY: all zeros is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both point to memory of their types, and nobody else waits for this child.
        let ended = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if ended == pid {
            return Ok((ExitStatus::from_raw(status), usage));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error).context("waiting for a command");
        }
    }
}

/// Several runs of one thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs(Vec<Took>);

impl Runs {
    /// One more.
    pub(crate) fn push(&mut self, took: Took) {
        self.0.push(took);
    }

    fn sorted<T: Ord>(&self, of: impl Fn(&Took) -> T) -> Vec<T> {
        let mut values: Vec<T> = self.0.iter().map(of).collect();
        values.sort();
        values
    }

    /// Median seconds from start to exit.
    pub(crate) fn seconds(&self) -> f64 {
        middle(&self.sorted(|took| took.wall)).as_secs_f64()
    }

    /// The shortest and the longest, in seconds.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let sorted = self.sorted(|took| took.wall);
        let end = |at: Option<&Duration>| at.copied().unwrap_or_default().as_secs_f64();
        (end(sorted.first()), end(sorted.last()))
    }

    /// Median seconds of CPU.
    pub(crate) fn cpu(&self) -> f64 {
        middle(&self.sorted(|took| took.cpu)).as_secs_f64()
    }

    /// The most memory that any run took, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.0.iter().map(|took| took.memory).max().unwrap_or_default()
    }
}

fn middle<T: Copy + Default>(sorted: &[T]) -> T {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_says_what_the_process_used_and_a_failure_what_it_said() {
        let took = time(Command::new("sh").args(["-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"]));
        let took = took.unwrap();
        assert!(took.cpu > Duration::ZERO && took.wall > Duration::ZERO && took.memory > 1 << 16, "{took:?}");
        let failed = time(Command::new("sh").args(["-c", "echo why; exit 3"])).unwrap_err();
        assert!(failed.to_string().contains("why"), "{failed}");
    }

    #[test]
    fn the_median_and_the_spread_are_those_of_the_runs() {
        let mut runs = Runs::default();
        for seconds in [9, 1, 5] {
            runs.push(Took { wall: Duration::from_secs(seconds), memory: seconds, ..Took::default() });
        }
        assert_eq!((runs.seconds(), runs.spread(), runs.memory()), (5.0, (1.0, 9.0), 9));
    }
}
