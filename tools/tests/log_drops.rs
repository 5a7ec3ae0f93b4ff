//! `zenith log --drops` on the WAL of a real server: what somebody could miss, by the names of the moment before.

use serde_json::Value;
use std::process::Output;
use zenith_testkit::outcome::{said, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, command, run, server_dir};
use zenith_testkit::store::TestStore;

/// What is there when the base image is taken.
const BEFORE: &str = "
CREATE SCHEMA shop;
CREATE TABLE shop.orders AS SELECT g, md5(g::text) FROM generate_series(1, 1000) g;
CREATE TABLE kept AS SELECT * FROM shop.orders;
CREATE TABLE emptied AS SELECT * FROM shop.orders;
CREATE TABLE empty (n int);
CREATE TABLE refilled AS SELECT * FROM shop.orders;
CREATE TABLE compacted AS SELECT * FROM shop.orders;
CREATE TABLE shrunk AS SELECT * FROM shop.orders;
CREATE TABLE in_subtransaction (n int);
CREATE TABLE prepared (n int);
CREATE TABLE shared (n int);
CREATE SCHEMA deep;
CREATE TABLE deep.numbered (id serial PRIMARY KEY, t text);
CREATE MATERIALIZED VIEW deep.totals AS SELECT count(*) FROM kept;
CREATE TABLE deep.parts (n int) PARTITION BY RANGE (n);
CREATE TABLE deep.part_1 PARTITION OF deep.parts FOR VALUES FROM (0) TO (10);
CREATE TABLE unlogging AS SELECT * FROM shop.orders;
CREATE TABLE last (n int);
";

/// What nobody misses.
const HARMLESS: &str = "
BEGIN; DROP TABLE kept CASCADE; ROLLBACK;
BEGIN; CREATE TABLE passing AS SELECT * FROM kept; DROP TABLE passing; COMMIT;
CREATE TEMPORARY TABLE fleeting AS SELECT * FROM kept; DROP TABLE fleeting;
TRUNCATE empty;
CREATE INDEX kept_g ON kept (g); REINDEX TABLE kept; DROP INDEX kept_g;
DELETE FROM shrunk WHERE g > 10; VACUUM shrunk;
ALTER SEQUENCE deep.numbered_id_seq RESTART;
VACUUM FULL pg_class;
VACUUM FULL pg_namespace;
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE spot LOCATION '';
ALTER TABLE kept SET TABLESPACE spot;
ALTER DATABASE moving SET TABLESPACE spot;
ALTER DATABASE moving SET TABLESPACE pg_default;
ALTER TABLE kept SET TABLESPACE pg_default;
DROP TABLESPACE spot;
";

/// Each a moment of its own.
const LOSSES: [&str; 13] = [
    "ALTER TABLE shop.orders RENAME TO bills; DROP TABLE shop.bills",
    "TRUNCATE emptied",
    "BEGIN; TRUNCATE refilled; INSERT INTO refilled VALUES (1); COMMIT",
    "VACUUM FULL compacted",
    "BEGIN; SAVEPOINT a; DROP TABLE in_subtransaction; RELEASE a; COMMIT",
    "BEGIN; DROP TABLE prepared; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'",
    // Its row of pg_class is replaced while somebody locks it.
    "BEGIN; SELECT FROM pg_class WHERE relname = 'shared' FOR KEY SHARE; PREPARE TRANSACTION 'lock';
     ALTER TABLE shared SET (fillfactor = 50); COMMIT PREPARED 'lock'; DROP TABLE shared",
    "DROP SCHEMA deep CASCADE",
    "DROP DATABASE other",
    "CREATE TABLE \"Odd.Name\" AS SELECT 1; DROP TABLE \"Odd.Name\"",
    "ALTER TABLE unlogging SET UNLOGGED",
    "DROP TABLE unlogging",
    "DROP TABLE last",
];

/// What the list says of them, the oldest first: what, kind, database, relation.
const EXPECTED: [&str; 16] = [
    "dropped table postgres shop.bills",
    "truncated table postgres public.emptied",
    "rewritten table postgres public.refilled",
    "rewritten table postgres public.compacted",
    "dropped table postgres public.in_subtransaction",
    "dropped table postgres public.prepared",
    "dropped table postgres public.shared",
    "dropped materialized view postgres deep.totals",
    "dropped sequence postgres deep.numbered_id_seq",
    "dropped table postgres deep.numbered",
    "dropped table postgres deep.part_1",
    "dropped database other",
    "dropped table postgres public.Odd.Name",
    "rewritten table postgres public.unlogging",
    "dropped table postgres public.unlogging",
    "dropped table postgres public.last",
];

fn line(found: &Value) -> String {
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    let mut line = format!("{} {} {}", text("what"), text("kind"), text("database"));
    if found["name"].is_string() {
        line += &format!(" {}.{}", text("schema"), text("name"));
    }
    line
}

struct Archived {
    store: TestStore,
    pg: Pg,
    /// The time before each loss.
    times: Vec<String>,
}

impl Archived {
    fn record() -> Archived {
        let store = TestStore::folder();
        let push = env!("CARGO_BIN_EXE_zenith_push");
        let archive = format!("archive_command = '{push} wal --store {} %p'", store.url());
        let options = PgOptions::default()
            .conf("archive_mode = on")
            .conf(&archive)
            .conf("autovacuum = off")
            .conf("max_prepared_transactions = 5");
        let pg = Pg::start_new(&options);
        let mut archived = Archived { store, pg, times: Vec::new() };
        archived.pg.script("postgres", BEFORE);
        archived.pg.sql("CREATE DATABASE other");
        archived.pg.sql("CREATE DATABASE moving");
        archived.pg.sql_in("other", "CREATE TABLE inside AS SELECT 42 AS answer");
        let mut base = archived.command(push, &["base", "--checkpoint=fast"]);
        run(base.env("PGHOST", archived.pg.socket()).env("PGUSER", "postgres"));
        archived.pg.script("postgres", HARMLESS);
        for loss in LOSSES {
            let now = archived.pg.sql("SELECT clock_timestamp()");
            archived.times.push(now);
            archived.pg.script("postgres", &format!("{loss};"));
        }
        let last = archived.pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
        archived.pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
        archived
    }

    fn command(&self, program: &str, arguments: &[&str]) -> std::process::Command {
        let mut ours = command(program);
        for name in ["ZENITH_CLUSTER", "ZENITH_TIMELINE", "ZENITH_CONFIG"] {
            ours.env_remove(name);
        }
        ours.args(arguments).envs(self.store.env());
        ours
    }

    fn log(&self, arguments: &[&str]) -> Output {
        let arguments = [&["log", "--drops"], arguments].concat();
        self.command(env!("CARGO_BIN_EXE_zenith"), &arguments).output().expect("started")
    }

    /// The oldest first.
    fn listed(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.log(&[&["--json"], arguments].concat());
        succeeds(&output);
        let mut found: Vec<Value> = serde_json::from_slice(&output.stdout).expect("a list");
        found.reverse();
        found
    }

    /// What a server restored to an LSN says.
    fn restored(&self, lsn: &str, database: &str, script: &str) -> String {
        let home = server_dir();
        let data = home.path().join("data");
        let mut restore = self.command(env!("CARGO_BIN_EXE_zenith_restore"), &["--lsn", lsn, "-D"]);
        succeeds(&restore.arg(&data).output().expect("started"));
        let pg = Pg::adopt(home, data);
        pg.start();
        pg.script(database, &format!("{script};")).trim().to_owned()
    }
}

/// What one transaction removed has no order.
fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

#[test]
fn what_was_lost_is_listed_with_its_name_and_the_lsn_just_before_and_nothing_else_is() {
    let archived = Archived::record();
    let found = archived.listed(&[]);
    let lines: Vec<String> = found.iter().map(line).collect();
    assert_eq!(sorted(lines.clone()), sorted(EXPECTED.map(str::to_owned).to_vec()));
    let place = |what: &str| lines.iter().position(|line| line == what).expect("listed");
    assert!(place(EXPECTED[0]) < place(EXPECTED[1]) && place(EXPECTED[11]) < place(EXPECTED[15]));

    // By time, too: each lies between two of the server's clock.
    let time = |found: &Value| found["time"].as_str().expect("a time").to_owned();
    let between = format!(
        "SELECT '{0}' <= '{1}'::timestamptz AND '{1}'::timestamptz <= '{2}'",
        archived.times[1],
        time(&found[place(EXPECTED[1])]),
        archived.times[2]
    );
    assert_eq!(archived.pg.sql(&between), "t", "{between}");

    let bills = &found[place(EXPECTED[0])];
    assert_eq!(bills["bytes"].as_u64().expect("a size") % 8192, 0);
    let lsn = |name: &str| bills[name].as_str().expect("an LSN").to_owned();
    assert_eq!(archived.restored(&lsn("before"), "postgres", "SELECT count(*), min(md5) FROM shop.bills"), {
        archived.pg.sql("SELECT count(*), min(md5) FROM kept")
    });
    assert_eq!(archived.restored(&lsn("lsn"), "postgres", "SELECT to_regclass('shop.bills') IS NULL"), "t");
    let database = found.iter().find(|found| found["kind"] == "database").expect("listed");
    let before = database["before"].as_str().expect("an LSN");
    assert_eq!(
        archived.restored(before, "other", "SELECT answer FROM inside"),
        "42",
        "it can be connected to"
    );

    let prepared = &found[place(EXPECTED[5])];
    assert_eq!((&prepared["prepared"], &found[0]["prepared"]), (&Value::Bool(true), &Value::Bool(false)));
    let before = prepared["before"].as_str().expect("an LSN");
    let freed = "ROLLBACK PREPARED 'p'; SELECT count(*) FROM prepared";
    assert_eq!(archived.restored(before, "postgres", freed), "0");

    // Slicing changes nothing, however small the layers.
    succeeds(&archived.command(env!("CARGO_BIN_EXE_zenith_slicedice"), &[]).output().expect("started"));
    assert_eq!(archived.listed(&[]), found);

    let called = |name: &str| -> Vec<String> { archived.listed(&["--rel", name]).iter().map(line).collect() };
    assert_eq!(called("bills"), [EXPECTED[0]]);
    assert_eq!(called("public.Odd.Name"), [EXPECTED[12]]);
    assert_eq!(called("postgres.deep.part_1"), [EXPECTED[10]]);
    assert_eq!(called("other.public.inside"), [EXPECTED[11]], "with its database");
    assert_eq!(called("orders"), Vec::<String>::new(), "names are those of the moment before");

    let newest = archived.log(&["--limit", "1"]);
    succeeds(&newest);
    let printed = String::from_utf8(newest.stdout.clone()).expect("text");
    assert!(printed.lines().count() == 2 && printed.contains("public.last"), "{printed}");
    assert!(said(&newest).contains("there are older ones"), "{}", said(&newest));
    let none = archived.log(&["--rel", "kept"]);
    succeeds(&none);
    assert!(none.stdout.is_empty() && said(&none).contains("no kept was dropped"), "{}", said(&none));
    let bare = archived.command(env!("CARGO_BIN_EXE_zenith"), &["log"]).output().expect("started");
    assert!(bare.status.code() == Some(2) && said(&bare).contains("--drops"), "{}", said(&bare));
}
