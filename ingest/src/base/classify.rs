//! What a file of a data directory is to a base image.

use zenith_layers::Slru;
use zenith_pgformat::rel::{GLOBAL_TABLESPACE, RelFile, TABLESPACE_VERSION_DIRECTORY};
use zenith_pgformat::relmap::RELMAP_FILE;
use zenith_pgformat::{Oid, Xid, slru, two_phase};

/// A file of a data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BaseFile {
    /// Pages of a relation.
    Relation(RelFile),
    /// Pages of an SLRU segment.
    Slru(Slru, u32),
    /// A relation map.
    RelMap {
        /// Tablespace; 1664 for the shared one.
        spc: Oid,
        /// Database; 0 for the shared one.
        db: Oid,
    },
    /// A prepared transaction.
    TwoPhase(Xid),
    /// `pg_logical/replorigin_checkpoint`.
    ReplOrigins,
    /// `global/pg_control`; kept among the small files too.
    Control,
    /// Kept as it is: configuration, `PG_VERSION`, `backup_label`, `tablespace_map`.
    Small,
    /// Not part of a base image: WAL, what the server makes anew at its start, temporary files, slots, statistics.
    Left,
}

/// Directories whose content is never taken; the same as BASE_BACKUP leaves out, and what belongs to replication
/// slots, which are never restored.
const LEFT_DIRECTORIES: [&str; 10] = [
    "pg_wal",
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_logical",
];

/// Files that are never taken, by their last component.
const LEFT_FILES: [&str; 9] = [
    "postmaster.pid",
    "postmaster.opts",
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "current_logfiles",
    "pg_internal.init",
    "backup_label.old",
    "tablespace_map.old",
    "backup_manifest",
];

/// What the file at `path` below the data directory is; tablespaces through `pg_tblspc/<oid>/…`.
pub fn classify(path: &str) -> BaseFile {
    if let Some(file) = RelFile::parse(path) {
        return BaseFile::Relation(file);
    }
    if path == "global/pg_control" {
        return BaseFile::Control;
    }
    if path == "pg_logical/replorigin_checkpoint" {
        return BaseFile::ReplOrigins;
    }
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name == RELMAP_FILE
        && let Some((spc, db)) = database_of(path)
    {
        return BaseFile::RelMap { spc, db };
    }
    if let Some(slru) = Slru::ALL.into_iter().find(|slru| slru.directory() == directory) {
        return slru::parse_segment_name(name)
            .map_or(BaseFile::Left, |segment| BaseFile::Slru(slru, segment));
    }
    if directory == "pg_twophase" {
        return two_phase::parse_file_name(name).map_or(BaseFile::Left, BaseFile::TwoPhase);
    }
    let first = path.split('/').next().unwrap_or_default();
    let left = LEFT_DIRECTORIES.contains(&first)
        || LEFT_FILES.contains(&name)
        || name.starts_with("pg_internal.init")
        || path.split('/').any(|part| part.starts_with("pgsql_tmp"))
        || is_temporary_relation(name);
    if left { BaseFile::Left } else { BaseFile::Small }
}

/// The database directory that a path lies in: `(tablespace, database)`.
pub(crate) fn database_of(path: &str) -> Option<(Oid, Oid)> {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["global", _] => Some((GLOBAL_TABLESPACE, 0)),
        ["base", db, _] => Some((zenith_pgformat::rel::DEFAULT_TABLESPACE, db.parse().ok()?)),
        ["pg_tblspc", spc, version, db, _] if *version == TABLESPACE_VERSION_DIRECTORY => {
            Some((spc.parse().ok()?, db.parse().ok()?))
        }
        _ => None,
    }
}

/// `t<backend>_<relation>` (`GetRelationPath`, common/relpath.c).
fn is_temporary_relation(name: &str) -> bool {
    let Some((backend, relation)) = name.strip_prefix('t').and_then(|rest| rest.split_once('_')) else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits(backend) && relation.bytes().next().is_some_and(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zenith_pgformat::{Fork, RelNode};

    #[test]
    fn every_kind_of_file_is_told_from_the_others() {
        let node = RelNode { spc: 1663, db: 5, rel: 1259 };
        for (path, expected) in [
            ("base/5/1259_vm", BaseFile::Relation(RelFile { node, fork: Fork::Vm, segment: 0 })),
            ("global/pg_control", BaseFile::Control),
            ("global/pg_filenode.map", BaseFile::RelMap { spc: 1664, db: 0 }),
            ("base/5/pg_filenode.map", BaseFile::RelMap { spc: 1663, db: 5 }),
            ("pg_tblspc/16400/PG_15_202209061/5/pg_filenode.map", BaseFile::RelMap { spc: 16400, db: 5 }),
            ("pg_xact/0000", BaseFile::Slru(Slru::Xact, 0)),
            ("pg_multixact/members/0012", BaseFile::Slru(Slru::MultiXactMembers, 0x12)),
            ("pg_twophase/000002F1", BaseFile::TwoPhase(0x2F1)),
            ("pg_logical/replorigin_checkpoint", BaseFile::ReplOrigins),
            ("PG_VERSION", BaseFile::Small),
            ("base/5/PG_VERSION", BaseFile::Small),
            ("postgresql.auto.conf", BaseFile::Small),
            ("backup_label", BaseFile::Small),
            ("conf.d/extra.conf", BaseFile::Small),
            ("pg_wal/000000010000000000000001", BaseFile::Left),
            ("pg_subtrans/0000", BaseFile::Left),
            ("base/pgsql_tmp/pgsql_tmp12.0", BaseFile::Left),
            ("base/5/t3_16384", BaseFile::Left),
            ("base/5/pg_internal.init", BaseFile::Left),
            ("postmaster.pid", BaseFile::Left),
        ] {
            assert_eq!(classify(path), expected, "{path}");
        }
    }
}
