//! The state at an LSN, from layers and from rows that wait for theirs.

use super::arena::Arena;
use super::layout::memory_from_json;
use crate::error::IngestError;
use crate::interpret::State;
use crate::model::{Database, ModelError, NextXid, Parameters, RelSize, ReplOrigin, SlruSize};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zenith_layers::{Key, KeyClass, KeyHistory, KeyRange, LayerSet, LayerStore, ReadMode, Slru, Value};
use zenith_manifest::LayerEntry;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::rel::GLOBAL_TABLESPACE;
use zenith_pgformat::{Fork, Lsn, Oid, RelNode};

/// Keys asked for in one go.
const KEYS_MAX: usize = 4096;
/// Copies of copies of a database; each lies further back in the WAL.
const ALIAS_DEPTH_MAX: usize = 1000;

/// See the module.
pub(super) struct Loader {
    layers: LayerSet,
    mode: ReadMode,
    memory: serde_json::Value,
}

impl Loader {
    pub(super) fn new(layers: LayerSet, mode: ReadMode, memory: serde_json::Value) -> Loader {
        Loader { layers, mode, memory }
    }

    pub(super) fn add_layers(
        &mut self,
        store: Arc<LayerStore>,
        layers: Vec<LayerEntry>,
    ) -> Result<(), IngestError> {
        if !layers.is_empty() {
            self.layers = self.layers.with_layers(store, layers)?;
        }
        Ok(())
    }

    /// Everything but relation sizes at `lsn`, where nothing waits yet.
    pub(super) async fn initial_state(&self, lsn: Lsn) -> Result<State, IngestError> {
        let classes = [
            KeyClass::Checkpoint,
            KeyClass::NextXid,
            KeyClass::Parameters,
            KeyClass::Tablespace,
            KeyClass::Database,
            KeyClass::TwoPhase,
            KeyClass::ReplOrigin,
            KeyClass::SlruSize,
        ];
        let found = self.layers.history(&classes.map(KeyRange::class), lsn, self.mode).await?;
        let newest: BTreeMap<Key, (Lsn, Bytes)> = found.into_iter().filter_map(newest_state).collect();
        let required = |key: Key| newest.get(&key).ok_or(IngestError::MissingState(key, lsn));
        let (at, checkpoint) = required(Key::CHECKPOINT)?;
        let checkpoint = CheckPoint::decode(checkpoint)
            .map_err(|_| malformed(Key::CHECKPOINT, *at, "a checkpoint of a wrong length"))?;
        let (at, next_xid) = required(Key::NEXT_XID)?;
        let next_xid = NextXid::decode(next_xid).map_err(model(Key::NEXT_XID, *at))?;
        let (at, parameters) = required(Key::PARAMETERS)?;
        let parameters = Parameters::decode(parameters).map_err(model(Key::PARAMETERS, *at))?;
        let mut state = State::new(checkpoint, next_xid, parameters);
        state.memory = memory_from_json(&self.memory)?;
        for (key, (at, bytes)) in &newest {
            small_state(&mut state, *key, *at, bytes)?;
        }
        Ok(state)
    }

    /// Loads what is missing: relation sizes and maps at `lsn`, which is the end of what the state knows.
    pub(super) async fn load(
        &self,
        state: &mut State,
        keys: Vec<Key>,
        lsn: Lsn,
        arena: &Arena,
    ) -> Result<(), IngestError> {
        let keys: Vec<Key> = keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        for keys in keys.chunks(KEYS_MAX) {
            let found = self.newest(keys, lsn, arena).await?;
            for key in keys {
                match Fork::from_number(key.fork).filter(|_| key.class == KeyClass::RelSize) {
                    Some(fork) => {
                        let size = self.size(state, key.node(), fork, found.get(key), arena).await?;
                        state.load_rel_size(key.node(), fork, size);
                    }
                    None => {
                        let map = found.get(key).and_then(|(_, value)| match value {
                            // A copy of its own: it stays long after the arena's memory is to be free.
                            Value::State(map) => Some(Bytes::copy_from_slice(map)),
                            _ => None,
                        });
                        state.load_rel_map(key.spc, key.db, map);
                    }
                }
            }
        }
        Ok(())
    }

    /// The newest value of each key at `lsn`.
    async fn newest(
        &self,
        keys: &[Key],
        lsn: Lsn,
        arena: &Arena,
    ) -> Result<BTreeMap<Key, (Lsn, Value)>, IngestError> {
        let mut newest = BTreeMap::new();
        let mut ranges = Vec::new();
        for key in keys {
            match arena.latest(*key, lsn) {
                Some((at, value)) => {
                    newest.insert(*key, (at, value.clone()));
                }
                None => ranges.push(KeyRange::one(*key)),
            }
        }
        if !ranges.is_empty() {
            let found = self.layers.history(&ranges, lsn, self.mode).await?;
            let rows = found.into_iter().filter_map(|history| history.rows.into_iter().next());
            newest.extend(rows.map(|row| (row.key, (row.lsn, row.value))));
        }
        Ok(newest)
    }

    /// A fork's size now, given its newest row.
    async fn size(
        &self,
        state: &State,
        node: RelNode,
        fork: Fork,
        row: Option<&(Lsn, Value)>,
        arena: &Arena,
    ) -> Result<Option<RelSize>, IngestError> {
        if node.spc == GLOBAL_TABLESPACE {
            return own_size(node, fork, row);
        }
        let Some(database) = state.databases.get(&(node.spc, node.db)) else { return Ok(None) };
        // A row that is older than the database belongs to an earlier one of the same number.
        if let Some(row) = row.filter(|(at, _)| *at >= database.created) {
            return own_size(node, fork, Some(row));
        }
        self.copied_size(*database, node, fork, arena).await
    }

    /// A fork that came with a copied database: the source's as it was then.
    async fn copied_size(
        &self,
        database: Database,
        node: RelNode,
        fork: Fork,
        arena: &Arena,
    ) -> Result<Option<RelSize>, IngestError> {
        let created = database.created;
        let (mut database, mut node) = (database, node);
        for _ in 0..ALIAS_DEPTH_MAX {
            let Some(alias) = database.alias else { return Ok(None) };
            node = RelNode { spc: alias.spc, db: alias.db, ..node };
            let keys = [Key::database(alias.spc, alias.db), Key::rel_size(node, fork)];
            let found = self.newest(&keys, alias.lsn, arena).await?;
            let [database_key, size_key] = keys;
            let Some((at, Value::State(bytes))) = found.get(&database_key) else { return Ok(None) };
            database = Database::decode(bytes).map_err(model(database_key, *at))?;
            if let Some(row) = found.get(&size_key).filter(|(at, _)| *at >= database.created) {
                let size = own_size(node, fork, Some(row))?;
                return Ok(size.map(|size| RelSize { blocks: size.blocks, ..RelSize::new(created) }));
            }
        }
        Err(IngestError::Internal(format!(
            "the copies of database {}/{} go round in circles",
            node.spc, node.db
        )))
    }
}

fn own_size(node: RelNode, fork: Fork, row: Option<&(Lsn, Value)>) -> Result<Option<RelSize>, IngestError> {
    match row {
        Some((at, Value::State(bytes))) => {
            RelSize::decode(bytes).map(Some).map_err(model(Key::rel_size(node, fork), *at))
        }
        _ => Ok(None),
    }
}

/// The newest row of a key, unless it is gone.
fn newest_state(history: KeyHistory) -> Option<(Key, (Lsn, Bytes))> {
    let row = history.rows.into_iter().next()?;
    match row.value {
        Value::State(bytes) => Some((row.key, (row.lsn, bytes))),
        _ => None,
    }
}

fn small_state(state: &mut State, key: Key, at: Lsn, bytes: &Bytes) -> Result<(), IngestError> {
    match key.class {
        KeyClass::Tablespace => {
            state.tablespaces.insert(key.spc);
        }
        KeyClass::Database => {
            let database = Database::decode(bytes).map_err(model(key, at))?;
            let name: (Oid, Oid) = (key.spc, key.db);
            state.databases.insert(name, database);
        }
        KeyClass::TwoPhase => {
            state.two_phase.insert(key.spc);
        }
        KeyClass::ReplOrigin => {
            let progress = ReplOrigin::decode(bytes).map_err(model(key, at))?;
            let origin = u16::try_from(key.spc).map_err(|_| malformed(key, at, "an origin past 16 bits"))?;
            state.origins.insert(origin, progress);
        }
        KeyClass::SlruSize => {
            let size = SlruSize::decode(bytes).map_err(model(key, at))?;
            let slru = Slru::from_number(key.spc).ok_or_else(|| malformed(key, at, "an unknown SLRU"))?;
            state.slru.insert((slru, key.db), size.pages);
        }
        _ => {}
    }
    Ok(())
}

fn model(key: Key, lsn: Lsn) -> impl Fn(ModelError) -> IngestError {
    move |source| IngestError::Model { key, lsn, source }
}

fn malformed(key: Key, lsn: Lsn, reason: &'static str) -> IngestError {
    IngestError::Model { key, lsn, source: ModelError::Malformed { what: "state", reason } }
}
