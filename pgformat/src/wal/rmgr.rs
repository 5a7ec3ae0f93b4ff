//! Resource managers (access/rmgrlist.h).

use std::fmt;

/// A resource manager's number (`RmgrId`). The associated constants are PostgreSQL 15's built-in ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RmgrId(pub u8);

/// Names as `pg_waldump` prints them, in `rmgrlist.h`'s order.
const NAMES: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

#[allow(missing_docs)]
impl RmgrId {
    pub const XLOG: RmgrId = RmgrId(0);
    pub const XACT: RmgrId = RmgrId(1);
    pub const SMGR: RmgrId = RmgrId(2);
    pub const CLOG: RmgrId = RmgrId(3);
    pub const DBASE: RmgrId = RmgrId(4);
    pub const TBLSPC: RmgrId = RmgrId(5);
    pub const MULTIXACT: RmgrId = RmgrId(6);
    pub const RELMAP: RmgrId = RmgrId(7);
    pub const STANDBY: RmgrId = RmgrId(8);
    pub const HEAP2: RmgrId = RmgrId(9);
    pub const HEAP: RmgrId = RmgrId(10);
    pub const BTREE: RmgrId = RmgrId(11);
    pub const HASH: RmgrId = RmgrId(12);
    pub const GIN: RmgrId = RmgrId(13);
    pub const GIST: RmgrId = RmgrId(14);
    pub const SEQ: RmgrId = RmgrId(15);
    pub const SPGIST: RmgrId = RmgrId(16);
    pub const BRIN: RmgrId = RmgrId(17);
    pub const COMMIT_TS: RmgrId = RmgrId(18);
    pub const REPLORIGIN: RmgrId = RmgrId(19);
    pub const GENERIC: RmgrId = RmgrId(20);
    pub const LOGICALMSG: RmgrId = RmgrId(21);

    /// Whether it is one of PostgreSQL 15's own.
    pub fn is_built_in(self) -> bool {
        usize::from(self.0) < NAMES.len()
    }

    /// Whether the number is in the range that extensions may take (`RmgrIdIsCustom`).
    pub fn is_custom(self) -> bool {
        self.0 >= 128
    }
}

impl fmt::Display for RmgrId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None if self.is_custom() => write!(f, "custom{:03}", self.0),
            None => write!(f, "unknown{:03}", self.0),
        }
    }
}

impl fmt::Debug for RmgrId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
