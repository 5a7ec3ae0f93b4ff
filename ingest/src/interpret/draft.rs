//! What one record changes, while it is being worked out: the state before the record, and on top of it what the
//! record did so far.

use super::state::{INVALID_PAGES_MAX, Memory, State};
use crate::error::IngestError;
use crate::model::{Alias, Database, NextXid, Parameters, RelEvent, RelSize, ReplOrigin, SlruSize};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use zenith_layers::{Event, EventKind, Key, Row, Slru, Source, Value};
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::slru::{page_in_segment, segment_of};
use zenith_pgformat::wal::Record;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, Oid, Page, RelNode, Xid};
use zenith_redo::native::Edit;

/// What interpreting a record takes beside the record and the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// A base image's fuzzy window is open: pages that do not exist are remembered instead of refused.
    pub window_open: bool,
}

/// What one record changes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Changes {
    /// Values, each of another key, all at the record's end; in key order.
    pub rows: Vec<Row>,
    /// What happened, for targets; at most one today.
    pub events: Vec<Event>,
    /// A backup that started here ends with this record.
    pub backup_end: Option<Lsn>,
    /// The record is a shutdown checkpoint.
    pub shutdown_checkpoint: bool,
    sizes: HashMap<(RelNode, Fork), Option<RelSize>>,
    databases: Vec<((Oid, Oid), Option<Database>)>,
    tablespaces: Vec<(Oid, bool)>,
    two_phase: Vec<(Xid, bool)>,
    origins: Vec<(u16, Option<ReplOrigin>)>,
    slru: Vec<((Slru, u32), Option<u32>)>,
    rel_maps: Vec<((Oid, Oid), Option<Bytes>)>,
    checkpoint: Option<CheckPoint>,
    next_xid: Option<NextXid>,
    parameters: Option<Parameters>,
    memory: Vec<MemoryChange>,
}

/// A change of [`Memory`].
#[derive(Clone, PartialEq, Debug)]
enum MemoryChange {
    Remember(Key, Lsn),
    /// Pages at or above a block of a fork.
    ForgetFrom(RelNode, Fork, u32),
    ForgetDatabase(Oid),
    PreInitialized(Option<u32>),
}

impl Changes {
    /// Brings the state to the end of the record.
    pub fn apply(self, state: &mut State) {
        // Databases first: what is known of a dropped or copied one is void, then the record's own sizes count.
        for ((spc, db), database) in self.databases {
            state.sizes.forget_database(spc, db);
            match database {
                Some(database) => state.databases.insert((spc, db), database),
                None => state.databases.remove(&(spc, db)),
            };
        }
        for ((node, fork), size) in self.sizes {
            state.sizes.put(node, fork, size);
        }
        for (spc, exists) in self.tablespaces {
            if exists {
                state.tablespaces.insert(spc)
            } else {
                state.tablespaces.remove(&spc)
            };
        }
        for (xid, exists) in self.two_phase {
            if exists {
                state.two_phase.insert(xid)
            } else {
                state.two_phase.remove(&xid)
            };
        }
        for (origin, progress) in self.origins {
            match progress {
                Some(progress) => state.origins.insert(origin, progress),
                None => state.origins.remove(&origin),
            };
        }
        for (segment, pages) in self.slru {
            match pages {
                Some(pages) => state.slru.insert(segment, pages),
                None => state.slru.remove(&segment),
            };
        }
        for (database, map) in self.rel_maps {
            state.rel_maps.insert(database, map);
        }
        for change in self.memory {
            change.apply(&mut state.memory);
        }
        state.checkpoint = self.checkpoint.unwrap_or(state.checkpoint);
        state.next_xid = self.next_xid.unwrap_or(state.next_xid);
        state.parameters = self.parameters.unwrap_or(state.parameters);
    }
}

impl MemoryChange {
    fn apply(self, memory: &mut Memory) {
        match self {
            MemoryChange::Remember(key, lsn) => {
                memory.invalid_pages.entry(key).or_insert(lsn);
            }
            MemoryChange::ForgetFrom(node, fork, block) => {
                // A transaction may drop thousands of relations: only the fork's own pages are looked at.
                let gone = Key::rel_block(node, fork, block)..=Key::rel_block(node, fork, u32::MAX);
                let gone: Vec<Key> = memory.invalid_pages.range(gone).map(|(key, _)| *key).collect();
                for key in gone {
                    memory.invalid_pages.remove(&key);
                }
            }
            MemoryChange::ForgetDatabase(db) => memory.invalid_pages.retain(|key, _| key.db != db),
            MemoryChange::PreInitialized(page) => memory.pre_initialized_offsets_page = page,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) record: &'a Record,
    pub(crate) context: Context,
    state: &'a State,
    values: BTreeMap<Key, Value>,
    changes: Changes,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(record: &'a Record, state: &'a State, context: Context) -> Draft<'a> {
        Draft { record, context, state, values: BTreeMap::new(), changes: Changes::default() }
    }

    /// Everything the record changes, with the counters' rows.
    pub(crate) fn finish(mut self) -> Result<Changes, IngestError> {
        if let Some(next) = self.changes.next_xid {
            self.put(Key::NEXT_XID, Value::State(next.encode()))?;
        }
        if let Some(checkpoint) = self.changes.checkpoint {
            let bytes = Bytes::copy_from_slice(&checkpoint.encode());
            self.put(Key::CHECKPOINT, Value::State(bytes))?;
        }
        let record = self.record;
        let source = Source {
            rmgr: record.rmgr,
            info: record.info,
            xid: record.xid,
            length: u32::try_from(record.raw.len()).unwrap_or(u32::MAX),
        };
        let lsn = record.end;
        let row = |(key, value)| Row { key, lsn, value, source };
        self.changes.rows = self.values.into_iter().map(row).collect();
        Ok(self.changes)
    }

    /// A value of a key that the record has not given one yet.
    pub(crate) fn put(&mut self, key: Key, value: Value) -> Result<(), IngestError> {
        match self.values.insert(key, value) {
            None => Ok(()),
            Some(_) => Err(IngestError::Duplicate { lsn: self.record.end, key }),
        }
    }

    pub(crate) fn error(&self, what: impl ToString) -> IngestError {
        IngestError::record(self.record, what)
    }

    // Counters.

    pub(crate) fn next_xid(&self) -> NextXid {
        self.changes.next_xid.unwrap_or(self.state.next_xid)
    }

    pub(crate) fn set_next_xid(&mut self, next: NextXid) {
        self.changes.next_xid = (next != self.state.next_xid).then_some(next);
    }

    pub(crate) fn see_xid(&mut self, xid: Xid) {
        let next = self.next_xid().past(xid);
        self.set_next_xid(next);
    }

    pub(crate) fn checkpoint(&self) -> CheckPoint {
        self.changes.checkpoint.unwrap_or(self.state.checkpoint)
    }

    pub(crate) fn set_checkpoint(&mut self, checkpoint: CheckPoint) {
        self.changes.checkpoint = (checkpoint != self.state.checkpoint).then_some(checkpoint);
    }

    pub(crate) fn parameters(&self) -> Parameters {
        self.changes.parameters.unwrap_or(self.state.parameters)
    }

    pub(crate) fn set_parameters(&mut self, parameters: Parameters) -> Result<(), IngestError> {
        if parameters == self.state.parameters {
            return Ok(());
        }
        self.changes.parameters = Some(parameters);
        self.put(Key::PARAMETERS, Value::State(parameters.encode()))
    }

    // Relations.

    pub(crate) fn rel_size(&self, node: RelNode, fork: Fork) -> Result<Option<RelSize>, IngestError> {
        match self.changes.sizes.get(&(node, fork)) {
            Some(size) => Ok(*size),
            None => self.state.rel_size(node, fork),
        }
    }

    /// Gives a fork a new size, or ends it. Its row is written when the record is done.
    pub(crate) fn set_rel_size(
        &mut self,
        node: RelNode,
        fork: Fork,
        size: Option<RelSize>,
    ) -> Result<(), IngestError> {
        if size.is_some() {
            self.ensure_database(node.spc, node.db)?;
        }
        self.changes.sizes.insert((node, fork), size);
        let value = size.map_or(Value::Tombstone, |size| Value::State(size.encode()));
        self.values.insert(Key::rel_size(node, fork), value);
        Ok(())
    }

    /// The fork, created empty if it does not exist (`smgrcreate` in redo).
    pub(crate) fn ensure_fork(&mut self, node: RelNode, fork: Fork) -> Result<RelSize, IngestError> {
        if let Some(size) = self.rel_size(node, fork)? {
            return Ok(size);
        }
        let size = RelSize::new(self.record.end);
        self.set_rel_size(node, fork, Some(size))?;
        Ok(size)
    }

    pub(crate) fn rel_event(
        &mut self,
        node: RelNode,
        fork: Fork,
        event: RelEvent,
    ) -> Result<(), IngestError> {
        self.put(Key::rel_event(node, fork), Value::State(event.encode()))
    }

    /// A record changes a page that does not exist (`log_invalid_page`).
    pub(crate) fn invalid_page(&mut self, node: RelNode, fork: Fork, block: u32) -> Result<(), IngestError> {
        let page = Key::rel_block(node, fork, block);
        let (lsn, rmgr) = (self.record.lsn, self.record.rmgr);
        if !self.context.window_open {
            return Err(IngestError::MissingPage { lsn, rmgr, page });
        }
        if self.state.memory.invalid_pages.len() >= INVALID_PAGES_MAX {
            return Err(IngestError::TooManyInvalidPages { lsn, limit: INVALID_PAGES_MAX });
        }
        self.changes.memory.push(MemoryChange::Remember(page, lsn));
        Ok(())
    }

    /// Pages from `block` on are gone by right (`forget_invalid_pages`).
    pub(crate) fn forget_invalid_pages(&mut self, node: RelNode, fork: Fork, block: u32) {
        if !self.state.memory.invalid_pages.is_empty() {
            self.changes.memory.push(MemoryChange::ForgetFrom(node, fork, block));
        }
    }

    // Databases.

    pub(crate) fn database_exists(&self, spc: Oid, db: Oid) -> bool {
        let changed = self.changes.databases.iter().rev().find(|(key, _)| *key == (spc, db));
        changed.map_or_else(|| self.state.database_exists(spc, db), |(_, database)| database.is_some())
    }

    /// The database's directory in that tablespace, created if it does not exist (`TablespaceCreateDbspace`).
    pub(crate) fn ensure_database(&mut self, spc: Oid, db: Oid) -> Result<(), IngestError> {
        if self.database_exists(spc, db) { Ok(()) } else { self.create_database(spc, db, None) }
    }

    /// A new database, which replaces one of the same number.
    pub(crate) fn create_database(
        &mut self,
        spc: Oid,
        db: Oid,
        alias: Option<Alias>,
    ) -> Result<(), IngestError> {
        let database = Database { created: self.record.end, alias };
        self.changes.databases.push(((spc, db), Some(database)));
        self.put(Key::database(spc, db), Value::State(database.encode()))
    }

    /// The database's directory in that tablespace is gone, with everything in it.
    pub(crate) fn drop_database(&mut self, spc: Oid, db: Oid) -> Result<(), IngestError> {
        if !self.database_exists(spc, db) {
            return Ok(());
        }
        self.changes.databases.push(((spc, db), None));
        self.put(Key::database(spc, db), Value::Tombstone)
    }

    /// Missing pages of a database are explained (`XLogDropDatabase`).
    pub(crate) fn forget_invalid_pages_of_database(&mut self, db: Oid) {
        if !self.state.memory.invalid_pages.is_empty() {
            self.changes.memory.push(MemoryChange::ForgetDatabase(db));
        }
    }

    pub(crate) fn rel_map(&self, spc: Oid, db: Oid) -> Result<Option<Bytes>, IngestError> {
        let not_loaded = IngestError::NotLoaded(Key::rel_map(spc, db));
        self.state.rel_maps.get(&(spc, db)).cloned().ok_or(not_loaded)
    }

    pub(crate) fn set_rel_map(&mut self, spc: Oid, db: Oid, map: Option<Bytes>) -> Result<(), IngestError> {
        self.changes.rel_maps.push(((spc, db), map.clone()));
        self.put(Key::rel_map(spc, db), map.map_or(Value::Tombstone, Value::State))
    }

    pub(crate) fn tablespace(&mut self, spc: Oid, value: Option<Bytes>) -> Result<(), IngestError> {
        self.changes.tablespaces.push((spc, value.is_some()));
        self.put(Key::tablespace(spc), value.map_or(Value::Tombstone, Value::State))
    }

    /// The databases that have a directory in a tablespace.
    pub(crate) fn databases_in(&self, spc: Oid) -> Vec<Oid> {
        self.state.databases.range((spc, 0)..=(spc, Oid::MAX)).map(|((_, db), _)| *db).collect()
    }

    // Transactions.

    pub(crate) fn prepare(&mut self, xid: Xid, file: Bytes) -> Result<(), IngestError> {
        self.changes.two_phase.push((xid, true));
        self.put(Key::two_phase(xid), Value::State(file))
    }

    /// The prepared transaction is done; not known is fine (`PrepareRedoRemove`).
    pub(crate) fn unprepare(&mut self, xid: Xid) -> Result<(), IngestError> {
        if !self.state.two_phase.contains(&xid) {
            return Ok(());
        }
        self.changes.two_phase.push((xid, false));
        self.put(Key::two_phase(xid), Value::Tombstone)
    }

    pub(crate) fn origin(&self, origin: u16) -> Option<ReplOrigin> {
        self.state.origins.get(&origin).copied()
    }

    pub(crate) fn set_origin(
        &mut self,
        origin: u16,
        progress: Option<ReplOrigin>,
    ) -> Result<(), IngestError> {
        self.changes.origins.push((origin, progress));
        let value = progress.map_or(Value::Tombstone, |progress| Value::State(progress.encode()));
        self.put(Key::repl_origin(origin), value)
    }

    pub(crate) fn event(&mut self, kind: EventKind, xid: Xid, time: i64, name: String, subxacts: u32) {
        let (start, lsn) = (self.record.lsn, self.record.end);
        self.changes.events.push(Event { start, lsn, kind, xid, time, name, subxacts });
    }

    pub(crate) fn backup_end(&mut self, start: Lsn) {
        self.changes.backup_end = Some(start);
    }

    pub(crate) fn shutdown_checkpoint(&mut self) {
        self.changes.shutdown_checkpoint = true;
    }

    // SLRUs. Page numbers are absolute.

    /// Pages of a segment file, `None` if there is none.
    pub(crate) fn slru_pages(&self, slru: Slru, segment: u32) -> Option<u32> {
        let changed = self.changes.slru.iter().rev().find(|(key, _)| *key == (slru, segment));
        changed.map_or_else(|| self.state.slru.get(&(slru, segment)).copied(), |(_, pages)| *pages)
    }

    pub(crate) fn slru_page_exists(&self, slru: Slru, page: u32) -> bool {
        self.slru_pages(slru, segment_of(page)).is_some_and(|pages| page_in_segment(page) < pages)
    }

    /// Segment files that exist.
    pub(crate) fn slru_segments(&self, slru: Slru) -> Vec<u32> {
        self.state.slru.range((slru, 0)..=(slru, u32::MAX)).map(|((_, segment), _)| *segment).collect()
    }

    /// The page is zeros from here on, its file is as long as that takes.
    pub(crate) fn zero_slru_page(&mut self, slru: Slru, page: u32) -> Result<(), IngestError> {
        self.grow_slru(slru, page)?;
        self.put(slru_key(slru, page), Value::Page(Bytes::new()))
    }

    /// Edits a page. One that does not exist begins as zeros, as recovery reads it (`SlruPhysicalReadPage`).
    pub(crate) fn edit_slru_page(&mut self, slru: Slru, page: u32, edit: &Edit) -> Result<(), IngestError> {
        let begun = self.values.get(&slru_key(slru, page)).cloned();
        if begun.is_none() && self.slru_page_exists(slru, page) {
            return self.put(slru_key(slru, page), Value::Edit(edit.encode()));
        }
        self.grow_slru(slru, page)?;
        let mut bytes: Page = [0; BLCKSZ];
        if let Some(Value::Page(begun)) = begun.filter(|value| !value.payload().is_empty()) {
            bytes = begun.as_ref().try_into().map_err(|_| self.error("an SLRU page of a wrong length"))?;
        }
        edit.apply(&mut bytes, self.record.end).map_err(|e| self.error(e))?;
        self.values.insert(slru_key(slru, page), Value::Page(Bytes::copy_from_slice(&bytes)));
        Ok(())
    }

    fn grow_slru(&mut self, slru: Slru, page: u32) -> Result<(), IngestError> {
        let (segment, within) = (segment_of(page), page_in_segment(page));
        let pages = self.slru_pages(slru, segment).unwrap_or(0);
        if within < pages {
            return Ok(());
        }
        for skipped in pages..within {
            self.put(Key::slru_page(slru, segment, skipped), Value::Page(Bytes::new()))?;
        }
        self.changes.slru.push(((slru, segment), Some(within + 1)));
        let size = SlruSize { pages: within + 1 };
        self.values.insert(Key::slru_size(slru, segment), Value::State(size.encode()));
        Ok(())
    }

    /// The segment file is gone; none is fine.
    pub(crate) fn drop_slru_segment(&mut self, slru: Slru, segment: u32) -> Result<(), IngestError> {
        if self.slru_pages(slru, segment).is_none() {
            return Ok(());
        }
        self.changes.slru.push(((slru, segment), None));
        self.values.insert(Key::slru_size(slru, segment), Value::Tombstone);
        Ok(())
    }

    pub(crate) fn pre_initialized_offsets_page(&self) -> Option<u32> {
        self.state.memory.pre_initialized_offsets_page
    }

    pub(crate) fn set_pre_initialized_offsets_page(&mut self, page: Option<u32>) {
        self.changes.memory.push(MemoryChange::PreInitialized(page));
    }
}

fn slru_key(slru: Slru, page: u32) -> Key {
    Key::slru_page(slru, segment_of(page), page_in_segment(page))
}
