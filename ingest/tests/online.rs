//! A base image taken while the server writes, the window in which it is fuzzy, and a promotion afterwards.

mod support;

use std::path::Path;
use std::process::{Child, Output, Stdio};
use support::compare::compare;
use support::*;
use zenith_ingest::archive::{ArchiveError, Stored};
use zenith_ingest::error::IngestError;
use zenith_ingest::slicer::{SlicerOptions, Stopped};
use zenith_manifest::{BaseKind, TliSwitch};
use zenith_pgformat::backup_label::BackupLabel;
use zenith_pgformat::history::History;
use zenith_pgformat::wal_name::WalFile;
use zenith_pgformat::{Lsn, Tli};
use zenith_testkit::pg::{Pg, PgOptions, StopMode, bin_dir, command, run};

/// Relations that come, grow, are cut and go while files are copied. It goes round as often as it is told, so that the
/// WAL is as long on a slow machine as on a fast one.
const CHURN: &str = "
    CREATE SEQUENCE rounds;
    CREATE TABLE goal AS SELECT 1 AS rounds;
    CREATE PROCEDURE churn() LANGUAGE plpgsql AS $$
    BEGIN
      FOR i IN 1..100000 LOOP
        WHILE i > (SELECT rounds FROM goal) LOOP PERFORM pg_sleep(0.01); COMMIT; END LOOP;
        EXECUTE format('CREATE TABLE churn_%s AS SELECT g, repeat(''x'', 200) FROM generate_series(1, 500) g', i);
        COMMIT;
        EXECUTE format('CREATE INDEX ON churn_%s (g)', i);
        COMMIT;
        EXECUTE format('DELETE FROM churn_%s WHERE g > 100', i);
        COMMIT;
        EXECUTE format('TRUNCATE churn_%s', i);
        COMMIT;
        EXECUTE format('INSERT INTO churn_%s SELECT 1 FROM generate_series(1, 3000)', i);
        COMMIT;
        IF i > 5 THEN EXECUTE format('DROP TABLE churn_%s', i - 5); END IF;
        PERFORM nextval('rounds');
        COMMIT;
      END LOOP;
    END $$;
";

struct Load(Vec<Child>);

impl Load {
    fn start(pg: &Pg) -> Load {
        let quiet = |mut program: std::process::Command| {
            program.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("load")
        };
        let mut bench = pg.client("pgbench");
        bench.args(["-n", "-c", "2", "-t", "2000", "-R", "200"]);
        let mut churn = pg.client("psql");
        churn.args(["-XAtqc", "CALL churn()"]);
        Load(vec![quiet(bench), quiet(churn)])
    }

    fn stop(mut self) {
        for child in &mut self.0 {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_taken_under_load_is_whole_at_its_end_and_slicing_follows_a_promotion() {
    let options = PgOptions::default()
        .initdb("--wal-segsize=1")
        .initdb("--data-checksums")
        .conf("wal_keep_size = '20GB'")
        .conf("max_wal_size = 32MB")
        .conf("wal_log_hints = on");
    let pg = Pg::start_new(&options);
    assert!(pg.client("pgbench").args(["-i", "-s", "1", "-q"]).output().expect("pgbench").status.success());
    pg.script("postgres", CHURN);

    let load = Load::start(&pg);
    go_round(&pg, 8);
    let copy = pg.home().join("copy");
    let output = copy_while_it_changes(&pg, &copy);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let end: Lsn = said
        .lines()
        .find_map(|line| line.split("write-ahead log end point: ").nth(1))
        .and_then(|lsn| lsn.trim().parse().ok())
        .expect("end point");
    pg.wait_for("(SELECT count(*) FROM pgbench_history) > 100");
    load.stop();
    pg.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'");
    pg.stop(StopMode::Fast);

    let stopped = control(pg.data());
    let timeline = Timeline::new(&stopped, 2);
    let label = BackupLabel::parse(&std::fs::read(copy.join("backup_label")).expect("label")).expect("label");
    let mut builder = timeline.builder(BaseKind::Online, &stopped, label.start, label.checkpoint);
    add_directory(&mut builder, &copy).await;
    timeline.register(builder.finish(end, "2026-01-01T00:00:00Z").await.expect("finished")).await;
    timeline.archive_wal(pg.data(), 1, label.start, stopped.checkpoint).await;

    // Inside the window nothing is confirmed, and what is missing is remembered from one run to the next.
    let inside = Lsn(label.start.0 + (end.0 - label.start.0) / 2);
    let options = SlicerOptions { stop_at: Some(inside), ..SlicerOptions::default() };
    let report = timeline.slicer(options).await.run_once().await.expect("sliced");
    assert_eq!((report.stopped, report.confirmed.len()), (Stopped::Target, 0));

    let report = timeline.slicer(SlicerOptions::default()).await.run_once().await.expect("sliced");
    assert_eq!(report.confirmed.len(), 1);
    assert!(matches!(report.stopped, Stopped::EndOfRecords(_)), "{:?}", report.stopped);
    let (root, layers) = timeline.layers().await;
    assert!(root.readable(end).is_ok() && root.readable(inside).is_err());
    compare(pg.data(), &stopped, &layers, root.sliced.as_ref().expect("sliced").lsn).await;

    follow_a_promotion(&pg, &timeline).await;
}

/// Lets the load go round up to this often.
fn allow_rounds(pg: &Pg, rounds: u32) {
    pg.sql(&format!("UPDATE goal SET rounds = {rounds}"));
}

fn go_round(pg: &Pg, rounds: u32) {
    allow_rounds(pg, rounds);
    pg.wait_for(&format!("(SELECT last_value >= {rounds} FROM rounds)"));
}

/// pg_basebackup, held still in the middle for a few rounds of the load, so that the copy is torn all over.
fn copy_while_it_changes(pg: &Pg, copy: &Path) -> Output {
    let mut backup = pg.client("pg_basebackup");
    backup.args(["-X", "stream", "-c", "fast", "-v", "--no-manifest", "-r", "16M", "-D"]).arg(copy);
    let mut backup = backup.stderr(Stdio::piped()).spawn().expect("pg_basebackup");
    let copied = || -> u64 {
        let files = if copy.exists() { files(copy) } else { Vec::new() };
        files.iter().filter_map(|(_, path)| path.metadata().ok()).map(|file| file.len()).sum()
    };
    while copied() < 4 << 20 && backup.try_wait().expect("child").is_none() {
        std::thread::yield_now();
    }
    let process = backup.id().to_string();
    let signal = |name: &str| run(std::process::Command::new("kill").args([name, &process]));
    signal("-STOP");
    go_round(pg, 14);
    signal("-CONT");
    allow_rounds(pg, 30);
    backup.wait_with_output().expect("pg_basebackup")
}

/// The same server becomes TLI 2, and TLI 3.
async fn follow_a_promotion(pg: &Pg, timeline: &Timeline) {
    let before = control(pg.data());
    let mut history = Vec::new();
    for tli in [2, 3] {
        std::fs::write(pg.data().join("standby.signal"), "").expect("signal");
        pg.start();
        run(command(bin_dir().join("pg_ctl")).args(["-w", "-D"]).arg(pg.data()).arg("promote"));
        pg.wait_for("NOT pg_is_in_recovery()");
        // TLI 2 holds a segment of its own beside the one it shares with TLI 1.
        pg.sql("SELECT pg_switch_wal()");
        pg.sql(&format!("CREATE TABLE of_tli_{tli} AS SELECT g FROM generate_series(1, 2000) g"));
        pg.stop(StopMode::Fast);
        let file = WalFile::History { tli };
        let name = file.name(timeline.archive.segment_size());
        let content = std::fs::read(pg.data().join("pg_wal").join(name)).expect("history");
        assert_eq!(timeline.archive.put(&timeline.env, file, &content).await, Ok(Stored::Stored));
        history = content;
    }
    let after = control(pg.data());
    assert_eq!(after.checkpoint_copy.tli, 3);
    let history = History::parse(3, &history).expect("history");
    let switches: Vec<TliSwitch> = history
        .ancestors()
        .iter()
        .zip([2, 3])
        .map(|(entry, tli)| TliSwitch { tli, from: entry.switch })
        .collect();
    for (TliSwitch { tli, from }, to) in switches.iter().zip([switches[1].from, after.checkpoint]) {
        let last = if *tli == 3 { to } else { Lsn(to.0 - (1 << 20)) };
        timeline.archive_wal(pg.data(), *tli, *from, last).await;
    }

    let report = timeline.slicer(SlicerOptions::default()).await.run_once().await.expect("sliced");
    assert_eq!((report.tli, &report.switches), (3, &switches));
    let (root, layers) = timeline.layers().await;
    assert_eq!(root.history.iter().map(|switch| switch.tli).collect::<Vec<Tli>>(), [1, 2, 3]);
    compare(pg.data(), &after, &layers, root.sliced.as_ref().expect("sliced").lsn).await;

    // A server that left this history below what is sliced cannot be followed, and its history file is kept.
    let other = format!("1\t{}\tanother server\n", Lsn(before.checkpoint.0 - (1 << 20)));
    let file = WalFile::History { tli: 9 };
    timeline.archive.put(&timeline.env, file, other.as_bytes()).await.expect("archived");
    let refused = timeline.slicer(SlicerOptions::default()).await.run_once().await.expect_err("diverged");
    assert!(matches!(refused, IngestError::Diverged { tli: 9, .. }), "{refused}");
    let again = timeline.archive.put(&timeline.env, file, b"1\t0/100\tyet another\n").await;
    assert!(matches!(again, Err(ArchiveError::Other { .. })));
}
