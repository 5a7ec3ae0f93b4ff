//! What it takes to read one page, for people.

use crate::error::ReadError;
use crate::locate::{Begins, Wanted};
use crate::snapshot::Snapshot;
use bytes::Bytes;
use serde::Serialize;
use zenith_layers::{Key, Row, Value};
use zenith_manifest::{BaseId, LayerKind};
use zenith_pgformat::{Fork, Lsn, RelNode, Tli};
use zenith_store::TimelineId;

/// How a page was read.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Where.
    pub lsn: Lsn,
    /// The fork's length there, in blocks.
    pub blocks: u32,
    /// The relations that the history was looked for under: more than one where the database is a copy by files.
    pub relations: Vec<String>,
    /// The base image that reads start from.
    pub base: BaseId,
    /// What the page begins as.
    pub start: PageStart,
    /// What it is built from, oldest first.
    pub rows: Vec<ExplainedRow>,
    /// The layers that may hold them, by the manifests' entries.
    pub layers: Vec<ExplainedLayer>,
    /// Requests made of the store; fewer when caches were warm.
    pub requests: u64,
    /// Bytes that came back.
    pub bytes: u64,
    /// The page.
    #[serde(skip)]
    pub page: Bytes,
}

/// What a page's history begins as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PageStart {
    /// As the oldest row says.
    Row,
    /// As zeros: skipped by growth, or a hole of the base image.
    Zeros,
}

/// One value that the page is built from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ExplainedRow {
    /// End of the record that made it.
    pub lsn: Lsn,
    /// `page`, `record`, `init record`, `edit`.
    pub kind: &'static str,
    /// Resource manager.
    pub rmgr: String,
    /// `xl_info`.
    pub info: u8,
    /// Transaction.
    pub xid: u32,
    /// Length of the whole record in the WAL.
    pub record_bytes: u32,
    /// Length of what is stored for this block.
    pub stored_bytes: usize,
}

/// A layer that may hold rows of the page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ExplainedLayer {
    /// Whose.
    pub timeline: TimelineId,
    /// The object's path.
    pub object: String,
    /// What it holds.
    pub kind: LayerKind,
    /// PostgreSQL's timeline.
    pub tli: Tli,
    /// Its rows lie above this.
    pub lsn_from: Lsn,
    /// Its rows lie at or below this.
    pub lsn_to: Lsn,
    /// Size of the object.
    pub bytes: u64,
}

impl Snapshot {
    /// Reads one page past the page cache and says what it took.
    ///
    /// # Errors
    /// As [`Snapshot::page`].
    pub async fn explain(&self, node: RelNode, fork: Fork, block: u32) -> Result<Explanation, ReadError> {
        let counts = self.timeline().counts();
        let before = counts.snapshot();
        let plan = self.plan_of(node, fork).await?;
        self.check_block(node, &plan, block)?;
        let relations: Vec<String> = plan.scopes.iter().map(|scope| scope.node.to_string()).collect();
        let keys: Vec<Key> =
            plan.scopes.iter().map(|scope| Key::rel_block(scope.node, fork, block)).collect();
        let blocks = plan.blocks;
        let lines = self.locate(&[Wanted { node, plan, block }]).await?;
        let mut rows: Vec<ExplainedRow> = Vec::new();
        let layers = self.timeline().layers();
        let builds = self.replay(layers, &lines, &mut |row| rows.push(explain_row(row))).await?;
        let lost = ReadError::LostBase { key: Key::rel_block(node, fork, block), lsn: self.lsn() };
        let page = self.finish(builds)?.pop().ok_or(lost)?;
        let zeros = lines.iter().any(|line| line.begins == Begins::Zeros);
        let start = if zeros { PageStart::Zeros } else { PageStart::Row };
        let oldest = rows.first().filter(|_| !zeros).map_or(self.inner.used.lsn, |row| row.lsn);
        let spent = counts.snapshot().since(&before);
        Ok(Explanation {
            lsn: self.lsn(),
            blocks,
            relations,
            base: self.base().id,
            start,
            rows,
            layers: self.layers_of(&keys, oldest),
            requests: spent.requests(),
            bytes: spent.bytes_got,
            page,
        })
    }

    /// The layers whose bounds admit rows of the keys between `oldest` and the snapshot's LSN.
    fn layers_of(&self, keys: &[Key], oldest: Lsn) -> Vec<ExplainedLayer> {
        let keys: Vec<_> = keys.iter().map(Key::to_bytes).collect();
        let mut found = Vec::new();
        let (mut next, mut upto) = (Some(self.timeline()), self.lsn());
        while let Some(timeline) = next {
            for entry in timeline.all_entries() {
                let holds = keys.iter().any(|key| entry.key_min <= *key && *key <= entry.key_max);
                let in_time = match entry.kind {
                    LayerKind::Delta => entry.lsn_from < upto && entry.lsn_to >= oldest,
                    LayerKind::Image => entry.base == Some(self.base().id) && entry.lsn_to >= oldest,
                    LayerKind::Events => false,
                };
                if holds && in_time {
                    found.push(ExplainedLayer {
                        timeline: timeline.id(),
                        object: timeline.paths().layer(entry.id).to_string(),
                        kind: entry.kind,
                        tli: entry.tli,
                        lsn_from: entry.lsn_from,
                        lsn_to: entry.lsn_to,
                        bytes: entry.bytes,
                    });
                }
            }
            upto = timeline.state.parent.as_ref().map_or(upto, |(_, branch)| upto.min(branch.lsn));
            next = timeline.parent();
        }
        found.sort_by_key(|layer| layer.lsn_to);
        found
    }
}

fn explain_row(row: &Row) -> ExplainedRow {
    let kind = match row.value {
        Value::Page(_) => "page",
        Value::Record(_) => "record",
        Value::InitRecord(_) => "init record",
        Value::Edit(_) => "edit",
        Value::State(_) => "state",
        Value::Tombstone => "tombstone",
    };
    ExplainedRow {
        lsn: row.lsn,
        kind,
        rmgr: row.source.rmgr.to_string(),
        info: row.source.info,
        xid: row.source.xid,
        record_bytes: row.source.length,
        stored_bytes: row.value.payload().len(),
    }
}
