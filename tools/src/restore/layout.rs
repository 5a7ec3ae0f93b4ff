//! The target on disk: made where nothing is, synced before success, gone again after a failure.

use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

/// Directories that `initdb` makes and that a server expects (initdb.c, `subdirs`), and `pg_wal`.
pub(crate) const DIRECTORIES: [&str; 22] = [
    "global",
    "base",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_twophase",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_replslot",
    "pg_tblspc",
    "pg_stat",
    "pg_stat_tmp",
    "pg_xact",
    "pg_logical",
    "pg_logical/snapshots",
    "pg_logical/mappings",
];

/// Complete files that wait to be synced: each is open until then.
const UNSYNCED_MAX: usize = 128;
/// Less than this is not worth a word to the disk.
const HINTED_BYTES: u64 = 256 << 10;

/// The user that owns the written files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
}

impl Owner {
    /// The user `name`, when this process may give files away; `None` when it runs as an ordinary user, to whom
    /// everything will belong.
    pub fn for_process(name: &str) -> Result<Option<Owner>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let owner = lookup_user(name)?;
        if owner.uid == 0 {
            bail!("PostgreSQL does not run as root: give --owner a user other than {name}");
        }
        Ok(Some(owner))
    }
}

/// Looks a user up (`getpwnam_r`).
fn lookup_user(name: &str) -> Result<Owner> {
    let c_name = CString::new(name).with_context(|| format!("--owner {name:?} is no user name"))?;
    let mut buffer = vec![0; 16 * 1024];
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::zeroed();
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, the buffer's length is its own, the name ends with a zero byte.
    let code = unsafe {
        libc::getpwnam_r(
            c_name.as_ptr(),
            entry.as_mut_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code)).with_context(|| format!("looking up user {name}"));
    }
    if found.is_null() {
        bail!("there is no user {name} on this machine; name the one that runs PostgreSQL with --owner");
    }
    // SAFETY: `found` is not null, so getpwnam_r has filled the entry; the ids are plain numbers.
    let entry = unsafe { entry.assume_init_ref() };
    Ok(Owner { uid: entry.pw_uid, gid: entry.pw_gid })
}

/// The directory being written, shared by the tasks that write into it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    root: Arc<Path>,
    group_access: bool,
    owner: Option<Owner>,
    sync: bool,
    /// Directories whose entries have to be synced at the end.
    directories: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Files that are complete and not synced yet, and their paths.
    unsynced: Arc<Mutex<Vec<(File, PathBuf)>>>,
    /// Held by whoever syncs files.
    syncing: Arc<Mutex<()>>,
    abandoned: Abandoned,
}

/// Whether the restore has failed. Writers in other threads hold it while they write, so that nothing appears in a
/// directory that is being removed.
type Abandoned = Arc<RwLock<bool>>;

impl Target {
    /// A target at `root`, which must be absolute. Makes nothing yet.
    pub(crate) fn new(root: &Path, group_access: bool, owner: Option<Owner>, sync: bool) -> Target {
        let (directories, unsynced, syncing, abandoned) = Default::default();
        Target { root: root.into(), group_access, owner, sync, directories, unsynced, syncing, abandoned }
    }

    /// What takes back everything written here, should the restore fail.
    pub(crate) fn undo(&self) -> Undo {
        Undo { made: Vec::new(), locks: Vec::new(), abandoned: Arc::clone(&self.abandoned) }
    }

    /// To be held by a thread of its own while it writes.
    ///
    /// # Errors
    /// When the restore has failed meanwhile.
    pub(crate) fn enter(&self) -> Result<RwLockReadGuard<'_, bool>> {
        let guard = self.abandoned.read().unwrap_or_else(PoisonError::into_inner);
        if *guard { Err(anyhow!("the restore was given up")) } else { Ok(guard) }
    }

    /// A path below the root; an absolute one stays as it is.
    pub(crate) fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// The permission bits of directories (`pg_dir_create_mode`).
    fn directory_mode(&self) -> u32 {
        if self.group_access { 0o750 } else { 0o700 }
    }

    /// The permission bits of files (`pg_file_create_mode`).
    pub(crate) fn file_mode(&self) -> u32 {
        if self.group_access { 0o640 } else { 0o600 }
    }

    /// Claims `directory` (below the root, or absolute) as one to write into: makes it, or takes it over when it is
    /// empty and no other restore has claimed it. What has to be undone is noted in `undo` before it is done.
    pub(crate) fn claim(&self, directory: &Path, what: &str, undo: &mut Undo) -> Result<()> {
        let path = self.path(directory);
        // Every directory that gets a new entry has to be synced, so that a loss of power cannot take the entry back.
        let changed = topmost_missing(&path).parent().map(Path::to_path_buf);
        match std::fs::read_dir(&path) {
            Ok(_) => {
                refuse_contents(&path, what)?;
                undo.empty_again(&path).with_context(|| format!("{what} {}", path.display()))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let topmost = topmost_missing(&path);
                undo.remove(topmost.clone());
                self.make_with_parents(&topmost, &path)
                    .with_context(|| format!("making {what} {}", path.display()))?;
            }
            Err(error) => return Err(error).with_context(|| format!("{what} {}", path.display())),
        }
        undo.lock(&path, what)?;
        self.own_directory(&path)?;
        for ancestor in path.ancestors().skip(1) {
            self.note(ancestor);
            if changed.as_deref() == Some(ancestor) {
                break;
            }
        }
        Ok(())
    }

    /// Makes `path` and what is missing above it, from `topmost` on. All of it is the owner's, who has to get there.
    fn make_with_parents(&self, topmost: &Path, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        let Some(owner) = self.owner else { return Ok(()) };
        let made = path.ancestors().take_while(|made| made.starts_with(topmost));
        made.into_iter().try_for_each(|made| chown(made, Some(owner.uid), Some(owner.gid)))
    }

    /// Makes a directory below the root, and its parents below the root; one that is there already is fine.
    pub(crate) fn make_directory(&self, below: &str) -> Result<()> {
        let mut path = self.root.to_path_buf();
        for part in Path::new(below).components() {
            path.push(part);
            match std::fs::create_dir(&path) {
                Ok(()) => self.own_directory(&path)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("making directory {}", path.display()));
                }
            }
        }
        Ok(())
    }

    /// Mode and owner of a directory of ours; it will be synced, and so will be its parent, which is one of ours too.
    fn own_directory(&self, path: &Path) -> Result<()> {
        let owned = || {
            std::fs::set_permissions(path, Permissions::from_mode(self.directory_mode()))?;
            self.owner.map_or(Ok(()), |owner| chown(path, Some(owner.uid), Some(owner.gid)))
        };
        owned().with_context(|| format!("setting mode and owner of {}", path.display()))?;
        self.note(path);
        Ok(())
    }

    fn note(&self, directory: &Path) {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).insert(directory.to_path_buf());
    }

    /// Makes a new file below the root; one that is there already is an error.
    pub(crate) fn create(&self, below: &str, mode: u32) -> Result<File> {
        let path = self.path(below);
        let create = || {
            let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
            // The process's umask does not decide who may read a data directory.
            file.set_permissions(Permissions::from_mode(mode))?;
            if let Some(owner) = self.owner {
                fchown(&file, Some(owner.uid), Some(owner.gid))?;
            }
            Ok(file)
        };
        create().map_err(|error| explain(error, &path))
    }

    /// Writes a whole small file; it is synced by [`Target::sync_files`] at the latest.
    pub(crate) fn write(&self, below: &str, bytes: &[u8]) -> Result<()> {
        self.write_with_mode(below, bytes, self.file_mode())
    }

    /// [`Target::write`] with permission bits of its own.
    pub(crate) fn write_with_mode(&self, below: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let mut file = self.create(below, mode)?;
        file.write_all(bytes).map_err(|error| explain(error, &self.path(below)))?;
        self.complete(file, below)
    }

    /// Takes a file that is complete, to be synced together with others: the first sync writes down in the file system's
    /// journal what all of them changed. The file stays open until then, so that an error of writing it cannot get lost.
    pub(crate) fn complete(&self, file: File, below: &str) -> Result<()> {
        if !self.sync {
            return Ok(());
        }
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        unsynced.push((file, self.path(below)));
        if unsynced.len() < UNSYNCED_MAX {
            return Ok(());
        }
        drop(unsynced);
        self.sync_files()
    }

    /// Syncs all files that are complete. One thread at a time does, and the others wait with the one file that each has just
    /// completed, so that no more files are open than a process may have.
    pub(crate) fn sync_files(&self) -> Result<()> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let files = std::mem::take(&mut *self.unsynced.lock().unwrap_or_else(PoisonError::into_inner));
        sync_all(files)
    }

    /// Begins to write part of a file to the disk, so that the disk is at work before the file is complete. Only a hint:
    /// whether it was written is for the sync to say.
    pub(crate) fn begin_to_sync(&self, file: &File, offset: u64, length: u64) {
        if self.sync && length >= HINTED_BYTES {
            let (offset, length) = (offset.cast_signed(), length.cast_signed());
            // SAFETY: the descriptor is open; no memory is handed over.
            unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
        }
    }

    /// Makes the symbolic link `below` → `to`.
    pub(crate) fn link(&self, below: &str, to: &Path) -> Result<()> {
        let path = self.path(below);
        let link = || {
            std::os::unix::fs::symlink(to, &path)?;
            self.owner
                .map_or(Ok(()), |owner| std::os::unix::fs::lchown(&path, Some(owner.uid), Some(owner.gid)))
        };
        link().with_context(|| format!("making link {} to {}", path.display(), to.display()))
    }

    /// Syncs all files that are complete, every directory that was made, and those that the topmost ones were made in.
    pub(crate) fn sync_directories(&self) -> Result<()> {
        self.sync_files()?;
        if !self.sync {
            return Ok(());
        }
        let directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for path in directories {
            let sync = || File::open(&path)?.sync_all();
            sync().with_context(|| format!("syncing directory {}", path.display()))?;
        }
        Ok(())
    }
}

fn sync_all(files: Vec<(File, PathBuf)>) -> Result<()> {
    files.into_iter().try_for_each(|(file, path)| file.sync_all().map_err(|error| explain(error, &path)))
}

/// Adds the path, and a remedy where there is one.
pub(crate) fn explain(error: io::Error, path: &Path) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ": make room there, or restore to another place"
        }
        io::ErrorKind::PermissionDenied => ": run as a user who may write there",
        _ => "",
    };
    let message = format!("writing {}{remedy}", path.display());
    anyhow::Error::new(error).context(message)
}

/// Refuses a directory that something lies in.
fn refuse_contents(path: &Path, what: &str) -> Result<()> {
    let mut entries = std::fs::read_dir(path).with_context(|| format!("{what} {}", path.display()))?;
    let Some(entry) = entries.next() else { return Ok(()) };
    let name = entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).unwrap_or_default();
    bail!("{what} {} is not empty (there is {name}): choose another place, or empty it", path.display());
}

/// An empty directory, locked. A file system without locks is used without.
fn lock_empty(path: &Path, what: &str) -> Result<File> {
    let another = || format!("another restore writes to {what} {}: choose another place", path.display());
    let directory = File::open(path).with_context(another)?;
    if let Err(TryLockError::WouldBlock) = directory.try_lock() {
        bail!(another());
    }
    // The one that had it may have taken it back meanwhile.
    let (locked, named) = (directory.metadata()?, std::fs::metadata(path).with_context(another)?);
    if (locked.dev(), locked.ino()) != (named.dev(), named.ino()) {
        bail!(another());
    }
    refuse_contents(path, what)?;
    Ok(directory)
}

/// The highest directory of `path` that does not exist yet.
fn topmost_missing(path: &Path) -> PathBuf {
    let missing = path.ancestors().take_while(|ancestor| std::fs::symlink_metadata(ancestor).is_err());
    missing.last().unwrap_or(path).to_path_buf()
}

/// What a failed restore takes back when it is dropped, however it ended.
#[derive(Debug)]
pub(crate) struct Undo {
    made: Vec<Made>,
    /// The directories claimed. They are let go after what was made is taken back, and when the process ends.
    locks: Vec<File>,
    abandoned: Abandoned,
}

#[derive(Debug)]
enum Made {
    /// A directory that was not there.
    Directory(PathBuf),
    /// The contents of a directory that was there and empty, and whose it was.
    Contents(PathBuf, Metadata),
}

impl Undo {
    fn remove(&mut self, path: PathBuf) {
        self.made.push(Made::Directory(path));
    }

    fn empty_again(&mut self, path: &Path) -> io::Result<()> {
        let before = std::fs::metadata(path)?;
        self.made.push(Made::Contents(path.to_path_buf(), before));
        Ok(())
    }

    /// Keeps other restores out of a directory that was just noted: two that both found it empty must not take back one
    /// another's files. Where it is another's, the note is dropped.
    fn lock(&mut self, path: &Path, what: &str) -> Result<()> {
        match lock_empty(path, what) {
            Ok(lock) => {
                self.locks.push(lock);
                Ok(())
            }
            Err(error) => {
                self.made.pop();
                Err(error)
            }
        }
    }

    /// The restore is complete: nothing will be taken back.
    pub(crate) fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.made.is_empty() {
            // Waits for writers that have begun, and keeps others from beginning.
            *self.abandoned.write().unwrap_or_else(PoisonError::into_inner) = true;
        }
        for made in self.made.drain(..).rev() {
            let (removed, path) = match &made {
                Made::Directory(path) => (std::fs::remove_dir_all(path), path),
                Made::Contents(path, before) => (put_back(path, before), path),
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::error!(
                        "{} could not be removed again: {error}; remove it by hand",
                        path.display()
                    );
                }
                _ => {}
            }
        }
    }
}

/// Empties a directory and gives it back.
fn put_back(directory: &Path, before: &Metadata) -> io::Result<()> {
    remove_contents(directory)?;
    let now = std::fs::metadata(directory)?;
    if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
        chown(directory, Some(before.uid()), Some(before.gid()))?;
    }
    std::fs::set_permissions(directory, before.permissions())
}

fn remove_contents(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(root: &Path) -> Target {
        Target::new(root, false, None, true)
    }

    #[test]
    fn a_directory_that_is_not_empty_is_refused_and_untouched() {
        let home = tempfile::tempdir().expect("temporary directory");
        std::fs::write(home.path().join("mine"), "x").expect("file");
        let target = target(home.path());
        let mut undo = target.undo();
        let error = target.claim(home.path(), "target", &mut undo).expect_err("not empty");
        assert!(error.to_string().contains("mine"), "{error}");
        drop(undo);
        assert!(home.path().join("mine").exists());
    }

    #[test]
    fn a_directory_that_another_restore_has_claimed_is_refused_and_untouched() {
        let home = tempfile::tempdir().expect("temporary directory");
        let (empty, new) = (home.path().join("empty"), home.path().join("new"));
        std::fs::create_dir(&empty).expect("a directory");
        for root in [empty, new] {
            let (one, other) = (target(&root), target(&root));
            let (mut undo, mut late) = (one.undo(), other.undo());
            one.claim(&root, "target", &mut undo).expect("takes it");
            let error = other.claim(&root, "target", &mut late).expect_err("claimed");
            assert!(error.to_string().contains("another restore"), "{error}");
            one.write("PG_VERSION", b"15\n").expect("writes it");
            drop(late);
            assert!(root.join("PG_VERSION").exists());
            undo.keep();
        }
    }

    #[test]
    fn what_was_made_is_gone_after_a_failure_with_the_parents_that_were_made() {
        let home = tempfile::tempdir().expect("temporary directory");
        let root = home.path().join("a/b/data");
        let target = target(&root);
        let mut undo = target.undo();
        target.claim(&root, "target", &mut undo).expect("makes it");
        target.make_directory("base/5").expect("makes it");
        target.write("base/5/1", b"x").expect("writes it");
        drop(undo);
        assert!(!home.path().join("a").exists() && home.path().exists());
    }

    #[test]
    fn an_empty_directory_stays_and_is_empty_again_after_a_failure() {
        let home = tempfile::tempdir().expect("temporary directory");
        std::fs::set_permissions(home.path(), Permissions::from_mode(0o751)).expect("set");
        let target = target(home.path());
        let mut undo = target.undo();
        target.claim(home.path(), "target", &mut undo).expect("takes it");
        target.make_directory("base").expect("makes it");
        target.write("PG_VERSION", b"15\n").expect("writes it");
        target.link("link", Path::new("/")).expect("links it");
        drop(undo);
        assert_eq!(std::fs::read_dir(home.path()).expect("still there").count(), 0);
        let mode = std::fs::metadata(home.path()).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o751, "as open as it was");
    }

    #[test]
    fn directories_made_on_the_way_to_the_target_are_the_owners_too() {
        let home = tempfile::tempdir().expect("temporary directory");
        let this = std::fs::metadata(home.path()).expect("there");
        // Only root may give directories away, and to somebody who exists: here to nobody's number.
        let uid = if this.uid() == 0 { 65_534 } else { this.uid() };
        let root = home.path().join("a/b/data");
        let target = Target::new(&root, false, Some(Owner { uid, gid: this.gid() }), true);
        let mut undo = target.undo();
        target.claim(&root, "target", &mut undo).expect("makes it");
        for made in ["a", "a/b", "a/b/data"] {
            assert_eq!(std::fs::metadata(home.path().join(made)).expect("there").uid(), uid, "{made}");
        }
        assert_eq!(std::fs::metadata(home.path()).expect("there").uid(), this.uid());
        undo.keep();
    }

    #[test]
    fn what_is_kept_has_the_modes_that_postgresql_asks_for() {
        let home = tempfile::tempdir().expect("temporary directory");
        for (group_access, directory, file) in [(false, 0o700, 0o600), (true, 0o750, 0o640)] {
            let root = home.path().join(format!("{group_access}"));
            let target = Target::new(&root, group_access, None, false);
            let mut undo = target.undo();
            target.claim(&root, "target", &mut undo).expect("makes it");
            target.write("PG_VERSION", b"15\n").expect("writes it");
            target.sync_directories().expect("nothing to do");
            undo.keep();
            drop(undo);
            let mode = |path: &Path| std::fs::metadata(path).expect("kept").permissions().mode() & 0o777;
            assert_eq!(mode(&root), directory);
            assert_eq!(mode(&root.join("PG_VERSION")), file);
        }
    }

    #[test]
    fn a_writer_that_comes_after_the_failure_writes_nothing() {
        let home = tempfile::tempdir().expect("temporary directory");
        let target = target(home.path());
        let mut undo = target.undo();
        target.claim(home.path(), "target", &mut undo).expect("takes it");
        assert!(target.enter().is_ok());
        drop(undo);
        assert!(target.enter().is_err());
    }

    #[test]
    fn a_file_is_never_overwritten() {
        let home = tempfile::tempdir().expect("temporary directory");
        let target = target(home.path());
        target.write("x", b"1").expect("new");
        let error = target.write("x", b"2").expect_err("there already");
        assert!(error.to_string().contains("/x"), "{error}");
    }
}
