//! Whose a folder store is. What root puts into a folder of somebody else's is given to them, as if they had made it:
//! otherwise `archive_command`, which runs as the server's user, could make nothing beside it.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fchmod, fchown, fstat, fsync, mkdirat, openat, statat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A named pipe in an object's place is not waited for.
const OBJECT: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Gives a directory that root has just made to somebody.
pub(crate) fn give_directory(directory: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let opened = openat(CWD, directory, DIRECTORY, Mode::empty())?;
    Ok(fchown(opened, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

/// The owner of a folder, seen by root.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    folder: PathBuf,
    uid: Uid,
    gid: Gid,
    /// The folder's permission bits; those of all directories in it, and without `x` of all objects.
    mode: Mode,
}

impl Owner {
    /// `None` where nothing has to be given away: this process is not root, or the folder is root's own.
    pub(crate) fn of(folder: &Path) -> io::Result<Option<Owner>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        // object_store resolves links above the store.
        let folder = folder.canonicalize()?;
        let found = statat(CWD, &folder, AtFlags::empty())?;
        let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
        let mode = Mode::from_raw_mode(found.st_mode);
        Ok((!uid.is_root()).then_some(Owner { folder, uid, gid, mode }))
    }

    /// Makes the directories that the file lies in, and gives away those that are root's. What lies behind a symbolic link is
    /// left as it is: whoever owns the folder could have it lead anywhere.
    pub(crate) fn make_directories(&self, file: &Path) -> io::Result<()> {
        self.directory_of(file, true).map(drop)
    }

    /// Gives away the object that this process has just made.
    pub(crate) fn give_object(&self, file: &Path) -> io::Result<()> {
        let (Some(directory), Some(name)) = (self.directory_of(file, false)?, file.file_name()) else {
            return Ok(());
        };
        let object = openat(&directory, name, OBJECT, Mode::empty())?;
        // One that has another name, too, may be anything that the folder's owner has linked here.
        if fstat(&object)?.st_nlink != 1 {
            return Ok(());
        }
        self.give(&object, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH)
    }

    /// The directory of a file below the folder, opened step by step; `None` behind a symbolic link.
    fn directory_of(&self, file: &Path, make: bool) -> io::Result<Option<OwnedFd>> {
        let below = file.parent().and_then(|parent| parent.strip_prefix(&self.folder).ok());
        let Some(below) = below else { return Ok(None) };
        let mut at = openat(CWD, &self.folder, DIRECTORY, Mode::empty())?;
        for name in below {
            let next = match openat(&at, name, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) if make => make_directory(&at, name)?,
                Err(Errno::LOOP | Errno::NOTDIR) => return Ok(None),
                opened => opened?,
            };
            if make {
                self.give(&next, Mode::all())?;
            }
            at = next;
        }
        Ok(Some(at))
    }

    /// Gives away what is root's, with the folder's permission bits as far as these go.
    fn give(&self, file: impl AsFd, bits: Mode) -> io::Result<()> {
        if fstat(&file)?.st_uid != 0 {
            return Ok(());
        }
        match fchown(&file, Some(self.uid), Some(self.gid)) {
            // A file system of another machine, where this root is nobody special: what it makes is not root's there.
            Err(Errno::PERM) => Ok(()),
            given => {
                given?;
                Ok(fchmod(&file, self.mode & bits)?)
            }
        }
    }
}

/// Makes a directory, durably; one that is there meanwhile is fine.
fn make_directory(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => fsync(parent)?,
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    openat(parent, name, DIRECTORY, Mode::empty())
}

#[cfg(test)]
mod tests {
    use crate::{PutOutcome, Store, StoreSettings, put_hint, put_if_absent};
    use bytes::Bytes;
    use object_store::path::Path as ObjectPath;
    use std::fs::{Permissions, create_dir, metadata, set_permissions, write};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    use std::path::Path;
    use tempfile::TempDir;

    /// Somebody else's number, if this process may give things away; else its own.
    fn somebody(folder: &Path) -> u32 {
        let own = metadata(folder).unwrap().uid();
        if own == 0 { 65_534 } else { own }
    }

    /// A folder that is somebody's, as open as `mode` says.
    fn folder(mode: u32) -> (TempDir, u32, Store) {
        let folder = tempfile::tempdir().unwrap();
        let uid = somebody(folder.path());
        set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        chown(folder.path(), Some(uid), None).unwrap();
        let url = url::Url::from_file_path(folder.path()).unwrap();
        let store = Store::open(url.as_str(), &StoreSettings::default()).unwrap();
        (folder, uid, store)
    }

    async fn put(store: &Store, name: &str) -> PutOutcome {
        put_if_absent(&*store.objects, &ObjectPath::from(name), Bytes::from_static(b"x")).await.unwrap()
    }

    fn owner_and_mode(path: &Path) -> (u32, u32) {
        let found = metadata(path).unwrap();
        (found.uid(), found.mode() & 0o7777)
    }

    #[tokio::test]
    async fn what_is_put_into_a_folder_belongs_to_whoever_owns_it() {
        for (mode, object_mode) in [(0o755, 0o644), (0o2770, 0o660), (0o700, 0o600)] {
            let (folder, uid, store) = folder(mode);
            assert_eq!(put(&store, "a/b/c").await, PutOutcome::Created);
            assert_eq!(put(&store, "a/b/c").await, PutOutcome::AlreadyExists);
            let hint = ObjectPath::from("a/hint");
            for content in ["1", "2"] {
                put_hint(&*store.objects, &hint, Bytes::from_static(content.as_bytes())).await.unwrap();
            }
            let is_root = uid == 65_534;
            for (name, mode) in [("a", mode), ("a/b", mode), ("a/b/c", object_mode), ("a/hint", object_mode)]
            {
                let found = owner_and_mode(&folder.path().join(name));
                assert_eq!(found.0, uid, "{name}");
                // Whoever is not root makes them by the umask.
                assert!(!is_root || found.1 == mode, "{name}: {:o}", found.1);
            }
            let names = ["a", "a/b"].map(|name| std::fs::read_dir(folder.path().join(name)).unwrap().count());
            assert_eq!(names, [2, 1], "and nothing else is there");
        }
    }

    #[tokio::test]
    async fn a_directory_that_root_had_left_behind_is_given_away_by_the_next_put() {
        let (folder, uid, store) = folder(0o750);
        create_dir(folder.path().join("a")).unwrap();
        assert_eq!(put(&store, "a/b").await, PutOutcome::Created);
        assert_eq!(owner_and_mode(&folder.path().join("a")).0, uid);
    }

    #[tokio::test]
    async fn what_a_link_leads_to_stays_whose_it_is() {
        let (folder, uid, store) = folder(0o755);
        let elsewhere = tempfile::tempdir().unwrap();
        write(elsewhere.path().join("mine"), "x").unwrap();
        let before = owner_and_mode(elsewhere.path());
        symlink(elsewhere.path(), folder.path().join("wal")).unwrap();
        assert_eq!(put(&store, "wal/b/c").await, PutOutcome::Created);
        assert_eq!(owner_and_mode(elsewhere.path()), before);
        // A second name of somebody's file, put in the way after a put has made its own.
        let linked = folder.path().join("linked");
        std::fs::hard_link(elsewhere.path().join("mine"), &linked).unwrap();
        if let Some(owner) = super::Owner::of(folder.path()).unwrap() {
            owner.give_object(&linked).unwrap();
        }
        let mine = owner_and_mode(&elsewhere.path().join("mine"));
        assert_eq!(mine.0, before.0);
        assert_eq!(owner_and_mode(folder.path()).0, uid);
    }

    #[test]
    fn a_new_folder_and_those_made_on_the_way_are_given_to_whom_it_is_for() {
        let base = tempfile::tempdir().unwrap();
        let (uid, own) = (somebody(base.path()), metadata(base.path()).unwrap());
        let url = url::Url::from_file_path(base.path().join("a/b")).unwrap();
        let settings = StoreSettings::default().create_folder(true).new_folder_owner(uid, own.gid());
        Store::open(url.as_str(), &settings).unwrap();
        for name in ["a", "a/b"] {
            assert_eq!(owner_and_mode(&base.path().join(name)).0, uid, "{name}");
        }
        assert_eq!(owner_and_mode(base.path()).0, own.uid());
    }
}
