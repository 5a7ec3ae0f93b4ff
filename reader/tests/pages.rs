//! Every page of a real server, as the reader builds it, beside the files that the server left behind.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zenith_ingest::archive::WalArchive;
use zenith_ingest::base::{BaseBuilder, BaseFile, BaseOptions};
use zenith_ingest::slicer::{SlicerOptions, open_slicer};
use zenith_layers::{CacheOptions, LayerCaches, Slru};
use zenith_manifest::{BaseId, BaseKind, Change, Identity, ManifestStore, Names, Role};
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RELSEG_SIZE, RelNode, page};
use zenith_reader::{ReaderCaches, ReaderOptions, RedoSource, Relation, Snapshot, Timeline, TimelineRef};
use zenith_redo::RedoOptions;
use zenith_store::{ClusterPaths, Env, Store, TimelineId, TimelinePaths};
use zenith_testkit::mask::first_difference;
use zenith_testkit::pg::{Pg, PgOptions, StopMode, command, give_to_server, run};

const WORKLOAD: &str = include_str!("../../redo/tests/common/workload.sql");
/// `FirstNormalObjectId`, access/transam.h.
const FIRST_USER_DATABASE: u32 = 16384;
const DATABASES: &str = include_str!("databases.sql");
const MORE: &str = "
    SELECT fill(7001, 7300);
    UPDATE things SET n = n + 1 WHERE id % 5 = 0;
    VACUUM things;
    UPDATE kept SET v = v || 'x' WHERE id % 3 = 0;
    VACUUM kept;
    TRUNCATE words;
    INSERT INTO words VALUES ('one');
    DROP TABLE narrow;
    COMMIT PREPARED 'pending';
    BEGIN; INSERT INTO there VALUES (-3); PREPARE TRANSACTION 'still pending';
    DROP DATABASE logged;
";

/// A cluster in a store in memory whose WAL comes from a server's own `pg_wal`.
struct Cluster {
    store: Store,
    env: Env,
    identity: Identity,
    paths: TimelinePaths,
    manifest: Arc<ManifestStore>,
    size: WalSegSize,
}

fn control(data: &Path) -> ControlFile {
    ControlFile::decode(&std::fs::read(data.join("global/pg_control")).unwrap()).unwrap()
}

/// All regular files below a data directory, by path relative to it; tablespaces are inside it here.
fn files(data: &Path) -> Vec<(String, PathBuf)> {
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
    /// A base image of the stopped server.
    async fn of(pg: &Pg) -> Cluster {
        let control = control(pg.data());
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
        names.create_timeline("main", &identity, None).await.unwrap();
        let paths = cluster.timeline(identity.timeline);
        let manifest = ManifestStore::new(Arc::clone(&store.objects), env.clone(), paths.clone(), None);
        let made = Cluster { store, env, identity, paths, manifest: Arc::new(manifest), size };
        made.base(pg.data(), &control).await;
        made
    }

    async fn base(&self, data: &Path, control: &ControlFile) {
        let redo = control.checkpoint;
        let options = BaseOptions {
            id: BaseId(self.env.ids.fresh()),
            kind: BaseKind::Directory,
            tli: 1,
            redo,
            checkpoint: redo,
            system_identifier: control.system_identifier,
            data_checksums: control.has_checksums(),
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
        let end = stopped_at(data);
        let finished = builder.finish(end, "2026-11-23T00:00:00Z").await.unwrap();
        let change = Change::RegisterBase { base: finished.image, layers: finished.layers };
        self.manifest.commit(&change).await.unwrap();
    }

    /// Archives the segments up to the one that holds the last checkpoint.
    async fn archive(&self, data: &Path) {
        let objects = Arc::clone(&self.store.objects);
        let archive =
            WalArchive::new(objects, self.paths.clone(), self.size, self.identity.system_identifier);
        let last = self.size.segment_of(control(data).checkpoint);
        for entry in std::fs::read_dir(data.join("pg_wal")).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            match WalFile::parse(&name, self.size) {
                Some(file @ WalFile::Segment { segment, .. }) if segment <= last => {
                    let content = std::fs::read(entry.path()).unwrap();
                    archive.put(&self.env, file, &content).await.unwrap();
                }
                _ => {}
            }
        }
    }

    /// Slices into the store, in many small layers, up to the record that ends at `upto`.
    async fn slice(&self, upto: Lsn) {
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

    async fn open(&self, work_dir: &Path) -> Timeline {
        let options = ReaderOptions {
            env: self.env.clone(),
            caches: ReaderCaches::new(CacheOptions::default(), 16 << 20),
            redo: RedoSource::lazy(RedoOptions::default()),
            work_dir: work_dir.to_owned(),
            version: None,
        };
        Timeline::open(&self.store, "main", &TimelineRef::Name("main".to_owned()), options).await.unwrap()
    }
}

/// What a stopped server left: its forks, free-space maps and what is not permanent aside.
fn forks(data: &Path) -> BTreeMap<(RelNode, Fork), Vec<u8>> {
    let found: Vec<(RelFile, PathBuf)> =
        files(data).into_iter().filter_map(|(path, file)| Some((RelFile::parse(&path)?, file))).collect();
    let unlogged: BTreeSet<RelNode> =
        found.iter().filter(|(file, _)| file.fork == Fork::Init).map(|(file, _)| file.node).collect();
    let mut forks: BTreeMap<(RelNode, Fork), Vec<u8>> = BTreeMap::new();
    for (file, path) in found {
        let permanent = file.fork == Fork::Init || !unlogged.contains(&file.node);
        if permanent && file.fork != Fork::Fsm {
            assert!(file.segment == 0 || file.segment < RELSEG_SIZE);
            forks.entry((file.node, file.fork)).or_default().extend(std::fs::read(path).unwrap());
        }
    }
    forks
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

/// A sequence's page (`SEQ_MAGIC` in its special space): WAL tells its values up to 32 ahead.
fn is_sequence(page: &[u8]) -> bool {
    page[BLCKSZ - 8..] == [0x17, 0x17, 0, 0, 0, 0, 0, 0]
}

/// All zeros, or a heap page without anything on it: what extending a relation leaves behind and WAL does not tell.
fn is_empty(page: &[u8]) -> bool {
    is_zero(page) || (page[12..14] == [24, 0] && page[14..18] == [0, 32, 0, 32] && is_zero(&page[24..]))
}

#[derive(Default, Debug)]
struct Found {
    pages: usize,
    /// Pages whose LSN is the server's too.
    same_lsn: usize,
    differences: Vec<String>,
}

/// Compares every page, in the batches that a restore reads.
async fn compare(snapshot: &Snapshot, server: &BTreeMap<(RelNode, Fork), Vec<u8>>, checksums: bool) -> Found {
    let mut found = Found::default();
    for ((node, fork), theirs) in server {
        let theirs_blocks = (theirs.len() / BLCKSZ) as u32;
        let blocks = snapshot.rel_size(*node, *fork).await.unwrap().unwrap_or(0);
        if blocks > theirs_blocks {
            found
                .differences
                .push(format!("{node} {fork:?}: {blocks} blocks, the server has {theirs_blocks}"));
            continue;
        }
        let mut ours: Vec<Bytes> = Vec::new();
        while (ours.len() as u32) < blocks {
            let from = ours.len() as u32;
            match snapshot.pages(*node, *fork, from, (blocks - from).min(256)).await {
                Ok(mut pages) => ours.append(&mut pages),
                Err(error) => {
                    found.differences.push(format!("{node} {fork:?} from {from}: {error}"));
                    break;
                }
            }
        }
        for (block, theirs) in theirs.chunks_exact(BLCKSZ).enumerate() {
            match ours.get(block) {
                Some(ours) => compare_page(&mut found, *node, *fork, block as u32, ours, theirs, checksums),
                None if block < blocks as usize || is_empty(theirs) => {}
                None => found.differences.push(format!("{node} {fork:?} block {block} is missing")),
            }
        }
    }
    found
}

fn compare_page(
    found: &mut Found,
    node: RelNode,
    fork: Fork,
    block: u32,
    ours: &[u8],
    theirs: &[u8],
    checksums: bool,
) {
    found.pages += 1;
    let lsn = |page: &[u8]| page::lsn(page.try_into().unwrap());
    if lsn(ours) == lsn(theirs) {
        found.same_lsn += 1;
    } else if !is_sequence(theirs) && !is_zero(ours) && fork != Fork::Init {
        // A B-tree's init fork is written before it is logged (`btbuildempty`), so its file knows no LSN.
        let (ours, theirs) = (lsn(ours), lsn(theirs));
        found.differences.push(format!("{node} {fork:?} block {block}: LSNs {ours} and {theirs}"));
    }
    if let Err(error) = page::verify(ours.try_into().unwrap(), block, checksums) {
        found.differences.push(format!("{node} {fork:?}: {error}"));
    }
    // The mask takes a map page's bits for a hole.
    let differs = match fork {
        // CREATE DATABASE ... WAL_LOG logs map pages as if they had a hole, so that redo loses their bits
        // (`RelationCopyStorageUsingBuffer`, bufmgr.c). A bit less is always safe.
        Fork::Vm if node.db >= FIRST_USER_DATABASE => (24..BLCKSZ).find(|at| ours[*at] & !theirs[*at] != 0),
        Fork::Vm => (24..BLCKSZ).find(|at| ours[*at] != theirs[*at]),
        _ => first_difference(ours, theirs, block),
    };
    if let Some(at) = differs
        && !is_sequence(theirs)
        && !(is_zero(ours) && is_empty(theirs))
    {
        let (ours_lsn, theirs_lsn) = (lsn(ours), lsn(theirs));
        let (end, special) = ((at + 8).min(BLCKSZ), u16::from_le_bytes([ours[16], ours[17]]));
        found.differences.push(format!(
            "{node} {fork:?} block {block}: byte {at} differs, {:02x?} and {:02x?}; special {special}; LSNs {ours_lsn} and \
             {theirs_lsn}",
            &ours[at..end],
            &theirs[at..end],
        ));
    }
}

/// Relations that the snapshot lists and the server has not.
async fn invented(snapshot: &Snapshot, server: &BTreeMap<(RelNode, Fork), Vec<u8>>) -> Vec<String> {
    let nodes: BTreeSet<(u32, u32)> = server.keys().map(|(node, _)| (node.spc, node.db)).collect();
    let mut places: BTreeSet<(u32, u32)> =
        snapshot.databases().into_iter().map(|entry| (entry.spc, entry.db)).collect();
    let unlisted: Vec<_> = nodes.iter().filter(|place| place.1 != 0 && !places.contains(place)).collect();
    assert!(unlisted.is_empty(), "databases that are not listed: {unlisted:?}");
    places.insert((1664, 0));
    let mut invented = Vec::new();
    for (spc, db) in places {
        let relations = snapshot.relations(spc, db).await.unwrap();
        let inits: BTreeSet<RelNode> =
            relations.iter().filter(|r| r.fork == Fork::Init).map(|r| r.node).collect();
        for relation in relations {
            let compared = relation.fork != Fork::Fsm
                && (relation.fork == Fork::Init || !inits.contains(&relation.node));
            if compared && !server.contains_key(&(relation.node, relation.fork)) {
                invented.push(format!("{relation:?}"));
            }
            if relation.fork == Fork::Fsm {
                readable(snapshot, relation).await;
            }
            let listed = snapshot.rel_size(relation.node, relation.fork).await.unwrap();
            assert_eq!(listed, Some(relation.blocks), "{relation:?}");
        }
    }
    invented
}

/// A hint is never compared, and still a page that PostgreSQL takes.
async fn readable(snapshot: &Snapshot, map: Relation) {
    for block in 0..map.blocks {
        let page = snapshot.page(map.node, map.fork, block).await.unwrap();
        page::verify(page[..].try_into().unwrap(), block, snapshot.data_checksums()).unwrap();
    }
}

/// SLRUs, relation maps, prepared transactions and counters, byte by byte.
async fn compare_small(snapshot: &Snapshot, data: &Path) {
    for slru in Slru::ALL {
        for (segment, pages) in snapshot.slru_segments(slru).await.unwrap() {
            let path = data.join(slru.directory()).join(format!("{segment:04X}"));
            let mut theirs = std::fs::read(&path).unwrap();
            let ours = snapshot.slru_segment(slru, segment).await.unwrap();
            assert_eq!(ours.len(), pages as usize * BLCKSZ);
            theirs.resize(theirs.len().max(ours.len()), 0);
            let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{}", path.display());
            assert!(theirs[ours.len()..].iter().all(|byte| *byte == 0), "{}", path.display());
        }
    }
    let mut maps = 0;
    for (path, file) in files(data).into_iter().filter(|(path, _)| path.ends_with("pg_filenode.map")) {
        let parts: Vec<&str> = path.split('/').collect();
        let place = match parts.as_slice() {
            ["global", _] => (1664, 0),
            ["base", db, _] => (1663, db.parse().unwrap()),
            ["pg_tblspc", spc, _, db, _] => (spc.parse().unwrap(), db.parse().unwrap()),
            _ => panic!("{path}"),
        };
        let ours = snapshot.rel_map(place.0, place.1).await.unwrap();
        assert_eq!(ours.as_deref(), Some(std::fs::read(file).unwrap().as_slice()), "{path}");
        maps += 1;
    }
    assert!(maps > 4);
    let prepared = snapshot.two_phase().await.unwrap();
    let theirs = std::fs::read_dir(data.join("pg_twophase")).unwrap().count();
    assert_eq!(prepared.len(), theirs);
    for (xid, ours) in prepared {
        let theirs = std::fs::read(data.join(format!("pg_twophase/{xid:08X}"))).unwrap();
        assert_eq!(ours, theirs, "{xid}");
    }
    let control = control(data);
    let (ours, theirs) = (snapshot.checkpoint().await.unwrap(), control.checkpoint_copy);
    assert_eq!(snapshot.next_xid().await.unwrap().0, theirs.next_xid);
    assert_eq!(
        (ours.next_oid, ours.next_multi, ours.next_multi_offset, ours.oldest_xid, ours.oldest_multi),
        (
            theirs.next_oid,
            theirs.next_multi,
            theirs.next_multi_offset,
            theirs.oldest_xid,
            theirs.oldest_multi
        )
    );
    let parameters = snapshot.parameters().await.unwrap();
    assert_eq!(parameters.wal_log_hints, control.wal_log_hints);
}

/// A copy of a stopped server's data directory.
fn copy(pg: &Pg, name: &str) -> PathBuf {
    let to = pg.home().join(name);
    run(command("cp").arg("-a").arg(pg.data()).arg(&to));
    to
}

async fn agree(timeline: &Timeline, lsn: Lsn, data: &Path, checksums: bool) {
    let snapshot = timeline.snapshot(lsn).await.unwrap();
    let server = forks(data);
    let found = compare(&snapshot, &server, checksums).await;
    let mut differences = found.differences;
    differences.extend(invented(&snapshot, &server).await);
    println!("{lsn}: {} pages, {} with the server's LSN", found.pages, found.same_lsn);
    assert!(
        differences.is_empty(),
        "{} at {lsn}:\n{}",
        differences.len(),
        differences[..differences.len().min(40)].join("\n")
    );
    assert!(found.pages > 5000, "{}", found.pages);
    compare_small(&snapshot, data).await;
}

/// The end of the shutdown checkpoint that a stopped server wrote last: a record of 24 + 2 + 88 bytes.
fn stopped_at(data: &Path) -> Lsn {
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

async fn every_page(options: PgOptions, checksums: bool, second_half: &[&str]) {
    let options = options
        .initdb("--wal-segsize=1")
        .conf("autovacuum = off")
        .conf("max_wal_size = 4GB")
        .conf("wal_keep_size = 4GB")
        .conf("max_prepared_transactions = 5")
        .conf("track_commit_timestamp = on")
        .conf("allow_in_place_tablespaces = on");
    let pg = Pg::start_new(&options);
    pg.sql("CREATE TABLE before AS SELECT i, md5(i::text) AS t FROM generate_series(1, 3000) i");
    pg.sql("CREATE TABLESPACE here LOCATION ''");
    pg.stop(StopMode::Fast);
    let cluster = Cluster::of(&pg).await;
    pg.start();
    pg.script("postgres", WORKLOAD);
    pg.script("postgres", DATABASES);
    pg.sql("UPDATE before SET t = 'changed' WHERE i % 10 = 0");
    pg.stop(StopMode::Fast);
    let middle = copy(&pg, "middle");
    pg.configure(second_half);
    pg.start();
    pg.script("postgres", MORE);
    pg.stop(StopMode::Fast);
    give_to_server(pg.data());

    cluster.archive(pg.data()).await;
    let (half, end) = (stopped_at(&middle), stopped_at(pg.data()));
    let work_dir = tempfile::tempdir().unwrap();
    cluster.slice(Lsn(half.0 - 50_000)).await;
    let mut tail = cluster.open(work_dir.path()).await;
    let report = tail.slice_tail(None).await.unwrap();
    assert!(report.records > 0 && tail.end().unwrap() >= end, "{report:?}");
    agree(&tail, half, &middle, checksums).await;
    agree(&tail, end, pg.data(), checksums).await;

    cluster.slice(end).await;
    let sliced = cluster.open(work_dir.path()).await;
    agree(&sliced, end, pg.data(), checksums).await;
    same_bytes(&tail.snapshot(half).await.unwrap(), &sliced.snapshot(half).await.unwrap()).await;
    assert!(std::fs::read_dir(work_dir.path()).unwrap().count() > 0);
    drop(tail);
    assert_eq!(std::fs::read_dir(work_dir.path()).unwrap().count(), 0, "the tail's folder goes with it");
}

/// I8: a local tail and committed layers give the same bytes.
async fn same_bytes(one: &Snapshot, other: &Snapshot) {
    for entry in one.databases() {
        for relation in one.relations(entry.spc, entry.db).await.unwrap() {
            let count = relation.blocks.min(64);
            let ours = one.pages(relation.node, relation.fork, 0, count).await.unwrap();
            let theirs = other.pages(relation.node, relation.fork, 0, count).await.unwrap();
            assert!(ours == theirs, "{relation:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_of_a_server_with_checksums_is_as_the_server_left_it() {
    every_page(PgOptions::default().initdb("--data-checksums"), true, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_is_right_when_hint_bits_begin_to_be_logged_in_between() {
    every_page(PgOptions::default(), false, &["wal_log_hints = on"]).await;
}
