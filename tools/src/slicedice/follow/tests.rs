mod cost;

use super::*;
use crate::cli::{Session, Settings, StoreOptions, TimelineChoice, config};
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use zenith_ingest::archive::WalArchive;
use zenith_ingest::base::{BaseBuilder, BaseOptions};
use zenith_ingest::slicer::SlicerOptions;
use zenith_manifest::{BaseId, BaseKind, Change, ManifestStore, Role};
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::wal::encode::{WalWriter, WriterStart};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{Lsn, Tli};
use zenith_store::Store;
use zenith_testkit::control::{SYSTEM_IDENTIFIER, control_file};
use zenith_testkit::env::test_env;
use zenith_testkit::faults::{Fault, FaultStore, Faults, Operation, Rule};

const NOOP: u8 = 0x20;
const CHECKPOINT_SHUTDOWN: u8 = 0x00;

fn size() -> WalSegSize {
    WalSegSize::new(1 << 20).expect("size")
}

/// A cluster in memory, seen through faults: a base image and four archived segments, the first two sliced by nobody.
struct World {
    session: Session,
    settings: Settings,
    calm: ManifestStore,
    archive: WalArchive,
    faults: Faults,
    options: SlicerOptions,
    segments: Vec<Vec<u8>>,
    end: Lsn,
}

impl World {
    async fn new(seed: u64) -> World {
        World::of_segments(seed, 4).await
    }

    async fn of_segments(seed: u64, segments: u64) -> World {
        let env = test_env(seed);
        let calm = Store::memory();
        let control = ControlFile { wal_segment_size: size(), ..control_file() };
        let lsn = Lsn(size().start_of(2).0 + 40);
        let start =
            WriterStart { lsn, prev: Lsn(8), tli: 1, seg_size: size(), system_identifier: SYSTEM_IDENTIFIER };
        let mut wal = WalWriter::new(start).expect("writer");
        let checkpoint = wal.append(RmgrId::XLOG, CHECKPOINT_SHUTDOWN, 0, &control.checkpoint_copy.encode());
        let mut end = checkpoint.end;
        for xid in 1001u32.. {
            if wal.position() >= size().start_of(2 + segments) {
                break;
            }
            wal.append(RmgrId::XLOG, NOOP, 0, &[7; 3000]);
            end = wal.append(RmgrId::XACT, 0, xid, &i64::from(xid).to_le_bytes()).end;
        }
        let segments: Vec<Vec<u8>> = wal.finish().chunks(1 << 20).map(<[u8]>::to_vec).collect();

        let origin =
            crate::push::origin::Origin { system_identifier: SYSTEM_IDENTIFIER, segment_size: size() };
        let quiet = Session::of_cluster(&env, calm.clone(), "main");
        let identity = origin.identity(zenith_store::TimelineId(env.ids.fresh()));
        quiet.names.adopt_or_create_main(&identity).await.expect("main");
        let paths = quiet.paths(identity.timeline);
        let options = BaseOptions {
            id: BaseId(env.ids.fresh()),
            kind: BaseKind::Directory,
            tli: 1 as Tli,
            redo: checkpoint.lsn,
            checkpoint: checkpoint.lsn,
            system_identifier: SYSTEM_IDENTIFIER,
            data_checksums: false,
            spool_folder: std::env::temp_dir(),
            layer_bytes: BaseOptions::LAYER_BYTES,
        };
        let mut builder =
            BaseBuilder::new(options, Arc::clone(&calm.objects), paths, env.clone()).expect("builder");
        for (path, content) in [
            ("PG_VERSION", b"15\n".to_vec()),
            ("global/pg_control", control.encode()),
            ("pg_xact/0000", vec![0; 8192]),
            ("base/5/PG_VERSION", b"15\n".to_vec()),
        ] {
            builder.add_file(path, 0o600, &content).await.expect("added");
        }
        let base = builder.finish(checkpoint.end, "2026-01-01T00:00:00Z").await.expect("finished");
        let manifest = quiet.manifest(&identity);
        let register = Change::RegisterBase { base: base.image, layers: base.layers };
        manifest.commit(&register).await.expect("registered");
        let archive = quiet.archive(&identity).expect("archive");

        let faulty = FaultStore::new(Arc::clone(&calm.objects), Arc::clone(&env.clock), seed);
        let faults = faulty.faults();
        let session = Session::of_cluster(&env, calm.wrapped(|_| faulty), "main");
        let options = StoreOptions { store: Some("file:///unused".to_owned()), ..StoreOptions::default() };
        let settings = options.merge(config::ConfigFile::default()).expect("settings");
        assert_eq!(settings.timeline, TimelineChoice::Name("main".to_owned()));
        // Small, so that there are several commits.
        let options = SlicerOptions { arena_bytes: 100_000, ..SlicerOptions::default() };
        let world = World { session, settings, calm: manifest, archive, faults, options, segments, end };
        world.archive(&[2, 3]).await;
        world
    }

    async fn archive(&self, numbers: &[u64]) {
        for segment in numbers {
            let file = WalFile::Segment { tli: 1, segment: *segment };
            let content = &self.segments[*segment as usize - 2];
            self.archive.put(&self.session.env, file, content).await.expect("archived");
        }
    }

    async fn run(&self) -> Run {
        Run::open(self.session.clone(), &self.settings, self.options).await.expect("opened")
    }

    async fn sliced(&self) -> Lsn {
        self.calm.latest().await.expect("root").sliced.clone().expect("sliced").lsn
    }

    /// Lets other work go on until slicing has come to `lsn`.
    async fn wait_for(&self, lsn: Lsn) {
        while self.sliced().await < lsn {
            tokio::task::yield_now().await;
        }
    }
}

/// Follows until `meanwhile` has asked it to stop; a follower that ends before that fails the test.
async fn follow_through(
    world: &World,
    meanwhile: impl Future<Output = ()>,
    stop: &Stop,
) -> anyhow::Result<()> {
    let mut run = world.run().await;
    let following = std::pin::pin!(run.follow(stop));
    match futures::future::select(following, std::pin::pin!(meanwhile)).await {
        futures::future::Either::Left((ended, _)) => panic!("it ended by itself: {ended:?}"),
        futures::future::Either::Right(((), following)) => following.await,
    }
}

/// What was logged in this thread.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Logged {
    fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = String::from_utf8(bytes).expect("text");
        text.lines().filter(|line| line.contains("slicing ")).map(str::to_owned).collect()
    }
}

fn logged() -> (Logged, tracing::subscriber::DefaultGuard) {
    let logged = Logged::default();
    let writer = logged.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    (logged, guard)
}

#[tokio::test]
async fn a_follower_outlives_a_store_that_is_away_and_tells_it_once_for_each_change() {
    let (logged, _guard) = logged();
    let world = World::new(1).await;
    let stop = Stop::default();
    let outages = async {
        world.wait_for(size().start_of(3)).await;
        // Away altogether, then for writes only, as with a full disk.
        for (fault, operation, numbers) in
            [(Fault::Unavailable, None, &[4][..]), (Fault::TimedOut, Some(Operation::Put), &[5, 6])]
        {
            let rule = Rule::new(fault).times(200);
            world.faults.add(operation.map_or(rule.clone(), |operation| rule.on(operation)));
            world.archive(numbers).await;
            let before = world.faults.fired().len();
            while world.faults.fired().len() < before + 20 {
                tokio::task::yield_now().await;
            }
            world.faults.clear();
            let last = *numbers.last().expect("one");
            world.wait_for(world.end.min(Lsn(size().start_of(last + 1).0 - 10_000))).await;
            // Until it knows that it is over.
            while logged.lines().len() % 2 != 0 {
                tokio::task::yield_now().await;
            }
        }
        stop.ask();
    };
    follow_through(&world, outages, &stop).await.expect("asked to stop");
    assert_eq!(world.sliced().await, world.end);
    let lines = logged.lines();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for (line, words) in lines.iter().zip(["WARN", "INFO", "WARN", "INFO"]) {
        assert!(line.contains(words), "{lines:#?}");
    }
    assert!(lines[0].contains("does not answer") && lines[1].contains("slicing goes on"), "{lines:#?}");
}

#[tokio::test]
async fn a_follower_is_stopped_while_the_store_is_away() {
    let (logged, _guard) = logged();
    let world = World::new(2).await;
    let stop = Stop::default();
    let stopping = async {
        world.wait_for(size().start_of(3)).await;
        world.faults.add(Rule::new(Fault::Unavailable));
        while logged.lines().is_empty() {
            tokio::task::yield_now().await;
        }
        stop.ask();
    };
    // What was sliced and not committed went when the store did: there is nothing left to commit.
    follow_through(&world, stopping, &stop).await.expect("asked to stop");
}

#[tokio::test]
async fn a_follower_that_cannot_commit_when_it_is_asked_to_stop_says_so() {
    let world = World::new(5).await;
    let options = SlicerOptions { lag: Duration::MAX, ..SlicerOptions::default() };
    let mut run = Run::open(world.session.clone(), &world.settings, options).await.expect("opened");
    let stop = Stop::default();
    let clock = Arc::clone(&world.session.env.clock);
    let stopping = async {
        // Nothing is due yet, and it has looked at the archive many times.
        let begun = clock.elapsed();
        while clock.elapsed() < begun + Duration::from_secs(60) {
            tokio::task::yield_now().await;
        }
        world.faults.add(Rule::new(Fault::Unavailable).on(Operation::Put));
        stop.ask();
    };
    let (followed, ()) = tokio::join!(run.follow(&stop), stopping);
    let error = followed.expect_err("not committed");
    assert!(format!("{error:#}").contains("503"), "{error:#}");
}

#[tokio::test]
async fn a_follower_ends_when_another_takes_over_or_the_wal_is_damaged() {
    let mut world = World::new(3).await;
    let (mut run, stop) = (world.run().await, Stop::default());
    let taken = async {
        world.wait_for(size().start_of(3)).await;
        world.calm.take_epoch(Role::Slicer).await.expect("taken over");
        world.archive(&[4]).await;
    };
    let (followed, ()) = tokio::join!(run.follow(&stop), taken);
    let error = followed.expect_err("fenced");
    assert!(format!("{error:#}").contains("has taken over"), "{error:#}");

    world.segments[3][500_000] ^= 1;
    world.archive(&[5]).await;
    // Something follows it, so it is not the end of the WAL.
    world.segments.push(world.segments[0].clone());
    let next = zenith_pgformat::wal::page::PageHeader {
        info: 0,
        tli: 1,
        page_addr: size().start_of(6),
        rem_len: 0,
        long: Some(zenith_pgformat::wal::page::LongHeader {
            system_identifier: SYSTEM_IDENTIFIER,
            seg_size: 1 << 20,
            xlog_blcksz: 8192,
        }),
    };
    let header = next.encode();
    world.segments[4][..header.len()].copy_from_slice(&header);
    world.archive(&[6]).await;
    let error = world.run().await.follow(&stop).await.expect_err("damaged");
    assert!(format!("{error:#}").contains("invalid WAL at"), "{error:#}");
    assert!(world.sliced().await > size().start_of(5), "what came before counts");
}

#[tokio::test]
async fn a_follower_that_waits_for_a_base_image_can_be_stopped() {
    let env = test_env(4);
    let session = Session::of_cluster(&env, Store::memory(), "main");
    let origin = crate::push::origin::Origin { system_identifier: SYSTEM_IDENTIFIER, segment_size: size() };
    let identity = origin.identity(zenith_store::TimelineId(env.ids.fresh()));
    session.names.adopt_or_create_main(&identity).await.expect("main");
    let options = StoreOptions { store: Some("file:///unused".to_owned()), ..StoreOptions::default() };
    let settings = options.merge(config::ConfigFile::default()).expect("settings");
    let mut run = Run::open(session, &settings, SlicerOptions::default()).await.expect("opened");
    let stop = Stop::default();
    let begun = env.clock.elapsed();
    let stopping = async {
        while env.clock.elapsed() < begun + Duration::from_secs(5) {
            tokio::task::yield_now().await;
        }
        stop.ask();
    };
    let (followed, ()) = tokio::join!(run.follow(&stop), stopping);
    followed.expect("asked to stop");
}
