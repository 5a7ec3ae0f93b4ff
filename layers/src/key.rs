//! The one ordered key space of a timeline.

use std::cmp::Ordering;
use std::fmt;
use zenith_manifest::KeyBytes;
use zenith_pgformat::{Fork, Oid, RelNode, Xid};

/// What a key names. The numbers are part of the format and order the key space: small state first, pages last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum KeyClass {
    /// The checkpoint counters other than the next transaction id.
    Checkpoint = 0x01,
    /// The next full transaction id.
    NextXid = 0x02,
    /// Settings that recovery and redo depend on (`xl_parameter_change`).
    Parameters = 0x03,
    /// A tablespace: `(spc)`.
    Tablespace = 0x08,
    /// A database in a tablespace: `(spc, db)`.
    Database = 0x10,
    /// A relation map: `(spc, db)`.
    RelMap = 0x11,
    /// A prepared transaction's state: `(xid)`.
    TwoPhase = 0x12,
    /// A replication origin's progress: `(origin)`.
    ReplOrigin = 0x13,
    /// Existence and size of an SLRU segment: `(slru, segment)`.
    SlruSize = 0x18,
    /// Existence and size of a relation's fork: `(spc, db, rel, fork)`.
    RelSize = 0x20,
    /// Rare events of a relation's fork that reading an old page may need: `(spc, db, rel, fork)`.
    RelEvent = 0x21,
    /// A page of an SLRU: `(slru, segment, page in the segment)`.
    SlruPage = 0x30,
    /// A block of a relation: `(spc, db, rel, fork, block)`.
    RelBlock = 0x40,
}

impl KeyClass {
    /// All classes, in order.
    pub const ALL: [KeyClass; 13] = [
        KeyClass::Checkpoint,
        KeyClass::NextXid,
        KeyClass::Parameters,
        KeyClass::Tablespace,
        KeyClass::Database,
        KeyClass::RelMap,
        KeyClass::TwoPhase,
        KeyClass::ReplOrigin,
        KeyClass::SlruSize,
        KeyClass::RelSize,
        KeyClass::RelEvent,
        KeyClass::SlruPage,
        KeyClass::RelBlock,
    ];

    /// From its number.
    pub fn from_number(number: u8) -> Option<KeyClass> {
        KeyClass::ALL.into_iter().find(|class| *class as u8 == number)
    }
}

/// An SLRU directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum Slru {
    /// `pg_xact`.
    Xact = 0,
    /// `pg_multixact/offsets`.
    MultiXactOffsets = 1,
    /// `pg_multixact/members`.
    MultiXactMembers = 2,
    /// `pg_commit_ts`.
    CommitTs = 3,
}

impl Slru {
    /// All of them.
    pub const ALL: [Slru; 4] = [Slru::Xact, Slru::MultiXactOffsets, Slru::MultiXactMembers, Slru::CommitTs];

    /// From its number.
    pub fn from_number(number: u32) -> Option<Slru> {
        Slru::ALL.into_iter().find(|slru| *slru as u32 == number)
    }

    /// Its directory below the data directory.
    pub fn directory(self) -> &'static str {
        match self {
            Slru::Xact => "pg_xact",
            Slru::MultiXactOffsets => "pg_multixact/offsets",
            Slru::MultiXactMembers => "pg_multixact/members",
            Slru::CommitTs => "pg_commit_ts",
        }
    }
}

/// A key. Fields that a class does not use are 0; the order is that of the fields, and of [`Key::to_bytes`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// What it names.
    pub class: KeyClass,
    /// Tablespace; SLRU number for the SLRU classes; origin or xid for theirs.
    pub spc: u32,
    /// Database; segment number for the SLRU classes.
    pub db: u32,
    /// `relfilenode`.
    pub rel: u32,
    /// Fork number.
    pub fork: u8,
    /// Block; page within the segment for `SlruPage`.
    pub block: u32,
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        self.numbers().cmp(&other.numbers())
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Key {
    /// The fields side by side, the first one highest: rows are sorted by the million, and comparing two numbers is several
    /// times as fast as going from field to field.
    fn numbers(&self) -> (u128, u64) {
        let high = u128::from(self.class as u8) << 96
            | u128::from(self.spc) << 64
            | u128::from(self.db) << 32
            | u128::from(self.rel);
        (high, u64::from(self.fork) << 32 | u64::from(self.block))
    }

    const fn of(class: KeyClass, spc: u32, db: u32, rel: u32, fork: u8, block: u32) -> Key {
        Key { class, spc, db, rel, fork, block }
    }

    /// See [`KeyClass::Checkpoint`].
    pub const CHECKPOINT: Key = Key::of(KeyClass::Checkpoint, 0, 0, 0, 0, 0);
    /// See [`KeyClass::NextXid`].
    pub const NEXT_XID: Key = Key::of(KeyClass::NextXid, 0, 0, 0, 0, 0);
    /// See [`KeyClass::Parameters`].
    pub const PARAMETERS: Key = Key::of(KeyClass::Parameters, 0, 0, 0, 0, 0);
    /// The lowest key there can be.
    pub const MIN: Key = Key::CHECKPOINT;
    /// The highest key there can be.
    pub const MAX: Key = Key::of(KeyClass::RelBlock, u32::MAX, u32::MAX, u32::MAX, u8::MAX, u32::MAX);

    /// See [`KeyClass::Tablespace`].
    pub fn tablespace(spc: Oid) -> Key {
        Key::of(KeyClass::Tablespace, spc, 0, 0, 0, 0)
    }

    /// See [`KeyClass::Database`].
    pub fn database(spc: Oid, db: Oid) -> Key {
        Key::of(KeyClass::Database, spc, db, 0, 0, 0)
    }

    /// See [`KeyClass::RelMap`].
    pub fn rel_map(spc: Oid, db: Oid) -> Key {
        Key::of(KeyClass::RelMap, spc, db, 0, 0, 0)
    }

    /// See [`KeyClass::TwoPhase`].
    pub fn two_phase(xid: Xid) -> Key {
        Key::of(KeyClass::TwoPhase, xid, 0, 0, 0, 0)
    }

    /// See [`KeyClass::ReplOrigin`].
    pub fn repl_origin(origin: u16) -> Key {
        Key::of(KeyClass::ReplOrigin, u32::from(origin), 0, 0, 0, 0)
    }

    /// See [`KeyClass::SlruSize`].
    pub fn slru_size(slru: Slru, segment: u32) -> Key {
        Key::of(KeyClass::SlruSize, slru as u32, segment, 0, 0, 0)
    }

    /// See [`KeyClass::SlruPage`].
    pub fn slru_page(slru: Slru, segment: u32, page: u32) -> Key {
        Key::of(KeyClass::SlruPage, slru as u32, segment, 0, 0, page)
    }

    /// See [`KeyClass::RelSize`].
    pub fn rel_size(node: RelNode, fork: Fork) -> Key {
        Key::of(KeyClass::RelSize, node.spc, node.db, node.rel, fork as u8, 0)
    }

    /// See [`KeyClass::RelEvent`].
    pub fn rel_event(node: RelNode, fork: Fork) -> Key {
        Key::of(KeyClass::RelEvent, node.spc, node.db, node.rel, fork as u8, 0)
    }

    /// See [`KeyClass::RelBlock`].
    pub fn rel_block(node: RelNode, fork: Fork, block: u32) -> Key {
        Key::of(KeyClass::RelBlock, node.spc, node.db, node.rel, fork as u8, block)
    }

    /// The next key in order that this version can name; `None` after the highest.
    pub fn successor(&self) -> Option<Key> {
        if let Some(block) = self.block.checked_add(1) {
            return Some(Key { block, ..*self });
        }
        let low = Key { block: 0, ..*self };
        if let Some(fork) = self.fork.checked_add(1) {
            return Some(Key { fork, ..low });
        }
        let low = Key { fork: 0, ..low };
        if let Some(rel) = self.rel.checked_add(1) {
            return Some(Key { rel, ..low });
        }
        let low = Key { rel: 0, ..low };
        if let Some(db) = self.db.checked_add(1) {
            return Some(Key { db, ..low });
        }
        if let Some(spc) = self.spc.checked_add(1) {
            return Some(Key { db: 0, spc, ..low });
        }
        let class = KeyClass::ALL.into_iter().find(|class| *class > self.class)?;
        Some(Key::of(class, 0, 0, 0, 0, 0))
    }

    /// The relation that a relation key speaks of.
    pub fn node(&self) -> RelNode {
        RelNode { spc: self.spc, db: self.db, rel: self.rel }
    }

    /// Big-endian bytes whose order is the key's.
    pub fn to_bytes(&self) -> KeyBytes {
        let mut bytes = [0; 18];
        bytes[0] = self.class as u8;
        bytes[1..5].copy_from_slice(&self.spc.to_be_bytes());
        bytes[5..9].copy_from_slice(&self.db.to_be_bytes());
        bytes[9..13].copy_from_slice(&self.rel.to_be_bytes());
        bytes[13] = self.fork;
        bytes[14..18].copy_from_slice(&self.block.to_be_bytes());
        KeyBytes(bytes)
    }

    /// The key of some bytes; `None` for a class that this version does not know.
    pub fn from_bytes(bytes: &KeyBytes) -> Option<Key> {
        let [class, s0, s1, s2, s3, d0, d1, d2, d3, r0, r1, r2, r3, fork, b0, b1, b2, b3] = bytes.0;
        Some(Key {
            class: KeyClass::from_number(class)?,
            spc: u32::from_be_bytes([s0, s1, s2, s3]),
            db: u32::from_be_bytes([d0, d1, d2, d3]),
            rel: u32::from_be_bytes([r0, r1, r2, r3]),
            fork,
            block: u32::from_be_bytes([b0, b1, b2, b3]),
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { class, spc, db, rel, fork, block } = self;
        let fork = Fork::from_number(*fork).map_or("?", Fork::name);
        match class {
            KeyClass::Checkpoint => f.write_str("checkpoint counters"),
            KeyClass::NextXid => f.write_str("next transaction id"),
            KeyClass::Parameters => f.write_str("parameters"),
            KeyClass::Tablespace => write!(f, "tablespace {spc}"),
            KeyClass::Database => write!(f, "database {spc}/{db}"),
            KeyClass::RelMap => write!(f, "relation map {spc}/{db}"),
            KeyClass::TwoPhase => write!(f, "prepared transaction {spc}"),
            KeyClass::ReplOrigin => write!(f, "replication origin {spc}"),
            KeyClass::SlruSize => write!(f, "SLRU {spc} segment {db:04X}"),
            KeyClass::SlruPage => write!(f, "SLRU {spc} segment {db:04X} page {block}"),
            KeyClass::RelSize => write!(f, "size of {spc}/{db}/{rel} {fork}"),
            KeyClass::RelEvent => write!(f, "events of {spc}/{db}/{rel} {fork}"),
            KeyClass::RelBlock => write!(f, "{spc}/{db}/{rel} {fork} block {block}"),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Keys from `first` to `last`, both included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyRange {
    /// Lowest.
    pub first: Key,
    /// Highest.
    pub last: Key,
}

impl KeyRange {
    /// One key.
    pub fn one(key: Key) -> KeyRange {
        KeyRange { first: key, last: key }
    }

    /// All keys of a class.
    pub fn class(class: KeyClass) -> KeyRange {
        let (min, max) = (u32::MIN, u32::MAX);
        KeyRange {
            first: Key::of(class, min, min, min, 0, min),
            last: Key::of(class, max, max, max, u8::MAX, max),
        }
    }

    /// All keys of a class that speak of one database in one tablespace.
    pub fn database(class: KeyClass, spc: Oid, db: Oid) -> KeyRange {
        KeyRange {
            first: Key::of(class, spc, db, 0, 0, 0),
            last: Key::of(class, spc, db, u32::MAX, u8::MAX, u32::MAX),
        }
    }

    /// Blocks `from..=to` of one fork.
    pub fn blocks(node: RelNode, fork: Fork, from: u32, to: u32) -> KeyRange {
        KeyRange { first: Key::rel_block(node, fork, from), last: Key::rel_block(node, fork, to) }
    }

    /// Whether it holds the key.
    pub fn contains(&self, key: &Key) -> bool {
        self.first <= *key && *key <= self.last
    }

    /// The same keys as ascending ranges of which no two share a key; ranges without a key are left out.
    pub fn normalise(ranges: &[KeyRange]) -> Vec<KeyRange> {
        let mut sorted: Vec<KeyRange> =
            ranges.iter().copied().filter(|range| range.first <= range.last).collect();
        sorted.sort_unstable();
        let mut merged: Vec<KeyRange> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match merged.last_mut() {
                Some(last) if range.first <= last.last => last.last = last.last.max(range.last),
                _ => merged.push(range),
            }
        }
        merged
    }

    /// Whether two ranges share a key.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_order_as_keys_do_and_read_back() {
        let node = RelNode { spc: 1663, db: 5, rel: 16384 };
        let mut keys = vec![
            Key::rel_block(node, Fork::Vm, 0),
            Key::rel_block(node, Fork::Main, 256),
            Key::rel_block(node, Fork::Main, 1),
            Key::rel_size(node, Fork::Init),
            Key::CHECKPOINT,
            Key::slru_page(Slru::CommitTs, 3, 31),
            Key::database(1663, 5),
            Key::MAX,
        ];
        keys.sort();
        let bytes: Vec<KeyBytes> = keys.iter().map(Key::to_bytes).collect();
        assert!(bytes.is_sorted());
        let back: Vec<Option<Key>> = bytes.iter().map(Key::from_bytes).collect();
        assert_eq!(back, keys.into_iter().map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn no_key_lies_between_a_key_and_its_successor() {
        let top = |class| KeyRange::class(class).last;
        assert_eq!(Key::MAX.successor(), None);
        assert_eq!(top(KeyClass::RelEvent).successor(), Some(KeyRange::class(KeyClass::SlruPage).first));
        let full = Key { block: u32::MAX, fork: 255, rel: 7, ..Key::MAX };
        assert_eq!(full.successor(), Some(Key { block: 0, fork: 0, rel: 8, ..Key::MAX }));
        let full = Key { block: u32::MAX, fork: 255, rel: u32::MAX, db: 3, ..Key::MAX };
        assert_eq!(full.successor(), Some(Key { block: 0, fork: 0, rel: 0, db: 4, ..Key::MAX }));
        assert_eq!(Key::tablespace(1).successor(), Some(Key { block: 1, ..Key::tablespace(1) }));
    }

    #[test]
    fn normalised_ranges_ascend_and_share_no_key() {
        let node = RelNode { spc: 1, db: 2, rel: 3 };
        let blocks = |from, to| KeyRange::blocks(node, Fork::Main, from, to);
        let ranges = [blocks(8, 9), blocks(1, 4), blocks(3, 6), blocks(6, 6), blocks(9, 2)];
        assert_eq!(KeyRange::normalise(&ranges), [blocks(1, 6), blocks(8, 9)]);
    }
}
