//! A timeline in memory, fed from the files of a real server.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

pub mod compare;

use object_store::path::Path as StorePath;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;
use zenith_ingest::archive::WalArchive;
use zenith_ingest::base::{BaseBuilder, BaseFile, BaseOptions, FinishedBase};
use zenith_ingest::slicer::{ManifestSink, Slicer, SlicerOptions, open_slicer};
use zenith_layers::{
    CacheOptions, Key, KeyClass, KeyRange, LayerCaches, LayerSet, LayerStore, ReadMode, Value,
};
use zenith_manifest::{BaseId, BaseKind, Change, Identity, ManifestStore, Role, Root};
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::wal::{StreamStart, WalStream};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{BLCKSZ, Lsn, Page, Tli};
use zenith_redo::native::Edit;
use zenith_store::{ClusterPaths, Env, Store, TimelineId, TimelinePaths};
use zenith_testkit::env::test_env;

pub struct Timeline {
    pub store: Store,
    pub env: Env,
    pub paths: TimelinePaths,
    pub archive: WalArchive,
    pub manifest: Arc<ManifestStore>,
    pub identity: Identity,
}

pub fn control(data: &Path) -> ControlFile {
    ControlFile::decode(&std::fs::read(data.join("global/pg_control")).expect("pg_control"))
        .expect("control file")
}

impl Timeline {
    pub fn new(control: &ControlFile, seed: u64) -> Timeline {
        let store = Store::memory();
        let env = test_env(seed);
        let id = TimelineId(Uuid::from_u128(u128::from(seed)));
        let paths = ClusterPaths::new(&StorePath::default(), "main").timeline(id);
        let size = control.wal_segment_size;
        let archive = WalArchive::new(store.objects.clone(), paths.clone(), size, control.system_identifier);
        let manifest = Arc::new(ManifestStore::new(store.objects.clone(), env.clone(), paths.clone(), None));
        let identity = Identity {
            format: 1,
            timeline: id,
            system_identifier: control.system_identifier,
            pg_major: 15,
            wal_segment_size: size.bytes() as u32,
            block_size: BLCKSZ as u32,
            ancestor: None,
            encryption: None,
        };
        Timeline { store, env, paths, archive, manifest, identity }
    }

    /// Archives the segments of `pg_wal` from the one at `from` to the one that holds `to`.
    pub async fn archive_wal(&self, data: &Path, tli: Tli, from: Lsn, to: Lsn) {
        let size = self.archive.segment_size();
        for segment in size.segment_of(from)..=size.segment_of(to) {
            let file = WalFile::Segment { tli, segment };
            let content = std::fs::read(data.join("pg_wal").join(file.name(size))).expect("kept segment");
            self.archive.put(&self.env, file, &content).await.expect("archived");
        }
    }

    pub fn builder(&self, kind: BaseKind, control: &ControlFile, redo: Lsn, checkpoint: Lsn) -> BaseBuilder {
        let options = BaseOptions {
            id: BaseId(self.env.ids.fresh()),
            kind,
            tli: control.checkpoint_copy.tli,
            redo,
            checkpoint,
            system_identifier: control.system_identifier,
            data_checksums: control.has_checksums(),
            spool_folder: std::env::temp_dir(),
            layer_bytes: 4 << 20,
        };
        BaseBuilder::new(options, self.store.objects.clone(), self.paths.clone(), self.env.clone())
            .expect("builder")
    }

    pub async fn register(&self, finished: FinishedBase) {
        let change = Change::RegisterBase { base: finished.image, layers: finished.layers };
        self.manifest.commit(&change).await.expect("registered");
    }

    pub async fn slicer(&self, options: SlicerOptions) -> Slicer<ManifestSink> {
        let (epoch, _) = self.manifest.take_epoch(Role::Slicer).await.expect("epoch");
        let caches = LayerCaches::new(CacheOptions::default());
        let objects = self.store.objects.clone();
        let manifest = self.manifest.clone();
        open_slicer(options, self.env.clone(), objects, manifest, &self.identity, None, caches, epoch)
            .await
            .expect("slicer")
    }

    pub async fn layers(&self) -> (Arc<Root>, LayerSet) {
        let root = self.manifest.latest().await.expect("root");
        let entries = self.manifest.layers(&root).await.expect("layers");
        let caches = LayerCaches::new(CacheOptions::default());
        let store = LayerStore::new(self.store.objects.clone(), self.paths.clone(), caches);
        (root, LayerSet::new(store, entries, None).expect("layer set"))
    }

    /// Every delta row in the timeline, for comparing two ways of slicing.
    pub async fn all_changes(&self) -> Vec<zenith_layers::Row> {
        let (_, layers) = self.layers().await;
        let everything = KeyRange { first: Key::MIN, last: Key::MAX };
        layers.versions(&[everything], Lsn::INVALID, Lsn::MAX).await.expect("versions")
    }
}

/// All files below a data directory, tablespaces inside it followed; by path below it.
pub fn files(data: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), data.to_owned())];
    while let Some((prefix, directory)) = open.pop() {
        for entry in std::fs::read_dir(&directory).expect("directory") {
            let entry = entry.expect("entry");
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let path = entry.path();
            if path.is_dir() {
                open.push((format!("{name}/"), path));
            } else {
                found.push((name, path));
            }
        }
    }
    found.sort();
    found
}

/// Brings every file of a directory, in chunks of an odd size.
pub async fn add_directory(builder: &mut BaseBuilder, data: &Path) {
    for (name, path) in files(data) {
        let Ok(content) = std::fs::read(&path) else { continue };
        if builder.begin_file(&name, 0o600, content.len() as u64).expect(&name) != BaseFile::Left {
            for chunk in content.chunks(100_003) {
                builder.chunk(chunk).await.expect(&name);
            }
        }
        builder.end_file().await.expect(&name);
    }
}

/// The end of the record at `lsn` in `pg_wal`.
pub fn record_end(data: &Path, control: &ControlFile, tli: Tli, lsn: Lsn) -> Lsn {
    let size = control.wal_segment_size;
    let mut stream = WalStream::new(StreamStart {
        lsn,
        prev: Lsn::INVALID,
        tli,
        seg_size: size,
        system_identifier: control.system_identifier,
    });
    let segment = size.segment_of(lsn);
    let name = WalFile::Segment { tli, segment }.name(size);
    let content = std::fs::read(data.join("pg_wal").join(name)).expect("segment");
    stream.feed(size.start_of(segment), content.into()).expect("fed");
    stream.next().expect("sound").expect("whole").end
}

/// The image of a cleanly stopped directory.
pub async fn directory_base(timeline: &Timeline, data: &Path) -> FinishedBase {
    let control = control(data);
    let (tli, at) = (control.checkpoint_copy.tli, control.checkpoint);
    let end = record_end(data, &control, tli, at);
    let mut builder = timeline.builder(BaseKind::Directory, &control, at, at);
    add_directory(&mut builder, data).await;
    let size: WalSegSize = control.wal_segment_size;
    let segment = size.segment_of(at);
    let name = WalFile::Segment { tli, segment }.name(size);
    let content = std::fs::read(data.join("pg_wal").join(name)).expect("segment");
    builder.add_wal(segment, size, &content[..size.offset_of(end) as usize]).await.expect("wal");
    builder.finish(end, "2026-01-01T00:00:00Z").await.expect("finished")
}

/// The newest values of a class at `lsn`.
pub async fn newest(layers: &LayerSet, class: KeyClass, lsn: Lsn) -> BTreeMap<Key, Value> {
    let found = layers.history(&[KeyRange::class(class)], lsn, ReadMode::Serve).await.expect("history");
    let states = found.into_iter().filter_map(|history| history.rows.into_iter().next());
    states.filter(|row| row.value != Value::Tombstone).map(|row| (row.key, row.value)).collect()
}

pub async fn state(layers: &LayerSet, key: Key, lsn: Lsn) -> Option<Vec<u8>> {
    let found = layers.history(&[KeyRange::one(key)], lsn, ReadMode::Serve).await.expect("history");
    match &found.first()?.rows.first()?.value {
        Value::State(bytes) => Some(bytes.to_vec()),
        _ => None,
    }
}

/// A page that only native edits change, built at `lsn`.
pub async fn edited_page(layers: &LayerSet, key: Key, lsn: Lsn) -> Page {
    let found = layers.history(&[KeyRange::one(key)], lsn, ReadMode::Serve).await.expect("history");
    let mut page: Page = [0; BLCKSZ];
    for row in found.iter().flat_map(|history| history.rows.iter().rev()) {
        match &row.value {
            Value::Page(bytes) if bytes.is_empty() => page = [0; BLCKSZ],
            Value::Page(bytes) => page.copy_from_slice(bytes),
            Value::Edit(bytes) => {
                Edit::decode(bytes).expect("edit").apply(&mut page, row.lsn).expect("applied")
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    page
}

/// Blocks of every fork in a directory.
pub fn fork_sizes(data: &Path) -> BTreeMap<Key, (u32, Vec<PathBuf>)> {
    let mut sizes: BTreeMap<Key, (u32, Vec<PathBuf>)> = BTreeMap::new();
    for (name, path) in files(data) {
        if let Some(file) = RelFile::parse(&name) {
            let blocks = std::fs::metadata(&path).expect("file").len() / BLCKSZ as u64;
            let entry = sizes.entry(Key::rel_size(file.node, file.fork)).or_default();
            entry.0 += blocks as u32;
            entry.1.push(path);
        }
    }
    sizes
}
