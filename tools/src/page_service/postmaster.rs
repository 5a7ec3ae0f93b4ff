//! The PostgreSQL server that a private page service is for.

use anyhow::{Context, bail};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A postmaster that runs, or did when it was looked for.
#[derive(Debug)]
pub(super) struct Postmaster(AsyncFd<OwnedFd>);

impl Postmaster {
    /// The one that runs on a data directory; in a runtime.
    pub(super) fn of(directory: &Path) -> anyhow::Result<Postmaster> {
        let path = directory.join("postmaster.pid");
        let pid = read(&path)?;
        let process = pidfd_open(pid, PidfdFlags::NONBLOCK);
        let process = process.with_context(|| format!("no server runs on {}", directory.display()))?;
        // A number may be given to another process: this one had it before the file named it again.
        if read(&path)? != pid {
            bail!("another server has just started on {}", directory.display());
        }
        // SAFETY: an `OwnedFd` is open for as long as it lives, and always the same descriptor.
        let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
        Ok(Postmaster(process.map_err(std::io::Error::from)?))
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) {
        // Ready for ever from then on. An error means that it cannot be waited for, and is taken for the end.
        let _ = self.0.readable().await;
    }
}

/// The first line of postmaster.pid.
fn read(path: &Path) -> anyhow::Result<Pid> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("no server runs: {}", path.display()))?;
    let number = text.lines().next().and_then(|line| line.trim().parse().ok());
    let pid = number.filter(|number| *number > 0).and_then(Pid::from_raw);
    pid.with_context(|| format!("{} names no process", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_the_process_that_the_file_names_is_noticed() {
        let folder = tempfile::tempdir().expect("folder");
        assert!(Postmaster::of(folder.path()).is_err());
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("started");
        let file = folder.path().join("postmaster.pid");
        std::fs::write(&file, format!("{}\n/data\n", child.id())).expect("written");
        let postmaster = Postmaster::of(folder.path()).expect("it runs");
        let mut ended = std::pin::pin!(postmaster.ended());
        assert!(futures::poll!(ended.as_mut()).is_pending());
        drop(child.stdin.take());
        ended.await;
        child.wait().expect("ended");
        assert!(Postmaster::of(folder.path()).is_err(), "that process is gone");
        std::fs::write(&file, "x\n").expect("written");
        assert!(Postmaster::of(folder.path()).is_err());
    }
}
