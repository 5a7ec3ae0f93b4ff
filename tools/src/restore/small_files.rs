//! Small files: those of the base image that still mean something at another LSN, and those that are made anew.

use super::layout::Target;
use super::source::{Facts, Source};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use zenith_ingest::base::SmallFile;
use zenith_pgformat::rel::{GLOBAL_TABLESPACE, RelFile, TABLESPACE_VERSION_DIRECTORY};
use zenith_pgformat::relmap::{RELMAP_FILE, RelMap};
use zenith_pgformat::{Lsn, Oid, two_phase};

/// `PG_MAJORVERSION` with its newline, as initdb writes PG_VERSION.
const PG_VERSION: &[u8] = b"15\n";
/// `REPLICATION_STATE_MAGIC` (replication/logical/origin.c).
const ORIGIN_MAGIC: u32 = 0x1257_DADE;

/// Directories whose contents belong to a moment or to a process, not to the data.
const LEFT_OUT_DIRECTORIES: [&str; 18] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
    // A lazy compute's own.
    "zenith",
];

/// Files of the top directory of that kind.
const LEFT_OUT_FILES: [&str; 12] = [
    "PG_VERSION",
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "current_logfiles",
    "postmaster.opts",
    "postmaster.pid",
    "promote",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
    "tablespace_map.old",
];

/// Whether a small file of the base image goes into a restored directory: configuration, certificates and whatever
/// else an administrator keeps there.
pub(crate) fn is_kept(path: &str) -> bool {
    let well_formed = !path.is_empty()
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && !path.contains('\0');
    let top = path.split('/').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    well_formed
        && !LEFT_OUT_DIRECTORIES.contains(&top)
        && !LEFT_OUT_FILES.contains(&path)
        && !last.starts_with("pgsql_tmp")
        && !last.ends_with(".auto.conf.tmp")
        && !last.starts_with("zenith.")
        && RelFile::parse(path).is_none()
}

/// Whether the cluster lets its group read (`initdb --allow-group-access`): its PG_VERSION tells.
pub(crate) fn group_access(files: &BTreeMap<String, SmallFile>) -> bool {
    files.get("PG_VERSION").is_some_and(|file| file.mode & 0o040 != 0)
}

/// Writes configuration and the like. Permissions stay as they were where they are tighter than a data directory's:
/// PostgreSQL refuses a private key that others can read.
pub(crate) fn write_kept(target: &Target, files: &BTreeMap<String, SmallFile>) -> Result<()> {
    target.write("PG_VERSION", PG_VERSION)?;
    for (path, file) in files {
        if let Some((directory, _)) = path.rsplit_once('/') {
            target.make_directory(directory)?;
        }
        // Its owner can always read and write.
        let mode = 0o600 | (file.mode & target.file_mode());
        target.write_with_mode(path, &file.content, mode)?;
    }
    Ok(())
}

/// The directory of a database in a tablespace, below the data directory.
pub(crate) fn database_directory(spc: Oid, db: Oid) -> String {
    match spc {
        GLOBAL_TABLESPACE => "global".to_owned(),
        zenith_pgformat::rel::DEFAULT_TABLESPACE => format!("base/{db}"),
        _ => format!("pg_tblspc/{spc}/{TABLESPACE_VERSION_DIRECTORY}/{db}"),
    }
}

/// Writes a database's relation map, checked, and PG_VERSION into its directory. In tablespaces other than its own a
/// database has neither. Returns the map.
pub(crate) async fn write_database(
    source: &dyn Source,
    target: &Target,
    spc: Oid,
    db: Oid,
) -> Result<Option<RelMap>> {
    let directory = database_directory(spc, db);
    let Some(bytes) = source.rel_map(spc, db).await? else {
        return Ok(None);
    };
    let map = RelMap::decode(&bytes).with_context(|| format!("{directory}/{RELMAP_FILE}"))?;
    target.write(&format!("{directory}/{RELMAP_FILE}"), &bytes)?;
    if spc != GLOBAL_TABLESPACE {
        target.write(&format!("{directory}/PG_VERSION"), PG_VERSION)?;
    }
    Ok(Some(map))
}

/// Writes the state files of prepared transactions, checked. Returns how many there are.
pub(crate) async fn write_two_phase(source: &dyn Source, target: &Target, facts: &Facts) -> Result<usize> {
    let files = source.two_phase().await?;
    for (xid, bytes) in &files {
        let name = format!("pg_twophase/{}", two_phase::file_name(*xid));
        let header = two_phase::decode(bytes).with_context(|| name.clone())?;
        if header.xid != *xid {
            bail!("{name} holds the state of transaction {}", header.xid);
        }
        let distance = (facts.next_xid as u32).wrapping_sub(*xid).cast_signed();
        if distance <= 0 {
            bail!("{name}: that transaction is not below the next transaction id {}", facts.next_xid);
        }
        target.write(&name, bytes)?;
    }
    Ok(files.len())
}

/// Writes the progress of replication origins. Returns how many there are.
pub(crate) async fn write_origins(source: &dyn Source, target: &Target) -> Result<usize> {
    let origins = source.repl_origins().await?;
    if !origins.is_empty() {
        target.write("pg_logical/replorigin_checkpoint", &origin_checkpoint(&origins))?;
    }
    Ok(origins.len())
}

/// `pg_logical/replorigin_checkpoint` (`CheckPointReplicationOrigin`): magic, (origin, padding, LSN) each, CRC-32C.
pub(crate) fn origin_checkpoint(origins: &[(u16, Lsn)]) -> Vec<u8> {
    let mut bytes = ORIGIN_MAGIC.to_le_bytes().to_vec();
    for (origin, remote) in origins {
        bytes.extend(origin.to_le_bytes());
        bytes.extend([0; 6]);
        bytes.extend(remote.0.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_and_keys_are_kept() {
        for path in
            ["postgresql.conf", "pg_hba.conf", "conf.d/memory.conf", "server.key", "postgresql.auto.conf"]
        {
            assert!(is_kept(path), "{path}");
        }
    }

    #[test]
    fn what_belongs_to_the_old_server_or_to_a_moment_is_left_out() {
        for path in [
            "postmaster.pid",
            "backup_label",
            "standby.signal",
            "global/pg_control",
            "global/pg_internal.init",
            "base/5/pg_internal.init",
            "pg_replslot/a/state",
            "pg_stat/pgstat.stat",
            "pg_logical/replorigin_checkpoint",
            "pg_wal/archive_status/x.ready",
            "zenith.half_filled",
            "zenith/compute.json",
        ] {
            assert!(!is_kept(path), "{path}");
        }
    }

    #[test]
    fn a_path_that_leaves_the_directory_is_left_out() {
        for path in ["", "../x", "/etc/passwd", "a/../../x", "a//b", "a/./b", "a\0b"] {
            assert!(!is_kept(path), "{path:?}");
        }
    }

    #[test]
    fn origins_are_laid_out_as_postgresql_reads_them() {
        let bytes = origin_checkpoint(&[(1, Lsn(0x10))]);
        assert_eq!(bytes.len(), 4 + 16 + 4);
        assert_eq!(bytes[..6], [0xDE, 0xDA, 0x57, 0x12, 1, 0]);
        assert_eq!(bytes[12], 0x10);
    }
}
