//! Workloads for what the suites do not reach: databases and tablespaces that are copied, moved and dropped, settings that
//! change at restarts, crashes, counters that wrap around, relations past a segment file.

use crate::primary::Primary;
use zenith_testkit::lost_record::lose_the_end_of_a_record;
use zenith_testkit::pg::{self, StopMode};

/// SQL that fills a database with a table of every access method.
const CONTENT: &str = "
CREATE EXTENSION IF NOT EXISTS bloom;
CREATE TABLE t (id int PRIMARY KEY, n int, name text, tags int[], spot point, body text);
CREATE INDEX ON t USING hash (n);
CREATE INDEX ON t USING gin (tags);
CREATE INDEX ON t USING gist (spot);
CREATE INDEX ON t USING spgist (name);
CREATE INDEX ON t USING brin (id) WITH (pages_per_range = 4);
CREATE INDEX ON t USING bloom (id, n);
ALTER TABLE t ALTER COLUMN body SET STORAGE EXTERNAL;
INSERT INTO t SELECT i, i % 97, 'name ' || i, ARRAY[i, i % 7], point(i % 50, i % 31), repeat(md5(i::text), i % 100)
  FROM generate_series(1, 2000) i;
CREATE UNLOGGED TABLE u (id int PRIMARY KEY);
INSERT INTO u SELECT generate_series(1, 100);
CREATE SEQUENCE s;
SELECT count(nextval('s')) FROM generate_series(1, 40);
";

/// SQL that changes it; differs by `step`.
fn changes(step: u32) -> String {
    format!(
        "UPDATE t SET n = n + 1, name = name || '{step}' WHERE id % 13 = {step} % 13;
         DELETE FROM t WHERE id % 31 = {step} % 31;
         INSERT INTO t SELECT 10000 * ({step} + 1) + i, i, 'new ' || i, ARRAY[i], point(i, {step}), repeat('x', 3 * i)
           FROM generate_series(1, 300) i;
         SELECT nextval('s'); VACUUM t;"
    )
}

/// A base image with a tablespace.
pub(crate) fn a_database_in_a_tablespace(primary: &Primary) {
    primary.server.sql("CREATE TABLESPACE before LOCATION ''");
    primary.server.sql("CREATE DATABASE inside_before TABLESPACE before");
    primary.server.script("inside_before", "CREATE TABLE t AS SELECT generate_series(1, 1000) i;");
}

/// Databases made by both strategies, copied from copies, moved between tablespaces and dropped; relations moved,
/// rewritten, made unlogged and logged again; all of it rolled back, too.
pub(crate) fn databases_and_tablespaces(primary: &Primary) {
    let server = &primary.server;
    for step in 0..3 {
        server.sql(&format!("CREATE TABLESPACE inner{step} LOCATION ''"));
        server.sql(&format!("CREATE DATABASE source{step}"));
        let source = format!("source{step}");
        server.script(&source, CONTENT);
        for (name, how) in [
            ("copied", "STRATEGY file_copy".to_owned()),
            ("logged", "STRATEGY wal_log".to_owned()),
            ("copied_inside", format!("STRATEGY file_copy TABLESPACE inner{step}")),
            ("logged_inside", format!("STRATEGY wal_log TABLESPACE inner{step}")),
        ] {
            server.sql(&format!("CREATE DATABASE {name}{step} TEMPLATE {source} {how}"));
            server.script(&format!("{name}{step}"), &changes(step));
        }
        server.script(&source, &changes(step + 1));
        server.sql(&format!("CREATE DATABASE again{step} TEMPLATE copied{step} STRATEGY file_copy"));
        server.script(&format!("again{step}"), &changes(step + 2));
        server.sql(&format!("ALTER DATABASE copied{step} SET TABLESPACE inner{step}"));
        server.script(&format!("copied{step}"), &changes(step + 3));
        server.sql(&format!("ALTER DATABASE copied{step} SET TABLESPACE pg_default"));
        server.sql(&format!("DROP DATABASE copied_inside{step}"));
        server.script(&source, &relation_changes(step));
        server.sql("CHECKPOINT");
    }
    server.sql("DROP DATABASE logged_inside0");
    server.script(
        "source0",
        "ALTER TABLE moved SET TABLESPACE pg_default; ALTER INDEX moved_id SET TABLESPACE pg_default;",
    );
    server.sql("DROP TABLESPACE inner0");
}

fn relation_changes(step: u32) -> String {
    format!(
        "CREATE TABLE moved AS SELECT * FROM t; ALTER TABLE moved SET TABLESPACE inner{step};
         CREATE INDEX moved_id ON moved (id) TABLESPACE inner{step};
         ALTER TABLE u SET LOGGED; INSERT INTO u SELECT generate_series(1000, 2000); ALTER TABLE u SET UNLOGGED;
         ALTER TABLE moved SET UNLOGGED; ALTER TABLE moved SET LOGGED;
         CLUSTER t USING t_pkey; VACUUM FULL moved; REINDEX TABLE t;
         BEGIN; TRUNCATE t; CREATE TABLE gone AS SELECT generate_series(1, 3000) i;
           ALTER TABLE moved SET TABLESPACE pg_default; ROLLBACK;
         BEGIN; SAVEPOINT a; CREATE TABLE gone AS SELECT generate_series(1, 3000) i; ROLLBACK TO a;
           TRUNCATE u; INSERT INTO u SELECT generate_series(1, 10); COMMIT;
         BEGIN; CREATE TABLE prepared{step} AS SELECT generate_series(1, 1000) i; DROP TABLE moved;
           PREPARE TRANSACTION 'dropping{step}';
         BEGIN; CREATE TABLE undone AS SELECT generate_series(1, 1000) i; PREPARE TRANSACTION 'undone{step}';
         ROLLBACK PREPARED 'undone{step}';
         ROLLBACK PREPARED 'dropping{step}';
         REINDEX SYSTEM source{step};"
    )
}

/// Restarts, clean and as a crash, with other settings each time. Commit timestamps are not turned off and on again: PostgreSQL's
/// recovery, begun at the checkpoint in between, keeps those of the first time, and begun before it, it does not.
pub(crate) fn restarts_with_other_settings(primary: &Primary) {
    let server = &primary.server;
    server.script("postgres", CONTENT);
    // Rows that nothing else waits for.
    server.sql("CREATE TABLE held_over AS SELECT generate_series(1, 100) AS id, 0 AS n");
    let settings: [&[&str]; 8] = [
        &["wal_log_hints = on"],
        &["track_commit_timestamp = on", "wal_log_hints = off"],
        &["full_page_writes = off", "max_connections = 70"],
        &["wal_level = logical"],
        &["full_page_writes = on", "wal_log_hints = on"],
        &["max_prepared_transactions = 20", "wal_compression = lz4"],
        &["wal_level = replica", "wal_log_hints = off", "max_locks_per_transaction = 80"],
        &["track_commit_timestamp = off"],
    ];
    for (step, lines) in (0..).zip(settings) {
        server.script("postgres", &changes(step));
        server.script(
            "postgres",
            &format!(
                "BEGIN; UPDATE held_over SET n = {step} WHERE id < 9; PREPARE TRANSACTION 'over{step}';"
            ),
        );
        server.configure(lines);
        server.stop(if step % 2 == 0 { StopMode::Immediate } else { StopMode::Fast });
        server.start();
        server.script("postgres", &changes(step + 20));
        server.sql(&format!("COMMIT PREPARED 'over{step}'"));
    }
}

/// How often [`crashes_in_a_record`] crashes.
pub(crate) const CRASHES_IN_A_RECORD: usize = 3;

/// Crashes that lose the end of a record whose beginning is archived: the server overwrites it
/// (`XLOG_OVERWRITE_CONTRECORD`).
pub(crate) fn crashes_in_a_record(primary: &Primary) {
    let server = &primary.server;
    server.script("postgres", CONTENT);
    for step in (0..).take(CRASHES_IN_A_RECORD) {
        server.script("postgres", &changes(step));
        lose_the_end_of_a_record(server);
        server.script("postgres", &changes(step + 10));
    }
}

/// Before the first start: transactions, multixacts, their members and OIDs are about to wrap around.
pub(crate) fn near_wraparound(primary: &Primary) {
    const NEXT_XID: u32 = u32::MAX - 60_000;
    const NEXT_MULTI: u32 = u32::MAX - 1_500;
    const NEXT_OFFSET: u32 = u32::MAX - 2_000;
    // What is not frozen would lie in the future.
    primary.server.start();
    primary.server.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true");
    freeze_everything(primary);
    primary.server.stop(StopMode::Fast);
    let data = primary.server.data();
    pg::run(
        pg::command(pg::bin_dir().join("pg_resetwal"))
            .arg(format!("--next-transaction-id={NEXT_XID}"))
            .arg(format!("--oldest-transaction-id={}", NEXT_XID - 1_000))
            .arg(format!("--multixact-ids={NEXT_MULTI},{NEXT_MULTI}"))
            .arg(format!("--multixact-offset={NEXT_OFFSET}"))
            .arg(format!("--next-oid={}", u32::MAX - 300))
            .arg("-D")
            .arg(data),
    );
    // The pages that a start reads: transactions, offsets and members to a segment.
    for (directory, segment) in [
        ("pg_xact", NEXT_XID / (32_768 * 32)),
        ("pg_multixact/offsets", NEXT_MULTI / (2_048 * 32)),
        ("pg_multixact/members", NEXT_OFFSET / (1_636 * 32)),
    ] {
        let path = data.join(directory).join(format!("{segment:04X}"));
        std::fs::write(&path, vec![0; 32 * 8_192]).expect("a segment");
        pg::give_to_server(&path);
    }
}

/// Everything is frozen anew: from a time that lies in the future by now, the counters could not go on.
pub(crate) fn freeze_everything(primary: &Primary) {
    pg::run(primary.server.client("vacuumdb").args(["--all", "--freeze", "--quiet"]));
}

/// Transactions, subtransactions, multixacts and OIDs over their wraparound, and what is older truncated away.
pub(crate) fn wraparound(primary: &Primary) {
    let server = &primary.server;
    server.script("postgres", CONTENT);
    server.sql("CREATE TABLE x (id int, n int)");
    server.sql("CREATE TABLE locked AS SELECT i AS id, 0 AS n FROM generate_series(1, 50) i");
    for step in 0..4 {
        server.sql(
            "DO $$ BEGIN FOR i IN 1..20000 LOOP BEGIN INSERT INTO x VALUES (i, 1); EXCEPTION WHEN others THEN
             NULL; END; END LOOP; END $$",
        );
        server.sql("DO $$ BEGIN FOR i IN 1..500 LOOP INSERT INTO x VALUES (i, 2); COMMIT; END LOOP; END $$");
        server.sql(
            "DO $$ DECLARE r record; BEGIN FOR i IN 1..500 LOOP
               SELECT * INTO r FROM locked WHERE id = i % 50 + 1 FOR KEY SHARE;
               BEGIN UPDATE locked SET n = n + 1 WHERE id = i % 50 + 1; EXCEPTION WHEN others THEN NULL; END;
               IF i % 3 = 0 THEN ROLLBACK; ELSE COMMIT; END IF; END LOOP; END $$",
        );
        server.sql("SELECT count(lo_create(0)) FROM generate_series(1, 150)");
        server.script("postgres", &changes(step));
        server.script(
            "postgres",
            &format!("BEGIN; INSERT INTO x VALUES (3, 3); PREPARE TRANSACTION 'over{step}';"),
        );
        server.sql("CHECKPOINT");
        server.sql(&format!("COMMIT PREPARED 'over{step}'"));
        pg::run(server.client("vacuumdb").args(["--all", "--freeze", "--quiet"]));
        if step == 2 {
            server.stop(StopMode::Immediate);
            server.start();
        }
    }
    let wrapped = server.sql("SELECT pg_current_xact_id()::text::bigint >> 32");
    assert_eq!(wrapped, "1", "transactions have wrapped around");
    let first = std::fs::read_dir(server.data().join("pg_xact")).expect("pg_xact").flatten().next();
    assert_eq!(first.map(|entry| entry.file_name()), Some("0000".into()), "what is older is gone");
    let multi = server.sql("SELECT next_multixact_id::text::bigint < 100000 FROM pg_control_checkpoint()");
    assert_eq!(multi, "t", "multixacts have wrapped around");
}

/// A relation of more than a segment file, cut below it and grown again.
pub(crate) fn past_a_segment_file(primary: &Primary) {
    let server = &primary.server;
    // One row a page: 1.1 GB of pages, and a tenth of that in WAL.
    server.sql("CREATE TABLE large (id int, body text) WITH (fillfactor = 10)");
    server.sql("INSERT INTO large SELECT i, repeat(md5(i::text), 26) FROM generate_series(1, 140000) i");
    server.sql("CREATE INDEX ON large USING brin (id)");
    server.sql("VACUUM (FREEZE) large");
    server.sql("UPDATE large SET id = -id WHERE id > 139000");
    server.sql("DELETE FROM large WHERE id > 100000 OR id < 0");
    server.sql("VACUUM large");
    server.sql("INSERT INTO large SELECT i, repeat(md5(i::text), 26) FROM generate_series(1, 45000) i");
    server.sql("VACUUM large");
}
