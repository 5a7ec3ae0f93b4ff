//! Data directories for redo processes. A process needs hardly any of one: `PG_VERSION` and a control file, both from an
//! `initdb` that is run once per version and kept as a template. Once the process serves, its directory is removed.

use crate::locate::Server;
use crate::start::{RedoOptions, StartError};
use std::ffi::CString;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// What a data directory needs before storage managers are initialised, beside empty directories.
const FILES: [&str; 2] = ["PG_VERSION", "global/pg_control"];

/// As whom redo processes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The caller is root and has to become this user.
    pub(crate) switch: bool,
}

impl Owner {
    /// The caller, or the named user when the caller is root.
    pub(crate) fn find(name: &str) -> Result<Owner, StartError> {
        // SAFETY: no preconditions.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        if uid != 0 {
            return Ok(Owner { uid, gid, switch: false });
        }
        let refused = |reason: &str| StartError::Owner { owner: name.to_owned(), reason: reason.to_owned() };
        let text = CString::new(name).map_err(|_| refused("that is not a name"))?;
        let mut buffer = vec![0; 16 << 10];
        // SAFETY: plain old data, filled by the call.
        let mut entry = unsafe { std::mem::zeroed::<libc::passwd>() };
        let mut found = std::ptr::null_mut();
        // SAFETY: the buffer and both outputs outlive the call.
        unsafe {
            libc::getpwnam_r(
                text.as_ptr(),
                &raw mut entry,
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            );
        }
        if found.is_null() {
            return Err(refused("there is no such user; name one with --owner"));
        }
        if entry.pw_uid == 0 {
            return Err(refused("that is root, too"));
        }
        Ok(Owner { uid: entry.pw_uid, gid: entry.pw_gid, switch: true })
    }

    /// Makes a command run as the owner, with nothing of the caller's environment.
    pub(crate) fn prepare(self, command: &mut Command) {
        command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin");
        if self.switch {
            command.gid(self.gid).uid(self.uid);
        }
    }

    fn take(self, path: &Path) -> io::Result<()> {
        if self.switch { std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let what = format!("{what} {}", path.display());
    move |source| StartError::Io { what, source }
}

/// Creates a directory for the owner alone. It gets its name last, so that nobody sees it before it is the owner's.
fn create(path: &Path, owner: Owner) -> Result<(), StartError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let fresh = tempfile::Builder::new().prefix(".zenith-redo-").tempdir_in(parent);
    let fresh = fresh.map_err(failed("create", path))?;
    owner.take(fresh.path()).map_err(failed("give away", path))?;
    match fs::rename(fresh.path(), path) {
        Ok(()) => {
            // It has another name now: there is nothing left to remove.
            let _renamed = fresh.keep();
            Ok(())
        }
        // Another process was faster.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) =>
        {
            Ok(())
        }
        Err(error) => Err(failed("create", path)(error)),
    }
}

/// The directory below which everything happens.
pub(crate) struct WorkDir {
    path: PathBuf,
    pub(crate) owner: Owner,
}

impl WorkDir {
    /// Creates the directory, or checks that an existing one is the owner's alone.
    pub(crate) fn open(options: &RedoOptions, owner: Owner) -> Result<WorkDir, StartError> {
        let path = match &options.work_dir {
            Some(path) => std::path::absolute(path).map_err(failed("find", path))?,
            None => std::env::temp_dir().join(format!("zenith-redo-{}", owner.uid)),
        };
        if fs::symlink_metadata(&path).is_err() {
            create(&path, owner)?;
        }
        // A directory below a world-writable one may be somebody else's trap.
        let status = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        let reason = if !status.is_dir() {
            "is not a directory"
        } else if status.uid() != owner.uid {
            "belongs to another user"
        } else if status.mode() & 0o022 != 0 {
            "can be written by others"
        } else {
            return Ok(WorkDir { path, owner });
        };
        Err(StartError::WorkDir { path, reason: reason.to_owned() })
    }

    /// A fresh data directory for one process.
    pub(crate) fn data_directory(&self, server: &Server) -> Result<TempDir, StartError> {
        let template = self.template(server)?;
        let directory = self.temporary("worker-")?;
        let path = directory.path();
        self.lay_out(&template, path)?;
        for (name, text) in [("postgresql.conf", CONFIGURATION), ("postgresql.auto.conf", "")] {
            let file = path.join(name);
            fs::write(&file, text).map_err(failed("write", &file))?;
            self.owner.take(&file).map_err(failed("give away", &file))?;
        }
        Ok(directory)
    }

    /// An empty directory of the owner's that is removed when it is dropped.
    fn temporary(&self, prefix: &str) -> Result<TempDir, StartError> {
        let mut builder = tempfile::Builder::new();
        let directory =
            builder.prefix(prefix).permissions(Permissions::from_mode(0o700)).tempdir_in(&self.path);
        let directory = directory.map_err(failed("create a directory in", &self.path))?;
        self.owner.take(directory.path()).map_err(failed("give away", directory.path()))?;
        Ok(directory)
    }

    /// Copies what a data directory needs: its directories without their contents, and two files.
    fn lay_out(&self, from: &Path, to: &Path) -> Result<(), StartError> {
        for entry in fs::read_dir(from).map_err(failed("list", from))? {
            let entry = entry.map_err(failed("list", from))?;
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = to.join(entry.file_name());
            DirBuilder::new().mode(0o700).create(&path).map_err(failed("create", &path))?;
            self.owner.take(&path).map_err(failed("give away", &path))?;
        }
        for name in FILES {
            let path = to.join(name);
            fs::copy(from.join(name), &path).map_err(failed("copy from the template", &path))?;
            self.owner.take(&path).map_err(failed("give away", &path))?;
        }
        Ok(())
    }

    /// The template for this version, made when it is not there. Several may make it at once: the first one's stays.
    fn template(&self, server: &Server) -> Result<PathBuf, StartError> {
        let version: String = server
            .version
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' })
            .collect();
        let template = self.path.join(format!("template-{version}"));
        if FILES.iter().all(|name| template.join(name).is_file()) {
            return Ok(template);
        }
        let scratch = self.temporary("initdb-")?;
        let whole = scratch.path().join("whole");
        self.initdb(server, &whole)?;
        let small = self.temporary("small-")?;
        self.lay_out(&whole, small.path())?;
        let small = small.keep();
        match fs::rename(&small, &template) {
            Ok(()) => Ok(template),
            Err(_) if template.is_dir() => {
                // Best effort: it is a copy of what is there now.
                drop(fs::remove_dir_all(&small));
                Ok(template)
            }
            Err(error) => Err(failed("rename the template to", &template)(error)),
        }
    }

    fn initdb(&self, server: &Server, into: &Path) -> Result<(), StartError> {
        let program = server.program("initdb");
        let mut command = Command::new(&program);
        self.owner.prepare(&mut command);
        command.args([
            "--no-sync",
            "--no-instructions",
            "--wal-segsize=1",
            "--auth=trust",
            "--username=zenith",
        ]);
        command.args(["--locale=C", "--encoding=SQL_ASCII", "--pgdata"]).arg(into).current_dir("/");
        let output = command.output().map_err(failed("run", &program))?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(StartError::InitDb { folder: self.path.clone(), message })
    }
}

/// As small as a server can be: one process, a megabyte of buffers, nothing else. Errors of redo go to the caller, so that
/// only what ends the process is logged.
const CONFIGURATION: &str = "\
shared_buffers = 128
wal_buffers = 4
max_connections = 2
superuser_reserved_connections = 0
max_worker_processes = 0
max_wal_senders = 0
max_replication_slots = 0
max_prepared_transactions = 0
max_locks_per_transaction = 10
max_files_per_process = 64
autovacuum_max_workers = 1
autovacuum = off
huge_pages = off
shared_memory_type = mmap
dynamic_shared_memory_type = mmap
min_dynamic_shared_memory = 0
wal_level = replica
wal_consistency_checking = ''
zero_damaged_pages = off
ignore_checksum_failure = off
track_activities = off
track_counts = off
track_io_timing = off
jit = off
logging_collector = off
log_destination = stderr
log_min_messages = fatal
log_line_prefix = ''
log_statement = none
restart_after_crash = off
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("work");
        let owner = Owner { uid: fs::metadata(directory.path()).unwrap().uid(), gid: 0, switch: false };
        let options = RedoOptions { work_dir: Some(path.clone()), ..RedoOptions::default() };
        assert!(WorkDir::open(&options, owner).is_ok());
        assert!(WorkDir::open(&options, owner).is_ok(), "and again, now that it is there");
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(WorkDir::open(&options, owner), Err(StartError::WorkDir { .. })));
        let stranger = Owner { uid: owner.uid + 1, ..owner };
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        assert!(matches!(WorkDir::open(&options, stranger), Err(StartError::WorkDir { .. })));
    }
}
