//! What a restore target means: PROTOCOLS.md §4, on WAL and events written by hand.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod world;

use world::*;
use zenith_layers::{Event, EventKind};
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::wal::encode::{Placed, WalWriter, WriterStart};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{Lsn, Xid};
use zenith_reader::{ReadError, Resolved, Target, TargetError, Timeline};

/// `XLOG_NOOP`, catalog/pg_control.h.
const NOOP: u8 = 0x20;
const SEGMENT: u64 = 1 << 20;

/// WAL and what happened in it.
struct Diary {
    wal: WalWriter,
    events: Vec<Event>,
}

impl Diary {
    fn new() -> Diary {
        let wal = WalWriter::new(WriterStart {
            lsn: Lsn(SEGMENT),
            prev: Lsn(SEGMENT - 64),
            tli: 1,
            seg_size: WalSegSize::new(SEGMENT).unwrap(),
            system_identifier: SYSTEM,
        });
        Diary { wal: wal.unwrap(), events: Vec::new() }
    }

    fn record(&mut self, bytes: usize) -> Placed {
        self.wal.append(RmgrId::XLOG, NOOP, 0, &vec![1; bytes])
    }

    fn event(&mut self, kind: EventKind, xid: Xid, time: i64, name: &str) -> Placed {
        let placed = self.record(20);
        self.events.push(Event {
            start: placed.lsn,
            lsn: placed.end,
            kind,
            xid,
            time,
            name: name.to_owned(),
            subxacts: 0,
        });
        placed
    }

    fn commit(&mut self, xid: Xid, time: i64) -> Placed {
        self.event(EventKind::Commit, xid, time, "")
    }

    /// A timeline whose base image spans the first `window` records; sliced in two slices.
    async fn open(self, seed: u64, redo: Placed, end: Placed) -> Timeline {
        let mut world = World::new(seed).await;
        let upto = self.wal.position();
        world.archive(Lsn(SEGMENT), &self.wal.finish()).await;
        let base = world.base(redo.lsn.0, end.end.0, vec![]).await;
        let middle = self.events.get(self.events.len() / 2).map_or(end.end, |event| event.lsn).max(end.end);
        let (early, late): (Vec<Event>, Vec<Event>) = self.events.into_iter().partition(|e| e.lsn <= middle);
        world.slice(middle.0, vec![], &early, &[base]).await;
        world.slice(upto.0, vec![], &late, &[]).await;
        world.open().await
    }
}

async fn resolve(timeline: &Timeline, target: Target) -> Resolved {
    timeline.resolve(&target).await.unwrap()
}

async fn refused(timeline: &Timeline, target: Target) -> TargetError {
    timeline.resolve(&target).await.unwrap_err()
}

#[tokio::test]
async fn an_lsn_means_the_records_that_end_at_or_below_it() {
    let mut diary = Diary::new();
    let (redo, end) = (diary.record(10), diary.record(10));
    let small = diary.record(30);
    let paged = diary.record(20_000);
    let huge = diary.record(2_500_000);
    let last = diary.record(5);
    let timeline = diary.open(1, redo, end).await;
    for (asked, record) in [
        (end.end.0, end),
        (end.end.0 + 1, end),
        (small.end.0 - 1, end),
        (small.end.0, small),
        (paged.end.0 - 8192, small),
        (paged.end.0 - 1, small),
        (paged.end.0, paged),
        (huge.end.0 - SEGMENT, paged),
        (huge.end.0 - 1, paged),
        (huge.end.0, huge),
        (last.end.0, last),
    ] {
        let resolved = resolve(&timeline, Target::Lsn(Lsn(asked))).await;
        assert_eq!((resolved.lsn, resolved.last_record.start), (record.end, record.lsn), "{asked:X}");
        assert_eq!(resolved.tli, 1);
    }
    let past = refused(&timeline, Target::Lsn(Lsn(last.end.0 + 1))).await;
    assert!(past.to_string().contains(&last.end.to_string()), "{past}");
    let early = refused(&timeline, Target::Lsn(Lsn(end.end.0 - 1))).await;
    assert!(matches!(early, TargetError::Read(ReadError::BelowBase { .. })), "{early}");
    assert_eq!(resolve(&timeline, Target::Latest).await.lsn, last.end);
}

#[tokio::test]
async fn a_position_behind_a_page_header_is_the_page_boundary() {
    let mut diary = Diary::new();
    let (redo, end) = (diary.record(10), diary.record(10));
    // A record that ends exactly at a page's end, the last one there is.
    let before = diary.record(100);
    let room = 8192 - before.end.0 % 8192;
    let exact = diary.record(room as usize - 24 - 5);
    assert_eq!(exact.end.0 % 8192, 0);
    let timeline = diary.open(2, redo, end).await;
    for asked in [exact.end.0, exact.end.0 + 24] {
        assert_eq!(resolve(&timeline, Target::Lsn(Lsn(asked))).await.lsn, exact.end);
        assert_eq!(timeline.snapshot(Lsn(asked)).await.unwrap().lsn(), exact.end);
    }
    assert!(timeline.check(Lsn(exact.end.0 + 32)).is_err());
}

#[tokio::test]
async fn a_refusal_names_the_lsn_that_was_typed() {
    let mut diary = Diary::new();
    let (redo, end) = (diary.record(10), diary.record(10));
    let timeline = diary.open(9, redo, end).await;
    // Inside the headers of a segment's first page and of another page: both mean an LSN that nobody typed.
    for typed in ["0/10", "0/100020", "0/900010"] {
        let lsn: Lsn = typed.parse().unwrap();
        let resolved = refused(&timeline, Target::Lsn(lsn)).await.to_string();
        let read = timeline.snapshot(lsn).await.err().unwrap().to_string();
        assert!(resolved.starts_with(&format!("LSN {typed} lies ")), "{resolved}");
        assert_eq!(resolved, read);
    }
}

async fn by_time(seed: u64, checkpoint_at_the_end: Option<i64>) -> (Timeline, [Placed; 5]) {
    let mut diary = Diary::new();
    let redo = diary.record(10);
    diary.event(EventKind::Checkpoint, 0, 10, "");
    let end = diary.record(10);
    let a = diary.commit(700, 20);
    diary.record(50);
    let b = diary.commit(701, 30);
    let c = diary.event(EventKind::Abort, 702, 25, "");
    let d = diary.commit(703, 40);
    let tail = match checkpoint_at_the_end {
        Some(time) => diary.event(EventKind::Checkpoint, 0, time, ""),
        None => diary.record(10),
    };
    (diary.open(seed, redo, end).await, [a, b, c, d, tail])
}

#[tokio::test]
async fn a_time_means_just_before_the_first_later_commit_or_abort() {
    let (timeline, [a, b, c, d, tail]) = by_time(3, None).await;
    let at = async |time| resolve(&timeline, Target::Time(time)).await;
    let first = at(15).await;
    assert!(first.lsn <= a.lsn && first.last_commit.is_none());
    assert_eq!(first.time, Some(10));
    let second = at(20).await;
    assert!(a.end < second.lsn && second.lsn <= b.lsn, "the record between counts");
    assert_eq!(second.last_commit.map(|commit| commit.xid), Some(700));
    // Commit times do not ascend in the WAL: the abort of 25 comes after the commit of 30.
    assert_eq!(at(27).await.lsn, second.lsn);
    let third = at(30).await;
    assert_eq!(third.lsn, c.end);
    assert_eq!(third.last_commit.map(|commit| (commit.xid, commit.time)), Some((701, 30)));
    assert!(third.lsn <= d.lsn);
    assert_eq!(at(40).await.lsn, tail.end);
    let late = refused(&timeline, Target::Time(41)).await;
    assert!(matches!(late, TargetError::TimePastEnd { newest: Some(40), .. }), "{late}");
    let early = refused(&timeline, Target::Time(9)).await;
    assert!(matches!(early, TargetError::TimeBeforeBase { .. }), "{early}");
}

#[tokio::test]
async fn a_later_checkpoint_proves_that_nothing_was_committed_until_then() {
    let (timeline, [.., tail]) = by_time(4, Some(50)).await;
    assert_eq!(resolve(&timeline, Target::Time(45)).await.lsn, tail.end);
    assert_eq!(resolve(&timeline, Target::Time(50)).await.time, Some(50));
    let late = refused(&timeline, Target::Time(51)).await;
    assert!(late.to_string().contains("2000-01-01T00:00:00.000050Z"), "{late}");
}

#[tokio::test]
async fn a_restore_point_is_its_own_end_and_must_be_unique() {
    let mut diary = Diary::new();
    let redo = diary.record(10);
    let inside = diary.event(EventKind::RestorePoint, 0, 5, "early");
    let end = diary.record(10);
    let one = diary.event(EventKind::RestorePoint, 0, 10, "before the drop");
    diary.commit(700, 11);
    diary.event(EventKind::RestorePoint, 0, 12, "twice");
    let again = diary.event(EventKind::RestorePoint, 0, 13, "twice");
    let timeline = diary.open(5, redo, end).await;
    let resolved = resolve(&timeline, Target::Name("before the drop".to_owned())).await;
    assert_eq!((resolved.lsn, resolved.time), (one.end, Some(10)));
    let twice = refused(&timeline, Target::Name("twice".to_owned())).await;
    assert!(matches!(&twice, TargetError::AmbiguousName { found, .. } if found.len() == 2));
    assert!(twice.to_string().contains(&again.end.to_string()), "{twice}");
    let none = refused(&timeline, Target::Name("nowhere".to_owned())).await.to_string();
    assert!(none.contains("before the drop") && none.contains("twice"), "{none}");
    let early = refused(&timeline, Target::Name("early".to_owned())).await;
    assert!(matches!(early, TargetError::Read(ReadError::BelowBase { lsn, .. }) if lsn == inside.end));
}

#[tokio::test]
async fn a_transaction_means_with_its_end_be_it_a_commit_or_an_abort() {
    let mut diary = Diary::new();
    let redo = diary.record(10);
    let end = diary.record(10);
    let commit = diary.commit(700, 10);
    let abort = diary.event(EventKind::AbortPrepared, 701, 11, "gid");
    diary.commit(702, 12);
    diary.commit(702, 13);
    let timeline = diary.open(6, redo, end).await;
    assert_eq!(resolve(&timeline, Target::Xid(700)).await.lsn, commit.end);
    assert_eq!(resolve(&timeline, Target::Xid(701)).await.lsn, abort.end);
    assert!(matches!(
        refused(&timeline, Target::Xid(699)).await,
        TargetError::NoSuchXid { outside: false, .. }
    ));
    assert!(
        matches!(refused(&timeline, Target::Xid(702)).await, TargetError::AmbiguousXid { lsns, .. } if lsns.len() == 2)
    );
}

#[tokio::test]
async fn a_name_or_transaction_is_looked_for_only_in_layers_that_can_hold_it() {
    let mut diary = Diary::new();
    let (redo, end) = (diary.record(10), diary.record(10));
    let commits: Vec<Placed> = (0..100).map(|i| diary.commit(1000 + i, i64::from(i))).collect();
    let point = diary.event(EventKind::RestorePoint, 0, 100, "the point");
    let mut world = World::new(10).await;
    world.caches.whole_bytes = 0;
    let upto = diary.wal.position();
    world.archive(Lsn(SEGMENT), &diary.wal.finish()).await;
    let base = world.base(redo.lsn.0, end.end.0, vec![]).await;
    let mut confirmed = vec![base];
    for events in diary.events.chunks(5) {
        let last = events.last().unwrap().lsn;
        world.slice(last.0, vec![], events, &confirmed).await;
        confirmed.clear();
    }
    world.slice(upto.0 + 8, vec![], &[], &[]).await;
    let layers = diary.events.chunks(5).count() as u64;
    for (target, wanted) in
        [(Target::Xid(1042), commits[42].end), (Target::Name("the point".to_owned()), point.end)]
    {
        let timeline = world.open().await;
        let before = timeline.counts().snapshot();
        assert_eq!(resolve(&timeline, target).await.lsn, wanted);
        let spent = timeline.counts().snapshot().since(&before).requests();
        // All footers; the row group that holds it, the one that tells the last commit, a segment of WAL.
        assert!((layers..=layers + 5).contains(&spent), "{spent} requests for {layers} layers");
    }
    let timeline = world.open().await;
    let before = timeline.counts().snapshot();
    assert_eq!(timeline.restore_points(1).await.unwrap().len(), 1);
    assert!(timeline.counts().snapshot().since(&before).requests() <= 2, "the newest are read first");
}

#[tokio::test]
async fn a_missing_segment_is_named() {
    let mut diary = Diary::new();
    let (redo, end) = (diary.record(10), diary.record(10));
    let mut world = World::new(7).await;
    let base = world.base(redo.lsn.0, end.end.0, vec![]).await;
    world.slice(diary.wal.position().0, vec![], &[], &[base]).await;
    let error = refused(&world.open().await, Target::Latest).await.to_string();
    assert!(error.contains("000000010000000000000001"), "{error}");
}

#[tokio::test]
async fn the_head_of_a_segment_ends_at_the_snapshot() {
    let mut diary = Diary::new();
    let (redo, end) = (diary.record(10), diary.record(10));
    let last = diary.record(70);
    let timeline = diary.open(8, redo, end).await;
    let head = timeline.snapshot(last.end).await.unwrap().segment_head().await.unwrap();
    assert_eq!(head.len() as u64, last.end.0 - SEGMENT);
    assert_eq!(&head[last.lsn.0 as usize - SEGMENT as usize + 26..][..3], &[1, 1, 1]);
}
