//! The private page service: a `zenith_reader` that the server's own processes start, and that ends with the postmaster.
//!
//! It must not become the postmaster's child: one that is killed would make the postmaster restart everything. So it is forked
//! twice, and holds none of the server's descriptors. Whoever finds its socket dead starts it, one at a time.

use crate::directory;
use pgrx::prelude::*;
use rustix::fs::{FlockOperation, flock};
use std::ffi::{CString, c_char, c_int};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;
use zenith_compute_dir::{FOLDER, PRIVATE_PORT, READER_LOCK, READER_LOG, Reader};

/// How long whoever started it waits until it listens. It asks its store before.
const LISTENS_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Starts the private page service unless it is there, or somebody else starts it. What goes wrong is logged: whoever needs a page
/// finds out.
pub(crate) fn ensure() {
    let Some(Reader::Private { program, arguments }) = directory::compute().map(|compute| &compute.reader)
    else {
        return;
    };
    if let Err(reason) = start(program, arguments) {
        ereport!(
            LOG,
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("zenith_compute: could not start the page service {program}: {reason}")
        );
    }
}

fn start(program: &str, arguments: &[String]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut options = File::options();
    let lock = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(READER_LOCK);
    let lock = lock.map_err(text)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        // Somebody else starts it.
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    }
    if crate::client::answers() {
        return Ok(());
    }
    let log = File::options().append(true).create(true).mode(0o600).open(READER_LOG).map_err(text)?;
    let null = File::open("/dev/null").map_err(text)?;
    let port = PRIVATE_PORT.to_string();
    let rest = ["-k", FOLDER, "-p", &port, "--postmaster", "."];
    let words = std::iter::once(program).chain(arguments.iter().map(String::as_str)).chain(rest);
    let words: Result<Vec<CString>, _> = words.map(CString::new).collect();
    spawn(&words.map_err(|_| "its arguments hold a zero byte".to_owned())?, &null.into(), &log.into())?;
    let started = crate::wait::now();
    while !crate::client::answers() && started.elapsed() < LISTENS_WITHIN {
        crate::wait::pause(LOOK_AGAIN);
    }
    Ok(())
}

/// Starts a program that is nobody's child.
fn spawn(words: &[CString], input: &OwnedFd, output: &OwnedFd) -> Result<(), String> {
    // Everything that allocates comes before the fork.
    let mut pointers: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let (input, output) = (input.as_raw_fd(), output.as_raw_fd());
    // SAFETY: the children call only what is allowed after a fork, and never return; the parent waits for the first.
    unsafe {
        match libc::fork() {
            -1 => Err(std::io::Error::last_os_error().to_string()),
            0 => {
                libc::setsid();
                if libc::fork() == 0 {
                    become_program(&pointers, input, output);
                }
                libc::_exit(0)
            }
            child => {
                let mut status = 0;
                while libc::waitpid(child, &raw mut status, 0) == -1 && interrupted() {}
                Ok(())
            }
        }
    }
}

fn interrupted() -> bool {
    std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
}

/// Only system calls: nothing of the server's memory may be relied on.
unsafe fn become_program(words: &[*const c_char], input: c_int, output: c_int) -> ! {
    // SAFETY: plain system calls; the words end with a null pointer.
    unsafe {
        for (from, to) in [(input, 0), (output, 1), (output, 2)] {
            if libc::dup2(from, to) == -1 {
                libc::_exit(126);
            }
        }
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
        // What the server ignores or handles is its own affair.
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execv(words[0], words.as_ptr());
        libc::_exit(127)
    }
}
