//! What was dropped or emptied, by the files that ends of transactions removed: when, by whom, and the LSN just before.

use crate::catalog::Catalogs;
use crate::error::ReadError;
use crate::snapshot::{Snapshot, bad};
use crate::timeline::{Readable, Timeline};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use zenith_layers::{Event, EventFilter, EventKind, Key, KeyClass, KeyRange, Row, Value};
use zenith_pgformat::catalog::{ClassRow, FIRST_NORMAL_OID};
use zenith_pgformat::rel::GLOBAL_TABLESPACE;
use zenith_pgformat::wal::heap::is_inplace_update;
use zenith_pgformat::{Fork, Lsn, Oid, RelNode, Xid};

/// How data was lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Loss {
    /// `DROP`: of a relation, its schema or whatever it depended on.
    Dropped,
    /// `TRUNCATE`.
    Truncated,
    /// Its rows were written anew, or others: `TRUNCATE` and new rows in one transaction, `REFRESH MATERIALIZED VIEW`, `VACUUM
    /// FULL`, `CLUSTER`, an `ALTER TABLE` that rewrites, also to or from unlogged. The files alone do not tell which.
    Rewritten,
    /// `DROP DATABASE`.
    DatabaseDropped,
}

/// A relation or database that was lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// The last LSN at which it was there.
    pub before: Lsn,
    /// The end of the record that removed it.
    pub lsn: Lsn,
    /// When the transaction committed (`TimestampTz`); `None` if `DROP DATABASE` removed the files and did not end.
    pub time: Option<i64>,
    /// The transaction.
    pub xid: Xid,
    /// It was prepared: at `before` it still holds its locks.
    pub prepared: bool,
    /// How.
    pub loss: Loss,
    /// The database's name.
    pub database: String,
    /// The relation; `None` for a database.
    pub relation: Option<LostRelation>,
}

/// A relation that was lost, as it was before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LostRelation {
    /// Its schema's name.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `relkind`: `r` a table, `m` a materialized view, `S` a sequence.
    pub kind: char,
    /// Its file.
    pub node: RelNode,
    /// Its length in blocks.
    pub blocks: u32,
}

/// What removed files between two LSNs, by the end of its record.
#[derive(Default)]
struct Removed {
    relations: BTreeMap<Lsn, BTreeSet<RelNode>>,
    databases: BTreeMap<Lsn, BTreeSet<(Oid, Xid)>>,
    commits: BTreeMap<Lsn, Event>,
}

impl Timeline {
    /// What was lost, newest first: tables, materialized views, sequences and databases of which `is_wanted` says so. What a
    /// transaction made and dropped itself is not among them, nor is what only moved. Adds to `found` until it holds `limit`;
    /// what it holds at an error is right, and all newer ones. Call [`Timeline::slice_tail`] first where WAL that is not sliced
    /// yet counts.
    ///
    /// Memory: the rows of sizes in one layer, the commits in another, and what one transaction removed.
    pub async fn lost(
        &self,
        is_wanted: impl Fn(&Lost) -> bool,
        limit: usize,
        found: &mut Vec<Lost>,
    ) -> Result<(), ReadError> {
        for range in self.ranges().into_iter().rev() {
            let mut upto = range.to;
            for after in self.layers().delta_ends(range.from, range.to).into_iter().rev().chain([range.from])
            {
                let removed = self.removed(after, upto).await?;
                let moments: BTreeSet<Lsn> =
                    removed.relations.keys().chain(removed.databases.keys()).copied().collect();
                for moment in moments.into_iter().rev() {
                    let mut lost = self.lost_at(&range, &removed, moment).await?;
                    lost.retain(&is_wanted);
                    found.extend(lost);
                    if found.len() >= limit {
                        found.truncate(limit);
                        return Ok(());
                    }
                }
                upto = after;
            }
        }
        Ok(())
    }

    /// Main forks, and init forks: an unlogged relation may have no other; databases; and the commits that may have removed
    /// them.
    async fn removed(&self, after: Lsn, upto: Lsn) -> Result<Removed, ReadError> {
        let mut removed = Removed::default();
        let is_gone = |row: &Row| row.value == Value::Tombstone;
        let sizes = self.values().versions(&[KeyRange::class(KeyClass::RelSize)], after, upto).await?;
        let counts = |key: &Key| matches!(Fork::from_number(key.fork), Some(Fork::Main | Fork::Init));
        for row in sizes.iter().filter(|row| is_gone(row) && counts(&row.key)) {
            removed.relations.entry(row.lsn).or_default().insert(row.key.node());
        }
        // Whose doing it was stands beside the value.
        let databases = self.layers().versions(&[KeyRange::class(KeyClass::Database)], after, upto).await?;
        for row in databases.iter().filter(|row| is_gone(row)) {
            removed.databases.entry(row.lsn).or_default().insert((row.key.db, row.source.xid));
        }
        if !removed.relations.is_empty() {
            for layer in self.layers().event_layers(after, upto) {
                let mut commits = self.layers().read_events(&layer, after, upto).await?;
                commits.retain(|event| event.kind.is_commit() && removed.relations.contains_key(&event.lsn));
                removed.commits.extend(commits.into_iter().map(|event| (event.lsn, event)));
            }
        }
        Ok(removed)
    }

    async fn lost_at(
        &self,
        range: &Readable,
        removed: &Removed,
        moment: Lsn,
    ) -> Result<Vec<Lost>, ReadError> {
        let mut lost = Vec::new();
        let relations = removed.commits.get(&moment).filter(|commit| commit.start >= range.from);
        if let Some((commit, nodes)) = relations.zip(removed.relations.get(&moment)) {
            lost.extend(self.lost_relations(commit, nodes).await?);
        }
        for (db, xid) in removed.databases.get(&moment).into_iter().flatten() {
            lost.extend(self.lost_database(range, moment, *db, *xid).await?);
        }
        Ok(lost)
    }

    /// Of the relations whose files a commit removed, those that somebody could miss.
    async fn lost_relations(
        &self,
        commit: &Event,
        nodes: &BTreeSet<RelNode>,
    ) -> Result<Vec<Lost>, ReadError> {
        let (before, after) = futures::try_join!(self.snapshot(commit.start), self.snapshot(commit.lsn))?;
        let databases: BTreeSet<Oid> = nodes.iter().map(|node| node.db).collect();
        let mut lost = Vec::new();
        for db in databases {
            // One that is gone, too, tells so itself.
            let Some(mut old) = Catalogs::of(&before, db).await? else { continue };
            let Some(mut new) = Catalogs::of(&after, db).await? else { continue };
            let files: HashSet<Oid> =
                nodes.iter().filter(|node| node.db == db).map(|node| node.rel).collect();
            let mut missed = old.classes(|class| is_kept(class) && files.contains(&class.file)).await?;
            missed.retain(|class| nodes.contains(&old.node(class)));
            if missed.is_empty() {
                continue;
            }
            let oids: HashSet<Oid> = missed.iter().map(|class| class.oid).collect();
            let left = new.classes(|class| oids.contains(&class.oid)).await?;
            let left: HashMap<Oid, RelNode> = left.iter().map(|class| (class.oid, new.node(class))).collect();
            let database = database_name(&before, db).await?;
            for class in missed {
                let node = old.node(&class);
                let blocks = before.rel_size(node, Fork::Main).await?;
                let loss = match left.get(&class.oid) {
                    None => Some(Loss::Dropped),
                    Some(now) => {
                        let now_blocks = after.rel_size(*now, Fork::Main).await?;
                        let moved = now.spc != node.spc && now_blocks == blocks;
                        rewritten(&class, blocks, now_blocks).filter(|_| !moved)
                    }
                };
                let Some(loss) = loss else { continue };
                let relation = LostRelation {
                    schema: old.schema_name(class.namespace).await?,
                    name: class.name,
                    kind: char::from(class.kind),
                    node,
                    blocks: blocks.unwrap_or_default(),
                };
                lost.push(Lost {
                    before: commit.start,
                    lsn: commit.lsn,
                    time: Some(commit.time),
                    xid: commit.xid,
                    prepared: commit.kind == EventKind::CommitPrepared,
                    loss,
                    database: database.clone(),
                    relation: Some(relation),
                });
            }
        }
        Ok(lost)
    }

    /// `None` for one that is there afterwards: it moved, or lost a tablespace.
    async fn lost_database(
        &self,
        range: &Readable,
        lsn: Lsn,
        db: Oid,
        xid: Xid,
    ) -> Result<Option<Lost>, ReadError> {
        let before = Lsn(lsn.0.saturating_sub(1));
        if before < range.from || Catalogs::of(&self.snapshot(lsn).await?, db).await?.is_some() {
            return Ok(None);
        }
        let before = self.before_invalid(range.from, before, db).await?;
        let database = database_name(&self.snapshot(before).await?, db).await?;
        let mut time = None;
        for layer in self.layers().event_layers(lsn, range.to) {
            let ends = self.layers().find_events(&layer, lsn, range.to, EventFilter::Xid(xid)).await?;
            if let Some(end) = ends.first().filter(|_| xid != 0) {
                time = end.kind.is_commit().then_some(end.time);
                break;
            }
        }
        let (prepared, loss) = (false, Loss::DatabaseDropped);
        Ok(Some(Lost { before, lsn, time, xid, prepared, loss, database, relation: None }))
    }

    /// `DROP DATABASE` first forbids connections, outside of its transaction (dropdb, dbcommands.c): the LSN before that.
    async fn before_invalid(&self, from: Lsn, upto: Lsn, db: Oid) -> Result<Lsn, ReadError> {
        let shared = Catalogs::shared(&self.snapshot(upto).await?).await?;
        let node = RelNode { spc: GLOBAL_TABLESPACE, db: 0, rel: shared.database_file()? };
        let blocks = KeyRange::blocks(node, Fork::Main, 0, u32::MAX);
        let rows = self.layers().versions(&[blocks], from, upto).await?;
        let in_place = |row: &&Row| is_inplace_update(row.source.rmgr, row.source.info);
        let mut changes: Vec<Lsn> = rows.iter().filter(in_place).map(|row| row.lsn).collect();
        changes.sort_unstable();
        let mut before = upto;
        for change in changes.into_iter().rev() {
            if !self.is_invalid(change, db).await? {
                break;
            }
            before = Lsn(change.0.saturating_sub(1));
        }
        Ok(before)
    }

    async fn is_invalid(&self, lsn: Lsn, db: Oid) -> Result<bool, ReadError> {
        let row = Catalogs::shared(&self.snapshot(lsn).await?).await?.database(db).await?;
        Ok(row.is_some_and(|row| row.is_invalid()))
    }
}

async fn database_name(snapshot: &Snapshot, db: Oid) -> Result<String, ReadError> {
    let row = Catalogs::shared(snapshot).await?.database(db).await?;
    let missing =
        || bad(Key::rel_map(GLOBAL_TABLESPACE, 0), snapshot.lsn(), format!("no row of database {db}"));
    row.map(|row| row.name).ok_or_else(missing)
}

/// Tables, materialized views and sequences that are no system catalogs: those are rewritten and never lost.
fn is_kept(class: &ClassRow) -> bool {
    class.oid >= FIRST_NORMAL_OID && matches!(class.kind, b'r' | b'm' | b'S')
}

/// What it means that a relation has another file, by its blocks. Of sequences nothing is lost but a number. A file that is
/// not there is an unlogged relation's.
fn rewritten(class: &ClassRow, before: Option<u32>, now: Option<u32>) -> Option<Loss> {
    match (class.kind, before, now) {
        (b'S', ..) | (_, Some(0), _) => None,
        (_, Some(_), Some(0)) => Some(Loss::Truncated),
        _ => Some(Loss::Rewritten),
    }
}
