//! What interpreting a record has to know of the timeline so far.

use crate::error::IngestError;
use crate::model::{Database, NextXid, Parameters, RelSize, ReplOrigin};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use zenith_layers::{Key, Slru};
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::rel::GLOBAL_TABLESPACE;
use zenith_pgformat::{Fork, Lsn, Oid, RelNode, Xid};

/// Missing pages remembered inside a fuzzy window; more are refused.
pub(crate) const INVALID_PAGES_MAX: usize = 1 << 18;

/// The state of a timeline at the end of the last interpreted record. The small states are held whole; relation
/// sizes are a bounded cache, which [`super::needs`] asks to be filled.
#[derive(Clone, Debug)]
pub struct State {
    /// The checkpoint counters as redo holds them; `next_xid` is kept apart.
    pub checkpoint: CheckPoint,
    /// The next transaction id.
    pub next_xid: NextXid,
    /// Settings.
    pub parameters: Parameters,
    /// Databases that exist, by tablespace and number.
    pub databases: BTreeMap<(Oid, Oid), Database>,
    /// Tablespaces that exist.
    pub tablespaces: BTreeSet<Oid>,
    /// Prepared transactions.
    pub two_phase: BTreeSet<Xid>,
    /// Replication origins.
    pub origins: BTreeMap<u16, ReplOrigin>,
    /// Pages of every SLRU segment file that exists.
    pub slru: BTreeMap<(Slru, u32), u32>,
    /// What must be remembered beside the keys.
    pub memory: Memory,
    /// Relation maps that were loaded because a record needs them.
    pub(crate) rel_maps: HashMap<(Oid, Oid), Option<Bytes>>,
    /// Sizes that are known, absences included.
    pub(crate) sizes: SizeCache,
}

/// What slicing has to remember from one run to the next beside the keys (`SlicedPosition::state`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// Pages that records changed inside a fuzzy window and that do not exist (the invalid-page table of
    /// xlogutils.c), each with the first record that did.
    pub invalid_pages: BTreeMap<Key, Lsn>,
    /// The page of multixact offsets that a `CREATE_ID` of an older minor release began before its own
    /// `ZERO_OFF_PAGE` (`pre_initialized_offsets_page`, multixact.c).
    pub pre_initialized_offsets_page: Option<u32>,
}

impl State {
    /// A state with nothing but counters, for tests and as a start for loading.
    pub fn new(checkpoint: CheckPoint, next_xid: NextXid, parameters: Parameters) -> State {
        State {
            checkpoint,
            next_xid,
            parameters,
            databases: BTreeMap::new(),
            tablespaces: BTreeSet::new(),
            two_phase: BTreeSet::new(),
            origins: BTreeMap::new(),
            slru: BTreeMap::new(),
            memory: Memory::default(),
            rel_maps: HashMap::new(),
            sizes: SizeCache::new(SizeCache::DEFAULT_ENTRIES),
        }
    }

    /// A fork's size, `None` if it does not exist. An error if it was not loaded.
    pub fn rel_size(&self, node: RelNode, fork: Fork) -> Result<Option<RelSize>, IngestError> {
        if !self.database_exists(node.spc, node.db) {
            return Ok(None);
        }
        self.sizes.get(node, fork).ok_or(IngestError::NotLoaded(Key::rel_size(node, fork)))
    }

    /// Whether the database's directory exists in that tablespace. The one of shared relations always does.
    pub fn database_exists(&self, spc: Oid, db: Oid) -> bool {
        spc == GLOBAL_TABLESPACE || self.databases.contains_key(&(spc, db))
    }

    /// Tells the state a fork's size as the layers have it.
    pub fn load_rel_size(&mut self, node: RelNode, fork: Fork, size: Option<RelSize>) {
        self.sizes.put(node, fork, size);
    }

    /// Tells the state a relation map as the layers have it.
    pub fn load_rel_map(&mut self, spc: Oid, db: Oid, map: Option<Bytes>) {
        self.rel_maps.insert((spc, db), map);
    }

    /// Whether a size need not be loaded.
    pub fn knows_rel_size(&self, node: RelNode, fork: Fork) -> bool {
        !self.database_exists(node.spc, node.db) || self.sizes.get(node, fork).is_some()
    }

    /// Lets go of what was not used lately; between records only.
    pub fn trim(&mut self) {
        self.sizes.trim();
        if self.rel_maps.len() > 1024 {
            self.rel_maps.clear();
        }
    }
}

/// A bounded map of fork sizes. When it is full, the half that was not touched lately goes.
#[derive(Clone, Debug)]
pub(crate) struct SizeCache {
    entries: HashMap<(RelNode, Fork), Option<RelSize>>,
    /// The generation before: entries move back when they are asked for.
    older: HashMap<(RelNode, Fork), Option<RelSize>>,
    limit: usize,
}

impl SizeCache {
    /// About 100 bytes an entry, two generations: 26 MB.
    const DEFAULT_ENTRIES: usize = 1 << 17;

    fn new(limit: usize) -> SizeCache {
        SizeCache { entries: HashMap::new(), older: HashMap::new(), limit }
    }

    fn get(&self, node: RelNode, fork: Fork) -> Option<Option<RelSize>> {
        self.entries.get(&(node, fork)).or_else(|| self.older.get(&(node, fork))).copied()
    }

    pub(crate) fn put(&mut self, node: RelNode, fork: Fork, size: Option<RelSize>) {
        self.older.remove(&(node, fork));
        self.entries.insert((node, fork), size);
    }

    /// Forgets everything about a database, when it is created, copied or dropped.
    pub(crate) fn forget_database(&mut self, spc: Oid, db: Oid) {
        let other = |(node, _): &(RelNode, Fork), _: &mut Option<RelSize>| node.spc != spc || node.db != db;
        self.entries.retain(other);
        self.older.retain(other);
    }

    fn trim(&mut self) {
        if self.entries.len() >= self.limit {
            self.older = std::mem::take(&mut self.entries);
        }
    }

    /// Moves an entry that is in use to the newer generation.
    pub(crate) fn touch(&mut self, node: RelNode, fork: Fork) {
        if let Some(size) = self.older.remove(&(node, fork)) {
            self.entries.insert((node, fork), size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_cache_is_bounded_and_keeps_what_is_in_use() {
        let mut cache = SizeCache::new(100);
        let node = |rel| RelNode { spc: 1663, db: 5, rel };
        for rel in 0..1_000 {
            cache.put(node(rel), Fork::Main, Some(RelSize::new(Lsn(u64::from(rel)))));
            cache.touch(node(0), Fork::Main);
            cache.trim();
            assert!(cache.entries.len() + cache.older.len() <= 200);
        }
        assert_eq!(cache.get(node(0), Fork::Main), Some(Some(RelSize::new(Lsn(0)))));
        assert_eq!(cache.get(node(1), Fork::Main), None);
    }
}
