//! A store that fails in every way, under a push, under a base image and under the slicer.

use crate::handmade::*;
use crate::support::*;
use object_store::ObjectStore;
use std::sync::Arc;
use std::time::Duration;
use zenith_ingest::archive::{ArchiveError, Stored, WalArchive};
use zenith_ingest::base::{BaseBuilder, BaseError, BaseOptions, FinishedBase};
use zenith_ingest::slicer::{SlicerOptions, open_slicer};
use zenith_layers::{CacheOptions, Key, KeyHistory, KeyRange, LayerCaches, ReadMode};
use zenith_manifest::{BaseId, BaseKind, ManifestStore, Role};
use zenith_pgformat::Lsn;
use zenith_pgformat::wal_name::WalFile;
use zenith_testkit::env::test_env;
use zenith_testkit::faults::{AMBIGUOUS, Fault, FaultStore, Faults, Operation, Rule};

/// Everything that can happen to a request, an answer that is late or certain included.
fn every_fault() -> Vec<Fault> {
    let certain = [Fault::Latency(Duration::from_secs(3)), Fault::Denied, Fault::Truncated];
    AMBIGUOUS.into_iter().chain(certain).collect()
}

/// One fault at some requests, or at all of them.
struct Trouble {
    fault: Fault,
    on: Option<Operation>,
    after: u64,
    times: u64,
}

impl Trouble {
    /// Each fault once and again: at writes, at reads and at both; from the first request on and from a later one.
    fn all() -> Vec<Trouble> {
        let mut all = Vec::new();
        for fault in every_fault() {
            for on in [Some(Operation::Put), Some(Operation::Get), None] {
                for (after, times) in [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (0, u64::MAX)] {
                    all.push(Trouble { fault, on, after, times });
                }
            }
        }
        all
    }

    fn begin(&self, faults: &Faults) {
        let rule = Rule::new(self.fault).after(self.after).times(self.times);
        faults.add(match self.on {
            Some(operation) => rule.on(operation),
            None => rule,
        });
        // A lost answer first, so that there is something to read back and to try again.
        if self.on == Some(Operation::Get) || self.after > 0 {
            faults.add(Rule::new(Fault::AppliedButLost).on(Operation::Put).times(1));
        }
    }

    fn describe(&self) -> String {
        format!("{:?} {:?} after {} times {}", self.fault, self.on, self.after, self.times)
    }
}

fn faulty(timeline: &Timeline, seed: u64) -> (Arc<FaultStore>, Faults) {
    let store = FaultStore::new(timeline.store.objects.clone(), timeline.env.clock.clone(), seed);
    let faults = store.faults();
    (Arc::new(store), faults)
}

#[tokio::test]
async fn whatever_the_store_does_what_a_push_acknowledges_is_there_and_what_it_refuses_can_be_pushed_again() {
    let mut wal = Wal::new();
    wal.commits_up_to(3);
    let segments = wal.segments();
    let (content, mut other) = (segments[0].clone(), segments[0].clone());
    other[500_000] ^= 1;
    let files = [
        (WalFile::Segment { tli: 1, segment: 2 }, content, other),
        (WalFile::History { tli: 2 }, b"1\t0/300028\tone\n".to_vec(), b"1\t0/300030\tother\n".to_vec()),
    ];
    let mut unacknowledged = 0;
    for (seed, trouble) in Trouble::all().into_iter().enumerate() {
        let timeline = Timeline::new(&control_file(), 1000 + seed as u64);
        let (store, faults) = faulty(&timeline, seed as u64);
        let archive = WalArchive::new(store, timeline.paths.clone(), size(), SYSTEM);
        let env = &timeline.env;
        for (file, content, other) in &files {
            let what = format!("{file:?}: {}", trouble.describe());
            trouble.begin(&faults);
            let pushed = archive.put(env, *file, content).await;
            faults.clear();
            let there = timeline.archive.get(*file).await.expect("readable");
            match pushed {
                Ok(_) => assert!(there.is_some(), "{what}: lost"),
                Err(error) => {
                    assert!(matches!(error, ArchiveError::Store(_)), "{what}: {error}");
                    unacknowledged += 1;
                }
            }
            assert!(there.is_none_or(|there| there == content), "{what}: half of it");
            // PostgreSQL tries again until it is acknowledged.
            archive.put(env, *file, content).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(archive.put(env, *file, content).await, Ok(Stored::AlreadyThere), "{what}");

            // Another server's file of the same name is refused, whatever happens meanwhile, and changes nothing.
            trouble.begin(&faults);
            let refused = archive.put(env, *file, other).await;
            faults.clear();
            assert!(refused.is_err(), "{what}: acknowledged what is not there");
            let refused = archive.put(env, *file, other).await;
            assert!(matches!(refused, Err(ArchiveError::Other { .. })), "{what}: {refused:?}");
            assert_eq!(timeline.archive.get(*file).await.expect("read").expect("there"), content, "{what}");
        }
        let happened = faults.fired().iter().any(|(_, _, fault)| *fault == trouble.fault);
        assert!(happened || trouble.after > 0, "{}", trouble.describe());
    }
    assert!(unacknowledged > 50, "{unacknowledged}");
}

/// Three relations, one long enough for several layers.
fn relations() -> Vec<(String, Vec<u8>)> {
    let relation = |(relation, pages): (u32, usize)| {
        let mut file: Vec<u8> = vec![0; pages * 8192];
        let mut noise = relation;
        for page in file.chunks_mut(8192) {
            page[12..20].copy_from_slice(&[24, 0, 0, 32, 0, 32, 4, 32]);
            for byte in &mut page[24..] {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (noise >> 24) as u8;
            }
        }
        (format!("base/5/{relation}"), file)
    };
    [(16384, 2), (16385, 8), (16386, 1)].map(relation).into()
}

/// A small base image.
async fn build(
    objects: Arc<dyn ObjectStore>,
    timeline: &Timeline,
    relations: &[(String, Vec<u8>)],
) -> Result<FinishedBase, BaseError> {
    let options = BaseOptions {
        id: BaseId(timeline.env.ids.fresh()),
        kind: BaseKind::Directory,
        tli: 1,
        redo: Lsn(0x1000),
        checkpoint: Lsn(0x1000),
        system_identifier: SYSTEM,
        data_checksums: false,
        spool_folder: std::env::temp_dir(),
        layer_bytes: 16 << 10,
    };
    let mut builder = BaseBuilder::new(options, objects, timeline.paths.clone(), timeline.env.clone())?;
    builder.add_file("PG_VERSION", 0o600, b"15\n").await?;
    builder.add_file("global/pg_control", 0o600, &control_file().encode()).await?;
    for (path, content) in relations {
        builder.add_file(path, 0o600, content).await?;
    }
    builder.add_wal(2, size(), &[7; 1000]).await?;
    builder.finish(Lsn(0x2000), "2026-01-01T00:00:00Z").await
}

/// Registers the image and reads all of it.
async fn content(timeline: &Timeline, base: FinishedBase) -> (Vec<KeyHistory>, Vec<u8>, Vec<u8>) {
    let id = base.image.id;
    timeline.register(base).await;
    let (_, layers) = timeline.layers().await;
    let everything = KeyRange { first: Key::MIN, last: Key::MAX };
    let rows = layers.history(&[everything], Lsn(0x2000), ReadMode::Serve).await.expect("whole");
    let mut objects = Vec::new();
    for name in ["files.zst", "wal-000000010000000000000002.zst"] {
        let path = timeline.paths.base_object(id.0, name);
        let bytes = zenith_store::get(&*timeline.store.objects, &path, 1 << 20).await.expect(name);
        objects.push(bytes.to_vec());
    }
    (rows, objects.remove(0), objects.remove(0))
}

#[tokio::test]
async fn whatever_the_store_does_a_base_image_that_is_finished_is_whole_and_one_that_is_not_is_an_error() {
    let relations = relations();
    let calm = Timeline::new(&control_file(), 2000);
    let built = build(calm.store.objects.clone(), &calm, &relations).await.expect("built");
    assert!(built.layers.len() > 3, "{} layers", built.layers.len());
    let expected = content(&calm, built).await;
    let (mut finished, mut failed) = (0, 0);
    for (seed, trouble) in Trouble::all().into_iter().enumerate() {
        for at in ["layers/", "base/"] {
            let timeline = Timeline::new(&control_file(), 3000 + seed as u64);
            let (store, faults) = faulty(&timeline, seed as u64);
            let rule = Rule::new(trouble.fault).at(at).after(trouble.after).times(trouble.times);
            faults.add(if let Some(operation) = trouble.on { rule.on(operation) } else { rule });
            if trouble.on == Some(Operation::Get) || trouble.after > 0 {
                faults.add(Rule::new(Fault::AppliedButLost).at(at).on(Operation::Put).times(2));
            }
            let what = format!("{at}: {}", trouble.describe());
            match build(store.clone(), &timeline, &relations).await {
                Ok(built) => {
                    finished += 1;
                    assert!(content(&timeline, built).await == expected, "{what}");
                }
                Err(error) => {
                    failed += 1;
                    let of_the_store = matches!(error, BaseError::Store(_) | BaseError::Layer(_));
                    assert!(of_the_store, "{what}: {error}");
                    assert!(timeline.manifest.latest().await.expect("root").bases.is_empty(), "{what}");
                    // The command is run again.
                    faults.clear();
                    let built = build(store, &timeline, &relations).await.expect("built");
                    assert!(content(&timeline, built).await == expected, "{what}");
                }
            }
            assert!(!faults.fired().is_empty(), "{what}");
        }
    }
    assert!(finished > 50 && failed > 20, "{finished} finished, {failed} failed");
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
        let objects: Arc<dyn ObjectStore> = faulty.clone();
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
