//! Every page of a real server, as the reader builds it, beside the files that the server left behind.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod server;

use server::compare::{agree, same_bytes};
use server::{Cluster, copy, stopped_at};
use std::collections::BTreeSet;
use zenith_pgformat::Lsn;
use zenith_reader::RowLimit;
use zenith_testkit::pg::{Pg, PgOptions, StopMode, give_to_server};

const WORKLOAD: &str = include_str!("../../redo/tests/common/workload.sql");
const DATABASES: &str = include_str!("databases.sql");
const MORE: &str = "
    SELECT fill(7001, 7300);
    UPDATE things SET n = n + 1 WHERE id % 5 = 0;
    VACUUM things;
    UPDATE kept SET v = v || 'x' WHERE id % 3 = 0;
    VACUUM kept;
    TRUNCATE words;
    INSERT INTO words VALUES ('one');
    DROP TABLE narrow;
    COMMIT PREPARED 'pending';
    BEGIN; INSERT INTO there VALUES (-3); PREPARE TRANSACTION 'still pending';
    DROP DATABASE logged;
";

async fn every_page(options: PgOptions, checksums: bool, second_half: &[&str]) {
    let options = options
        .initdb("--wal-segsize=1")
        .conf("autovacuum = off")
        .conf("max_wal_size = 4GB")
        .conf("wal_keep_size = 4GB")
        .conf("max_prepared_transactions = 5")
        .conf("track_commit_timestamp = on")
        .conf("allow_in_place_tablespaces = on");
    let pg = Pg::start_new(&options);
    pg.sql("CREATE TABLE before AS SELECT i, md5(i::text) AS t FROM generate_series(1, 3000) i");
    pg.sql("CREATE TABLESPACE here LOCATION ''");
    pg.stop(StopMode::Fast);
    let cluster = Cluster::of(&pg).await;
    pg.start();
    pg.script("postgres", WORKLOAD);
    pg.script("postgres", DATABASES);
    pg.sql("UPDATE before SET t = 'changed' WHERE i % 10 = 0");
    pg.stop(StopMode::Fast);
    let middle = copy(&pg, "middle");
    pg.configure(second_half);
    pg.start();
    pg.script("postgres", MORE);
    pg.stop(StopMode::Fast);
    give_to_server(pg.data());

    cluster.archive(pg.data()).await;
    let (half, end) = (stopped_at(&middle), stopped_at(pg.data()));
    let work_dir = tempfile::tempdir().unwrap();
    cluster.slice(Lsn(half.0 - 50_000)).await;
    let mut tail = cluster.open(work_dir.path()).await;
    let report = tail.slice_tail(None).await.unwrap();
    assert!(report.records > 0 && tail.end().unwrap() >= end, "{report:?}");
    let none = BTreeSet::new();
    agree(&tail, half, &middle, checksums, &none).await;
    agree(&tail, end, pg.data(), checksums, &none).await;

    cluster.slice(end).await;
    let sliced = cluster.open(work_dir.path()).await;
    agree(&sliced, end, pg.data(), checksums, &none).await;
    same_bytes(&tail.snapshot(half).await.unwrap(), &sliced.snapshot(half).await.unwrap()).await;
    // Histories that are read and redone in many parts give the same pages.
    let parts = cluster.open_with(work_dir.path(), RowLimit { rows: 30, bytes: 64 << 10 }).await;
    same_bytes(&parts.snapshot(half).await.unwrap(), &sliced.snapshot(half).await.unwrap()).await;
    assert!(std::fs::read_dir(work_dir.path()).unwrap().count() > 0);
    drop(tail);
    assert_eq!(std::fs::read_dir(work_dir.path()).unwrap().count(), 0, "the tail's folder goes with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_of_a_server_with_checksums_is_as_the_server_left_it() {
    every_page(PgOptions::default().initdb("--data-checksums"), true, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_is_right_when_hint_bits_begin_to_be_logged_in_between() {
    every_page(PgOptions::default(), false, &["wal_log_hints = on"]).await;
}
