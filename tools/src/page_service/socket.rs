//! The socket of a page service: who has its lock has the socket, so that no service takes another's away.

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// As many clients may wait to be accepted: what Linux allows by default.
const BACKLOG: i32 = 4096;
/// A lock file that is replaced so often while it is taken is somebody's mistake.
const TRIES: u32 = 10;

/// A socket, until it is dropped: then its file is gone, and its lock is free.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    lock: Lock,
}

/// A file beside the socket, held by `flock` and bearing the process's number, as PostgreSQL's bears the postmaster's: neither
/// of them starts where the other is.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    /// Locked for as long as it is open.
    _file: File,
}

impl Socket {
    /// Listens on a socket that only this user can open. One that a killed service left behind is replaced; one at which
    /// somebody answers is not.
    pub(super) async fn listen(directory: &Path, port: u16) -> anyhow::Result<(Socket, UnixListener)> {
        let path = directory.join(format!(".s.PGSQL.{port}"));
        let listening = async {
            let lock = Lock::take(directory.join(format!(".s.PGSQL.{port}.lock")))?;
            make_room(&path).await?;
            Ok::<_, anyhow::Error>((lock, bound(&path)?))
        };
        let (lock, listener) =
            listening.await.with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok((Socket { path, lock }, listener))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        for path in [&self.path, &self.lock.path] {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(%error, "{} could not be removed", path.display());
            }
        }
    }
}

impl Lock {
    fn take(path: PathBuf) -> anyhow::Result<Lock> {
        for _ in 0..TRIES {
            let mut options = File::options();
            let mut file =
                options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => bail!(IN_USE),
                Err(error) => return Err(error.into()),
            }
            // Whoever had it before may have removed it between the two.
            if std::fs::metadata(&path)
                .is_ok_and(|there| file.metadata().is_ok_and(|ours| same(&ours, &there)))
            {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                return Ok(Lock { path, _file: file });
            }
        }
        bail!("{} comes and goes", path.display())
    }
}

const IN_USE: &str = "somebody listens there already: choose another -p or -k";

fn same(one: &std::fs::Metadata, other: &std::fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Removes a socket at which nobody answers.
async fn make_room(path: &Path) -> anyhow::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(there) if !there.file_type().is_socket() => bail!("there is a file of that name, and no socket"),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        // PostgreSQL, say, which has no lock of this kind.
        Ok(_) => bail!(IN_USE),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(std::fs::remove_file(path)?),
        Err(error) => Err(error.into()),
    }
}

/// Binds a socket whose file has its mode from the first moment on.
fn bound(path: &Path) -> anyhow::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the file the mode of the socket.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from_std(socket.into())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    async fn listen(folder: &tempfile::TempDir) -> anyhow::Result<(Socket, UnixListener)> {
        Socket::listen(folder.path(), 5432).await
    }

    fn file(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join(".s.PGSQL.5432")
    }

    #[tokio::test]
    async fn only_its_own_user_may_connect_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().expect("folder");
        let (socket, listener) = listen(&folder).await.expect("listening");
        assert_eq!(std::fs::metadata(file(&folder)).expect("there").permissions().mode() & 0o777, 0o600);
        UnixStream::connect(file(&folder)).await.expect("connected");
        drop((socket, listener));
        assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 0);
    }

    #[tokio::test]
    async fn a_socket_that_a_killed_service_left_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        drop(std::os::unix::net::UnixListener::bind(file(&folder)).expect("bound"));
        let (_socket, _listener) = listen(&folder).await.expect("replaced");
        let refused = format!("{:#}", listen(&folder).await.expect_err("in use"));
        assert!(refused.contains("already") && refused.contains(".s.PGSQL.5432"), "{refused}");
    }

    #[tokio::test]
    async fn another_servers_socket_and_a_file_that_is_none_are_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let other = std::os::unix::net::UnixListener::bind(file(&folder)).expect("bound");
        let refused = format!("{:#}", listen(&folder).await.expect_err("in use"));
        assert!(refused.contains("already"), "{refused}");
        drop(other);
        std::fs::remove_file(file(&folder)).expect("removed");
        std::fs::write(file(&folder), "mine").expect("written");
        assert!(listen(&folder).await.is_err());
        assert_eq!(std::fs::read(file(&folder)).expect("there"), b"mine");
    }

    /// While it still answers what it was asked, its successor listens; its end must not take the successor's socket away.
    #[tokio::test]
    async fn a_service_that_stops_leaves_its_successors_socket_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let (first, still_listening) = listen(&folder).await.expect("listening");
        drop(first);
        let (_second, _listener) = listen(&folder).await.expect("its successor listens");
        drop(still_listening);
        UnixStream::connect(file(&folder)).await.expect("the successor is there");
    }
}
