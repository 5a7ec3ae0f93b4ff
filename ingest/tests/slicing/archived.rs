//! What is missing, damaged, cut, late, or another's.

use crate::handmade::*;
use zenith_ingest::archive::WalArchive;
use zenith_ingest::error::IngestError;
use zenith_ingest::slicer::{SlicerOptions, Stopped};
use zenith_manifest::Role;
use zenith_pgformat::Lsn;
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::wal_name::WalFile;

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
    let sliced = sliced(&timeline).await;
    assert!(sliced.0 <= damaged && damaged - sliced.0 < 8192, "{sliced}");
    assert!(error.to_string().contains(&sliced.to_string()), "{error}");
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
async fn a_fenced_slicer_commits_nothing() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 7).await;
    wal.commits_up_to(3);
    archive(&timeline, &wal.segments(), &[2, 3]).await;
    let mut fenced = timeline.slicer(SlicerOptions::default()).await;
    timeline.manifest.take_epoch(Role::Slicer).await.expect("another took over");
    let error = fenced.run_once().await.expect_err("fenced");
    assert!(matches!(error, IngestError::Fenced(_)), "{error}");
    assert_eq!(sliced(&timeline).await, Wal::new().checkpoint.lsn);
}
