//! A cluster in a store in memory, made by hand: base images and slices of rows that a test writes down.

#![allow(dead_code, reason = "every test file uses a part of it")]

use bytes::Bytes;
use std::sync::Arc;
use zenith_ingest::archive::WalArchive;
use zenith_ingest::model::{Alias, Database, Parameters, RelEvent, RelSize};
use zenith_layers::{
    CacheOptions, Event, EventWriter, FinishedLayer, Key, LayerWriter, Row, Source, Value, WriterOptions,
    store_layer,
};
use zenith_manifest::{
    Ancestor, BaseId, BaseImage, BaseKind, Branch, Change, Identity, LayerEntry, ManifestStore, Names, Role,
    Slice, SlicedPosition, TliSwitch,
};
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RelNode, Tli, page};
use zenith_reader::{ReadError, ReaderCaches, ReaderOptions, RedoSource, RowLimit, Timeline, TimelineRef};
use zenith_redo::RedoOptions;
use zenith_store::{ClusterPaths, Env, Store, TimelineId, TimelinePaths};
use zenith_testkit::env::test_env;

pub(crate) const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16384 };

pub(crate) const SYSTEM: u64 = 7;

/// One timeline of the cluster "main".
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) env: Env,
    pub(crate) identity: Identity,
    pub(crate) manifest: ManifestStore,
    pub(crate) tli: Tli,
    /// How it is opened.
    pub(crate) caches: CacheOptions,
    pub(crate) rows: RowLimit,
    paths: TimelinePaths,
    sliced: Lsn,
    epoch: u64,
    /// What the next slice follows.
    pub(crate) switches: Vec<TliSwitch>,
}

impl World {
    pub(crate) async fn new(seed: u64) -> World {
        World::with(Store::memory(), seed, "main", None).await
    }

    async fn with(store: Store, seed: u64, name: &str, ancestor: Option<(Ancestor, Tli)>) -> World {
        let env = test_env(seed);
        let cluster = ClusterPaths::new(&store.prefix, "main");
        let names = Names::new(Arc::clone(&store.objects), env.clone(), cluster.clone());
        let identity = Identity {
            format: Identity::FORMAT,
            timeline: TimelineId(env.ids.fresh()),
            system_identifier: SYSTEM,
            pg_major: 15,
            wal_segment_size: 1 << 20,
            block_size: 8192,
            ancestor: ancestor.map(|(ancestor, _)| ancestor),
            encryption: None,
        };
        match ancestor {
            None => names.create_timeline(name, &identity).await.unwrap(),
            Some((ancestor, tli)) => {
                let branch = Branch::new(identity.timeline, ancestor, Lsn::INVALID);
                let start = SlicedPosition { tli, ..branch.start };
                names.create_branch(name, &Branch { start, ..branch }).await.unwrap();
            }
        }
        let paths = cluster.timeline(identity.timeline);
        let manifest =
            ManifestStore::new(Arc::clone(&store.objects), env.clone(), paths.clone(), identity.ancestor);
        let (tli, sliced) = ancestor.map_or((1, Lsn::INVALID), |(ancestor, tli)| (tli, ancestor.lsn));
        let (caches, rows) = (CacheOptions::default(), ReaderOptions::new("").rows);
        World {
            store,
            env,
            identity,
            manifest,
            tli,
            caches,
            rows,
            paths,
            sliced,
            epoch: 0,
            switches: Vec::new(),
        }
    }

    /// A child, branched off at `lsn`.
    pub(crate) async fn branch(&self, name: &str, lsn: u64) -> World {
        let ancestor = Ancestor { timeline: self.identity.timeline, lsn: Lsn(lsn), tli: self.tli };
        World::with(self.store.clone(), lsn + 1000, name, Some((ancestor, self.tli + 1))).await
    }

    /// What makes the timeline exist.
    pub(crate) fn identity_path(&self) -> object_store::path::Path {
        self.paths.identity()
    }

    /// Every layer that it has stored.
    pub(crate) async fn layers(&self) -> Vec<object_store::path::Path> {
        use futures::TryStreamExt;
        let folder = self.paths.layers();
        self.store.objects.list(Some(&folder)).map_ok(|found| found.location).try_collect().await.unwrap()
    }

    async fn keep(&self, finished: FinishedLayer) -> LayerEntry {
        store_layer(&self.store.objects, &self.paths, &self.env, &finished).await.unwrap()
    }

    /// A base image of `rows` and the states that every one has, with checksums on.
    pub(crate) async fn base(&mut self, redo: u64, end: u64, mut rows: Vec<Row>) -> BaseId {
        let id = BaseId(self.env.ids.fresh());
        rows.extend(states());
        rows.iter_mut().for_each(|row| row.lsn = Lsn(redo));
        rows.sort_by_key(|row| row.key);
        let mut writer = LayerWriter::new(WriterOptions::image(self.tli, Lsn(redo), Some(id))).unwrap();
        rows.iter().for_each(|row| writer.push(row).unwrap());
        let mut entry = self.keep(writer.finish().unwrap()).await;
        entry.serves_from = Lsn(end);
        let base = BaseImage {
            id,
            kind: BaseKind::Online,
            tli: self.tli,
            redo: Lsn(redo),
            checkpoint: Lsn(redo),
            end: Lsn(end),
            confirmed: false,
            taken_at: String::new(),
            data_bytes: 0,
            stored_bytes: 0,
            data_checksums: true,
        };
        self.manifest.commit(&Change::RegisterBase { base, layers: vec![entry] }).await.unwrap();
        if self.sliced < Lsn(redo) && self.epoch == 0 {
            self.sliced = Lsn(redo);
        }
        id
    }

    /// Slices up to `to`.
    pub(crate) async fn slice(
        &mut self,
        to: u64,
        mut rows: Vec<Row>,
        events: &[Event],
        confirmed: &[BaseId],
    ) {
        if self.epoch == 0 {
            self.epoch = self.manifest.take_epoch(Role::Slicer).await.unwrap().0;
        }
        let (from, to) = (self.sliced, Lsn(to));
        rows.sort_by_key(|row| (row.key, row.lsn));
        let mut layers = Vec::new();
        if !rows.is_empty() {
            let mut writer = LayerWriter::new(WriterOptions::delta(self.tli, from, to)).unwrap();
            rows.iter().for_each(|row| writer.push(row).unwrap());
            layers.push(self.keep(writer.finish().unwrap()).await);
        }
        if !events.is_empty() {
            let mut writer = EventWriter::new(self.tli, from, to).unwrap();
            events.iter().for_each(|event| writer.push(event).unwrap());
            layers.push(self.keep(writer.finish().unwrap()).await);
        }
        let slice = Slice {
            epoch: self.epoch,
            from,
            to,
            prev: Lsn::INVALID,
            layers,
            confirmed: confirmed.to_vec(),
            switches: std::mem::take(&mut self.switches),
            state: serde_json::Value::Null,
        };
        self.manifest.commit(&Change::Slice(slice)).await.unwrap();
        self.sliced = to;
    }

    /// Archives WAL that begins at a segment's start, all whole segments of it.
    pub(crate) async fn archive(&self, start: Lsn, bytes: &[u8]) {
        let size = WalSegSize::new(u64::from(self.identity.wal_segment_size)).unwrap();
        let archive = WalArchive::new(Arc::clone(&self.store.objects), self.paths.clone(), size, SYSTEM);
        for (segment, content) in (size.segment_of(start)..).zip(bytes.chunks_exact(1 << 20)) {
            archive.put(&self.env, WalFile::Segment { tli: self.tli, segment }, content).await.unwrap();
        }
    }

    /// WAL is missing from the sliced position to `base`.
    pub(crate) async fn gap(&mut self, base: BaseId, redo: u64) {
        let change = Change::BeginRange { epoch: self.epoch, at: self.sliced, base };
        self.manifest.commit(&change).await.unwrap();
        self.sliced = Lsn(redo);
    }

    pub(crate) async fn open(&self) -> Timeline {
        self.try_open().await.unwrap()
    }

    pub(crate) fn options(&self) -> ReaderOptions {
        ReaderOptions {
            env: self.env.clone(),
            caches: ReaderCaches::new(self.caches, 1 << 20),
            redo: RedoSource::lazy(RedoOptions::default()),
            work_dir: std::env::temp_dir(),
            version: None,
            rows: self.rows,
        }
    }

    pub(crate) async fn try_open(&self) -> Result<Timeline, ReadError> {
        Timeline::open(&self.store, "main", &TimelineRef::Id(self.identity.timeline), self.options()).await
    }
}

fn states() -> Vec<Row> {
    vec![
        state(Key::PARAMETERS, 0, parameters(false)),
        state(Key::CHECKPOINT, 0, Bytes::copy_from_slice(&CheckPoint::default().encode())),
    ]
}

pub(crate) fn parameters(wal_log_hints: bool) -> Bytes {
    let parameters = Parameters {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
        wal_level: 1,
        wal_log_hints,
        track_commit_timestamp: false,
    };
    parameters.encode()
}

fn row(key: Key, lsn: u64, value: Value) -> Row {
    Row { key, lsn: Lsn(lsn), value, source: Source::NONE }
}

pub(crate) fn state(key: Key, lsn: u64, bytes: Bytes) -> Row {
    row(key, lsn, Value::State(bytes))
}

pub(crate) fn tombstone(key: Key, lsn: u64) -> Row {
    row(key, lsn, Value::Tombstone)
}

pub(crate) fn edit(key: Key, lsn: u64, bytes: Bytes) -> Row {
    row(key, lsn, Value::Edit(bytes))
}

/// The size of a fork that has no events.
pub(crate) fn size(node: RelNode, lsn: u64, blocks: u32, created: u64) -> Row {
    let size = RelSize { blocks, ..RelSize::new(Lsn(created)) };
    state(Key::rel_size(node, Fork::Main), lsn, size.encode())
}

/// The size of a fork after an event at `event`.
pub(crate) fn size_after(node: RelNode, lsn: u64, blocks: u32, created: u64, event: u64) -> Row {
    let size = RelSize { blocks, created: Lsn(created), last_truncation: Lsn(event), last_gap: Lsn(event) };
    state(Key::rel_size(node, Fork::Main), lsn, size.encode())
}

pub(crate) fn happened(node: RelNode, lsn: u64, event: RelEvent) -> Row {
    state(Key::rel_event(node, Fork::Main), lsn, event.encode())
}

pub(crate) fn database(spc: u32, db: u32, created: u64, alias: Option<(u32, u32, u64)>) -> Row {
    let alias = alias.map(|(spc, db, lsn)| Alias { spc, db, lsn: Lsn(lsn) });
    let value = Database { created: Lsn(created), alias };
    state(Key::database(spc, db), created, value.encode())
}

/// A page row whose content tells which it is.
pub(crate) fn page_row(node: RelNode, block: u32, lsn: u64, mark: u8) -> Row {
    row(Key::rel_block(node, Fork::Main, block), lsn, Value::Page(Bytes::copy_from_slice(&marked(lsn, mark))))
}

/// A heap page without items, `mark` in its last byte.
pub(crate) fn marked(lsn: u64, mark: u8) -> [u8; BLCKSZ] {
    let mut bytes = [0; BLCKSZ];
    page::set_lsn(&mut bytes, Lsn(lsn));
    bytes[12..14].copy_from_slice(&24u16.to_le_bytes());
    bytes[14..16].copy_from_slice(&8192u16.to_le_bytes());
    bytes[16..18].copy_from_slice(&8192u16.to_le_bytes());
    bytes[18..20].copy_from_slice(&(8192u16 | 4).to_le_bytes());
    bytes[BLCKSZ - 1] = mark;
    bytes
}

/// The mark of a page; 0 for zeros.
pub(crate) fn mark_of(page: &[u8]) -> u8 {
    assert_eq!(page.len(), BLCKSZ);
    page[BLCKSZ - 1]
}
