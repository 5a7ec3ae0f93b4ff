//! What was dropped or emptied, by the files that ends of transactions removed: when, by whom, and the LSN just before.

use crate::catalog::{Catalogs, Class};
use crate::error::ReadError;
use crate::timeline::{Readable, Timeline};
use std::collections::BTreeMap;
use zenith_layers::{Event, EventFilter, Key, KeyClass, KeyRange, Row, Value};
use zenith_pgformat::{Fork, Lsn, Oid, RelNode, Xid};

/// `FirstNormalObjectId` (access/transam.h): system catalogs are below it, which are rewritten and never lost.
const FIRST_NORMAL_OID: Oid = 16_384;

/// How data was lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Loss {
    /// `DROP`: of a relation, its schema or whatever it depended on.
    Dropped,
    /// `TRUNCATE`.
    Truncated,
    /// Its rows were written anew, or others: `TRUNCATE` and new rows in one transaction, `REFRESH MATERIALIZED VIEW`, `VACUUM
    /// FULL`, `CLUSTER`, an `ALTER TABLE` that rewrites. The files alone do not tell which.
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
    relations: BTreeMap<Lsn, Vec<RelNode>>,
    databases: BTreeMap<Lsn, (Oid, Xid)>,
}

impl Timeline {
    /// What was lost, newest first: tables, materialized views, sequences and databases of which `is_wanted` says so, `limit` at
    /// most. What a transaction made and dropped itself is not among them, nor is what only moved. Call
    /// [`Timeline::slice_tail`] first where WAL that is not sliced yet counts.
    ///
    /// Memory: the sizes' rows of one layer, and the commits of one.
    pub async fn lost(
        &self,
        is_wanted: impl Fn(&Lost) -> bool,
        limit: usize,
    ) -> Result<Vec<Lost>, ReadError> {
        let mut found = Vec::new();
        for range in self.ranges().into_iter().rev() {
            let mut upto = range.to;
            for after in self.layers().delta_ends(range.from, range.to).into_iter().rev().chain([range.from])
            {
                let mut lost = self.lost_between(&range, after, upto).await?;
                lost.retain(&is_wanted);
                lost.sort_by_key(|lost| lost.lsn);
                found.extend(lost.into_iter().rev());
                if found.len() >= limit {
                    found.truncate(limit);
                    return Ok(found);
                }
                upto = after;
            }
        }
        Ok(found)
    }

    async fn lost_between(&self, range: &Readable, after: Lsn, upto: Lsn) -> Result<Vec<Lost>, ReadError> {
        let removed = self.removed(after, upto).await?;
        let mut lost = Vec::new();
        if !removed.relations.is_empty() {
            for layer in self.layers().event_layers(after, upto) {
                let commits = self.layers().read_events(&layer, after, upto).await?;
                for commit in
                    commits.iter().filter(|event| event.kind.is_commit() && event.start >= range.from)
                {
                    if let Some(nodes) = removed.relations.get(&commit.lsn) {
                        lost.extend(self.lost_relations(commit, nodes).await?);
                    }
                }
            }
        }
        for (lsn, (db, xid)) in removed.databases {
            let before = self.last_record(Lsn(lsn.0.saturating_sub(1))).await?.end;
            if before >= range.from {
                lost.extend(self.lost_database(before, lsn, db, xid, range.to).await?);
            }
        }
        Ok(lost)
    }

    /// Main forks, and databases.
    async fn removed(&self, after: Lsn, upto: Lsn) -> Result<Removed, ReadError> {
        let mut removed = Removed::default();
        let is_gone = |row: &Row| row.value == Value::Tombstone;
        let sizes = self.values().versions(&[KeyRange::class(KeyClass::RelSize)], after, upto).await?;
        let main = |key: &Key| Fork::from_number(key.fork) == Some(Fork::Main);
        for row in sizes.iter().filter(|row| is_gone(row) && main(&row.key)) {
            removed.relations.entry(row.lsn).or_default().push(row.key.node());
        }
        // Whose doing it was stands beside the value.
        let databases = self.layers().versions(&[KeyRange::class(KeyClass::Database)], after, upto).await?;
        for row in databases.iter().filter(|row| is_gone(row)) {
            removed.databases.insert(row.lsn, (row.key.db, row.source.xid));
        }
        Ok(removed)
    }

    /// Of the relations whose files a commit removed, those that somebody could miss.
    async fn lost_relations(&self, commit: &Event, nodes: &[RelNode]) -> Result<Vec<Lost>, ReadError> {
        let (before, after) = futures::try_join!(self.snapshot(commit.start), self.snapshot(commit.lsn))?;
        let mut by_database: BTreeMap<Oid, Vec<RelNode>> = BTreeMap::new();
        nodes.iter().for_each(|node| by_database.entry(node.db).or_default().push(*node));
        let mut lost = Vec::new();
        for (db, nodes) in by_database {
            let (Some(mut old), Some(mut new)) =
                (Catalogs::of(&before, db).await?, Catalogs::of(&after, db).await?)
            else {
                continue;
            };
            let is_kept =
                |class: &Class| class.oid >= FIRST_NORMAL_OID && matches!(class.kind, b'r' | b'm' | b'S');
            let is_here = |class: &Class| nodes.iter().any(|node| node.rel == class.file);
            let mut missed = old.classes(|class| is_kept(class) && is_here(class)).await?;
            missed.retain(|class| nodes.contains(&old.node(class)));
            let left = new.classes(|class| missed.iter().any(|missed| missed.oid == class.oid)).await?;
            for class in missed {
                let node = old.node(&class);
                let blocks = before.rel_size(node, Fork::Main).await?.unwrap_or_default();
                let loss = match left.iter().find(|left| left.oid == class.oid) {
                    None => Some(Loss::Dropped),
                    Some(now) => {
                        let now_blocks = after.rel_size(new.node(now), Fork::Main).await?.unwrap_or_default();
                        rewritten(&class, blocks, now_blocks)
                    }
                };
                let Some(loss) = loss else { continue };
                let schema = old.schema_name(class.namespace).await?.unwrap_or_default();
                let kind = char::from(class.kind);
                let relation = Some(LostRelation { schema, name: class.name, kind, node, blocks });
                let database = Catalogs::database_name(&before, db).await?.unwrap_or_default();
                let (time, xid) = (Some(commit.time), commit.xid);
                lost.push(Lost {
                    before: commit.start,
                    lsn: commit.lsn,
                    time,
                    xid,
                    loss,
                    database,
                    relation,
                });
            }
        }
        Ok(lost)
    }

    async fn lost_database(
        &self,
        before: Lsn,
        lsn: Lsn,
        db: Oid,
        xid: Xid,
        upto: Lsn,
    ) -> Result<Option<Lost>, ReadError> {
        let Some(database) = Catalogs::database_name(&self.snapshot(before).await?, db).await? else {
            return Ok(None);
        };
        let mut time = None;
        for layer in self.layers().event_layers(lsn, upto) {
            let ends = self.layers().find_events(&layer, lsn, upto, EventFilter::Xid(xid)).await?;
            if let Some(end) = ends.first() {
                time = end.kind.is_commit().then_some(end.time);
                break;
            }
        }
        Ok(Some(Lost { before, lsn, time, xid, loss: Loss::DatabaseDropped, database, relation: None }))
    }
}

/// What it means that a relation has another file. Of sequences nothing is lost but a number.
fn rewritten(class: &Class, before: u32, now: u32) -> Option<Loss> {
    match (class.kind, before, now) {
        (b'S', ..) | (_, 0, _) => None,
        (_, _, 0) => Some(Loss::Truncated),
        _ => Some(Loss::Rewritten),
    }
}
