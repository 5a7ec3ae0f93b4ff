//! Pieces of SQL: what one statement or transaction of a plan may be. Names are from a small fixed set, so that pieces
//! meet on the same relations; whether a relation exists just then is for the server to say.

use crate::dice::Dice;

/// Tables `t0`, `t1` … that come and go.
const TABLES: u32 = 6;
/// Databases `d0`, `d1` … that come and go.
const DATABASES: u32 = 3;

fn table(dice: &mut Dice) -> String {
    format!("t{}", dice.within(0, TABLES - 1))
}

/// The name of one of the databases besides `postgres`.
pub(crate) fn database(dice: &mut Dice) -> String {
    format!("d{}", dice.within(0, DATABASES - 1))
}

/// What is there from the beginning; `spread` is a tablespace at a place of its own.
pub(crate) fn setup(dice: &mut Dice, spread: bool) -> Vec<String> {
    let mut all = vec![
        "CREATE EXTENSION btree_gin; CREATE EXTENSION bloom; CREATE EXTENSION amcheck".to_owned(),
        "CREATE TABLESPACE s0 LOCATION ''".to_owned(),
        format!("CREATE TABLE load ({COLUMNS}); CREATE INDEX ON load USING gin (words); CREATE INDEX ON load USING hash (n)"),
        "CREATE TABLE fixed (id int PRIMARY KEY, n int); INSERT INTO fixed SELECT i, 0 FROM generate_series(1, 150) i".to_owned(),
        "CREATE SEQUENCE q0; CREATE SEQUENCE q1; CREATE SEQUENCE loads; SELECT nextval('q0')".to_owned(),
    ];
    for number in 0..TABLES {
        if dice.percent(70) {
            all.push(create(dice, number));
            all.push(insert(dice, &format!("t{number}")));
        }
    }
    if spread {
        all.push("CREATE TABLE apart (id int PRIMARY KEY, n int) TABLESPACE spread; INSERT INTO apart SELECT i, i FROM generate_series(1, 300) i".to_owned());
    }
    all
}

const COLUMNS: &str = "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, words tsvector, area box, name text, \
     spot point, at timestamptz DEFAULT '2026-01-01', body text";

fn create(dice: &mut Dice, number: u32) -> String {
    let kind = dice.weighed(&[(8, ""), (2, "UNLOGGED ")]);
    let options = dice.pick(&["", " WITH (fillfactor = 60)", " WITH (autovacuum_vacuum_threshold = 20)"]);
    let space = dice.weighed(&[(4, ""), (1, " TABLESPACE s0")]);
    let mut sql = format!("CREATE {kind}TABLE t{number} ({COLUMNS}){options}{space}");
    for _ in 0..dice.within(1, 5) {
        sql.push_str("; ");
        sql.push_str(&index(dice, number, ""));
    }
    sql
}

fn index(dice: &mut Dice, number: u32, concurrently: &str) -> String {
    let on = dice.pick(&[
        "(n)",
        "(name) INCLUDE (n)",
        "(name, id) WHERE n % 3 = 0",
        "(lower(name)) WITH (deduplicate_items = off)",
        "USING hash (n)",
        "USING hash (name)",
        "USING gin (words)",
        "USING gin (words) WITH (fastupdate = off)",
        "USING gin (n, words)",
        "USING gist (area)",
        "USING gist (words)",
        "USING spgist (spot)",
        "USING spgist (spot kd_point_ops)",
        "USING spgist (name)",
        "USING brin (id) WITH (pages_per_range = 2)",
        "USING brin (n int4_minmax_multi_ops, area) WITH (pages_per_range = 1, autosummarize = on)",
        "USING brin (name text_bloom_ops)",
        "USING bloom (n, name)",
    ]);
    format!("CREATE INDEX {concurrently}ON t{number} {on}")
}

/// Rows that lie in every access method.
fn rows(dice: &mut Dice, into: &str, count: u32) -> String {
    let (a, b, c) = (dice.within(2, 97), dice.within(3, 61), dice.within(1, 50));
    let body = dice.weighed(&[
        (8, "NULL".to_owned()),
        (2, format!("repeat('b', i % {})", b * 40)),
        (1, format!("CASE WHEN i % {a} = 0 THEN (SELECT string_agg(md5((i + j)::text), '') FROM generate_series(1, 120) j) END")),
    ]);
    format!(
        "INSERT INTO {into} (n, words, area, name, spot, at, body) SELECT i * {c} % {a}, \
         to_tsvector('simple', 'w' || i % {b} || ' v' || i % 7 || ' x' || i), \
         box(point(i % {a}, i % {b}), point(i % {a} + 3, i % {b} + {c})), \
         'name ' || i * {a} % 300 || repeat('z', i % {c}), point(i * {c} % 211, i * {b} % 173), \
         timestamptz '2026-01-01' + i * interval '1 minute', {body} FROM generate_series(1, {count}) i"
    )
}

fn insert(dice: &mut Dice, into: &str) -> String {
    let count = dice.weighed(&[(4, 1), (4, 20), (3, 120), (1, 500)]);
    rows(dice, into, count)
}

fn some(dice: &mut Dice) -> String {
    let of = dice.pick(&[2, 7, 13, 40]);
    format!("id % {of} = {}", dice.within(0, of - 1))
}

fn update(dice: &mut Dice) -> String {
    let (table, some) = (table(dice), some(dice));
    let set = dice.pick(&[
        "at = at + interval '1 hour'",
        "n = n + 1",
        "name = name || '+'",
        "spot = point(n, id % 9), area = box(point(n, n), point(n + 5, n + 1))",
        "words = to_tsvector('simple', name || ' again')",
        "body = repeat(md5(id::text), 120)",
    ]);
    format!("UPDATE {table} SET {set} WHERE {some}")
}

fn delete(dice: &mut Dice) -> String {
    let (table, some) = (table(dice), some(dice));
    let end = format!("id > (SELECT max(id) - {} FROM {table})", dice.within(20, 300));
    format!("DELETE FROM {table} WHERE {}", dice.weighed(&[(3, &*some), (2, &*end), (1, "true")]))
}

/// Row locks; those of two clients make multixacts.
fn lock(dice: &mut Dice) -> String {
    let how = dice.pick(&["FOR SHARE", "FOR KEY SHARE", "FOR KEY SHARE", "FOR NO KEY UPDATE", "FOR UPDATE"]);
    let of = if dice.percent(65) { "fixed".to_owned() } else { table(dice) };
    let some = some(dice);
    format!("SELECT count(*) FROM (SELECT FROM {of} WHERE {some} {how} SKIP LOCKED) locked")
}

fn toast(dice: &mut Dice) -> String {
    let table = table(dice);
    let storage = dice.pick(&["EXTERNAL", "EXTENDED", "MAIN"]);
    let size = dice.pick(&[100, 1200, 4000]);
    let some = format!("id % 29 = {}", dice.within(0, 28));
    dice.pick(&[
        format!("UPDATE {table} SET body = (SELECT string_agg(md5((id * j)::text), '') FROM generate_series(1, {size}) j) WHERE {some}"),
        format!("ALTER TABLE {table} ALTER body SET STORAGE {storage}"),
        format!("UPDATE {table} SET n = n + 1 WHERE body IS NOT NULL"),
    ])
}

fn sequence(dice: &mut Dice) -> String {
    let name = dice.pick(&["q0", "q1"]);
    let count = dice.within(1, 80);
    match dice.within(0, 5) {
        0 => format!("ALTER SEQUENCE {name} RESTART WITH {}", count * 10),
        1 => format!("SELECT setval('{name}', {count}, {})", dice.pick(&["true", "false"])),
        2 => "DROP SEQUENCE IF EXISTS q1; CREATE SEQUENCE q1".to_owned(),
        _ => format!("SELECT count(nextval('{name}')) FROM generate_series(1, {count})"),
    }
}

/// More subtransactions than a snapshot holds, some of which fail.
fn subtransactions(dice: &mut Dice) -> String {
    let (count, table) = (dice.pick(&[5, 70, 150]), table(dice));
    let work = dice.pick(&[
        "INSERT INTO fixed VALUES (i * 2, i)",
        "UPDATE fixed SET n = n + 1 WHERE id = i",
        "PERFORM FROM fixed WHERE id = i FOR SHARE",
    ]);
    format!(
        "DO $$ BEGIN FOR i IN 1..{count} LOOP BEGIN {work}; \
         IF i % 11 = 0 THEN INSERT INTO {table} (n) VALUES (i); END IF; \
         IF i % 5 = 0 THEN RAISE 'undone'; END IF; \
         EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $$"
    )
}

fn alter(dice: &mut Dice) -> String {
    let table = table(dice);
    let what = dice.pick(&[
        "SET TABLESPACE s0",
        "SET TABLESPACE pg_default",
        "SET UNLOGGED",
        "SET LOGGED",
        "ALTER n TYPE bigint",
        "ALTER n TYPE int",
        "ADD extra int DEFAULT 7",
        "DROP extra",
        "REPLICA IDENTITY FULL",
        "SET (fillfactor = 40)",
        "ADD CHECK (n > -1000000)",
    ]);
    format!("ALTER TABLE {table} {what}")
}

fn rebuild(dice: &mut Dice) -> String {
    let table = table(dice);
    match dice.within(0, 5) {
        0 => format!("REINDEX TABLE {table}"),
        1 => format!("CLUSTER {table} USING {table}_pkey"),
        2 => "REFRESH MATERIALIZED VIEW seen".to_owned(),
        3 => format!(
            "DROP MATERIALIZED VIEW IF EXISTS seen; CREATE MATERIALIZED VIEW seen AS SELECT n, count(*) FROM {table} GROUP BY n"
        ),
        // A mapped index that nobody needs in order to connect.
        4 => "REINDEX INDEX pg_shdescription_o_c_index".to_owned(),
        _ => format!("ANALYZE {table}"),
    }
}

fn copy(dice: &mut Dice) -> String {
    let (table, count) = (table(dice), dice.within(1, 800));
    let frozen = dice.percent(40);
    let copied = format!("COPY {table} (n) FROM PROGRAM 'seq {count}'");
    if frozen { format!("TRUNCATE {table}; {copied} WITH (FREEZE)") } else { copied }
}

fn temporary(dice: &mut Dice) -> String {
    let end = dice.pick(&["", " ON COMMIT DELETE ROWS"]);
    format!(
        "CREATE TEMP TABLE IF NOT EXISTS mine (i int PRIMARY KEY, v text){end}; INSERT INTO mine SELECT i, md5(i::text) FROM generate_series(1, 60) i ON CONFLICT DO NOTHING"
    )
}

fn large_object(dice: &mut Dice) -> String {
    let number = dice.within(900_000, 900_003);
    match dice.within(0, 2) {
        0 => format!("SELECT lo_unlink({number})"),
        _ => {
            format!("SELECT lo_from_bytea({number}, decode(repeat('ab', {}), 'hex'))", dice.within(10, 9000))
        }
    }
}

/// Something that any transaction may do.
pub(crate) fn in_a_transaction(dice: &mut Dice) -> String {
    let number = dice.within(0, TABLES - 1);
    let one = table(dice);
    match dice.weighed(&[
        (22, 0),
        (14, 1),
        (8, 2),
        (6, 3),
        (6, 4),
        (4, 5),
        (5, 6),
        (4, 7),
        (4, 8),
        (5, 9),
        (3, 10),
        (4, 11),
        (3, 12),
        (3, 13),
        (2, 14),
        (1, 15),
        (1, 16),
        (1, 17),
    ]) {
        0 => insert(dice, &one),
        1 => update(dice),
        2 => delete(dice),
        3 => toast(dice),
        4 => lock(dice),
        5 => sequence(dice),
        6 => subtransactions(dice),
        7 => alter(dice),
        8 => rebuild(dice),
        9 => create(dice, number),
        10 => format!("DROP TABLE {one}"),
        11 => index(dice, number, ""),
        12 => format!("TRUNCATE {one}{}", dice.pick(&["", " RESTART IDENTITY"])),
        13 => copy(dice),
        14 => temporary(dice),
        15 => large_object(dice),
        16 => format!(
            "SELECT pg_logical_emit_message({}, 'fuzz', repeat('m', {}))",
            dice.pick(&["true", "false"]),
            dice.within(1, 9000)
        ),
        _ => format!(
            "CREATE TABLE c{number} AS SELECT i, md5(i::text) FROM generate_series(1, 400) i; DROP TABLE c{number}"
        ),
    }
}

/// Something that only a session without a transaction may do.
pub(crate) fn alone(dice: &mut Dice) -> String {
    let number = dice.within(0, TABLES - 1);
    let one = table(dice);
    match dice.weighed(&[
        (8, 0),
        (3, 1),
        (3, 2),
        (2, 3),
        (4, 4),
        (2, 5),
        (2, 6),
        (1, 7),
        (1, 8),
        (1, 9),
        (2, 10),
        (1, 11),
        (1, 12),
    ]) {
        0 => format!(
            "VACUUM {}{one}",
            dice.pick(&[
                "",
                "(FREEZE) ",
                "(FREEZE, DISABLE_PAGE_SKIPPING) ",
                "(INDEX_CLEANUP on) ",
                "(ANALYZE) "
            ])
        ),
        1 => format!("VACUUM FULL {one}"),
        2 => index(dice, number, "CONCURRENTLY "),
        3 => format!("REINDEX TABLE CONCURRENTLY {one}"),
        4 => "CHECKPOINT".to_owned(),
        5 => "SELECT pg_switch_wal()".to_owned(),
        6 => format!("VACUUM FULL {}", dice.pick(&["pg_class", "pg_database", "pg_attribute", "pg_authid"])),
        7 => format!(
            "SELECT gin_clean_pending_list(indexrelid) FROM pg_index JOIN pg_class i ON i.oid = indexrelid JOIN pg_am a ON a.oid = relam WHERE amname = 'gin' AND indrelid = '{one}'::regclass"
        ),
        8 => format!(
            "SELECT {}(indexrelid, 0) FROM pg_index JOIN pg_class i ON i.oid = indexrelid JOIN pg_am a ON a.oid = relam WHERE amname = 'brin' AND indrelid = '{one}'::regclass",
            dice.pick(&["brin_summarize_range", "brin_desummarize_range"])
        ),
        9 => origin(dice),
        10 => format!(
            "CREATE TABLESPACE s{0} LOCATION ''; ALTER TABLE {one} SET TABLESPACE s{0}; ALTER TABLE {one} SET TABLESPACE pg_default; DROP TABLESPACE s{0}",
            dice.within(1, 2)
        ),
        11 => "VACUUM (FREEZE)".to_owned(),
        _ => format!(
            "ALTER SYSTEM SET full_page_writes = {}; SELECT pg_reload_conf()",
            dice.pick(&["on", "off"])
        ),
    }
}

/// A transaction that says it was replayed from elsewhere.
fn origin(dice: &mut Dice) -> String {
    let at = dice.within(1, 60_000);
    format!(
        "SELECT pg_replication_origin_create('o') WHERE NOT EXISTS (SELECT FROM pg_replication_origin); \
         SELECT pg_replication_origin_session_setup('o'); \
         BEGIN; SELECT pg_replication_origin_xact_setup('0/{at:X}', '2026-01-02'); INSERT INTO load (n) VALUES ({at}); COMMIT; \
         SELECT pg_replication_origin_session_reset()"
    )
}

/// What happens to databases, from outside of them.
pub(crate) fn about_databases(dice: &mut Dice) -> String {
    let (one, other) = (database(dice), database(dice));
    let strategy = dice.pick(&["wal_log", "file_copy"]);
    let template = dice.pick(&["template1", "template0", &*other]);
    match dice.within(0, 5) {
        0 => format!("DROP DATABASE IF EXISTS {one}"),
        1 => format!("ALTER DATABASE {one} SET TABLESPACE {}", dice.pick(&["s0", "pg_default"])),
        _ => format!(
            "DROP DATABASE IF EXISTS {one}; CREATE DATABASE {one} TEMPLATE {} STRATEGY {strategy}{}",
            if template == one { "template1" } else { template },
            dice.pick(&["", " TABLESPACE s0"])
        ),
    }
}

/// What happens inside of one of the other databases.
pub(crate) fn in_a_database(dice: &mut Dice) -> String {
    match dice.within(0, 4) {
        0 => "CREATE TABLE IF NOT EXISTS inside (id serial PRIMARY KEY, v text); INSERT INTO inside (v) SELECT md5(i::text) FROM generate_series(1, 300) i".to_owned(),
        1 => "UPDATE inside SET v = v || '!' WHERE id % 3 = 0; VACUUM inside".to_owned(),
        2 => "VACUUM FULL pg_class; REINDEX TABLE pg_attribute".to_owned(),
        3 => "DROP TABLE inside".to_owned(),
        _ => "CREATE INDEX ON inside USING spgist (v); DELETE FROM inside WHERE id % 2 = 0".to_owned(),
    }
}

/// Writes for as long as it is let: a transaction every few milliseconds, so that a fast machine writes little more than
/// a slow one. Its table and sequence are its own: an open session may have locked any other.
pub(crate) fn load(dice: &mut Dice) -> String {
    let row = rows(dice, "load", 3);
    format!(
        "DO $$ BEGIN FOR step IN 1..20000 LOOP {row}; UPDATE load SET n = n + 1 WHERE id % 50 = step % 50; \
         IF step % 9 = 0 THEN DELETE FROM load WHERE id % 31 = step % 31; END IF; \
         IF step % 13 = 0 THEN CREATE TABLE passing AS SELECT 1 AS i; DROP TABLE passing; END IF; \
         PERFORM nextval('loads'); PERFORM pg_sleep(0.003); \
         IF step % 10 = 3 THEN ROLLBACK; ELSE COMMIT; END IF; END LOOP; END $$"
    )
}
