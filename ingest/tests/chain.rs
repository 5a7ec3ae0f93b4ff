//! The whole of ingest against a real server: a base image, a workload over everything that WAL can say, slicing, and
//! then what the layers say beside what the server's own files say after its shutdown.

mod support;

use support::compare::compare;
use support::*;
use zenith_ingest::slicer::{SlicerOptions, Stopped};
use zenith_layers::{KeyClass, Slru};
use zenith_pgformat::Lsn;
use zenith_pgformat::control::ControlFile;
use zenith_testkit::pg::{Pg, PgOptions, StopMode};

fn options() -> PgOptions {
    PgOptions::default()
        .initdb("--wal-segsize=1")
        .initdb("--data-checksums")
        .conf("wal_keep_size = '20GB'")
        .conf("max_prepared_transactions = 10")
        .conf("track_commit_timestamp = on")
        .conf("allow_in_place_tablespaces = on")
        .conf("autovacuum_naptime = 1")
        .conf("max_wal_size = 64MB")
        .conf("wal_level = logical")
}

const BEFORE_THE_BASE: &str = "
    CREATE TABLE old (id int PRIMARY KEY, t text);
    INSERT INTO old SELECT g, repeat('x', 100) FROM generate_series(1, 5000) g;
    CREATE TABLE doomed AS SELECT g FROM generate_series(1, 1000) g;
    CREATE DATABASE before_base;
    CREATE UNLOGGED TABLE fleeting AS SELECT g FROM generate_series(1, 100) g;
    VACUUM old;
";

/// Relations of every access method; growth, truncation, drops; databases; maps.
const RELATIONS: &str = "
    CREATE EXTENSION IF NOT EXISTS plpgsql;
    CREATE TABLE t (id serial PRIMARY KEY, k int, v text, a int[], p point, r int4range);
    INSERT INTO t (k, v, a, p, r)
      SELECT g % 100, md5(g::text), ARRAY[g % 7, g % 11], point(g % 50, g), int4range(g, g + 10)
      FROM generate_series(1, 20000) g;
    CREATE INDEX t_hash ON t USING hash (k);
    CREATE INDEX t_gin ON t USING gin (a);
    CREATE INDEX t_gist ON t USING gist (p);
    CREATE INDEX t_spgist ON t USING spgist (p);
    CREATE INDEX t_brin ON t USING brin (id);
    CREATE INDEX t_text ON t (v);
    CREATE SEQUENCE s;
    SELECT count(nextval('s')) FROM generate_series(1, 100);
    UPDATE t SET v = v || 'u' WHERE id % 3 = 0;
    VACUUM (FREEZE) t;
    UPDATE t SET k = k + 1 WHERE id % 5 = 0;
    DELETE FROM t WHERE id > 8000;
    VACUUM (TRUNCATE) t;
    INSERT INTO t (k, v, a) SELECT g, md5(g::text), ARRAY[g] FROM generate_series(1, 3000) g;
    CREATE TABLE big (x text);
    INSERT INTO big SELECT repeat(md5(g::text), 60) FROM generate_series(1, 20000) g;
    ALTER TABLE big ALTER x SET STORAGE EXTERNAL;
    INSERT INTO big SELECT repeat(md5(g::text), 200) FROM generate_series(1, 1000) g;
    VACUUM big;
    DELETE FROM big WHERE ctid > '(1500,0)';
    VACUUM (TRUNCATE) big;
    DROP TABLE doomed;
    BEGIN; CREATE TABLE aborted AS SELECT g FROM generate_series(1, 1000) g; ROLLBACK;
    BEGIN; CREATE TABLE made_and_dropped (i int); DROP TABLE made_and_dropped; COMMIT;
    CREATE TABLE emptied AS SELECT g FROM generate_series(1, 1000) g;
    TRUNCATE emptied;
    CREATE UNLOGGED TABLE u AS SELECT g FROM generate_series(1, 1000) g;
    ALTER TABLE u SET LOGGED;
    ALTER TABLE old SET UNLOGGED;
    ALTER TABLE old SET LOGGED;
    CLUSTER t USING t_pkey;
    REINDEX TABLE t;
    VACUUM FULL pg_class;
    VACUUM FULL pg_database;
    SELECT lo_from_bytea(0, convert_to(repeat('large', 5000), 'UTF8'));
    CREATE TEMPORARY TABLE tmp AS SELECT 1;
    CREATE TABLESPACE inner_space LOCATION '';
    CREATE TABLE elsewhere TABLESPACE inner_space AS SELECT g FROM generate_series(1, 2000) g;
    CREATE TABLESPACE gone_space LOCATION '';
    CREATE TABLE moved TABLESPACE gone_space AS SELECT g FROM generate_series(1, 2000) g;
    ALTER TABLE moved SET TABLESPACE pg_default;
    DROP TABLESPACE gone_space;
    CREATE DATABASE by_log STRATEGY wal_log;
    CREATE DATABASE by_copy TEMPLATE before_base STRATEGY file_copy;
    CREATE DATABASE second_copy TEMPLATE by_copy STRATEGY file_copy;
    CREATE DATABASE short_lived STRATEGY file_copy;
    DROP DATABASE short_lived;
    CREATE DATABASE mover;
    ALTER DATABASE mover SET TABLESPACE inner_space;
    SELECT pg_logical_emit_message(true, 'zenith', 'hello');
    SELECT pg_replication_origin_create('elsewhere');
    SELECT pg_replication_origin_advance('elsewhere', '0/1234');
";

/// Transactions: many ids, subtransactions, multixacts over a page, prepared ones.
const TRANSACTIONS: &str = "
    CREATE PROCEDURE many(n int) LANGUAGE plpgsql AS $$
    BEGIN
      FOR i IN 1..n LOOP PERFORM txid_current(); COMMIT; END LOOP;
    END $$;
    CALL many(36000);
    CREATE TABLE locked AS SELECT g AS id, 0 AS n FROM generate_series(1, 3000) g;
    CREATE PROCEDURE lock_all() LANGUAGE plpgsql AS $$
    DECLARE r record;
    BEGIN
      FOR r IN SELECT id FROM locked LOOP
        PERFORM 1 FROM locked WHERE id = r.id FOR KEY SHARE;
        BEGIN
          UPDATE locked SET n = n + 1 WHERE id = r.id;
          IF r.id % 3 = 0 THEN RAISE 'undo'; END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
      END LOOP;
    END $$;
    CREATE INDEX ON locked (id);
    CALL lock_all();
    BEGIN;
    CREATE TABLE from_prepared (i int);
    INSERT INTO from_prepared VALUES (1);
    DROP TABLE emptied;
    PREPARE TRANSACTION 'to commit';
    BEGIN; CREATE TABLE never_was (i int); PREPARE TRANSACTION 'to abort';
    BEGIN; INSERT INTO locked VALUES (99999, 1); SAVEPOINT a; INSERT INTO locked VALUES (99998, 1);
    PREPARE TRANSACTION 'to stay';
    COMMIT PREPARED 'to commit';
    ROLLBACK PREPARED 'to abort';
    CHECKPOINT;
    SELECT pg_create_restore_point('named');
    SELECT pg_switch_wal();
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sliced_says_what_the_servers_own_files_say() {
    let pg = Pg::start_new(&options());
    pg.script("postgres", BEFORE_THE_BASE);
    pg.stop(StopMode::Fast);
    let begin = control(pg.data());
    let timeline = Timeline::new(&begin, 1);
    timeline.register(directory_base(&timeline, pg.data()).await).await;

    // Nothing is archived yet: the image's own WAL makes it whole.
    let report = timeline.slicer(SlicerOptions::default()).await.run_once().await.expect("sliced");
    assert_eq!((report.records, report.confirmed.len()), (1, 1), "{report:?}");
    assert!(matches!(report.stopped, Stopped::EndOfArchive { .. }), "{report:?}");

    pg.start();
    pg.script("postgres", RELATIONS);
    pg.script(
        "by_copy",
        "CREATE TABLE in_copy AS SELECT g FROM generate_series(1, 500) g; VACUUM FULL pg_class;",
    );
    pg.script(
        "second_copy",
        "INSERT INTO pg_description VALUES (1, 1, 1, 'grows a copied relation'); VACUUM;",
    );
    pg.script("postgres", TRANSACTIONS);
    run_pgbench(&pg);
    pg.script("mover", "CREATE TABLE in_mover (i int); VACUUM FREEZE;");
    pg.stop(StopMode::Fast);
    // A crash, and the server's own redo, leave traces in the WAL too.
    pg.start();
    run_pgbench(&pg);
    pg.stop(StopMode::Immediate);
    pg.start();
    pg.sql("INSERT INTO old VALUES (-1, 'after the crash')");
    pg.configure(&["max_connections = 77"]);
    pg.stop(StopMode::Fast);
    pg.start();
    pg.stop(StopMode::Fast);

    let end = control(pg.data());
    timeline.archive_wal(pg.data(), 1, begin.checkpoint, end.checkpoint).await;
    let report = timeline.slicer(SlicerOptions::default()).await.run_once().await.expect("sliced");
    assert!(matches!(report.stopped, Stopped::EndOfRecords(_)), "{:?}", report.stopped);
    assert_eq!(report.to, record_end(pg.data(), &end, 1, end.checkpoint));

    let (root, layers) = timeline.layers().await;
    let lsn = root.sliced.as_ref().expect("sliced").lsn;
    // The workload did what it was meant to do.
    assert!(newest(&layers, KeyClass::Database, lsn).await.len() >= 7);
    assert_eq!(newest(&layers, KeyClass::TwoPhase, lsn).await.len(), 1);
    assert_eq!(newest(&layers, KeyClass::ReplOrigin, lsn).await.len(), 1);
    assert_eq!(end.max_connections, 77);
    let pages = newest(&layers, KeyClass::SlruPage, lsn).await;
    for (slru, least) in Slru::ALL.into_iter().zip([2, 3, 6, 40]) {
        let pages = pages.keys().filter(|key| key.spc == slru as u32).count();
        assert!(pages >= least, "{}: {pages} pages", slru.directory());
    }
    compare(pg.data(), &end, &layers, lsn).await;

    same_in_pieces(&pg, &timeline, &begin, &end).await;
}

fn run_pgbench(pg: &Pg) {
    let output = pg.client("pgbench").args(["-i", "-s", "1", "-q"]).output().expect("pgbench");
    assert!(output.status.success());
    let output = pg.client("pgbench").args(["-n", "-c", "4", "-t", "200"]).output().expect("pgbench");
    assert!(output.status.success());
}

/// Slicing in many small steps, each by a slicer of its own that was killed in mid-work before, gives the same values.
async fn same_in_pieces(pg: &Pg, whole: &Timeline, begin: &ControlFile, end: &ControlFile) {
    let pieces = Timeline::new(begin, 1);
    // The same image under the same ids; its rows are in the first timeline's layers, which hold no delta.
    let image = whole.layers().await.0.bases[0].clone();
    let (root, _) = whole.layers().await;
    let entries = whole.manifest.layers(&root).await.expect("layers");
    let images: Vec<_> = entries.into_iter().filter(|entry| entry.base.is_some()).collect();
    for entry in &images {
        let path = whole.paths.layer(entry.id);
        let bytes = zenith_store::get(&*whole.store.objects, &path, 1 << 30).await.expect("layer");
        zenith_store::create(&*pieces.store.objects, &pieces.env, &pieces.paths.layer(entry.id), bytes)
            .await
            .expect("copied");
    }
    let base = zenith_manifest::BaseImage { confirmed: false, ..image };
    let change = zenith_manifest::Change::RegisterBase { base, layers: images };
    pieces.manifest.commit(&change).await.expect("registered");
    pieces.archive_wal(pg.data(), 1, begin.checkpoint, end.checkpoint).await;

    let (mut stop_at, mut polls) = (begin.checkpoint, 1);
    while stop_at < end.checkpoint {
        stop_at = Lsn(stop_at.0 + 9_999_999);
        // A run that never commits, then one that does, in small layers.
        let lost = SlicerOptions { stop_at: Some(Lsn(stop_at.0 + 1_000_000)), ..SlicerOptions::default() };
        let mut killed = pieces.slicer(lost).await;
        {
            let mut work = std::pin::pin!(killed.run_once());
            for _ in 0..polls {
                if futures::poll!(&mut work).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        drop(killed);
        polls += 7;
        let options =
            SlicerOptions { stop_at: Some(stop_at), arena_bytes: 2 << 20, ..SlicerOptions::default() };
        pieces.slicer(options).await.run_once().await.expect("sliced");
    }
    let (expected, found) = (whole.all_changes().await, pieces.all_changes().await);
    assert_eq!(expected.len(), found.len());
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(expected, found);
    }
    let sliced = |root: &zenith_manifest::Root| root.sliced.clone().expect("sliced");
    assert_eq!(sliced(&whole.layers().await.0), sliced(&pieces.layers().await.0));
}
