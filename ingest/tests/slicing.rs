//! The slicer over WAL that is written by hand: what is missing, damaged, cut, late, or another's.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::*;
use zenith_ingest::archive::WalArchive;
use zenith_ingest::error::IngestError;
use zenith_ingest::slicer::{SlicerOptions, Stopped, open_slicer};
use zenith_layers::{CacheOptions, Key, LayerCaches};
use zenith_manifest::{BaseKind, Change, ManifestStore, Role};
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::control::{BuildSizes, ControlFile, DbState, WalLevel};
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::wal::encode::{Placed, WalWriter, WriterStart};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{Lsn, page};
use zenith_testkit::env::test_env;
use zenith_testkit::faults::{AMBIGUOUS, FaultStore, Operation, Rule};

const SYSTEM: u64 = 77;
const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const NOOP: u8 = 0x20;
const BACKUP_END: u8 = 0x50;

fn size() -> WalSegSize {
    WalSegSize::new(1 << 20).expect("size")
}

fn control_file() -> ControlFile {
    let checkpoint_copy = CheckPoint {
        tli: 1,
        prev_tli: 1,
        next_xid: 1000,
        next_oid: 20_000,
        next_multi: 1,
        oldest_xid: 700,
        oldest_multi: 1,
        ..CheckPoint::default()
    };
    ControlFile {
        system_identifier: SYSTEM,
        state: DbState::Shutdowned,
        time: 0,
        checkpoint: Lsn(0),
        checkpoint_copy,
        unlogged_lsn: Lsn(0),
        min_recovery_point: Lsn(0),
        min_recovery_point_tli: 0,
        backup_start_point: Lsn(0),
        backup_end_point: Lsn(0),
        backup_end_required: false,
        wal_level: WalLevel::Replica,
        wal_log_hints: false,
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_xacts: 0,
        max_locks_per_xact: 64,
        track_commit_timestamp: false,
        wal_segment_size: size(),
        build: BuildSizes {
            max_align: 8,
            name_data_len: 64,
            index_max_keys: 32,
            toast_max_chunk_size: 1996,
            large_object_block: 2048,
            float8_by_val: true,
        },
        data_checksum_version: 0,
        mock_authentication_nonce: [0; 32],
    }
}

/// WAL that begins with a shutdown checkpoint in segment 2.
struct Wal {
    writer: WalWriter,
    checkpoint: Placed,
    next_xid: u32,
}

impl Wal {
    fn new() -> Wal {
        let start = WriterStart {
            lsn: Lsn(size().start_of(2).0 + 40),
            prev: Lsn(8),
            tli: 1,
            seg_size: size(),
            system_identifier: SYSTEM,
        };
        let mut writer = WalWriter::new(start).expect("writer");
        let checkpoint =
            writer.append(RmgrId::XLOG, CHECKPOINT_SHUTDOWN, 0, &control_file().checkpoint_copy.encode());
        Wal { writer, checkpoint, next_xid: 1000 }
    }

    /// Commits with some padding between them, until the WAL reaches this segment.
    fn commits_up_to(&mut self, segment: u64) {
        while self.writer.position() < size().start_of(segment) {
            self.commit();
            self.writer.append(RmgrId::XLOG, NOOP, 0, &[7; 3000]);
        }
    }

    fn commit(&mut self) -> Placed {
        self.next_xid += 1;
        self.writer.append(RmgrId::XACT, 0, self.next_xid, &i64::from(self.next_xid).to_le_bytes())
    }

    fn position(&self) -> Lsn {
        self.writer.position()
    }

    /// The segments from number 2 on, the last one filled up.
    fn segments(self) -> Vec<Vec<u8>> {
        self.writer.finish().chunks(size().bytes() as usize).map(<[u8]>::to_vec).collect()
    }
}

async fn archive(timeline: &Timeline, segments: &[Vec<u8>], numbers: &[u64]) {
    for number in numbers {
        let file = WalFile::Segment { tli: 1, segment: *number };
        let content = &segments[*number as usize - 2];
        timeline.archive.put(&timeline.env, file, content).await.expect("archived");
    }
}

async fn register(timeline: &Timeline, kind: BaseKind, redo: Lsn, checkpoint: Lsn, end: Lsn) {
    let mut builder = timeline.builder(kind, &control_file(), redo, checkpoint);
    builder.add_file("PG_VERSION", 0o600, b"15\n").await.expect("added");
    builder.add_file("global/pg_control", 0o600, &control_file().encode()).await.expect("added");
    builder.add_file("pg_xact/0000", 0o600, &[0; 8192]).await.expect("added");
    builder.add_file("base/5/PG_VERSION", 0o600, b"15\n").await.expect("added");
    timeline.register(builder.finish(end, "2026-01-01T00:00:00Z").await.expect("finished")).await;
}

/// A timeline with a base image at the WAL's shutdown checkpoint.
async fn timeline_at(wal: &Wal, seed: u64) -> Timeline {
    let timeline = Timeline::new(&control_file(), seed);
    let Placed { lsn, end } = wal.checkpoint;
    register(&timeline, BaseKind::Directory, lsn, lsn, end).await;
    timeline
}

async fn run(timeline: &Timeline) -> Result<zenith_ingest::slicer::SliceReport, IngestError> {
    timeline.slicer(SlicerOptions::default()).await.run_once().await
}

#[tokio::test]
async fn a_missing_segment_is_waited_for_and_slicing_goes_on_when_it_comes() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 1).await;
    wal.commits_up_to(5);
    let commits = wal.next_xid - 1000;
    let segments = wal.segments();
    archive(&timeline, &segments, &[2, 4, 5]).await;
    let report = run(&timeline).await.expect("sliced");
    let missing = "000000010000000000000003".to_owned();
    let later = "000000010000000000000005".to_owned();
    assert_eq!(report.stopped, Stopped::Waiting { missing, later });
    assert!(report.to <= size().start_of(3));
    assert_eq!((report.confirmed.len(), report.commits), (1, 1));
    let again = run(&timeline).await.expect("nothing new");
    assert_eq!((again.records, again.commits), (0, 0));

    archive(&timeline, &segments, &[3]).await;
    let rest = run(&timeline).await.expect("sliced");
    assert!(matches!(rest.stopped, Stopped::EndOfRecords(_)), "{:?}", rest.stopped);
    assert_eq!(u64::from(commits) * 2 + 1, report.records + rest.records);
    let (root, layers) = timeline.layers().await;
    assert_eq!(root.sliced.as_ref().expect("sliced").lsn, rest.to);
    let events = layers.event_layers(Lsn(0), Lsn::MAX);
    let mut found = 0;
    for layer in &events {
        found += layers.read_events(layer, Lsn(0), Lsn::MAX).await.expect("events").len();
    }
    assert_eq!(found as u32, commits + 1, "every commit and the checkpoint");
}

#[tokio::test]
async fn a_record_that_the_last_segment_cuts_is_left_out_until_its_rest_comes() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 2).await;
    let before = wal.commit().end;
    wal.writer.append(RmgrId::XLOG, NOOP, 0, &vec![1; 3 << 20]);
    let after = wal.commit().end;
    let segments = wal.segments();
    assert_eq!(segments.len(), 4);
    archive(&timeline, &segments, &[2, 3, 4]).await;
    let report = run(&timeline).await.expect("sliced");
    assert_eq!(report.stopped, Stopped::EndOfArchive { next: "000000010000000000000005".to_owned() });
    assert_eq!(report.to, before);
    archive(&timeline, &segments, &[5]).await;
    assert_eq!(run(&timeline).await.expect("sliced").to, after);
}

#[tokio::test]
async fn damage_stops_with_its_lsn_and_what_came_before_counts() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 3).await;
    wal.commits_up_to(4);
    let mut segments = wal.segments();
    segments[1][500_000] ^= 0x10;
    archive(&timeline, &segments, &[2, 3, 4]).await;
    let damaged = size().start_of(3).0 + 500_000;
    let error = run(&timeline).await.expect_err("damaged");
    let IngestError::Wal(found) = &error else { panic!("{error}") };
    assert!(found.to_string().contains("checksum"), "{found}");
    let sliced = timeline.layers().await.0.sliced.clone().expect("sliced").lsn;
    assert!(sliced.0 <= damaged && damaged - sliced.0 < 8192, "{sliced}");
    assert!(error.to_string().contains(&sliced.to_string()), "{error}");
}

#[tokio::test]
async fn an_image_past_a_gap_begins_a_new_range_once_it_is_whole() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 4).await;
    wal.commits_up_to(6);
    let redo = wal.position();
    let checkpoint = wal.writer.append(RmgrId::XLOG, NOOP, 0, &[0; 8]);
    wal.commits_up_to(8);
    let end = wal.writer.append(RmgrId::XLOG, BACKUP_END, 0, &redo.0.to_le_bytes()).end;
    let last = wal.commit().end;
    let segments = wal.segments();
    archive(&timeline, &segments, &[2, 3, 5, 6]).await;
    let Placed { lsn: checkpoint, .. } = checkpoint;
    register(&timeline, BaseKind::Online, redo, checkpoint, end).await;
    let report = run(&timeline).await.expect("sliced");
    assert!(matches!(report.stopped, Stopped::Waiting { .. }), "its WAL is not whole: {:?}", report.stopped);

    archive(&timeline, &segments, &[7, 8]).await;
    let report = run(&timeline).await.expect("sliced");
    let base = timeline.layers().await.0.bases[1].id;
    assert_eq!(report.stopped, Stopped::RangeBegun { base });
    let gap = report.gap.expect("a gap");
    assert_eq!(gap.1, redo);
    let report = run(&timeline).await.expect("sliced");
    assert_eq!((report.from, report.to, report.confirmed.as_slice()), (redo, last, [base].as_slice()));
    let root = timeline.layers().await.0;
    assert_eq!((root.ranges.len(), root.ranges[0].to), (2, Some(gap.0)));
    assert!(root.readable(end).is_ok() && root.readable(Lsn(gap.0.0 + 1)).is_err());
}

#[tokio::test]
async fn an_image_that_is_registered_behind_is_confirmed_by_the_archived_wal() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 5).await;
    wal.commits_up_to(3);
    let redo = wal.position();
    let checkpoint = wal.writer.append(RmgrId::XLOG, NOOP, 0, &[0; 8]).lsn;
    wal.commits_up_to(4);
    let end = wal.writer.append(RmgrId::XLOG, BACKUP_END, 0, &redo.0.to_le_bytes()).end;
    let false_redo = wal.position();
    let false_checkpoint = wal.writer.append(RmgrId::XLOG, NOOP, 0, &[0; 8]).lsn;
    wal.commits_up_to(5);
    let segments = wal.segments();
    archive(&timeline, &segments, &[2, 3, 4, 5]).await;
    run(&timeline).await.expect("sliced");

    register(&timeline, BaseKind::Online, redo, checkpoint, end).await;
    let of_another_server = Lsn(false_checkpoint.0 + 4000);
    register(&timeline, BaseKind::Online, false_redo, false_checkpoint, of_another_server).await;
    let report = run(&timeline).await.expect("nothing new");
    let root = timeline.layers().await.0;
    assert_eq!(report.confirmed, [root.bases[1].id]);
    let confirmed: Vec<bool> = root.bases.iter().map(|base| base.confirmed).collect();
    assert_eq!(confirmed, [true, true, false], "the third image's end is in nobody's WAL");
}

#[tokio::test]
async fn wal_that_does_not_hold_the_end_of_its_image_is_another_servers() {
    let mut wal = Wal::new();
    let timeline = Timeline::new(&control_file(), 6);
    let redo = wal.checkpoint.lsn;
    wal.commits_up_to(3);
    register(&timeline, BaseKind::Online, redo, redo, Lsn(wal.position().0 - 100_000)).await;
    archive(&timeline, &wal.segments(), &[2, 3]).await;
    let error = run(&timeline).await.expect_err("no end");
    assert!(matches!(error, IngestError::BaseEndNotMet { .. }), "{error}");
    assert!(!timeline.layers().await.0.bases[0].confirmed);
}

#[tokio::test]
async fn a_fenced_slicer_commits_nothing() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 7).await;
    wal.commits_up_to(3);
    archive(&timeline, &wal.segments(), &[2, 3]).await;
    let mut fenced = timeline.slicer(SlicerOptions::default()).await;
    timeline.manifest.take_epoch(Role::Slicer).await.expect("another took over");
    let error = fenced.run_once().await.expect_err("fenced");
    assert!(matches!(error, IngestError::Fenced(_)), "{error}");
    assert_eq!(timeline.layers().await.0.sliced.clone().expect("sliced").lsn, wal_start());
}

fn wal_start() -> Lsn {
    Wal::new().checkpoint.lsn
}

#[tokio::test]
async fn following_commits_after_the_lag_and_confirms_images_as_they_come() {
    let mut wal = Wal::new();
    let timeline = Arc::new(timeline_at(&wal, 8).await);
    wal.commits_up_to(3);
    let redo = wal.position();
    let checkpoint = wal.writer.append(RmgrId::XLOG, NOOP, 0, &[0; 8]).lsn;
    let end = wal.writer.append(RmgrId::XLOG, BACKUP_END, 0, &redo.0.to_le_bytes()).end;
    wal.commits_up_to(4);
    archive(&timeline, &wal.segments(), &[2, 3]).await;
    let mut slicer = timeline.slicer(SlicerOptions::default()).await;
    let looks = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&looks);
    let mut reports = Vec::new();
    // The clock of a test jumps by the pause, so ten looks are ten seconds.
    let stop = move || count.fetch_add(1, Ordering::Relaxed) == 15;
    slicer
        .follow(stop, |report| reports.push((looks.load(Ordering::Relaxed), report.clone())))
        .await
        .expect("followed");
    let (at, first) = &reports[0];
    assert_eq!((first.commits, first.confirmed.len()), (1, 1));
    assert!((10..=12).contains(at), "committed at look {at}");

    register(&timeline, BaseKind::Online, redo, checkpoint, end).await;
    let mut looks = 0;
    let stop = move || {
        looks += 1;
        looks == 25
    };
    slicer.follow(stop, |_| {}).await.expect("followed");
    assert!(timeline.layers().await.0.bases.iter().all(|base| base.confirmed));
}

#[tokio::test]
async fn a_store_that_fails_in_every_way_costs_runs_and_changes_no_value() {
    let mut wal = Wal::new();
    let calm = timeline_at(&wal, 9).await;
    let shaken = timeline_at(&wal, 10).await;
    wal.commits_up_to(7);
    let segments = wal.segments();
    let numbers: Vec<u64> = (2..=7).collect();
    archive(&calm, &segments, &numbers).await;
    archive(&shaken, &segments, &numbers).await;
    let whole = run(&calm).await.expect("sliced");

    let faulty = Arc::new(FaultStore::new(shaken.store.objects.clone(), shaken.env.clock.clone(), 5));
    let faults = faulty.faults();
    for fault in AMBIGUOUS {
        faults.add(Rule::new(fault).on(Operation::Put).percent(6));
        faults.add(Rule::new(fault).on(Operation::Get).percent(1));
    }
    let mut runs = 0;
    loop {
        runs += 1;
        assert!(runs < 500, "it never came to the end");
        let env = test_env(1000 + runs);
        let objects: Arc<dyn object_store::ObjectStore> = faulty.clone();
        let manifest = Arc::new(ManifestStore::new(objects.clone(), env.clone(), shaken.paths.clone(), None));
        let Ok((epoch, _)) = manifest.take_epoch(Role::Slicer).await else { continue };
        let options = SlicerOptions { arena_bytes: 20_000, ..SlicerOptions::default() };
        let caches = LayerCaches::new(CacheOptions::default());
        let opened =
            open_slicer(options, env, objects, manifest, &shaken.identity, None, caches, epoch).await;
        let Ok(mut slicer) = opened else { continue };
        if slicer.run_once().await.is_ok_and(|report| report.to == whole.to) {
            break;
        }
    }
    assert!(faults.fired().len() > 3);
    assert_eq!(calm.all_changes().await, shaken.all_changes().await);
}

#[tokio::test]
async fn another_clusters_wal_is_not_sliced() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 11).await;
    wal.commits_up_to(3);
    let segments = wal.segments();
    let foreign = WalArchive::new(timeline.store.objects.clone(), timeline.paths.clone(), size(), SYSTEM + 1);
    let file = WalFile::Segment { tli: 1, segment: 2 };
    assert!(foreign.put(&timeline.env, file, &segments[0]).await.is_err());
    // Someone put it there all the same, without a check.
    let mut other = segments[0].clone();
    other[24..32].copy_from_slice(&(SYSTEM + 1).to_le_bytes());
    let path = timeline.paths.wal_file(1, &file.name(size()));
    let frame = zstd::encode_all(other.as_slice(), 1).expect("frame");
    zenith_store::create(&*timeline.store.objects, &timeline.env, &path, frame.into()).await.expect("put");
    archive(&timeline, &segments, &[3]).await;
    let error = run(&timeline).await.expect_err("another cluster's");
    assert!(error.to_string().contains("system identifier"), "{error}");
}

#[tokio::test]
async fn a_page_that_nobody_writes_and_that_fails_its_checksum_is_refused_by_name() {
    let timeline = Timeline::new(&control_file(), 12);
    let mut sound = [0u8; 8192];
    sound[12..14].copy_from_slice(&24u16.to_le_bytes());
    sound[14..16].copy_from_slice(&8192u16.to_le_bytes());
    sound[16..18].copy_from_slice(&8192u16.to_le_bytes());
    sound[18..20].copy_from_slice(&(8192u16 | 4).to_le_bytes());
    page::set_lsn(&mut sound, Lsn(0x100));
    let control = ControlFile { data_checksum_version: 1, ..control_file() };
    let builder = |kind| timeline.builder(kind, &control, Lsn(0x1000), Lsn(0x1000));
    let mut good = sound;
    page::set_checksum(&mut good, 131_072 + 1);
    let file = [[0; 8192], good].concat();
    builder(BaseKind::Online).add_file("base/5/16384.1", 0o600, &file).await.expect("sound");

    let mut damaged = file.clone();
    damaged[8192 + 4000] ^= 1;
    let error =
        builder(BaseKind::Online).add_file("base/5/16384.1", 0o600, &damaged).await.expect_err("damaged");
    let said = error.to_string();
    assert!(said.contains("base/5/16384.1") && said.contains("131073"), "{said}");

    // Changed since the backup began: perhaps half written, and the WAL brings it whole.
    let mut torn: [u8; 8192] = damaged[8192..].try_into().expect("a page");
    page::set_lsn(&mut torn, Lsn(0x2000));
    let torn = [[0; 8192], torn].concat();
    builder(BaseKind::Online).add_file("base/5/16384.1", 0o600, &torn).await.expect("being written");
    assert!(builder(BaseKind::Directory).add_file("base/5/16384.1", 0o600, &torn).await.is_err());
}

#[tokio::test]
async fn an_image_without_its_control_file_or_of_another_cluster_is_refused() {
    let timeline = Timeline::new(&control_file(), 13);
    let builder = || timeline.builder(BaseKind::Directory, &control_file(), Lsn(0x1000), Lsn(0x1000));
    let empty = builder().finish(Lsn(0x2000), "").await.expect_err("empty");
    assert!(empty.to_string().contains("pg_control"), "{empty}");
    let other = ControlFile { system_identifier: 5, ..control_file() }.encode();
    let error = builder().add_file("global/pg_control", 0o600, &other).await.expect_err("another cluster's");
    assert!(error.to_string().contains("system identifier 5"), "{error}");
}

#[tokio::test]
async fn the_layers_of_an_image_never_overlap_whatever_the_order_of_its_files() {
    let timeline = Timeline::new(&control_file(), 14);
    let mut builder = timeline.builder(BaseKind::Directory, &control_file(), Lsn(0x1000), Lsn(0x1000));
    builder.add_file("PG_VERSION", 0o600, b"15\n").await.expect("added");
    builder.add_file("global/pg_control", 0o600, &control_file().encode()).await.expect("added");
    // One large file among small ones, and noise, so that the large one takes several layers.
    let mut noise = 1u32;
    let mut file = |pages: usize| -> Vec<u8> {
        let mut content = vec![0; pages * 8192];
        for byte in &mut content {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (noise >> 24) as u8;
        }
        for page in content.chunks_mut(8192) {
            page[..24].fill(0);
            page[12..20].copy_from_slice(&[24, 0, 0, 32, 0, 32, 4, 32]);
        }
        content
    };
    for (name, pages) in [("3000", 5), ("1000", 600), ("2000", 4200), ("2500_vm", 1), ("2500", 2), ("500", 3)]
    {
        builder.add_file(&format!("base/5/{name}"), 0o600, &file(pages)).await.expect("added");
    }
    let finished = builder.finish(Lsn(0x2000), "2026-01-01T00:00:00Z").await.expect("finished");
    assert!(finished.layers.len() > 8, "{} layers", finished.layers.len());
    for pair in finished.layers.windows(2) {
        assert!(pair[0].key_max < pair[1].key_min);
    }
    assert!(finished.layers.iter().all(|layer| layer.serves_from == Lsn(0x2000)));
    assert_eq!(finished.image.data_bytes, (5 + 600 + 4200 + 1 + 2 + 3) * 8192);
    let change = Change::RegisterBase { base: finished.image, layers: finished.layers };
    timeline.manifest.commit(&change).await.expect("the manifest accepts it");
    let node = zenith_pgformat::RelNode { spc: 1663, db: 5, rel: 2000 };
    let (_, layers) = timeline.layers().await;
    assert!(state(&layers, Key::rel_size(node, zenith_pgformat::Fork::Main), Lsn(0x2000)).await.is_some());
}
