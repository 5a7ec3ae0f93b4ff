//! Files with secrets: keys and tokens.

use anyhow::{Context, bail};
use rustix::fs::OFlags;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// More than any such file holds.
const MAX_BYTES: u64 = 8 << 20;

/// Bits of the mode that a file of this process's own user must not have, and one of root's: PostgreSQL's rule for key files.
const NOT_OURS: u32 = 0o077;
const NOT_ROOTS: u32 = 0o037;

/// The content of a file that nobody else may read.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let user = rustix::process::geteuid().as_raw();
    read_checked(path, |metadata| check(metadata.uid(), metadata.mode(), user))
}

/// The content of a file that anybody may read.
pub(super) fn read_public(path: &Path) -> anyhow::Result<Vec<u8>> {
    read_checked(path, |_| Ok(()))
}

fn read_checked(path: &Path, check: impl Fn(&Metadata) -> anyhow::Result<()>) -> anyhow::Result<Vec<u8>> {
    let reading = || {
        // A pipe is refused, and must not be waited for.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            bail!("it is no regular file");
        }
        check(&metadata)?;
        let mut content = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_BYTES {
            bail!("it is longer than {MAX_BYTES} bytes, which no such file is");
        }
        Ok(content)
    };
    reading().with_context(|| format!("cannot use {}", path.display()))
}

fn check(owner: u32, mode: u32, user: u32) -> anyhow::Result<()> {
    let (wrong, right) = match owner {
        0 => (NOT_ROOTS, "0640 or less"),
        _ if owner == user => (NOT_OURS, "0600 or less"),
        _ => {
            bail!("it belongs to user {owner}, and must belong to root or to user {user}, as whom this runs")
        }
    };
    if mode & wrong != 0 {
        bail!("its permissions {:04o} let others read or change it: chmod it to {right}", mode & 0o7777);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_others_may_read_is_no_secret() {
        for (owner, mode, user, fine) in [
            (7, 0o600, 7, true),
            (7, 0o400, 7, true),
            (7, 0o640, 7, false),
            (7, 0o604, 7, false),
            (0, 0o640, 7, true),
            (0, 0o440, 0, true),
            (0, 0o660, 7, false),
            (0, 0o644, 7, false),
            (8, 0o600, 7, false),
        ] {
            assert_eq!(check(owner, mode, user).is_ok(), fine, "{owner} {mode:o} {user}");
        }
    }

    #[test]
    fn what_is_refused_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("tokens");
        std::fs::write(&path, "hush").expect("written");
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("changed");
        mode(0o600);
        assert_eq!(read(&path).expect("a secret"), b"hush");
        mode(0o604);
        let refused = format!("{:#}", read(&path).expect_err("for all to read"));
        assert!(
            refused.contains("tokens") && refused.contains("0604") && refused.contains("chmod"),
            "{refused}"
        );
        assert_eq!(read_public(&path).expect("for all to read"), b"hush");
        assert!(read(folder.path()).is_err() && read(&folder.path().join("none")).is_err());
    }
}
