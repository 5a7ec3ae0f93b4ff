//! What a check found.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use zenith_layers::Key;
use zenith_pgformat::wal::{Record, RmgrId, describe};
use zenith_pgformat::{Fork, Lsn};
use zenith_redo::stamps::Stamp;

/// What [`crate::Timeline::check_wal`] did and found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WalCheck {
    /// The stretches of WAL that were checked.
    pub stretches: Vec<Stretch>,
    /// Records in them.
    pub records: u64,
    /// Block references that were redone, whole and as they are stored.
    pub references: u64,
    /// Pages that were compared with the one that the server logged after the record (`wal_consistency_checking`).
    pub images: u64,
    /// Changes of visibility maps that no block reference tells of.
    pub map_edits: u64,
    /// Pages that were read from the store and compared with what redo of the whole WAL gives.
    pub pages_read: u64,
    /// What redo did to the LSNs of pages that it neither initialised nor restored from an image.
    pub stamps: StampCounts,
    /// By resource manager and record type; only those with block references.
    pub types: Vec<TypeCounts>,
    /// Differences.
    pub differences: u64,
    /// The first of them by LSN, as many as were asked for.
    pub first: Vec<Difference>,
}

/// A stretch of WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Stretch {
    /// End of the record before it.
    pub from: Lsn,
    /// End of its last record.
    pub to: Lsn,
}

/// How redo stamped pages, as [`Stamp`] foretells: every one of them was observed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct StampCounts {
    /// With the record's end.
    pub moved: u64,
    /// Changed without a new LSN.
    pub kept: u64,
    /// Left alone.
    pub locked_only: u64,
    /// Pages of visibility maps, whose LSN moves when a bit is new.
    pub visibility_map: u64,
}

impl StampCounts {
    pub(super) fn count(&mut self, stamp: Stamp) {
        match stamp {
            Stamp::Moved => self.moved += 1,
            Stamp::Kept => self.kept += 1,
            Stamp::LockedOnly => self.locked_only += 1,
            Stamp::VisibilityMap => self.visibility_map += 1,
        }
    }
}

/// Counts of one record type.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TypeCounts {
    /// Resource manager.
    pub rmgr: String,
    /// Record type, as `pg_waldump` names it.
    pub record: &'static str,
    /// Records.
    pub records: u64,
    /// Block references.
    pub references: u64,
    /// Pages compared with the server's.
    pub images: u64,
    /// Differences.
    pub differences: u64,
}

/// A page that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Difference {
    /// Start of the record, or the LSN at which the page was read.
    pub start: Lsn,
    /// End of the record, or the LSN at which the page was read.
    pub end: Lsn,
    /// The record's resource manager.
    pub rmgr: Option<String>,
    /// The record's type.
    pub record: Option<&'static str>,
    /// The relation.
    pub relation: String,
    /// The fork.
    pub fork: &'static str,
    /// The block.
    pub block: u32,
    /// What is wrong.
    #[serde(flatten)]
    pub problem: Problem,
}

/// What is wrong with a page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// Redo of the whole record gives another page than the server logged.
    Image {
        /// The first byte that differs after masking.
        offset: usize,
    },
    /// The server's image does not decompress to a page.
    BadImage {
        /// Why.
        message: String,
    },
    /// The stored value gives another page than the whole record.
    Stored {
        /// The first byte that differs.
        offset: usize,
    },
    /// The record changes the block, and no value of it is stored.
    NotStored,
    /// A value is stored that no record explains.
    Unexplained,
    /// The whole record cannot be redone.
    Redo {
        /// Why.
        message: String,
    },
    /// The stored value cannot be applied.
    StoredRedo {
        /// Why.
        message: String,
    },
    /// Redo leaves another LSN on the page than `zenith_redo::stamps` says.
    Stamp {
        /// What it should have been.
        expected: Lsn,
        /// What it is.
        found: Lsn,
    },
    /// Redo changed a page that it should only have locked.
    Touched {
        /// The first byte that differs.
        offset: usize,
    },
    /// The visibility map says that a page is all-visible (or frozen), the server's says no, and no later record clears it.
    MapBits {
        /// The byte.
        offset: usize,
    },
    /// The page that is read from the store is not the one that redo of the whole WAL gives.
    Read {
        /// The first byte that differs.
        offset: usize,
    },
    /// The page that redo of the whole WAL gives cannot be read from the store.
    NotRead {
        /// Why.
        message: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Image { offset } => write!(
                f,
                "redo gives another page than the server logged for checking: byte {offset} differs"
            ),
            Problem::BadImage { message } => {
                write!(f, "the server's image for checking is damaged: {message}")
            }
            Problem::Stored { offset } => {
                write!(f, "the stored value gives another page than the whole record: byte {offset} differs")
            }
            Problem::NotStored => f.write_str("the layers hold no value for this change"),
            Problem::Unexplained => f.write_str("the layers hold a value that no record of the WAL explains"),
            Problem::Redo { message } => write!(f, "the whole record cannot be redone: {message}"),
            Problem::StoredRedo { message } => write!(f, "the stored value cannot be applied: {message}"),
            Problem::Stamp { expected, found } => {
                write!(f, "redo leaves the page with LSN {found}, expected {expected}")
            }
            Problem::Touched { offset } => {
                write!(f, "redo changes a page that it should only lock: byte {offset} differs")
            }
            Problem::MapBits { offset } => write!(
                f,
                "the visibility map has bits that the server's has not, and no later record clears them: byte {offset}"
            ),
            Problem::Read { offset } => write!(
                f,
                "the page read from the store is not the one that redo of the whole WAL gives: byte {offset} differs"
            ),
            Problem::NotRead { message } => {
                write!(
                    f,
                    "the page that redo of the whole WAL gives cannot be read from the store: {message}"
                )
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.start)?;
        if let (Some(rmgr), Some(record)) = (&self.rmgr, self.record) {
            write!(f, " {rmgr} {record} (ends at {})", self.end)?;
        }
        write!(f, ": relation {} fork {} block {}: {}", self.relation, self.fork, self.block, self.problem)
    }
}

/// Where a difference was found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// At a record.
    Record(&'a Record),
    /// At an LSN.
    At(Lsn),
}

/// Counts and collects while a check runs.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) check: WalCheck,
    types: BTreeMap<(u8, &'static str), TypeCounts>,
    listed: usize,
    /// Of the window that is being checked.
    found: Vec<Difference>,
}

impl Tally {
    /// Keeps the first `listed` differences.
    pub(super) fn new(listed: usize) -> Tally {
        Tally { listed, ..Tally::default() }
    }

    pub(super) fn record(&mut self, record: &Record) {
        self.check.records += 1;
        if !record.blocks.is_empty() {
            self.of(record).records += 1;
        }
    }

    pub(super) fn reference(&mut self, record: &Record, has_image: bool) {
        self.check.references += 1;
        self.check.images += u64::from(has_image);
        let counts = self.of(record);
        counts.references += 1;
        counts.images += u64::from(has_image);
    }

    pub(super) fn difference(&mut self, place: Place<'_>, key: Key, problem: Problem) {
        self.check.differences += 1;
        let (start, end, record) = match place {
            Place::Record(record) => (record.lsn, record.end, Some(record)),
            Place::At(lsn) => (lsn, lsn, None),
        };
        if let Some(record) = record {
            self.of(record).differences += 1;
        }
        self.found.push(Difference {
            start,
            end,
            rmgr: record.map(|record| record.rmgr.to_string()),
            record: record.map(type_of),
            relation: key.node().to_string(),
            fork: Fork::from_number(key.fork).map_or("?", Fork::name),
            block: key.block,
            problem,
        });
    }

    /// The differences of a window by LSN, as far as they are wanted.
    pub(super) fn end_window(&mut self) {
        self.found.sort_by_key(|difference| (difference.end, difference.start));
        let room = self.listed.saturating_sub(self.check.first.len());
        self.check.first.extend(self.found.drain(..).take(room));
    }

    pub(super) fn finish(mut self) -> WalCheck {
        self.end_window();
        self.check.types = self.types.into_values().collect();
        self.check
    }

    fn of(&mut self, record: &Record) -> &mut TypeCounts {
        let RmgrId(number) = record.rmgr;
        let name = type_of(record);
        self.types.entry((number, name)).or_insert_with(|| TypeCounts {
            rmgr: record.rmgr.to_string(),
            record: name,
            records: 0,
            references: 0,
            images: 0,
            differences: 0,
        })
    }
}

fn type_of(record: &Record) -> &'static str {
    describe::type_name(record.rmgr, record.info).unwrap_or("UNKNOWN")
}
