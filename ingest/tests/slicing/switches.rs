//! Slicing that comes to the point where another TLI leaves the one it stands on.

use crate::handmade::*;
use crate::support::*;
use zenith_ingest::error::IngestError;
use zenith_ingest::slicer::{SlicerOptions, Stopped};
use zenith_manifest::TliSwitch;
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::wal::encode::Placed;
use zenith_pgformat::{Lsn, XLOG_BLCKSZ};

/// Where in the WAL TLI 2 leaves TLI 1.
#[derive(Clone, Copy, PartialEq, Debug)]
enum At {
    Page,
    EndOfPage,
    EndOfSegment,
}

/// Writes up to segment 4, and there a last record that ends where it is wanted.
fn last_record(wal: &mut Wal, at: At) -> Placed {
    wal.commits_up_to(4);
    match at {
        At::Page => wal.commit(),
        At::EndOfSegment => wal.writer.append(RmgrId::XLOG, SWITCH, 0, &[]),
        At::EndOfPage => {
            let used = wal.position().0 % XLOG_BLCKSZ as u64;
            // What is left of the page but for a record's header and that of a long main data, 24 and 5 bytes.
            let rest = XLOG_BLCKSZ - used as usize - 29;
            assert!(rest > 255, "{rest}");
            wal.writer.append(RmgrId::XLOG, NOOP, 0, &vec![7; rest])
        }
    }
}

#[tokio::test]
async fn slicing_that_stands_exactly_at_a_switch_point_goes_on_along_the_next_tli() {
    for (seed, at) in [At::Page, At::EndOfPage, At::EndOfSegment].into_iter().enumerate() {
        let mut wal = Wal::new();
        let timeline = timeline_at(&wal, 70 + seed as u64).await;
        let Placed { lsn: prev, end: switch } = last_record(&mut wal, at);
        let unit = if at == At::EndOfSegment { size().bytes() } else { XLOG_BLCKSZ as u64 };
        assert_eq!(switch.0 % unit == 0, at != At::Page, "{at:?}");
        let segments = wal.segments();
        let mut second = Wal::continued(&segments, 2, switch, prev);
        second.commits_up_to(6);
        let end = second.commit().end;

        archive(&timeline, &segments, &[2, 3, 4]).await;
        let report = run(&timeline).await.expect("sliced");
        assert_eq!((report.to, report.tli), (switch, 1), "{at:?}");
        let first = size().segment_of(switch);
        let numbers: Vec<u64> = (first..=6).collect();
        archive_tli(&timeline, 2, first, &second.segments(), &numbers).await;
        archive_history(&timeline, 2, &format!("1\t{switch}\tpromoted\n")).await;
        let report = run(&timeline).await.unwrap_or_else(|error| panic!("{at:?}: {error}"));
        assert_eq!((report.to, report.tli), (end, 2), "{at:?}");
        assert_eq!(report.switches, [TliSwitch { tli: 2, from: switch }]);

        // Where slicing was told to end at the switch point, the next run begins there too.
        let stopped = Timeline::new(&control_file(), 80 + seed as u64);
        let checkpoint = Wal::new().checkpoint;
        let kind = zenith_manifest::BaseKind::Directory;
        register(&stopped, kind, checkpoint.lsn, checkpoint.lsn, checkpoint.end).await;
        copy_archive(&timeline, &stopped).await;
        let options = SlicerOptions { stop_at: Some(switch), ..SlicerOptions::default() };
        let report = stopped.slicer(options).await.run_once().await.expect("sliced");
        assert_eq!(report.stopped, Stopped::Target);
        let report = run(&stopped).await.unwrap_or_else(|error| panic!("{at:?}: {error}"));
        assert_eq!((report.to, report.tli), (end, 2), "{at:?}");
        assert_eq!(timeline.all_changes().await, stopped.all_changes().await);
    }
}

async fn copy_archive(from: &Timeline, to: &Timeline) {
    for tli in [1, 2] {
        for segment in from.archive.list(tli, 0).await.expect("listed") {
            let file = zenith_pgformat::wal_name::WalFile::Segment { tli, segment };
            let content = from.archive.get(file).await.expect("read").expect("there");
            to.archive.put(&to.env, file, &content).await.expect("archived");
        }
    }
    let history = zenith_pgformat::wal_name::WalFile::History { tli: 2 };
    let content = from.archive.get(history).await.expect("read").expect("there");
    to.archive.put(&to.env, history, &content).await.expect("archived");
}

#[tokio::test]
async fn damage_before_a_switch_is_an_error_that_names_the_lsn_and_not_the_end_of_the_archive() {
    // In the last segment of TLI 1, and in what TLI 2's first segment holds of it.
    for (seed, damaged) in [(90, 3), (91, 4)] {
        let mut wal = Wal::new();
        let timeline = timeline_at(&wal, seed).await;
        wal.commits_up_to(4);
        let half = Lsn(size().start_of(4).0 + size().bytes() / 2);
        while wal.position() < half {
            wal.commit();
        }
        let Placed { lsn: prev, end: switch } = wal.commit();
        let segments = wal.segments();
        let mut second = Wal::continued(&segments, 2, switch, prev);
        second.commits_up_to(5);
        let (mut first, mut second) = (segments, second.segments());
        let file = if damaged == 3 { &mut first[1] } else { &mut second[0] };
        file[100_000] ^= 0x10;
        archive(&timeline, &first, &[2, 3]).await;
        archive_tli(&timeline, 2, 4, &second, &[4]).await;

        if damaged == 3 {
            // Nobody knows yet that TLI 1 went on: what follows its last sound record may be an old file's bytes.
            let report = run(&timeline).await.expect("sliced");
            assert!(matches!(report.stopped, Stopped::EndOfRecords(_)), "{:?}", report.stopped);
        }
        archive_history(&timeline, 2, &format!("1\t{switch}\tpromoted\n")).await;
        let error = run(&timeline).await.expect_err("damaged");
        assert!(matches!(error, IngestError::Wal(_)), "{error}");
        let sliced = sliced(&timeline).await;
        let at = size().start_of(damaged).0 + 100_000;
        assert!(sliced.0 <= at && at - sliced.0 < 8192, "{sliced}");
        assert!(error.to_string().contains(&sliced.to_string()), "{error}");
    }
}
