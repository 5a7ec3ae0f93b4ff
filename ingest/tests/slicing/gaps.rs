//! What is waited for, and when it is a gap (PROTOCOLS.md §2).

use crate::handmade::*;
use zenith_ingest::slicer::Stopped;
use zenith_manifest::BaseKind;
use zenith_pgformat::Lsn;
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::wal::encode::Placed;

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
async fn an_image_of_a_stopped_directory_past_wal_that_is_merely_late_makes_no_gap() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 41).await;
    wal.commits_up_to(6);
    let Placed { lsn: redo, end } = wal.shut_down();
    wal.commits_up_to(8);
    let last = wal.commit().end;
    let segments = wal.segments();
    // The archiver had got to segment 3 when the server stopped.
    archive(&timeline, &segments, &[2, 3]).await;
    register(&timeline, BaseKind::Directory, redo, redo, end).await;
    let report = run(&timeline).await.expect("sliced");
    assert_eq!((report.stopped, report.gap), (Stopped::EndOfArchive { next: name(4) }, None));

    // The server is started again and archives the rest.
    archive(&timeline, &segments, &[4, 5, 6, 7, 8]).await;
    let report = run(&timeline).await.expect("sliced");
    assert_eq!((report.to, report.gap, report.confirmed.len()), (last, None, 1));
    let root = timeline.layers().await.0;
    assert_eq!(root.ranges.len(), 1);
    assert!(root.bases.iter().all(|base| base.confirmed));
}

#[tokio::test]
async fn an_image_of_a_stopped_directory_begins_a_range_once_a_later_segment_proves_the_gap() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 42).await;
    wal.commits_up_to(6);
    let Placed { lsn: redo, end } = wal.shut_down();
    wal.commits_up_to(8);
    let last = wal.commit().end;
    let segments = wal.segments();
    archive(&timeline, &segments, &[2, 3, 6]).await;
    register(&timeline, BaseKind::Directory, redo, redo, end).await;
    let report = run(&timeline).await.expect("sliced");
    let base = timeline.layers().await.0.bases[1].id;
    assert_eq!(report.stopped, Stopped::RangeBegun { base });
    archive(&timeline, &segments, &[7, 8]).await;
    let report = run(&timeline).await.expect("sliced");
    assert_eq!((report.from, report.to, report.confirmed.as_slice()), (redo, last, [base].as_slice()));
}

#[tokio::test]
async fn an_image_that_can_never_be_whole_does_not_keep_a_later_one_from_beginning_a_range() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 43).await;
    let mut images = Vec::new();
    for from in [5, 8] {
        wal.commits_up_to(from);
        let (redo, checkpoint) = wal.begin_backup();
        wal.commits_up_to(from + 2);
        images.push((redo, checkpoint, wal.end_backup(redo)));
    }
    wal.commits_up_to(11);
    let segments = wal.segments();
    // Archiving was off until after the first of them.
    archive(&timeline, &segments, &[2, 3, 8, 9, 10]).await;
    for (redo, checkpoint, end) in &images {
        register(&timeline, BaseKind::Online, *redo, *checkpoint, *end).await;
    }
    let report = run(&timeline).await.expect("sliced");
    let second = timeline.layers().await.0.bases[2].id;
    assert_eq!(report.stopped, Stopped::RangeBegun { base: second });
    assert_eq!(report.gap.expect("a gap").1, images[1].0);
}

#[tokio::test]
async fn an_image_of_an_abandoned_tli_begins_no_range() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 44).await;
    wal.commits_up_to(4);
    let switch = wal.commit().end;
    wal.commits_up_to(6);
    let (redo, checkpoint) = wal.begin_backup();
    wal.commits_up_to(7);
    let end = wal.end_backup(redo);
    wal.commits_up_to(8);
    let segments = wal.segments();
    // The old primary went on after TLI 2 had left it, and is missing segment 3 as well.
    archive(&timeline, &segments, &[2, 6, 7]).await;
    archive_history(&timeline, 2, &format!("1\t{switch}\tpromoted\n")).await;
    register(&timeline, BaseKind::Online, redo, checkpoint, end).await;
    let report = run(&timeline).await.expect("sliced");
    assert_eq!(report.stopped, Stopped::Waiting { missing: name(3), later: name(7) });
}

#[tokio::test]
async fn a_missing_segment_is_waited_for_too_where_only_a_later_tli_has_gone_on() {
    let mut wal = Wal::new();
    let timeline = timeline_at(&wal, 45).await;
    wal.commits_up_to(4);
    let Placed { lsn: prev, end: switch } = wal.commit();
    let segments = wal.segments();
    let mut second = Wal::continued(&segments, 2, switch, prev);
    second.commits_up_to(5);
    archive(&timeline, &segments, &[2]).await;
    archive_tli(&timeline, 2, 4, &second.segments(), &[4]).await;
    archive_history(&timeline, 2, &format!("1\t{switch}\tpromoted\n")).await;
    let report = run(&timeline).await.expect("sliced");
    let later = "000000020000000000000004".to_owned();
    assert_eq!(report.stopped, Stopped::Waiting { missing: name(3), later });
    assert!(report.to <= Lsn(size().start_of(3).0));
}
