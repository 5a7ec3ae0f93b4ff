//! A timeline across a promotion, and from a base image that was taken while the server wrote: pages, sizes and small files
//! beside PostgreSQL's own.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod server;

use server::compare::{agree, compare, forks, invented, same_bytes};
use server::{Cluster, control, copy, stopped_at};
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Stdio};
use zenith_manifest::BaseKind;
use zenith_pgformat::backup_label::BackupLabel;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RelNode, Tli};
use zenith_reader::{LastRecord, ReadError, Target, Timeline};
use zenith_testkit::pg::{Pg, PgOptions, StopMode, bin_dir, command, give_to_server, run, server_dir};

/// The OID of the database that every cluster has.
const POSTGRES: u32 = 5;

const BEFORE: &str = "
    CREATE TABLE kept (id int PRIMARY KEY, v text);
    INSERT INTO kept SELECT g, md5(g::text) FROM generate_series(1, 5000) g;
    CREATE TABLE shrunk AS SELECT g, repeat('x', 500) AS v FROM generate_series(1, 2000) g;
    CREATE TABLE gone AS SELECT g FROM generate_series(1, 2000) g;
    CREATE INDEX ON kept USING gin (string_to_array(v, 'a'));
    VACUUM;
";
const LATER: &str = "
    UPDATE kept SET v = v || 'y' WHERE id % 3 = 0;
    DELETE FROM shrunk WHERE g > 1000;
    VACUUM shrunk;
    INSERT INTO gone SELECT g FROM generate_series(1, 1000) g;
";
const ON_THE_NEW_TLI: &str = "
    UPDATE kept SET v = v || 'z' WHERE id % 5 = 0;
    INSERT INTO shrunk SELECT g, 'more' FROM generate_series(1, 3000) g;
    DROP TABLE gone;
    CREATE TABLE made AS SELECT g FROM generate_series(1, 3000) g;
";

fn options() -> PgOptions {
    PgOptions::default()
        .initdb("--wal-segsize=1")
        .initdb("--data-checksums")
        .conf("autovacuum = off")
        .conf("max_wal_size = 4GB")
        .conf("wal_keep_size = 4GB")
}

/// The stopped server becomes a standby of nothing, and is promoted to the next TLI.
fn promote(pg: &Pg) {
    std::fs::write(pg.data().join("standby.signal"), "").unwrap();
    give_to_server(pg.data());
    pg.start();
    run(command(bin_dir().join("pg_ctl")).args(["-w", "-D"]).arg(pg.data()).arg("promote"));
    pg.wait_for("NOT pg_is_in_recovery()");
}

/// Waits until recovery has ended, without a connection: a query would prune pages.
fn in_production(pg: &Pg) {
    let state = || run(command(bin_dir().join("pg_controldata")).arg(pg.data()));
    assert!((0..5000).any(|_| state().contains("in production")), "{}", pg.log());
}

/// The path of a table's main fork below the data directory.
fn path_of(pg: &Pg, table: &str) -> String {
    pg.sql(&format!("SELECT pg_relation_filepath('{table}')"))
}

fn blocks_in(data: &std::path::Path, path: &str) -> Option<u32> {
    std::fs::metadata(data.join(path)).ok().map(|file| (file.len() / BLCKSZ as u64) as u32)
}

async fn blocks_at(timeline: &Timeline, lsn: Lsn, path: &str) -> Option<u32> {
    let node = zenith_pgformat::rel::RelFile::parse(path).unwrap().node;
    timeline.snapshot(lsn).await.unwrap().rel_size(node, Fork::Main).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_at_and_after_a_promotion_every_page_is_as_the_server_left_it() {
    let pg = Pg::start_new(&options());
    pg.sql("CREATE TABLE first AS SELECT g FROM generate_series(1, 3000) g");
    pg.stop(StopMode::Fast);
    let cluster = Cluster::of(&pg).await;
    pg.start();
    pg.script("postgres", BEFORE);
    let tables = ["kept", "shrunk", "gone"].map(|table| path_of(&pg, table));
    pg.stop(StopMode::Fast);
    let early = copy(&pg, "early");
    pg.start();
    pg.script("postgres", LATER);
    pg.stop(StopMode::Fast);
    let last_of_1 = copy(&pg, "last_of_1");
    promote(&pg);
    pg.script("postgres", ON_THE_NEW_TLI);
    let made = path_of(&pg, "made");
    // TLI 2 has a segment of its own beside the one that it shares with TLI 1.
    pg.sql("SELECT pg_switch_wal()");
    pg.sql("INSERT INTO made VALUES (-1)");
    pg.stop(StopMode::Fast);

    let [before, switch, after] = [&early, &last_of_1, &pg.data().to_owned()].map(|data| stopped_at(data));
    let old = cluster.archive_history(pg.data(), 2).await;
    assert_eq!(old, switch, "the promotion left TLI 1 where the server was stopped");
    // A promoted server archives the segment of the switch on its new TLI only.
    let segment = control(pg.data()).wal_segment_size;
    let shared = segment.start_of(segment.segment_of(switch));
    cluster.archive_part(pg.data(), 1, Lsn::INVALID, Lsn(shared.0 - 1)).await;
    cluster.archive_part(pg.data(), 2, switch, after).await;
    assert_ne!(segment.segment_of(switch), segment.segment_of(after));

    // Sliced up to the middle of what TLI 1 wrote: what follows is refused until it is read from the raw WAL.
    let middle = Lsn(before.0.midpoint(switch.0));
    cluster.slice(middle).await;
    let work_dir = tempfile::tempdir().unwrap();
    let mut timeline = cluster.open(work_dir.path()).await;
    let sliced = timeline.end().unwrap();
    assert!(before <= sliced && sliced <= middle);
    for lsn in [Lsn(sliced.0 + 8), switch, after] {
        let refused = timeline.snapshot(lsn).await.err().unwrap();
        assert!(matches!(refused, ReadError::PastEnd { end, .. } if end == sliced), "{lsn}: {refused}");
    }
    agree(&timeline, before, &early, true, &BTreeSet::new()).await;
    let tail = timeline.slice_tail(None).await.unwrap();
    assert_eq!((tail.from, tail.to), (sliced, after), "{tail:?}");
    across(&timeline, [before, switch, after]).await;
    for (lsn, data) in [(before, &early), (switch, &last_of_1), (after, &pg.data().to_owned())] {
        agree(&timeline, lsn, data, true, &BTreeSet::new()).await;
        for path in tables.iter().chain([&made]) {
            assert_eq!(blocks_at(&timeline, lsn, path).await, blocks_in(data, path), "{path} at {lsn}");
        }
    }

    // Sliced into the store, first exactly to the switch: the same bytes.
    cluster.slice(switch).await;
    assert_eq!(cluster.open(work_dir.path()).await.end().unwrap(), switch);
    cluster.slice(after).await;
    let stored = cluster.open(work_dir.path()).await;
    across(&stored, [before, switch, after]).await;
    for lsn in [before, switch, after] {
        let (one, other) = (timeline.snapshot(lsn).await.unwrap(), stored.snapshot(lsn).await.unwrap());
        same_bytes(&one, &other).await;
        assert_eq!(one.history(), other.history());
    }
}

/// TLIs, last records and targets on both sides of a switch.
async fn across(timeline: &Timeline, [before, switch, after]: [Lsn; 3]) {
    let at = async |lsn| timeline.resolve(&Target::Lsn(lsn)).await.unwrap();
    for (lsn, tli, of_history) in [(before, 1, vec![1]), (switch, 1, vec![1]), (after, 2, vec![1, 2])] {
        let (resolved, snapshot) = (at(lsn).await, timeline.snapshot(lsn).await.unwrap());
        assert_eq!((resolved.lsn, resolved.tli, snapshot.tli()), (lsn, tli, tli));
        assert_eq!(snapshot.history().iter().map(|switch| switch.tli).collect::<Vec<Tli>>(), of_history);
        // The head of the segment is what a child that leaves here begins with.
        let head = snapshot.segment_head().await.unwrap();
        assert_eq!(head.len() as u64, timeline.segment_size().offset_of(lsn));
    }
    // The first record of the new TLI is not in before its end.
    let inside = at(Lsn(switch.0 + 8)).await;
    assert_eq!((inside.lsn, inside.tli), (switch, 1));
    let first = next_record(timeline, switch).await;
    let LastRecord { start, end, .. } = at(first).await.last_record;
    assert!(
        end == first && start.0 - switch.0 <= 40,
        "it begins where the old TLI ends, or behind a page header"
    );
    assert_eq!(timeline.snapshot(first).await.unwrap().tli(), 2);
}

/// The end of the first record behind `lsn`.
async fn next_record(timeline: &Timeline, lsn: Lsn) -> Lsn {
    let mut step = 8;
    loop {
        let found = timeline.resolve(&Target::Lsn(Lsn(lsn.0 + step))).await.unwrap().lsn;
        if found > lsn {
            return found;
        }
        step += 8;
    }
}

/// Relations that come, grow, are cut and go while files are copied.
const CHURN: &str = "
    CREATE PROCEDURE churn() LANGUAGE plpgsql AS $$
    BEGIN
      FOR i IN 1..100000 LOOP
        EXECUTE format('CREATE TABLE churn_%s AS SELECT g, repeat(''x'', 200) AS v FROM generate_series(1, 500) g', i);
        COMMIT;
        EXECUTE format('CREATE INDEX ON churn_%s (g)', i);
        EXECUTE format('TRUNCATE churn_%s', greatest(i - 2, 1));
        COMMIT;
        EXECUTE format('INSERT INTO churn_%s SELECT 1 FROM generate_series(1, 3000)', i);
        IF i > 5 THEN EXECUTE format('DROP TABLE churn_%s', i - 4); END IF;
        COMMIT;
        UPDATE kept SET v = v || i WHERE id % 50 = i % 50;
        COMMIT;
        -- A fast machine shall not write more than a slow one can read back.
        PERFORM pg_sleep(0.05);
      END LOOP;
    END $$;
";

/// Writes until it is stopped.
struct Load(Child);

impl Load {
    fn start(pg: &Pg) -> Load {
        let mut client = pg.client("psql");
        client.args(["-XAtqc", "CALL churn()"]).stdout(Stdio::null()).stderr(Stdio::null());
        Load(client.spawn().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Empty files of `server` that no row of `pg_class` names.
///
/// A drop that commits just before a base image's redo point leaves its emptied files behind until the checkpoint after it
/// (`mdunlink`, `SyncPreCheckpoint`). WAL from the redo point on tells nothing of them: PostgreSQL's own recovery keeps them, too.
fn orphans(oracle: &Pg, server: &BTreeMap<(RelNode, Fork), Vec<u8>>) -> BTreeSet<RelNode> {
    oracle.start();
    let named =
        oracle.sql("SELECT pg_relation_filenode(oid) FROM pg_class WHERE pg_relation_filenode(oid) > 0");
    oracle.stop(StopMode::Fast);
    let named: BTreeSet<u32> = named.lines().map(|line| line.parse().unwrap()).collect();
    let unnamed = |node: &RelNode| node.db == POSTGRES && !named.contains(&node.rel);
    let empty = server.iter().filter(|(_, bytes)| bytes.is_empty()).map(|((node, _), _)| *node);
    empty.filter(unnamed).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_online_base_image_serves_exactly_from_its_end_on_and_refuses_its_window() {
    let pg = Pg::start_new(&options().conf("wal_log_hints = on"));
    pg.script("postgres", BEFORE);
    pg.script("postgres", CHURN);
    let load = Load::start(&pg);
    // Each of the tables lives for a moment only.
    pg.wait_for("(SELECT max(substr(relname, 7)::int) FROM pg_class WHERE relname LIKE 'churn\\_%' AND relkind = 'r') >= 7");
    let home = server_dir();
    let image = home.path().join("data");
    let mut backup = pg.client("pg_basebackup");
    // Slow enough for some rounds of the load, so that the copy is torn.
    backup.args(["-X", "fetch", "-c", "fast", "-v", "--no-manifest", "--no-sync", "-r", "20M", "-D"]);
    let output = backup.arg(&image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let end = said.lines().find_map(|line| line.split("write-ahead log end point: ").nth(1));
    let end: Lsn = end.unwrap().trim().parse().unwrap();
    pg.wait_for(&format!("pg_current_wal_insert_lsn() > '{end}'::pg_lsn + 300000"));
    drop(load);
    pg.stop(StopMode::Fast);
    let last_of_1 = copy(&pg, "last_of_1");
    promote(&pg);
    pg.sql("SELECT pg_switch_wal()");
    pg.script("postgres", "UPDATE kept SET v = 'last'; CREATE TABLE made AS SELECT 1 AS one;");
    pg.stop(StopMode::Fast);

    let stopped = control(&last_of_1);
    let cluster = Cluster::empty(&stopped).await;
    let label = BackupLabel::parse(&std::fs::read(image.join("backup_label")).unwrap()).unwrap();
    cluster.base(BaseKind::Online, &image, (label.start, label.checkpoint, end)).await;
    let (switch, after) = (stopped_at(&last_of_1), stopped_at(pg.data()));
    assert_eq!(cluster.archive_history(pg.data(), 2).await, switch);
    let segment = stopped.wal_segment_size;
    let shared = segment.start_of(segment.segment_of(switch));
    cluster.archive_part(pg.data(), 1, label.start, Lsn(shared.0 - 1)).await;
    cluster.archive_part(pg.data(), 2, switch, after).await;

    // Nothing can be read while its end was not met; nothing in its window when it was.
    let inside = Lsn(label.start.0.midpoint(end.0));
    cluster.slice(inside).await;
    let work_dir = tempfile::tempdir().unwrap();
    let mut timeline = cluster.open(work_dir.path()).await;
    for lsn in [label.start, inside, end] {
        let refused = timeline.snapshot(lsn).await.err().unwrap();
        let known = matches!(
            refused,
            ReadError::Unconfirmed { end: e, .. } | ReadError::BelowBase { earliest: e, .. } if e == end
        );
        assert!(known, "{lsn}: {refused}");
    }
    timeline.slice_tail(None).await.unwrap();
    cluster.slice(after).await;
    let stored = cluster.open(work_dir.path()).await;
    for timeline in [&timeline, &stored] {
        for lsn in [label.start, inside, Lsn(end.0 - 8)] {
            let refused = timeline.snapshot(lsn).await.err().unwrap();
            assert!(matches!(refused, ReadError::BelowBase { earliest, .. } if earliest == end), "{refused}");
        }
    }

    // At its very end: what PostgreSQL's own recovery makes of the same copy, up to where it is consistent.
    let oracle = Pg::adopt(home, image);
    std::fs::write(oracle.data().join("recovery.signal"), "").unwrap();
    oracle.configure(&[
        "restore_command = 'false'",
        "recovery_target = 'immediate'",
        "recovery_target_action = 'promote'",
        "hot_standby = off",
    ]);
    give_to_server(oracle.data());
    oracle.start();
    in_production(&oracle);
    oracle.stop(StopMode::Fast);
    let server = forks(oracle.data());
    for timeline in [&timeline, &stored] {
        let snapshot = timeline.snapshot(end).await.unwrap();
        let mut found = compare(&snapshot, &server, true).await;
        found.differences.extend(invented(&snapshot, &server, &BTreeSet::new()).await);
        assert!(found.differences.is_empty(), "at {end}:\n{}", found.differences.join("\n"));
        assert!(found.pages > 1000, "{}", found.pages);
    }
    let orphans = orphans(&oracle, &server);
    for (lsn, data) in [(switch, &last_of_1), (after, &pg.data().to_owned())] {
        agree(&timeline, lsn, data, true, &orphans).await;
        agree(&stored, lsn, data, true, &orphans).await;
        same_bytes(&timeline.snapshot(lsn).await.unwrap(), &stored.snapshot(lsn).await.unwrap()).await;
    }
    assert_eq!(timeline.snapshot(switch).await.unwrap().tli(), 1);
    assert_eq!(timeline.snapshot(after).await.unwrap().tli(), 2);
}
