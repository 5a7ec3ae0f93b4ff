//! How redo processes are started: options, and why it can fail.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// How to start a [`crate::RedoPool`]. `Default` is right on a machine with Debian's packages.
#[derive(Clone, Debug)]
pub struct RedoOptions {
    /// Where `postgres` and `initdb` of PostgreSQL 15 lie; `None`: `ZENITH_PG_BIN_DIR`, then the places where
    /// packages put them, then `PATH`.
    pub bin_dir: Option<PathBuf>,
    /// The library that the processes load (`libzenith_redo_worker.so`); `None`: `ZENITH_REDO_LIBRARY`, beside the
    /// executable, `../lib/zenith/` from there, and Cargo's target directory for tests.
    pub library: Option<PathBuf>,
    /// How many processes at most; `None`: one per core. They are started when they are needed.
    pub workers: Option<usize>,
    /// A directory that holds the processes' small data directories and one template of them; `None`:
    /// `zenith-redo-<uid>` in the directory for temporary files. May be shared by any number of pools.
    pub work_dir: Option<PathBuf>,
    /// The user that the processes run as when the caller is root, which PostgreSQL refuses to run as.
    pub owner: String,
    /// How long one change of a page may take before the process is killed.
    pub timeout: Duration,
    /// Size of the region shared with each process, in bytes; at least 1 MiB. Bounds memory and the longest record.
    pub region_size: usize,
}

impl Default for RedoOptions {
    fn default() -> Self {
        RedoOptions {
            bin_dir: None,
            library: None,
            workers: None,
            work_dir: None,
            owner: "postgres".to_owned(),
            timeout: Duration::from_secs(60),
            region_size: 8 << 20,
        }
    }
}

/// Why no redo process could be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// PostgreSQL's programs were not found.
    #[error(
        "PostgreSQL 15's programs (postgres, initdb) were not found; looked in {}: \
         install the package postgresql-15 or set ZENITH_PG_BIN_DIR",
        list(.looked)
    )]
    NoPostgres {
        /// Where it looked.
        looked: Vec<PathBuf>,
    },
    /// The server is of another major version.
    #[error("{path} is \"{version}\": redo needs PostgreSQL 15; install it or set ZENITH_PG_BIN_DIR")]
    WrongVersion {
        /// The program.
        path: PathBuf,
        /// What it says of itself.
        version: String,
    },
    /// The library was not found.
    #[error(
        "the redo library {name} was not found; looked for {}: install it beside the program or set \
         ZENITH_REDO_LIBRARY to its path",
        list(.looked)
    )]
    NoLibrary {
        /// Its file name.
        name: &'static str,
        /// Where it looked.
        looked: Vec<PathBuf>,
    },
    /// The user to run as does not exist or is root.
    #[error("PostgreSQL refuses to run as root and \"{owner}\" cannot be used instead: {reason}")]
    Owner {
        /// The user's name.
        owner: String,
        /// What is wrong.
        reason: String,
    },
    /// The work directory cannot be trusted.
    #[error("the redo work directory {path} {reason}: remove it or choose another one")]
    WorkDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}{}", remedy(source))]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// `initdb` failed.
    #[error(
        "initdb for the redo processes failed: {message}; it works in {}, which needs 50 MB of room: TMPDIR names another \
         folder",
        folder.display()
    )]
    InitDb {
        /// The work directory.
        folder: PathBuf,
        /// What it said.
        message: String,
    },
    /// The process ended before it was ready, or did not get ready.
    #[error("the redo process did not start ({how}): {message}")]
    NotReady {
        /// How it ended.
        how: String,
        /// What it said.
        message: String,
    },
    /// The process is ready but redoes a known record wrongly.
    #[error(
        "the redo process failed its self test \"{test}\": {reason}. This PostgreSQL server does not redo as \
         PostgreSQL 15 does; nothing was read with it"
    )]
    SelfTest {
        /// The test.
        test: String,
        /// What went wrong.
        reason: String,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room there, or choose another folder by TMPDIR"
        }
        io::ErrorKind::FileTooLarge => "; raise the limit on the size of files",
        _ => "",
    }
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    if names.is_empty() { "no place at all".to_owned() } else { names.join(", ") }
}
