//! Edge cases of docs/edge-cases.md that need a server: one primary does all of them, is restored, crashes and recovers;
//! then each test asks for one promise.

use crate::harness::{Chain, TestStore, zenith_bin};
use crate::verify::{dump, same_dump_as_of_the_primary, tools_accept};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;
use zenith_testkit::lost_record::{begins_with_an_overwritten_record, lose_the_end_of_a_record};
use zenith_testkit::pg::{self, Pg, PgOptions, StopMode, shared_by_all_tests};
use zenith_testkit::store::Kind;

/// What the primary said of itself, its store, and the server that was restored from it.
struct Edges {
    /// Everything that was archived and sliced.
    objects: Vec<(String, bytes::Bytes)>,
    restored: &'static Pg,
    /// Files and folders below its `base`, before it was started.
    files: BTreeSet<String>,
    dumps: Dumps,
    /// Paths of relations that must not be there.
    created_and_dropped: String,
    rolled_back: String,
    dropped_when_prepared: String,
    temporary: String,
    /// The folder of a database that was made by copying files and dropped.
    dropped_database: String,
    /// Where a multixact had just got the last number of all.
    at_last_multixact: String,
    /// Where no object had got a number after the wraparound yet.
    before_object_ids_wrap: String,
    /// The start of a checkpoint's record, and a place behind its end.
    checkpoint: (String, String),
    next_xid: u64,
    next_ticket: u64,
    commit_time: String,
    catalogs: String,
}

struct Dumps {
    primary: String,
    restored: String,
}

const COMMIT_TIME: &str = "SELECT pg_xact_commit_timestamp(xmin) FROM late WHERE id = 1";
const CATALOGS: &str = "SELECT relname, pg_relation_filenode(oid) FROM pg_class WHERE relname IN ('pg_class', 'pg_database') ORDER BY 1";

/// A table with an index of every access method, and rows.
fn table(kind: &str, name: &str, rows: u32) -> String {
    format!(
        "CREATE {kind} TABLE {name} (id int PRIMARY KEY, n int, tags int[], spot point, name text);
         CREATE INDEX ON {name} USING hash (n); CREATE INDEX ON {name} USING gin (tags);
         CREATE INDEX ON {name} USING gist (spot); CREATE INDEX ON {name} USING spgist (name);
         CREATE INDEX ON {name} USING brin (id); {}",
        fill(name, 1, rows)
    )
}

fn fill(table: &str, from: u32, to: u32) -> String {
    format!(
        "INSERT INTO {table} SELECT i, i % 7, ARRAY[i, i % 5], point(i, i % 11), 'name ' || i
         FROM generate_series({from}, {to}) i;"
    )
}

/// A count by each index of such a table.
fn counts(table: &str) -> String {
    format!(
        "SET enable_seqscan = off;
         SELECT (SELECT count(*) FROM {table} WHERE id > 0), (SELECT count(*) FROM {table} WHERE n = 3),
                (SELECT count(*) FROM {table} WHERE tags @> ARRAY[2]),
                (SELECT count(*) FROM {table} WHERE spot <@ box '((0,0),(100000,100))'),
                (SELECT count(*) FROM {table} WHERE name = 'name 7');"
    )
}

impl Edges {
    /// Made by whoever asks first.
    fn shared() -> &'static Edges {
        static SHARED: LazyLock<Edges> = LazyLock::new(Edges::make);
        &SHARED
    }

    fn make() -> Edges {
        let options = PgOptions::default()
            .initdb("--data-checksums")
            .initdb("--wal-segsize=1")
            .conf("autovacuum = off")
            .conf("track_commit_timestamp = on");
        let chain = Chain::create(TestStore::folder(), None, options);
        let primary = &chain.primary;
        primary.configure(&["wal_level = logical"]);
        near_wraparound(primary);
        primary.start();
        let temporary = base_image_in_the_middle(&chain);
        let at_last_multixact = multixacts_over_the_wraparound(primary);
        let before_object_ids_wrap = primary.sql("SELECT pg_current_wal_insert_lsn()");
        primary.sql("SELECT count(lo_create(0)) FROM generate_series(1, 150)");
        relations_that_stay(primary);
        let [created_and_dropped, rolled_back, dropped_when_prepared] = relations_that_go(primary);
        let dropped_database = databases(primary);
        transactions(primary);
        let checkpoint = a_checkpoint(primary);
        let overwritten = lose_the_end_of_a_record(primary);
        primary.script("postgres", &table("", "late", 300));
        primary.script("postgres", "VACUUM FULL pg_class; VACUUM FULL pg_database;");
        let number = |sql: &str| -> u64 { primary.sql(sql).parse().expect("a number") };
        let next_ticket = number("SELECT nextval('tickets')");
        let next_xid = number("SELECT pg_snapshot_xmax(pg_current_snapshot())");
        let (commit_time, catalogs) = (primary.sql(COMMIT_TIME), primary.sql(CATALOGS));
        let at_primary = dump(primary);
        chain.archive();
        assert!(begins_with_an_overwritten_record(&chain.plain().join(overwritten)));
        chain.run("zenith_slicedice", &[]);

        let restored = chain.restore(&[]);
        tools_accept(&restored);
        let files = below(&restored.data().join("base"));
        restored.start();
        let dumps = Dumps { primary: at_primary, restored: dump(&restored) };
        restored.stop(StopMode::Immediate);
        restored.start();
        Edges {
            objects: chain.store.objects(),
            restored: shared_by_all_tests(restored),
            files,
            dumps,
            created_and_dropped,
            rolled_back,
            dropped_when_prepared,
            temporary,
            dropped_database,
            at_last_multixact,
            before_object_ids_wrap,
            checkpoint,
            next_xid,
            next_ticket,
            commit_time,
            catalogs,
        }
    }

    /// A store of one's own with everything.
    fn store(&self) -> TestStore {
        TestStore::filled(Kind::Folder, &self.objects)
    }
}

/// A restore from a store into a directory of its own.
fn restored(store: &TestStore, arguments: &[&str]) -> Pg {
    let home = pg::server_dir();
    let data = home.path().join("data");
    let mut restore = pg::command(zenith_bin("zenith_restore"));
    println!("{}", pg::run(restore.args(arguments).arg("-D").arg(&data).envs(store.env())));
    Pg::adopt(home, data)
}

fn started(store: &TestStore, arguments: &[&str]) -> Pg {
    let server = restored(store, arguments);
    server.start();
    server
}

/// Files and folders below a directory, as `base/…`.
fn below(directory: &Path) -> BTreeSet<String> {
    let listed = pg::run(pg::command("find").arg(directory).args(["-printf", "base/%P\\n"]));
    listed.lines().map(str::to_owned).collect()
}

/// Before the first start: transactions are in their fourth epoch, OIDs and multixacts about to wrap around.
fn near_wraparound(primary: &Pg) {
    const LAST_MULTIXACT: u32 = u32::MAX;
    let mut reset = pg::command(pg::bin_dir().join("pg_resetwal"));
    reset.arg("--epoch=3").arg(format!("--next-oid={}", u32::MAX - 100));
    reset.arg(format!("--multixact-ids={LAST_MULTIXACT},{LAST_MULTIXACT}"));
    pg::run(reset.arg("-D").arg(primary.data()));
    // Offsets, 2048 a page, 32 pages a segment: a start reads the page of the next multixact.
    let segment = primary.data().join(format!("pg_multixact/offsets/{:04X}", LAST_MULTIXACT / (2048 * 32)));
    std::fs::write(&segment, vec![0; 32 * 8192]).expect("a segment");
    pg::give_to_server(&segment);
}

/// A base image while there are temporary and unlogged relations, a prepared transaction and a replication slot; the
/// path of the temporary one.
fn base_image_in_the_middle(chain: &Chain) -> String {
    let primary = &chain.primary;
    primary.sql("CREATE SEQUENCE tickets");
    primary.script("postgres", &table("UNLOGGED", "unlogged_before", 200));
    primary.script("postgres", &table("UNLOGGED", "logged_later", 200));
    primary
        .script("postgres", "CREATE TABLE locked AS SELECT i AS id, 0 AS n FROM generate_series(1, 20) i;");
    primary.sql("SELECT FROM pg_create_logical_replication_slot('old', 'test_decoding')");
    primary.script("postgres", "BEGIN; UPDATE locked SET n = 1 WHERE id = 1; PREPARE TRANSACTION 'early';");
    let mut session = primary.session("postgres");
    session.sql("CREATE TEMPORARY TABLE passing AS SELECT generate_series(1, 1000) AS i");
    let temporary = session.sql("SELECT pg_relation_filepath('passing')");
    assert!(primary.data().join(&temporary).exists(), "{temporary}");
    chain.run("zenith_push", &["base", "--checkpoint=fast"]);
    temporary
}

/// The last multixact of all and the first ones after it; where the last one was there.
fn multixacts_over_the_wraparound(primary: &Pg) -> String {
    lock_together(primary, 2);
    let at_last = primary.sql("SELECT pg_current_wal_insert_lsn()");
    (3..9).for_each(|id| lock_together(primary, id));
    at_last
}

/// Two transactions lock a row: one of them is prepared and goes on holding it.
fn lock_together(server: &Pg, id: u32) {
    let lock = format!("BEGIN; SELECT FROM locked WHERE id = {id} FOR KEY SHARE;");
    server.script("postgres", &format!("{lock} PREPARE TRANSACTION 'holds {id}';"));
    server.script("postgres", &format!("{lock} COMMIT;"));
}

/// Relations in every state that survives.
fn relations_that_stay(primary: &Pg) {
    primary.script("postgres", &table("UNLOGGED", "unlogged_after", 200));
    primary.script("postgres", &table("", "unlogged_again", 200));
    primary.script(
        "postgres",
        "ALTER TABLE logged_later SET LOGGED;
         ALTER TABLE unlogged_again SET UNLOGGED;
         CREATE TABLE nothing (i int PRIMARY KEY, t text);
         SELECT count(nextval('tickets')) FROM generate_series(1, 40);",
    );
}

/// Relations that no restore may hold; their paths.
fn relations_that_go(primary: &Pg) -> [String; 3] {
    let filled = |name: &str| {
        format!(
            "CREATE TABLE {name} AS SELECT generate_series(1, 1000) AS i; SELECT pg_relation_filepath('{name}');"
        )
    };
    let path = |script: &str| primary.script("postgres", script).trim().to_owned();
    let created_and_dropped =
        path(&format!("BEGIN; {} DROP TABLE short_lived; COMMIT;", filled("short_lived")));
    let rolled_back = path(&format!("BEGIN; {} ROLLBACK;", filled("undone")));
    let prepared = path(&filled("prepared"));
    primary.script("postgres", "BEGIN; DROP TABLE prepared; PREPARE TRANSACTION 'dropping';");
    primary.sql("COMMIT PREPARED 'dropping'");
    [created_and_dropped, rolled_back, prepared]
}

/// Whole pages are marked visible and frozen, and the marks of some are taken back in every way.
const VISIBILITY: &str = "
    CREATE EXTENSION pg_visibility;
    CREATE TABLE frozen AS SELECT i AS id, repeat('x', 500) AS body FROM generate_series(1, 3000) i;
    CREATE TABLE shrunk AS SELECT * FROM frozen;
    VACUUM (FREEZE) frozen; VACUUM (FREEZE) shrunk;
    DELETE FROM shrunk WHERE id > 1000; VACUUM shrunk;
    INSERT INTO shrunk SELECT i, repeat('y', 500) FROM generate_series(1001, 3000) i;
    BEGIN; SELECT FROM frozen WHERE id % 50 = 0 FOR KEY SHARE; COMMIT;";

/// Some more are taken back.
const LESS_VISIBLE: &str = "
    UPDATE frozen SET body = 'short' WHERE id % 120 = 1;
    DELETE FROM frozen WHERE id % 140 = 2;
    INSERT INTO frozen SELECT i, 'new' FROM generate_series(4000, 4100) i;";

/// Databases by both strategies, one of which goes again: its folder. They have no part in what is prepared elsewhere,
/// which keeps pages there from being visible to all.
fn databases(primary: &Pg) -> String {
    primary.sql("CREATE DATABASE source");
    primary.script("source", &table("", "t", 500));
    primary.script("source", VISIBILITY);
    primary.sql("CREATE DATABASE copied TEMPLATE source STRATEGY file_copy");
    primary.sql("CREATE DATABASE logged TEMPLATE source STRATEGY wal_log");
    primary.sql("CREATE DATABASE passing TEMPLATE source STRATEGY file_copy");
    let folder = primary.sql("SELECT 'base/' || oid FROM pg_database WHERE datname = 'passing'");
    for database in ["source", "copied", "logged"] {
        primary.script(
            database,
            &format!("DELETE FROM t WHERE id % 3 = 0; {} VACUUM (FREEZE) t;", fill("t", 501, 700)),
        );
        primary.script(database, LESS_VISIBLE);
    }
    primary.sql("DROP DATABASE passing");
    folder
}

/// A transaction of more subtransactions than a page of the commit log holds, some of them undone; one that is prepared
/// over a restart; speculative insertions.
fn transactions(primary: &Pg) {
    primary.script(
        "postgres",
        "CREATE TABLE subtransactions (i int);
         DO $$ BEGIN FOR i IN 1..33000 LOOP
           BEGIN INSERT INTO subtransactions VALUES (i); IF i % 3 = 0 THEN RAISE 'undone'; END IF;
           EXCEPTION WHEN raise_exception THEN NULL; END;
         END LOOP; END $$;
         BEGIN; UPDATE locked SET n = 1 WHERE id = 10; PREPARE TRANSACTION 'over a restart';
         CREATE TABLE upserted (i int PRIMARY KEY, t text);
         INSERT INTO upserted VALUES (1, 'a') ON CONFLICT (i) DO UPDATE SET t = 'b';
         INSERT INTO upserted VALUES (1, 'a'), (2, 'c') ON CONFLICT (i) DO UPDATE SET t = 'b';",
    );
    primary.stop(StopMode::Fast);
    primary.start();
}

/// A checkpoint of a server that does nothing else: where its record starts, and a place behind it.
fn a_checkpoint(primary: &Pg) -> (String, String) {
    primary.sql("CHECKPOINT");
    let start = primary.sql("SELECT checkpoint_lsn FROM pg_control_checkpoint()");
    (start, primary.sql("SELECT pg_current_wal_insert_lsn()"))
}

#[test]
fn after_all_edge_cases_together_the_dump_is_the_primarys() {
    let Dumps { primary, restored } = &Edges::shared().dumps;
    same_dump_as_of_the_primary(restored, primary);
}

#[test]
fn relations_that_were_dropped_or_never_committed_leave_no_file() {
    let edges = Edges::shared();
    for path in [&edges.created_and_dropped, &edges.rolled_back, &edges.dropped_when_prepared] {
        assert!(path.starts_with("base/") && !edges.files.contains(path), "{path}");
    }
}

#[test]
fn files_of_temporary_relations_are_not_restored() {
    let edges = Edges::shared();
    assert!(!edges.files.contains(&edges.temporary), "{}", edges.temporary);
    let is_temporary = |path: &&String| path.rsplit('/').next().is_some_and(|name| name.starts_with('t'));
    assert_eq!(edges.files.iter().find(is_temporary), None);
}

#[test]
fn an_empty_relation_is_there_and_takes_rows() {
    let server = Edges::shared().restored;
    assert_eq!(server.sql("SELECT pg_relation_size('nothing'), count(*) FROM nothing"), "0|0");
    server.sql("INSERT INTO nothing SELECT i, 'x' FROM generate_series(1, 500) i");
    assert_eq!(server.sql("SET enable_seqscan = off; SELECT count(*) FROM nothing WHERE i > 100"), "400");
}

#[test]
fn unlogged_relations_are_empty_and_usable_by_every_access_method_and_logged_ones_whole() {
    let server = Edges::shared().restored;
    assert_eq!(server.script("postgres", &counts("logged_later")).trim(), "200|29|40|200|1");
    for name in ["unlogged_before", "unlogged_after", "unlogged_again"] {
        assert_eq!(server.script("postgres", &counts(name)).trim(), "0|0|0|0|0", "{name}");
        server.script("postgres", &fill(name, 1, 200));
        assert_eq!(server.script("postgres", &counts(name)).trim(), "200|29|40|200|1", "{name}");
    }
}

#[test]
fn a_visibility_map_never_says_too_much() {
    let server = Edges::shared().restored;
    for database in ["source", "copied", "logged"] {
        for name in ["frozen", "shrunk", "t", "pg_class", "pg_attribute"] {
            let wrong = format!(
                "SELECT (SELECT count(*) FROM pg_check_visible('{name}')), (SELECT count(*) FROM pg_check_frozen('{name}'))"
            );
            assert_eq!(server.sql_in(database, &wrong), "0|0", "{database}.{name}");
        }
    }
    let marked = "SELECT all_visible > 20 AND all_frozen > 20 FROM pg_visibility_map_summary('frozen')";
    assert_eq!(server.sql_in("source", marked), "t", "there is something to be wrong about");
}

#[test]
fn a_transaction_of_more_subtransactions_than_a_commit_log_page_holds_is_whole() {
    let count = "SELECT count(*), count(*) FILTER (WHERE i % 3 = 0) FROM subtransactions";
    assert_eq!(Edges::shared().restored.sql(count), "22000|0");
}

#[test]
fn prepared_transactions_keep_their_locks_through_restart_restore_and_crash() {
    let server = Edges::shared().restored;
    let gids = server.sql("SELECT gid FROM pg_prepared_xacts WHERE gid NOT LIKE 'holds%' ORDER BY gid");
    assert_eq!(gids.lines().collect::<Vec<_>>(), ["early", "over a restart"]);
    let free = "SELECT id FROM locked WHERE id IN (1, 2, 10, 11) ORDER BY id FOR UPDATE SKIP LOCKED";
    assert_eq!(server.sql(free), "11");
    server.sql("COMMIT PREPARED 'over a restart'");
    server.sql("ROLLBACK PREPARED 'early'");
    assert_eq!(server.sql("SELECT id, n FROM locked WHERE id IN (1, 10) ORDER BY id"), "1|0\n10|1");
}

/// The multixact that locks a row, and how many members it has.
fn multixact(server: &Pg, id: u32) -> String {
    server.sql(&format!(
        "SELECT xmax, (SELECT count(*) FROM pg_get_multixact_members(xmax)) FROM locked WHERE id = {id}"
    ))
}

#[test]
fn the_last_multixact_of_all_and_the_first_after_it_hold_their_members() {
    let server = Edges::shared().restored;
    assert_eq!(multixact(server, 2), "4294967295|2");
    assert_eq!(multixact(server, 3), "1|2");
    assert_eq!(multixact(server, 8), "6|2");
}

#[test]
fn a_server_restored_right_behind_the_last_multixact_of_all_makes_the_first() {
    let edges = Edges::shared();
    let server = started(&edges.store(), &["--lsn", &edges.at_last_multixact]);
    assert_eq!(multixact(&server, 2), "4294967295|2");
    lock_together(&server, 4);
    assert_eq!(multixact(&server, 4), "1|2");
}

#[test]
fn transaction_ids_of_a_later_epoch_go_on_in_it() {
    let edges = Edges::shared();
    let next: u64 = edges.restored.sql("SELECT pg_current_xact_id()").parse().expect("a number");
    assert!(next >= edges.next_xid && edges.next_xid > 3 << 32, "{next} after {}", edges.next_xid);
}

#[test]
fn object_ids_go_on_where_they_were_before_and_after_their_wraparound() {
    let edges = Edges::shared();
    let create = "SELECT count(lo_create(0)) FROM generate_series(1, 200)";
    for server in [&started(&edges.store(), &["--lsn", &edges.before_object_ids_wrap]), edges.restored] {
        assert_eq!(server.sql(create), "200");
        let wrapped =
            server.sql("SELECT min(oid::bigint) BETWEEN 16384 AND 100000 FROM pg_largeobject_metadata");
        assert_eq!(wrapped, "t");
    }
    assert_eq!(edges.restored.sql("SELECT count(*) FROM pg_largeobject_metadata"), "350");
}

#[test]
fn a_sequence_never_gives_a_number_twice() {
    let edges = Edges::shared();
    let next: u64 = edges.restored.sql("SELECT nextval('tickets')").parse().expect("a number");
    assert!(next > edges.next_ticket, "{next} after {}", edges.next_ticket);
}

#[test]
fn replication_slots_are_not_restored_and_logical_decoding_begins_anew() {
    let server = started(&Edges::shared().store(), &[]);
    assert_eq!(server.sql("SELECT count(*) FROM pg_replication_slots"), "0");
    // A new slot waits for every transaction that runs.
    for gid in server.sql("SELECT gid FROM pg_prepared_xacts").lines() {
        server.sql(&format!("ROLLBACK PREPARED '{gid}'"));
    }
    server.sql("SELECT FROM pg_create_logical_replication_slot('new', 'test_decoding')");
    server.script("postgres", "CREATE TABLE decoded (i int); INSERT INTO decoded VALUES (42);");
    let changes = server.sql("SELECT data FROM pg_logical_slot_get_changes('new', NULL, NULL)");
    assert!(changes.contains("public.decoded: INSERT: i[integer]:42"), "{changes}");
}

#[test]
fn commit_times_are_the_primarys() {
    let edges = Edges::shared();
    assert!(!edges.commit_time.is_empty());
    assert_eq!(edges.restored.sql(COMMIT_TIME), edges.commit_time);
}

#[test]
fn rewritten_catalogs_are_found_by_the_relation_maps() {
    let edges = Edges::shared();
    assert_eq!(edges.restored.sql(CATALOGS), edges.catalogs);
}

#[test]
fn databases_made_by_either_strategy_are_whole_and_dropped_ones_gone() {
    let edges = Edges::shared();
    let source = edges.restored.script("source", &counts("t"));
    for database in ["copied", "logged"] {
        assert_eq!(edges.restored.script(database, &counts("t")), source, "{database}");
    }
    let left: Vec<_> = edges.files.iter().filter(|path| path.starts_with(&edges.dropped_database)).collect();
    assert_eq!(left, Vec::<&String>::new());
}

#[test]
fn what_came_after_a_record_that_a_crash_lost_is_restored() {
    let server = Edges::shared().restored;
    assert_eq!(server.script("postgres", &counts("late")).trim(), "300|43|60|300|1");
}

#[test]
fn before_inside_and_behind_a_checkpoint_the_same_server_is_restored() {
    let edges = Edges::shared();
    let (start, behind) = &edges.checkpoint;
    let store = edges.store();
    let inside = lsn_behind(start, 8);
    let dumps = [start, &inside, behind].map(|lsn| dump(&started(&store, &["--lsn", lsn])));
    assert!(dumps[0] == dumps[1] && dumps[1] == dumps[2], "a checkpoint changed something");
    assert!(dumps[0].contains("subtransactions"));
}

fn lsn_behind(lsn: &str, bytes: u64) -> String {
    let lsn: zenith_pgformat::Lsn = lsn.parse().expect("an LSN");
    zenith_pgformat::Lsn(lsn.0 + bytes).to_string()
}

/// Children that have no WAL of their own yet.
#[test]
fn a_child_of_a_child_at_the_same_lsn_is_what_both_were() {
    let edges = Edges::shared();
    let store = edges.store();
    let lsn = &edges.checkpoint.1;
    let parent = dump(&started(&store, &["--lsn", lsn]));
    drop(restored(&store, &["--lsn", lsn, "--as", "child"]));
    drop(restored(&store, &["--timeline", "child", "--lsn", lsn, "--as", "grandchild"]));
    for timeline in ["child", "grandchild"] {
        let ours = started(&store, &["--timeline", timeline]);
        assert!(dump(&ours) == parent, "{timeline}");
    }
}
