//! Relation files: which relation, which fork, which file (`RelFileNode`, storage/relfilenode.h; `ForkNumber`
//! and file names, common/relpath.h and relpath.c).

use crate::{BLCKSZ, Oid, RELSEG_SIZE};
use std::fmt;

/// `DEFAULTTABLESPACE_OID`, pg_tablespace.dat: files under `base/`.
pub const DEFAULT_TABLESPACE: Oid = 1663;
/// `GLOBALTABLESPACE_OID`, pg_tablespace.dat: files under `global/`.
pub const GLOBAL_TABLESPACE: Oid = 1664;
/// `TABLESPACE_VERSION_DIRECTORY` of PostgreSQL 15 (common/relpath.h: `PG_MAJORVERSION` and `CATALOG_VERSION_NO`).
pub const TABLESPACE_VERSION_DIRECTORY: &str = "PG_15_202209061";

/// A relation's physical identity (`RelFileNode`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RelNode {
    /// Tablespace.
    pub spc: Oid,
    /// Database; 0 for shared relations.
    pub db: Oid,
    /// `relfilenode`.
    pub rel: Oid,
}

impl fmt::Display for RelNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.spc, self.db, self.rel)
    }
}

/// A fork of a relation (`ForkNumber`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Fork {
    /// The data itself.
    Main = 0,
    /// Free-space map: a hint, never compared.
    Fsm = 1,
    /// Visibility map.
    Vm = 2,
    /// The empty form of an unlogged relation.
    Init = 3,
}

impl Fork {
    /// All forks, in `ForkNumber` order.
    pub const ALL: [Fork; 4] = [Fork::Main, Fork::Fsm, Fork::Vm, Fork::Init];

    /// From its number, `None` for one that PostgreSQL 15 does not have.
    pub fn from_number(number: u8) -> Option<Fork> {
        Fork::ALL.get(usize::from(number)).copied()
    }

    /// What a file name of this fork adds to the relation's number (`forkNames`).
    pub fn suffix(self) -> &'static str {
        match self {
            Fork::Main => "",
            Fork::Fsm => "_fsm",
            Fork::Vm => "_vm",
            Fork::Init => "_init",
        }
    }

    /// The name that a person writes: `main`, `fsm`, `vm`, `init` (as `pg_relation_size` takes it).
    pub fn name(self) -> &'static str {
        match self {
            Fork::Main => "main",
            Fork::Fsm => "fsm",
            Fork::Vm => "vm",
            Fork::Init => "init",
        }
    }
}

/// One segment file of one fork of one relation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RelFile {
    /// The relation.
    pub node: RelNode,
    /// The fork.
    pub fork: Fork,
    /// 0 for the first GiB.
    pub segment: u32,
}

impl RelFile {
    /// The first block that this file holds.
    pub fn first_block(&self) -> u32 {
        self.segment.saturating_mul(RELSEG_SIZE)
    }

    /// The file's path below the data directory; non-default tablespaces through `pg_tblspc/`.
    pub fn path(&self) -> String {
        let RelNode { spc, db, rel } = self.node;
        let directory = match spc {
            GLOBAL_TABLESPACE => "global".to_owned(),
            DEFAULT_TABLESPACE => format!("base/{db}"),
            _ => format!("pg_tblspc/{spc}/{TABLESPACE_VERSION_DIRECTORY}/{db}"),
        };
        let segment = if self.segment == 0 { String::new() } else { format!(".{}", self.segment) };
        format!("{directory}/{rel}{}{segment}", self.fork.suffix())
    }

    /// Parses a path below the data directory. `None` for everything that is not a permanent relation's
    /// file, temporary relations (`t3_16384`) included.
    pub fn parse(path: &str) -> Option<RelFile> {
        let parts: Vec<&str> = path.split('/').collect();
        let (spc, db, file) = match parts.as_slice() {
            ["global", file] => (GLOBAL_TABLESPACE, 0, *file),
            ["base", db, file] => (DEFAULT_TABLESPACE, number(db)?, *file),
            ["pg_tblspc", spc, version, db, file] if *version == TABLESPACE_VERSION_DIRECTORY => {
                (number(spc)?, number(db)?, *file)
            }
            _ => return None,
        };
        let (stem, segment) = match file.split_once('.') {
            Some((stem, digits)) => (stem, number(digits).filter(|n| *n > 0)?),
            None => (file, 0),
        };
        let (rel, fork) = match stem.split_once('_') {
            None => (number(stem)?, Fork::Main),
            Some((rel, "fsm")) => (number(rel)?, Fork::Fsm),
            Some((rel, "vm")) => (number(rel)?, Fork::Vm),
            Some((rel, "init")) => (number(rel)?, Fork::Init),
            Some(_) => return None,
        };
        let within_reach = u64::from(segment) * u64::from(RELSEG_SIZE) < u64::from(u32::MAX);
        within_reach.then_some(RelFile { node: RelNode { spc, db, rel }, fork, segment })
    }
}

/// A decimal number as PostgreSQL writes OIDs in file names: no sign, no leading zero.
fn number(digits: &str) -> Option<u32> {
    let canonical = !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
        && (digits.len() == 1 || !digits.starts_with('0'));
    if canonical { digits.parse().ok() } else { None }
}

/// Whether a page is "new" to PostgreSQL: all zeros. A page that PostgreSQL ever wrote is never that again.
pub fn is_all_zeros(page: &[u8]) -> bool {
    page.len() <= BLCKSZ && page.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_name_that_postgresql_uses_reads_back() {
        for path in [
            "global/1262",
            "base/5/1259",
            "base/5/1259_fsm",
            "base/5/1259_vm.1",
            "base/16384/16385_init",
            "pg_tblspc/16400/PG_15_202209061/5/2619.7",
        ] {
            assert_eq!(RelFile::parse(path).map(|file| file.path()).as_deref(), Some(path));
        }
    }

    #[test]
    fn files_that_are_no_permanent_relation_are_left_alone() {
        for path in [
            "base/5/t3_16384",
            "base/5/pg_filenode.map",
            "base/5/PG_VERSION",
            "base/5/1259_foo",
            "base/5/01259",
            "base/5/1259.0",
            "base/5/1259.",
            "base/5/1259.x",
            "base/5/99999999999",
            "base/5/1259.40000",
            "pg_tblspc/16400/PG_14_202107181/5/2619",
            "global/pg_control",
            "global/1262/x",
            "",
        ] {
            assert_eq!(RelFile::parse(path), None, "{path}");
        }
    }
}
