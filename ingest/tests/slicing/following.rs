//! Following an archive as it grows.

use crate::handmade::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use zenith_ingest::slicer::{SlicerOptions, Stopped, Told};
use zenith_manifest::BaseKind;

#[tokio::test]
async fn following_commits_after_the_lag_and_confirms_images_as_they_come() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 8).await;
    wal.commits_up_to(3);
    let (redo, checkpoint) = wal.begin_backup();
    let end = wal.end_backup(redo);
    wal.commits_up_to(4);
    archive(&timeline, &wal.segments(), &[2, 3]).await;
    let mut slicer = timeline.slicer(SlicerOptions::default()).await;
    let clock = timeline.env.clock.clone();
    let begun = clock.elapsed();
    // The clock of a test jumps by the pauses between two looks.
    let done = AtomicBool::new(false);
    let mut reports = Vec::new();
    let told = |told: Told<'_>| match told {
        Told::Report(report) => {
            reports.push((clock.elapsed() - begun, report.clone()));
            done.store(true, Ordering::Relaxed);
        }
        Told::CaughtUp => panic!("nothing is committed yet"),
    };
    slicer.follow(|| done.load(Ordering::Relaxed), told).await.expect("followed");
    let (after, first) = &reports[0];
    assert_eq!((first.commits, first.confirmed.len()), (1, 1));
    let expected = Duration::from_secs(10)..=Duration::from_secs(12);
    assert!(expected.contains(after), "committed after {after:?}");

    register(&timeline, BaseKind::Online, redo, checkpoint, end).await;
    let confirmed = AtomicBool::new(false);
    let told = |told: Told<'_>| {
        if let Told::Report(report) = told {
            confirmed.fetch_or(!report.confirmed.is_empty(), Ordering::Relaxed);
        }
    };
    slicer.follow(|| confirmed.load(Ordering::Relaxed), told).await.expect("followed");
    assert!(timeline.layers().await.0.bases.iter().all(|base| base.confirmed));
}

#[tokio::test]
async fn a_long_backlog_is_told_commit_by_commit_and_then_that_it_has_caught_up() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 60).await;
    wal.commits_up_to(8);
    archive(&timeline, &wal.segments(), &[2, 3, 4, 5, 6, 7]).await;
    let options = SlicerOptions { arena_bytes: 100_000, ..SlicerOptions::default() };
    let mut slicer = timeline.slicer(options).await;
    let caught_up = AtomicBool::new(false);
    let (mut reports, mut at) = (Vec::new(), Wal::new().checkpoint.lsn);
    let told = |told: Told<'_>| match told {
        Told::Report(report) => {
            assert_eq!(report.from, at, "each goes on where the one before ended");
            at = report.to;
            reports.push((report.stopped.clone(), report.commits));
        }
        Told::CaughtUp => caught_up.store(true, Ordering::Relaxed),
    };
    let stopped = slicer.follow(|| caught_up.load(Ordering::Relaxed), told).await.expect("followed");
    assert_eq!(stopped, Stopped::Asked);
    assert!(reports.iter().filter(|report| **report == (Stopped::Going, 1)).count() > 3, "{reports:?}");
    assert_eq!(sliced(&timeline).await, at);
}

#[tokio::test]
async fn whoever_is_asked_to_stop_in_a_backlog_commits_what_it_has() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 61).await;
    wal.commits_up_to(12);
    let end = wal.commit().end;
    let segments = wal.segments();
    archive(&timeline, &segments, &(2..=12).collect::<Vec<u64>>()).await;
    let mut slicer = timeline.slicer(SlicerOptions::default()).await;
    let mut times = 0;
    let stop = || {
        times += 1;
        times > 6
    };
    assert_eq!(slicer.follow(stop, |_| {}).await.expect("stopped"), Stopped::Asked);
    let position = slicer.position();
    assert!(position > Wal::new().checkpoint.end && position < end, "{position}");
    assert_eq!(sliced(&timeline).await, position);
    assert_eq!(run(&timeline).await.expect("sliced").to, end);
}
