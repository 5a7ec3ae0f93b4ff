//! One redo process, from its start to its end.

use crate::locate::Server;
use crate::shm::{self, LAYOUT, LIBRARY_FD, MAGIC, READY, REGION_FD, Region};
use crate::start::StartError;
use crate::workdir::WorkDir;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a wait goes on before it looks whether the process is still alive.
const SLICE: Duration = Duration::from_millis(10);
/// How long a process may take to get ready.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How much of what a process said last is kept.
const LAST_WORDS: usize = 2048;

/// What all processes of a pool are started from.
pub(crate) struct Recipe {
    pub(crate) server: Server,
    pub(crate) library: PathBuf,
    pub(crate) work_dir: WorkDir,
    pub(crate) region_size: usize,
    pub(crate) timeout: Duration,
}

/// How a batch ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// All items have an outcome.
    Answered,
    /// The process is dead; it had begun the batch, or not.
    Died { taken: bool, how: String },
    /// It got no further for too long, and is dead now.
    TimedOut,
}

/// A running redo process.
pub(crate) struct Process {
    child: Child,
    pub(crate) region: Region,
    stderr: File,
    turn: u32,
}

impl Process {
    /// Starts one and waits until it serves. To be called from a thread that lives as long as the process shall: the
    /// process is killed when that thread ends (`PR_SET_PDEATHSIG`).
    pub(crate) fn start(recipe: &Recipe) -> Result<Process, StartError> {
        let data = recipe.work_dir.data_directory(&recipe.server)?;
        let (region, region_fd) =
            new_region(recipe.region_size).map_err(failed("create the shared region"))?;
        let library =
            File::open(&recipe.library).map_err(failed(&format!("open {}", recipe.library.display())))?;
        let (reader, writer) = io::pipe().map_err(failed("create a pipe"))?;
        // Neither side may ever wait for the other here: the process would stand still, or so would we.
        for fd in [reader.as_fd(), writer.as_fd()] {
            rustix::io::ioctl_fionbio(fd, true).map_err(|error| failed("set up a pipe")(error.into()))?;
        }
        let mut command = command(recipe, data.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
        inherit(&mut command, region_fd.as_raw_fd(), library.as_raw_fd());
        let program = recipe.server.program("postgres");
        let child = command.spawn().map_err(failed(&format!("run {}", program.display())))?;
        // The command holds our copy of the pipe's writing end.
        drop(command);
        let mut process = Process { child, region, stderr: File::from(OwnedFd::from(reader)), turn: 0 };
        process.wait_until_ready()?;
        // It has everything open or mapped that it needs: the directory goes, however the process ends.
        Ok(process)
    }

    fn wait_until_ready(&mut self) -> Result<(), StartError> {
        let mut waited = Duration::ZERO;
        loop {
            let state = &self.region.header().state;
            if state.load(Ordering::Acquire) == READY {
                return Ok(());
            }
            if !shm::futex_wait(state, shm::STARTING, Some(SLICE)) {
                waited += SLICE;
            }
            if let Some(status) = self.exited() {
                return Err(StartError::NotReady { how: describe(status), message: self.last_words() });
            }
            if waited > START_LIMIT {
                let how = format!("it was not ready after {START_LIMIT:?}");
                self.kill();
                return Err(StartError::NotReady { how, message: self.last_words() });
            }
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Hands the region's batch over and waits for the answer. After anything but `Answered` the process is dead.
    pub(crate) fn exchange(&mut self, limit: Duration) -> Exchange {
        self.ask();
        self.wait(limit)
    }

    /// Hands the region's batch over.
    pub(crate) fn ask(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        let header = self.region.header();
        header.asked.store(self.turn, Ordering::SeqCst);
        if header.worker_sleeps.load(Ordering::SeqCst) != 0 {
            shm::futex_wake(&header.asked);
        }
    }

    /// Whether all that was asked of it is answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.region.header().answered.load(Ordering::SeqCst) == self.turn
    }

    /// Whether the batch is answered within a moment: looks so often, then sleeps for at most this long.
    pub(crate) fn is_answered_soon(&self, spins: u32, limit: Duration) -> bool {
        let (header, turn) = (self.region.header(), self.turn);
        let answered = || header.answered.load(Ordering::SeqCst) == turn;
        if self.spin(spins) {
            return true;
        }
        header.caller_sleeps.store(1, Ordering::SeqCst);
        // It may wake early, though hardly ever.
        let mut naps = 0..3;
        while !answered()
            && naps.next().is_some()
            && shm::futex_wait(&header.answered, turn.wrapping_sub(1), Some(limit))
        {}
        header.caller_sleeps.store(0, Ordering::SeqCst);
        answered()
    }

    fn spin(&self, spins: u32) -> bool {
        let answered = &self.region.header().answered;
        shm::spin_until_changed(answered, self.turn.wrapping_sub(1), spins)
            && answered.load(Ordering::Acquire) == self.turn
    }

    /// Waits for the answer of what was asked. After anything but `Answered` the process is dead.
    pub(crate) fn wait(&mut self, limit: Duration) -> Exchange {
        if self.spin(shm::SHORT_SPIN) {
            return Exchange::Answered;
        }
        self.region.header().caller_sleeps.store(1, Ordering::SeqCst);
        let outcome = self.wait_for(self.turn, limit);
        self.region.header().caller_sleeps.store(0, Ordering::SeqCst);
        outcome
    }

    fn wait_for(&mut self, turn: u32, limit: Duration) -> Exchange {
        let mut waited = Duration::ZERO;
        let mut seen = None;
        loop {
            let header = self.region.header();
            let answered = header.answered.load(Ordering::SeqCst);
            if answered == turn {
                return Exchange::Answered;
            }
            if shm::futex_wait(&header.answered, answered, Some(SLICE)) {
                continue;
            }
            let progress = (header.item.load(Ordering::Acquire), header.change.load(Ordering::Acquire));
            let taken = header.taken.load(Ordering::Acquire) == turn;
            waited = if seen == Some(progress) { waited + SLICE } else { Duration::ZERO };
            seen = Some(progress);
            if let Some(status) = self.exited() {
                // It may have answered just before it died.
                if self.region.header().answered.load(Ordering::SeqCst) == turn {
                    return Exchange::Answered;
                }
                let words = self.last_words();
                let how = if words.is_empty() {
                    describe(status)
                } else {
                    format!("{}: {words}", describe(status))
                };
                return Exchange::Died { taken, how };
            }
            if waited >= limit {
                self.kill();
                return Exchange::TimedOut;
            }
        }
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// What the process wrote to stderr last.
    fn last_words(&mut self) -> String {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        // Ends at the latest when what the pipe holds has been read: it does not block.
        while let Ok(count @ 1..) = self.stderr.read(&mut chunk) {
            bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
        }
        let start = bytes.len().saturating_sub(LAST_WORDS);
        String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).trim().to_owned()
    }

    fn kill(&mut self) {
        // Errors mean that it is dead already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> StartError {
    let what = what.to_owned();
    move |source| StartError::Io { what, source }
}

/// A fresh region: a memfd, never `/dev/shm`, which is small in containers.
fn new_region(size: usize) -> io::Result<(Region, OwnedFd)> {
    let fd = memfd_create("zenith-redo", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, size as u64)?;
    let mut region = Region::map(fd.as_fd(), size)?;
    let header = region.header_mut();
    header.magic = MAGIC;
    header.layout = LAYOUT;
    Ok((region, fd))
}

/// `postgres --single` with our library and no more of a server than it needs.
fn command(recipe: &Recipe, data: &Path) -> Command {
    let mut command = Command::new(recipe.server.program("postgres"));
    recipe.work_dir.owner.prepare(&mut command);
    command.arg("--single").arg("-D").arg(data).arg("-c");
    command.arg(format!("shared_preload_libraries=/proc/self/fd/{LIBRARY_FD}"));
    // Its own process group: a Ctrl-C at the terminal is the caller's to handle.
    command.arg("postgres").current_dir("/").process_group(0);
    command
}

/// What the process does between fork and exec: it takes its two descriptors, and dies with its parent.
fn inherit(command: &mut Command, region: RawFd, library: RawFd) {
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: only system calls, as befits a forked child.
        unsafe {
            let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // It may have died before it could be asked to take us along.
            if u32::try_from(libc::getppid()).ok() != Some(parent) {
                return Err(io::ErrorKind::NotConnected.into());
            }
            // Both out of the way first: either may have the number that the other shall get.
            let spare = LIBRARY_FD + 1;
            let region = libc::fcntl(region, libc::F_DUPFD_CLOEXEC, spare);
            let library = libc::fcntl(library, libc::F_DUPFD_CLOEXEC, spare);
            if region < 0 || library < 0 {
                return Err(io::Error::last_os_error());
            }
            if libc::dup2(region, REGION_FD) < 0 || libc::dup2(library, LIBRARY_FD) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(libc::SIGSYS)) => "killed by its sandbox".to_owned(),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
