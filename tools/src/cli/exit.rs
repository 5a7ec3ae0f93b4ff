//! From a command's result to its exit status and message.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

/// Done.
pub const DONE: u8 = 0;
/// Failed; also `restore_command`'s "certainly not in the archive".
pub const FAILED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// `restore_command` could not find out: PostgreSQL stops instead of ending recovery (DESIGN.md §7).
pub const UNKNOWN: u8 = 255;

/// Wrong usage: exit status 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Whoever read our output went away: nothing to complain about.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct OutputClosed;

/// The command failed and has already said why.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
pub struct AlreadySaid;

/// The exit status that an error stands for.
pub fn status_of(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<OutputClosed>()) {
        DONE
    } else if error.chain().any(|cause| cause.is::<Usage>()) {
        USAGE
    } else {
        FAILED
    }
}

/// An error and its causes in one line: `a: b: c`. What one of them says again of the one before it is left out.
pub fn message_of(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in error.chain().map(ToString::to_string) {
        match parts.last() {
            Some(last) if last.ends_with(&part) => {}
            Some(last) if part.starts_with(last.as_str()) => {
                parts.pop();
                parts.push(part);
            }
            _ => parts.push(part),
        }
    }
    parts.join(": ")
}

/// Prints an error to standard error as `program: error: …`, unless it was said already or nobody listens.
pub fn report(program: &str, error: &anyhow::Error) {
    let silent = error.chain().any(|cause| cause.is::<OutputClosed>() || cause.is::<AlreadySaid>());
    if !silent {
        let _ = writeln!(std::io::stderr(), "{program}: error: {}", message_of(error));
    }
}

/// Parses the command line. Help and version go to standard output with status 0, wrong usage ends with 2.
pub fn parse<P: clap::Parser>() -> Result<P, ExitCode> {
    P::try_parse().map_err(|error| {
        let _ = error.print();
        ExitCode::from(if error.use_stderr() { USAGE } else { DONE })
    })
}

/// Runs a command to its exit status: errors become a message and a status, a panic becomes `panicked`.
///
/// A panic is a fault of the program; it is caught here only so that its status is one that PostgreSQL reads rightly.
pub fn run(program: &str, panicked: u8, work: impl FnOnce() -> anyhow::Result<u8>) -> ExitCode {
    start_logging();
    ignore_file_size_signal();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    match outcome {
        Ok(Ok(status)) => ExitCode::from(status),
        Ok(Err(error)) => {
            report(program, &error);
            ExitCode::from(status_of(&error))
        }
        Err(_) => ExitCode::from(panicked),
    }
}

/// A write past the limit on the size of files is an error like that of a full disk, as for PostgreSQL, and no signal
/// that ends the process without a word.
fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Logs go to standard error; `RUST_LOG` chooses them, warnings by default.
fn start_logging() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let colours = std::io::stderr().is_terminal();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .try_init();
}

/// A runtime for a command: `threads` workers, or the calling thread alone for 0.
pub fn runtime(threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    use anyhow::Context;
    let mut builder = match threads {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 0 {
        share_heaps(threads);
        builder.worker_threads(threads);
    }
    builder.enable_all().build().context("cannot start the runtime")
}

/// As many of glibc's heaps as threads that compute, instead of eight for each core: what one thread has freed is memory for
/// the others, so that a command needs less.
fn share_heaps(threads: usize) {
    #[cfg(target_env = "gnu")]
    {
        let heaps = libc::c_int::try_from(threads).unwrap_or(libc::c_int::MAX);
        // SAFETY: sets a number.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = threads;
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn wrong_usage_is_2_wherever_it_stands_in_the_chain_and_all_else_is_1() {
        let usage = anyhow::Error::from(Usage("no".to_owned())).context("around");
        assert_eq!(status_of(&usage), USAGE);
        assert_eq!(status_of(&anyhow!("x")), FAILED);
        assert_eq!(status_of(&OutputClosed.into()), DONE);
    }

    #[test]
    fn a_message_names_every_cause_once() {
        let inner = anyhow!("not found");
        let error = Err::<(), _>(inner).context("object x: not found").context("outer");
        assert_eq!(message_of(&error.expect_err("error")), "outer: object x: not found");
        let error = anyhow!("x was not archived: cut").context("x was not archived");
        assert_eq!(message_of(&error), "x was not archived: cut");
    }

    #[test]
    fn a_panic_has_the_status_that_the_command_chose() {
        let status = run("test", UNKNOWN, || panic!("a fault"));
        assert_eq!(format!("{status:?}"), format!("{:?}", ExitCode::from(UNKNOWN)));
    }
}
