//! Which relations exist at an LSN, how long they are, and where their pages' history lies.

use crate::error::ReadError;
use crate::plan::{ForkPlan, Scope};
use crate::snapshot::{
    CachedPlan, MAX_COPIES, MAX_ROWS, Snapshot, bad, decoded, endless_copies, state_bytes,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::OnceCell;
use zenith_ingest::model::{Database, RelEvent, RelSize};
use zenith_layers::{Key, KeyClass, KeyRange, Row, Value};
use zenith_pgformat::{Fork, Lsn, Oid, RelNode};

/// A fork of a relation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Relation {
    /// The relation.
    pub node: RelNode,
    /// The fork.
    pub fork: Fork,
    /// Its length in blocks.
    pub blocks: u32,
}

impl Snapshot {
    /// The forks of a database's relations in one tablespace, by number and fork; `(1664, 0)` for the shared ones.
    ///
    /// # Errors
    /// [`ReadError::NoSuchDatabase`] if the database was dropped.
    pub async fn relations(&self, spc: Oid, db: Oid) -> Result<Vec<Relation>, ReadError> {
        let mut found: BTreeMap<(Oid, u8), Option<(Fork, u32)>> = BTreeMap::new();
        let (mut place, mut upto) = ((spc, db), self.inner.lsn);
        for copies in 0.. {
            if copies == MAX_COPIES {
                return Err(endless_copies(Key::database(spc, db), self.inner.lsn));
            }
            let database = match self.database(place, upto).await? {
                Some(database) => database,
                None if copies == 0 => return Err(ReadError::NoSuchDatabase { spc, db, lsn: upto }),
                None => break,
            };
            self.collect(place, upto, database, &mut found).await?;
            let Some(alias) = database.alias else { break };
            (place, upto) = ((alias.spc, alias.db), alias.lsn);
        }
        let live = found.into_iter().filter_map(|((rel, _), size)| size.map(|size| (rel, size)));
        Ok(live
            .map(|(rel, (fork, blocks))| Relation { node: RelNode { spc, db, rel }, fork, blocks })
            .collect())
    }

    /// Adds the forks of one database at `upto` that are not known yet; `None` for one that was dropped, which
    /// hides the one that a copy brought.
    async fn collect(
        &self,
        (spc, db): (Oid, Oid),
        upto: Lsn,
        database: Database,
        found: &mut BTreeMap<(Oid, u8), Option<(Fork, u32)>>,
    ) -> Result<(), ReadError> {
        let mut range = Some(KeyRange::database(KeyClass::RelSize, spc, db));
        while let Some(part) = range {
            let layers = self.inner.timeline.values();
            let chunk = layers.history_chunk(part, upto, self.mode(upto), MAX_ROWS).await?;
            for row in chunk.histories.into_iter().filter_map(|history| history.rows.into_iter().next()) {
                if row.lsn < database.created {
                    continue;
                }
                let (key, fork) = (row.key, fork_of(&row)?);
                let size = decode_size(row)?;
                if let Some(size) = size.filter(|_| upto == self.inner.lsn) {
                    self.remember(key.node(), fork, database, size).await;
                }
                found.entry((key.rel, key.fork)).or_insert(size.map(|size| (fork, size.blocks)));
            }
            range = chunk.rest;
        }
        Ok(())
    }

    /// Whoever lists relations is about to read them: the plan of a plain one is known from its size.
    async fn remember(&self, node: RelNode, fork: Fork, database: Database, size: RelSize) {
        let eventful = size.last_truncation.is_valid() || size.last_gap.is_valid();
        if eventful || database.alias.is_some() {
            return;
        }
        let floor = size.created.max(database.created);
        let scopes = vec![Scope { node, upto: self.inner.lsn, floor, events: Vec::new() }];
        let plan = ForkPlan { fork, blocks: size.blocks, scopes, base_blocks: OnceCell::new() };
        let known = Box::pin(async move { Ok(CachedPlan(Some(Arc::new(plan)))) });
        // Nothing is lost if the cache has no room.
        drop(self.inner.plans.get_or_load((node, fork), known).await);
    }

    /// A fork's length in blocks; `None` if it does not exist.
    pub async fn rel_size(&self, node: RelNode, fork: Fork) -> Result<Option<u32>, ReadError> {
        Ok(self.plan(node, fork).await?.map(|plan| plan.blocks))
    }

    /// The fork's plan; `None` if it does not exist.
    pub(crate) async fn plan(&self, node: RelNode, fork: Fork) -> Result<Option<Arc<ForkPlan>>, ReadError> {
        let load = Box::pin(async move { Ok(CachedPlan(self.load_plan(node, fork).await?.map(Arc::new))) });
        let plan = self.inner.plans.get_or_load((node, fork), load).await;
        plan.map(|plan| plan.0).map_err(ReadError::Shared)
    }

    async fn load_plan(&self, mut node: RelNode, fork: Fork) -> Result<Option<ForkPlan>, ReadError> {
        let key = Key::rel_size(node, fork);
        let mut upto = self.inner.lsn;
        let mut scopes: Vec<Scope> = Vec::new();
        let mut blocks = None;
        loop {
            if scopes.len() == MAX_COPIES {
                return Err(endless_copies(key, self.inner.lsn));
            }
            let (database, size) = futures::try_join!(
                self.database((node.spc, node.db), upto),
                self.newest(Key::rel_size(node, fork), upto)
            )?;
            let Some(database) = database else { break };
            let row = size.filter(|row| row.lsn >= database.created);
            let size = match row {
                None if database.alias.is_none() => break,
                None => None,
                Some(row) => match decode_size(row)? {
                    Some(size) => Some(size),
                    None => break,
                },
            };
            // What a copied database brought is as old as the copy.
            let created = size.map_or(database.created, |size| size.created.max(database.created));
            blocks = blocks.or(size.map(|size| size.blocks));
            let events = match size {
                Some(size) if size.last_truncation.is_valid() || size.last_gap.is_valid() => {
                    self.events(node, fork, created, upto).await?
                }
                _ => Vec::new(),
            };
            scopes.push(Scope { node, upto, floor: created, events });
            match database.alias.filter(|_| created == database.created) {
                Some(alias) => (node, upto) = (RelNode { spc: alias.spc, db: alias.db, ..node }, alias.lsn),
                None => break,
            }
        }
        Ok(blocks.map(|blocks| ForkPlan { fork, blocks, scopes, base_blocks: OnceCell::new() }))
    }

    /// Truncations and skipped ranges of a fork since its creation.
    async fn events(
        &self,
        node: RelNode,
        fork: Fork,
        created: Lsn,
        upto: Lsn,
    ) -> Result<Vec<(Lsn, RelEvent)>, ReadError> {
        let key = Key::rel_event(node, fork);
        let layers = self.inner.timeline.values();
        let rows = layers.versions(&[KeyRange::one(key)], self.inner.used.lsn, upto).await?;
        let since = rows.into_iter().filter(|row| row.lsn >= created);
        since
            .map(|row| match &row.value {
                Value::State(bytes) => Ok((row.lsn, decoded(key, row.lsn, RelEvent::decode(bytes))?)),
                _ => Err(bad(key, row.lsn, "no event where one belongs")),
            })
            .collect()
    }

    /// How long the base image says that the last scope's fork was: blocks below that are absent from its layers are
    /// zeros.
    pub(crate) async fn base_blocks(&self, plan: &ForkPlan) -> Result<u32, ReadError> {
        let redo = self.inner.used.lsn;
        let Some(scope) = plan.scopes.last().filter(|scope| scope.shows_base(redo)) else { return Ok(0) };
        let load = async {
            let key = Key::rel_size(scope.node, plan.fork);
            let found = self.history_of(&[KeyRange::one(key)], redo).await?;
            let row = found.into_iter().next().and_then(|history| history.rows.into_iter().next());
            let size = row.map(decode_size).transpose()?.flatten();
            Ok(size.map_or(0, |size| size.blocks))
        };
        plan.base_blocks.get_or_try_init(|| load).await.copied()
    }
}

fn fork_of(row: &Row) -> Result<Fork, ReadError> {
    Fork::from_number(row.key.fork).ok_or_else(|| bad(row.key, row.lsn, "an unknown fork"))
}

/// `None` for a tombstone.
fn decode_size(row: Row) -> Result<Option<RelSize>, ReadError> {
    let (key, lsn) = (row.key, row.lsn);
    state_bytes(row)?.map(|bytes| decoded(key, lsn, RelSize::decode(&bytes))).transpose()
}
