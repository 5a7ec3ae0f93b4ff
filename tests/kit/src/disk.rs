//! A disk that is soon full.

use crate::pg::{give_to_server, server_dir, when_gone};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use tempfile::TempDir;

const FILLER: &str = "filler";

/// A file system of its own in memory. It goes with the value, and with this process, however that ends.
#[derive(Debug)]
pub struct SmallDisk {
    mount: TempDir,
    _lifeline: ChildStdin,
}

impl SmallDisk {
    /// A disk of so many bytes; `None` where this process may not mount any (as in most containers).
    pub fn mounted(bytes: u64) -> Option<SmallDisk> {
        let mount = server_dir();
        let options = format!("size={bytes},mode=0755");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(mount.path()).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            return None;
        }
        give_to_server(mount.path());
        let lifeline = when_gone("umount -l \"$1\"", &[&mount.path().display().to_string()]);
        Some(SmallDisk { mount, _lifeline: lifeline })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.mount.path()
    }

    /// A new directory on it, which the server's user owns.
    pub fn directory(&self) -> TempDir {
        let directory =
            tempfile::Builder::new().prefix("on-").tempdir_in(self.path()).expect("room for a directory");
        give_to_server(directory.path());
        directory
    }

    /// Leaves room for about so many bytes.
    pub fn fill(&self, left: u64) {
        let mut filler = File::create(self.filler()).expect("room for a file");
        let zeros = [0; 4096];
        let mut written = 0;
        while filler.write_all(&zeros).is_ok() {
            written += zeros.len() as u64;
        }
        filler.set_len(written.saturating_sub(left)).expect("shorter");
    }

    /// Makes the room again that [`SmallDisk::fill`] took.
    pub fn make_room(&self) {
        std::fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path().join(FILLER)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.path()).output());
    }
}
