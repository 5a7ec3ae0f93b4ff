//! The first and the next push into a cluster, whatever the store does meanwhile.

use super::*;
use std::path::PathBuf;
use std::sync::Arc;
use zenith_pgformat::control::ControlFile;
use zenith_store::Store;
use zenith_testkit::control::{SYSTEM_IDENTIFIER, control_file};
use zenith_testkit::env::test_env;
use zenith_testkit::faults::{AMBIGUOUS, Fault, FaultStore, Rule};
use zenith_testkit::segment::filled_segment;

#[test]
fn only_names_that_postgresql_archives_are_taken() {
    for name in [
        "pg_wal/000000010000000000000001",
        "/data/pg_wal/000000010000000000000FFF",
        "00000002.history",
        "pg_wal/000000010000000000000002.00000028.backup",
        "pg_wal/000000010000000000000003.partial",
    ] {
        assert!(wal_file_name(Path::new(name)).is_ok(), "{name}");
    }
    for name in ["", "/", "pg_wal", "postgresql.conf", "pg_wal/00000001000000000000000", "x.history"] {
        assert!(wal_file_name(Path::new(name)).is_err(), "{name}");
    }
}

fn size() -> WalSegSize {
    WalSegSize::new(1 << 20).expect("valid")
}

/// A data directory with segment 1 and a history.
fn data_directory() -> (tempfile::TempDir, [PathBuf; 2]) {
    let folder = tempfile::tempdir().expect("folder");
    for below in ["global", "pg_wal"] {
        std::fs::create_dir(folder.path().join(below)).expect("made");
    }
    let control = ControlFile { wal_segment_size: size(), ..control_file() };
    std::fs::write(folder.path().join("global/pg_control"), control.encode()).expect("written");
    let content = filled_segment(size(), 1, SYSTEM_IDENTIFIER, 0);
    let segment = folder.path().join("pg_wal/000000010000000000000001");
    std::fs::write(&segment, content).expect("written");
    let history = folder.path().join("pg_wal/00000002.history");
    std::fs::write(&history, b"1\t0/180000\tno reason\n").expect("written");
    (folder, [segment, history])
}

#[tokio::test]
async fn whatever_the_store_does_a_push_ends_right_from_the_first_file_of_a_cluster_on() {
    let (_folder, files) = data_directory();
    let main = TimelineChoice::Name(MAIN.to_owned());
    let mut unacknowledged = 0;
    for (seed, fault) in AMBIGUOUS.into_iter().chain([Fault::Latency(Duration::from_secs(2))]).enumerate() {
        // Every request of a first push in turn is the one that goes wrong, once, twice or for good.
        for (after, times) in (0..24).flat_map(|after| [(after, 1), (after, 2), (after, u64::MAX)]) {
            for file in &files {
                let what = format!("{fault:?} after {after} times {times}: {}", file.display());
                let env = test_env(1 + (seed * 100 + after as usize) as u64);
                let calm = Store::memory();
                let faulty = FaultStore::new(Arc::clone(&calm.objects), Arc::clone(&env.clock), seed as u64);
                let faults = faulty.faults();
                let session = Session::of_cluster(&env, calm.wrapped(|_| faulty), "main");
                let quiet = Session::of_cluster(&env, calm, "main");
                faults.add(Rule::new(fault).after(after).times(times));
                let step = Step::default();
                let pushed = push(&session, &main, file, &step).await;
                faults.clear();
                match pushed {
                    Ok(pushed) => {
                        // Acknowledged: it is there, in the timeline that the name leads to.
                        let identity = quiet.identity(&main).await.expect("main");
                        assert_eq!(identity.timeline.to_string(), pushed.timeline, "{what}");
                        let archive = quiet.archive(&identity).expect("archive");
                        let kind = WalFile::parse(&pushed.file, size()).expect("a WAL file");
                        let there = archive.get(kind).await.expect("readable").expect(&what);
                        assert!(there == std::fs::read(file).expect("file"), "{what}");
                    }
                    Err(_) => unacknowledged += 1,
                }
                // PostgreSQL tries again, and other files follow: one timeline holds them all.
                for next in files.iter().chain([file]) {
                    let again = push(&session, &main, next, &step).await;
                    again.unwrap_or_else(|error| panic!("{what}: {error:#}"));
                }
                assert_eq!(quiet.names.list().await.expect("names").len(), 1, "{what}");
                let again = push(&session, &main, file, &step).await.expect("there");
                assert!(!again.stored && !again.created_timeline, "{what}");
            }
        }
    }
    assert!(unacknowledged > 50, "{unacknowledged}");
}
