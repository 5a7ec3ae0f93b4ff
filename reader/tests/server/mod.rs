//! A cluster in a store in memory, fed from the files of a real server.

#![allow(dead_code, reason = "every test file uses a part of it")]

pub(crate) mod compare;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use zenith_ingest::archive::WalArchive;
use zenith_ingest::base::{BaseBuilder, BaseFile, BaseOptions};
use zenith_ingest::slicer::{SlicerOptions, open_slicer};
use zenith_layers::{CacheOptions, LayerCaches};
use zenith_manifest::{BaseId, BaseKind, Change, Identity, ManifestStore, Names, Role};
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::history::History;
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{BLCKSZ, Lsn, Tli};
use zenith_reader::{ReaderCaches, ReaderOptions, RedoSource, RowLimit, Timeline, TimelineRef};
use zenith_redo::RedoOptions;
use zenith_store::{ClusterPaths, Env, Store, TimelineId, TimelinePaths};
use zenith_testkit::pg::{Pg, command, run};

/// A cluster in a store in memory whose WAL comes from a server's own `pg_wal`.
pub(crate) struct Cluster {
    pub(crate) store: Store,
    env: Env,
    identity: Identity,
    paths: TimelinePaths,
    manifest: Arc<ManifestStore>,
    size: WalSegSize,
}

pub(crate) fn control(data: &Path) -> ControlFile {
    ControlFile::decode(&std::fs::read(data.join("global/pg_control")).unwrap()).unwrap()
}

/// All regular files below a data directory, by path relative to it; tablespaces are inside it here.
pub(crate) fn files(data: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), data.to_owned())];
    while let Some((prefix, directory)) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap().flatten() {
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.file_type().unwrap() {
                kind if kind.is_dir() && path != "pg_wal" => open.push((format!("{path}/"), entry.path())),
                kind if kind.is_file() => found.push((path, entry.path())),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

impl Cluster {
    /// Without any base image.
    pub(crate) async fn empty(control: &ControlFile) -> Cluster {
        let (store, env) = (Store::memory(), Env::system());
        let cluster = ClusterPaths::new(&store.prefix, "main");
        let size = control.wal_segment_size;
        let identity = Identity {
            format: Identity::FORMAT,
            timeline: TimelineId(env.ids.fresh()),
            system_identifier: control.system_identifier,
            pg_major: 15,
            wal_segment_size: u32::try_from(size.bytes()).unwrap(),
            block_size: 8192,
            ancestor: None,
            encryption: None,
        };
        let names = Names::new(Arc::clone(&store.objects), env.clone(), cluster.clone());
        names.create_timeline("main", &identity).await.unwrap();
        let paths = cluster.timeline(identity.timeline);
        let manifest = ManifestStore::new(Arc::clone(&store.objects), env.clone(), paths.clone(), None);
        Cluster { store, env, identity, paths, manifest: Arc::new(manifest), size }
    }

    /// With a base image of the stopped server.
    pub(crate) async fn of(pg: &Pg) -> Cluster {
        let control = control(pg.data());
        let made = Cluster::empty(&control).await;
        let (redo, end) = (control.checkpoint, stopped_at(pg.data()));
        made.base(BaseKind::Directory, pg.data(), (redo, redo, end)).await;
        made
    }

    /// Registers a data directory on TLI 1 as a base image with this redo LSN, checkpoint and end.
    pub(crate) async fn base(&self, kind: BaseKind, data: &Path, (redo, checkpoint, end): (Lsn, Lsn, Lsn)) {
        let options = BaseOptions {
            id: BaseId(self.env.ids.fresh()),
            kind,
            tli: 1,
            redo,
            checkpoint,
            system_identifier: self.identity.system_identifier,
            data_checksums: control(data).has_checksums(),
            spool_folder: std::env::temp_dir(),
            layer_bytes: 4 << 20,
        };
        let objects = Arc::clone(&self.store.objects);
        let mut builder = BaseBuilder::new(options, objects, self.paths.clone(), self.env.clone()).unwrap();
        for (path, file) in files(data) {
            let content = std::fs::read(&file).unwrap();
            if builder.begin_file(&path, 0o600, content.len() as u64).unwrap() != BaseFile::Left {
                builder.chunk(&content).await.unwrap();
            }
            builder.end_file().await.unwrap();
        }
        let finished = builder.finish(end, "2026-11-23T00:00:00Z").await.unwrap();
        let change = Change::RegisterBase { base: finished.image, layers: finished.layers };
        self.manifest.commit(&change).await.unwrap();
    }

    fn wal(&self) -> WalArchive {
        let objects = Arc::clone(&self.store.objects);
        WalArchive::new(objects, self.paths.clone(), self.size, self.identity.system_identifier)
    }

    /// Archives the segments of TLI 1 up to the one that holds the last checkpoint.
    pub(crate) async fn archive(&self, data: &Path) {
        self.archive_part(data, 1, Lsn::INVALID, control(data).checkpoint).await;
    }

    /// Archives the segments of a TLI from the one that holds `from` to the one that holds `upto`, where they are.
    pub(crate) async fn archive_part(&self, data: &Path, tli: Tli, from: Lsn, upto: Lsn) {
        let wanted = self.size.segment_of(from)..=self.size.segment_of(upto);
        for entry in std::fs::read_dir(data.join("pg_wal")).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            match WalFile::parse(&name, self.size) {
                Some(file @ WalFile::Segment { tli: its, segment })
                    if its == tli && wanted.contains(&segment) =>
                {
                    let content = std::fs::read(entry.path()).unwrap();
                    self.wal().put(&self.env, file, &content).await.unwrap();
                }
                _ => {}
            }
        }
    }

    /// Archives a TLI's history file; returns where it left its parent.
    pub(crate) async fn archive_history(&self, data: &Path, tli: Tli) -> Lsn {
        let file = WalFile::History { tli };
        let content = std::fs::read(data.join("pg_wal").join(file.name(self.size))).unwrap();
        self.wal().put(&self.env, file, &content).await.unwrap();
        History::parse(tli, &content).unwrap().begin()
    }

    /// Slices into the store, in many small layers, up to the record that ends at `upto`.
    pub(crate) async fn slice(&self, upto: Lsn) {
        let (epoch, _) = self.manifest.take_epoch(Role::Slicer).await.unwrap();
        let options = SlicerOptions { arena_bytes: 4 << 20, stop_at: Some(upto), ..SlicerOptions::default() };
        let mut slicer = open_slicer(
            options,
            self.env.clone(),
            Arc::clone(&self.store.objects),
            Arc::clone(&self.manifest),
            &self.identity,
            None,
            LayerCaches::new(CacheOptions::default()),
            epoch,
        )
        .await
        .unwrap();
        let report = slicer.run_once().await.unwrap();
        assert!(report.to <= upto && report.records > 0, "{report:?}");
    }

    pub(crate) async fn open(&self, work_dir: &Path) -> Timeline {
        self.open_with(work_dir, ReaderOptions::new(work_dir).rows).await
    }

    /// Reads so many rows at a time.
    pub(crate) async fn open_with(&self, work_dir: &Path, rows: RowLimit) -> Timeline {
        let options = ReaderOptions {
            env: self.env.clone(),
            caches: ReaderCaches::new(CacheOptions::default(), 16 << 20),
            redo: RedoSource::lazy(RedoOptions::default()),
            work_dir: work_dir.to_owned(),
            version: None,
            rows,
        };
        Timeline::open(&self.store, "main", &TimelineRef::Name("main".to_owned()), options).await.unwrap()
    }
}

/// A copy of a stopped server's data directory.
pub(crate) fn copy(pg: &Pg, name: &str) -> PathBuf {
    let to = pg.home().join(name);
    run(command("cp").arg("-a").arg(pg.data()).arg(&to));
    to
}

/// The end of the shutdown checkpoint that a stopped server wrote last: a record of 24 + 2 + 88 bytes.
pub(crate) fn stopped_at(data: &Path) -> Lsn {
    let control = control(data);
    let (start, page) = (control.checkpoint.0, BLCKSZ as u64);
    let page_end = (start / page + 1) * page;
    let header = match start + 114 > page_end {
        false => 0,
        true if page_end.is_multiple_of(control.wal_segment_size.bytes()) => 40,
        true => 24,
    };
    Lsn(start + 114 + header).max_align()
}
