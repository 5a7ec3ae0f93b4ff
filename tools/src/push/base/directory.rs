//! A cleanly stopped data directory: is it one, and which of its files belong to a base image.
//!
//! What is left out is what BASE_BACKUP leaves out (backup/basebackup.c: `excludeDirContents`, `excludeFiles`,
//! `sendDir`): nothing that a stopped server needs.

use super::image::{FileKind, FoundFile};
use anyhow::{Context, bail};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use zenith_pgformat::Oid;
use zenith_pgformat::control::{ControlFile, DbState, WalLevel};
use zenith_pgformat::rel::{Fork, RelFile, TABLESPACE_VERSION_DIRECTORY};

/// Longer control files do not exist.
const CONTROL_MAX: u64 = 64 * 1024;
/// Directories that are kept without their contents.
const EMPTIED: [&str; 8] = [
    "pg_wal",
    "pg_stat_tmp",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
];
/// Files that belong to the running server, or to another backup.
const EXCLUDED: [&str; 7] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
];

/// A tablespace outside the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespaceLink {
    /// Its number: the link's name.
    pub oid: Oid,
    /// Where the link points; empty for one inside the data directory.
    pub location: String,
}

/// A data directory that was found to be cleanly stopped.
#[derive(Debug)]
pub struct StoppedDirectory {
    root: PathBuf,
    control_bytes: Vec<u8>,
    /// What pg_control says.
    pub control: ControlFile,
    /// The tablespaces, by number.
    pub tablespaces: Vec<TablespaceLink>,
}

/// Refuses a lazy compute's directory that has holes where pages are to come: they would be taken for empty ones.
fn must_be_filled(root: &Path) -> anyhow::Result<()> {
    for mark in [zenith_compute_dir::NO_COPIES, zenith_compute_dir::COMPUTE] {
        if fs::symlink_metadata(root.join(mark)).is_ok() {
            bail!(
                "{} was restored lazily, and not all of its pages are here ({mark}): start its server, and wait until it \
                 says that they are",
                root.display()
            );
        }
    }
    Ok(())
}

impl StoppedDirectory {
    /// Looks at the directory; refuses one that is not PostgreSQL 15's or was not stopped cleanly.
    pub fn open(root: &Path) -> anyhow::Result<StoppedDirectory> {
        let version_file = root.join("PG_VERSION");
        let version = fs::read_to_string(&version_file).with_context(|| {
            format!("{} is no data directory: cannot read {}", root.display(), version_file.display())
        })?;
        if version.trim() != "15" {
            bail!(
                "{} is a data directory of PostgreSQL {}; Zenith reads the formats of PostgreSQL 15 only",
                root.display(),
                version.trim().chars().take(20).collect::<String>()
            );
        }
        must_be_filled(root)?;
        let control_bytes = read_control(root)?;
        let control = ControlFile::decode(&control_bytes)
            .with_context(|| format!("{}/global/pg_control", root.display()))?;
        must_be_stopped(root)?;
        must_be_clean(root, &control)?;
        let tablespaces = tablespaces(root)?;
        Ok(StoppedDirectory { root: root.to_owned(), control_bytes, control, tablespaces })
    }

    /// Nothing has started on it since [`StoppedDirectory::open`].
    pub fn still_stopped(&self) -> anyhow::Result<()> {
        must_be_stopped(&self.root)?;
        if read_control(&self.root)? != self.control_bytes {
            bail!("a server ran on {} while it was read: stop it and run this again", self.root.display());
        }
        Ok(())
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Everything that belongs to the base image, directories before what is in them; pg_control last, WAL not
    /// at all. `visit` gets one at a time: a directory of millions of files is never held in memory.
    pub fn visit(&self, mut visit: impl FnMut(FoundFile) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.visit_below("", &mut visit)?;
        for link in &self.tablespaces {
            let version = format!("pg_tblspc/{}/{TABLESPACE_VERSION_DIRECTORY}", link.oid);
            if self.root.join(&version).is_dir() {
                self.visit_below(&version, &mut visit)?;
            }
        }
        self.visit_file("global/pg_control", &mut visit)
    }

    fn visit_below(
        &self,
        directory: &str,
        visit: &mut impl FnMut(FoundFile) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let absolute = self.root.join(directory);
        let names = sorted_names(&absolute)?;
        let unlogged = unlogged_relations(directory, &names);
        for name in names {
            let path = if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
            if is_excluded(&path, &name) || is_unlogged_data(&path, &unlogged) {
                continue;
            }
            let link = absolute.join(&name);
            let meta = || format!("cannot look at {}", link.display());
            let mut kind = fs::symlink_metadata(&link).with_context(meta)?;
            if kind.is_symlink() {
                // As BASE_BACKUP: of links only pg_wal and tablespaces belong to a data directory.
                if path != "pg_wal" {
                    skip_link(&path)?;
                    continue;
                }
                kind = fs::metadata(&link).with_context(meta)?;
            }
            if kind.is_dir() {
                visit(FoundFile {
                    path: path.clone(),
                    absolute: link.clone(),
                    kind: FileKind::Directory,
                    mode: kind.permissions().mode() & 0o7777,
                })?;
                if !EMPTIED.contains(&path.as_str()) && path != "pg_tblspc" {
                    self.visit_below(&path, visit)?;
                }
            } else if kind.is_file() && path != "global/pg_control" {
                self.visit_file(&path, visit)?;
            }
        }
        Ok(())
    }

    fn visit_file(
        &self,
        path: &str,
        visit: &mut impl FnMut(FoundFile) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let absolute = self.root.join(path);
        let meta =
            fs::metadata(&absolute).with_context(|| format!("cannot look at {}", absolute.display()))?;
        visit(FoundFile {
            path: path.to_owned(),
            absolute,
            kind: FileKind::File { size: meta.len() },
            mode: meta.permissions().mode() & 0o7777,
        })
    }
}

/// A link to data would leave a hole in the image; any other is left out, as by BASE_BACKUP.
fn skip_link(path: &str) -> anyhow::Result<()> {
    if ["base", "global", "pg_tblspc", "pg_xact", "pg_multixact", "pg_twophase"]
        .iter()
        .any(|data| path.split('/').next() == Some(data))
    {
        bail!("{path} is a symbolic link, which no backup of PostgreSQL follows: put the file itself there");
    }
    tracing::warn!("{path} is a symbolic link: it is left out, as BASE_BACKUP does");
    Ok(())
}

fn read_control(root: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read;
    let path = root.join("global/pg_control");
    let mut bytes = Vec::new();
    fs::File::open(&path)
        .and_then(|file| file.take(CONTROL_MAX).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

fn must_be_stopped(root: &Path) -> anyhow::Result<()> {
    let dir = root.display();
    if root.join("postmaster.pid").exists() {
        bail!(
            "a server runs on {dir} (there is a postmaster.pid): stop it with pg_ctl stop -m fast, or take the base \
             image of the running server, without --from-dir"
        );
    }
    Ok(())
}

fn must_be_clean(root: &Path, control: &ControlFile) -> anyhow::Result<()> {
    let dir = root.display();
    for (file, why) in [
        ("backup_label", "is a backup that was never recovered"),
        ("zenith.half_filled", "is a lazily restored directory that is not full yet"),
    ] {
        if root.join(file).exists() {
            bail!("{dir} {why} (there is a {file}): start the server on it, stop it, and run this again");
        }
    }
    match control.state {
        DbState::Shutdowned => {}
        DbState::ShutdownedInRecovery => {
            bail!("{dir} is a standby's: take the base image of its primary, or promote it first")
        }
        other => bail!(
            "{dir} was not stopped cleanly (pg_control says \"{}\"): start the server, stop it with pg_ctl stop -m \
             fast, and run this again",
            other.describe()
        ),
    }
    if control.wal_level == WalLevel::Minimal {
        bail!(
            "{dir} ran with wal_level = minimal, so that its WAL would not hold every change: set wal_level = \
             replica, start and stop the server, and run this again"
        );
    }
    if control.checkpoint != control.checkpoint_copy.redo {
        bail!(
            "{dir}: pg_control's last checkpoint, at {}, is no shutdown checkpoint: start and stop the server",
            control.checkpoint
        );
    }
    Ok(())
}

fn tablespaces(root: &Path) -> anyhow::Result<Vec<TablespaceLink>> {
    let mut found = Vec::new();
    for name in sorted_names(&root.join("pg_tblspc"))? {
        let Ok(oid) = name.parse::<Oid>() else { continue };
        let link = root.join("pg_tblspc").join(&name);
        // A tablespace of allow_in_place_tablespaces is a directory, not a link.
        let location = match fs::read_link(&link) {
            Ok(target) => target,
            Err(_) if link.is_dir() => PathBuf::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", link.display())),
        };
        let location = location
            .to_str()
            .with_context(|| format!("{} points to a name that is not UTF-8", link.display()))?;
        found.push(TablespaceLink { oid, location: location.to_owned() });
    }
    found.sort_by_key(|link| link.oid);
    Ok(found)
}

fn sorted_names(directory: &Path) -> anyhow::Result<Vec<String>> {
    let cannot = || format!("cannot list {}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(cannot)? {
        let name = entry.with_context(cannot)?.file_name();
        match name.into_string() {
            Ok(name) => names.push(name),
            Err(name) => bail!("{}/{} has a name that is not UTF-8", directory.display(), name.display()),
        }
    }
    names.sort();
    Ok(names)
}

/// Whether BASE_BACKUP would leave a file or directory out by its name.
fn is_excluded(path: &str, name: &str) -> bool {
    name.starts_with("pgsql_tmp")
        || name.starts_with("pg_internal.init")
        || EXCLUDED.contains(&path)
        || EXCLUDED.contains(&name) && !path.contains('/')
        || is_temporary_relation(path, name)
}

/// `looks_like_temp_rel_name`, file_utils: `t3_16384`, `t3_16384_fsm.1` in a database's directory.
fn is_temporary_relation(path: &str, name: &str) -> bool {
    let in_database = path.starts_with("base/") || path.starts_with("pg_tblspc/");
    let rest = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    in_database
        && rest.is_some_and(|(backend, rel)| {
            !backend.is_empty()
                && backend.bytes().all(|b| b.is_ascii_digit())
                && rel.starts_with(|c: char| c.is_ascii_digit())
        })
}

/// The relations of a directory that have an init fork: unlogged ones.
fn unlogged_relations(directory: &str, names: &[String]) -> BTreeSet<Oid> {
    let init =
        |name: &String| RelFile::parse(&format!("{directory}/{name}")).filter(|file| file.fork == Fork::Init);
    names.iter().filter_map(init).map(|file| file.node.rel).collect()
}

/// Unlogged relations begin empty after a restore: only their init fork belongs to the image.
fn is_unlogged_data(path: &str, unlogged: &BTreeSet<Oid>) -> bool {
    !unlogged.is_empty()
        && RelFile::parse(path)
            .is_some_and(|file| file.fork != Fork::Init && unlogged.contains(&file.node.rel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_base_backup_leaves_out_is_left_out() {
        for path in [
            "postmaster.pid",
            "backup_label",
            "base/5/t3_16384",
            "base/5/t12_16384_fsm.1",
            "base/5/pg_internal.init",
            "global/pg_internal.init.123",
            "base/pgsql_tmp",
            "pg_tblspc/16400/PG_15_202209061/pgsql_tmp12.0",
        ] {
            let name = path.rsplit('/').next().expect("a name");
            assert!(is_excluded(path, name), "{path}");
        }
        for path in
            ["base/5/1259", "base/5/1259_fsm", "PG_VERSION", "postgresql.auto.conf", "base/5/type", "t3_1"]
        {
            let name = path.rsplit('/').next().expect("a name");
            assert!(!is_excluded(path, name), "{path}");
        }
    }

    #[test]
    fn of_an_unlogged_relation_only_the_init_fork_belongs_to_the_image() {
        let names = ["16384", "16384_init", "16384_fsm", "16385"].map(str::to_owned);
        let unlogged = unlogged_relations("base/5", &names);
        assert!(is_unlogged_data("base/5/16384", &unlogged));
        assert!(is_unlogged_data("base/5/16384_fsm", &unlogged));
        assert!(!is_unlogged_data("base/5/16384_init", &unlogged));
        assert!(!is_unlogged_data("base/5/16385", &unlogged));
    }

    #[test]
    fn a_directory_of_another_version_is_refused_by_its_number() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("PG_VERSION"), "14\n").expect("written");
        let error = StoppedDirectory::open(folder.path()).expect_err("refused").to_string();
        assert!(error.contains("PostgreSQL 14"), "{error}");
    }

    #[test]
    fn a_lazy_directory_that_is_not_filled_is_refused() {
        for mark in ["zenith.half_filled", "zenith/compute.json"] {
            let folder = tempfile::tempdir().expect("folder");
            fs::write(folder.path().join("PG_VERSION"), "15\n").expect("written");
            fs::create_dir(folder.path().join("zenith")).expect("made");
            fs::write(folder.path().join(mark), "").expect("written");
            let error = StoppedDirectory::open(folder.path()).expect_err("refused").to_string();
            assert!(error.contains("lazily") && error.contains(mark), "{error}");
        }
    }

    #[test]
    fn what_is_no_data_directory_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let error = StoppedDirectory::open(folder.path()).expect_err("refused").to_string();
        assert!(error.contains("no data directory"), "{error}");
    }
}
