//! A workload over every access method, with everything that changes files: small enough to be restored many times.

use std::path::PathBuf;
use zenith_testkit::pg::{self, Pg, Session};

/// Kinds of rare changes. It has no factor in common with the number of kinds of targets, nor with quiet and not
/// quiet: every change meets every kind of moment.
const RARE: u32 = 13;

/// What the workload has made besides tables.
pub(crate) struct Workload {
    /// The location of its tablespace.
    pub(crate) tablespace: PathBuf,
}

/// Makes databases, a tablespace, and tables with an index of every access method. Databases that come later have
/// amcheck, too.
pub(crate) fn create(primary: &Pg) -> Workload {
    let tablespace = primary.home().join("spread");
    pg::run(pg::command("mkdir").arg(&tablespace));
    primary.sql(&format!("CREATE TABLESPACE spread LOCATION '{}'", tablespace.display()));
    for database in ["template1", "postgres"] {
        primary.sql_in(database, "CREATE EXTENSION amcheck");
    }
    primary.script("postgres", TABLES);
    primary.sql("CREATE DATABASE second");
    primary.script(
        "second",
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         CREATE INDEX t_spread ON t (v) TABLESPACE spread;
         INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 2000) i;",
    );
    primary.sql("CREATE DATABASE copied TEMPLATE second STRATEGY file_copy");
    Workload { tablespace }
}

const TABLES: &str = "
    CREATE EXTENSION btree_gin;
    CREATE TABLE docs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, words tsvector, area box,
                       name text, spot point, at timestamptz DEFAULT now());
    CREATE INDEX docs_hash ON docs USING hash (n);
    CREATE INDEX docs_gin ON docs USING gin (words);
    CREATE INDEX docs_gin_n ON docs USING gin (n) WITH (fastupdate = off);
    CREATE INDEX docs_gist ON docs USING gist (area);
    CREATE INDEX docs_spgist ON docs USING spgist (spot);
    CREATE INDEX docs_spgist_name ON docs USING spgist (name) TABLESPACE spread;
    CREATE INDEX docs_brin ON docs USING brin (at) WITH (pages_per_range = 2);
    CREATE TABLE wide (id int PRIMARY KEY, body text, packed text);
    ALTER TABLE wide ALTER COLUMN body SET STORAGE EXTERNAL;
    CREATE TABLE parents (id int PRIMARY KEY, n int);
    INSERT INTO parents SELECT i, 0 FROM generate_series(1, 200) i;
    CREATE TABLE scratch (i int PRIMARY KEY, v text);
    CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, who int, what text);
    CREATE INDEX ledger_hash ON ledger USING hash (who);
    CREATE INDEX ledger_what ON ledger USING gin (to_tsvector('simple', what));
    CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL) WITH (fillfactor = 70);
    INSERT INTO accounts SELECT i, 0 FROM generate_series(1, 1000) i;
    CREATE UNLOGGED TABLE volatile (id int PRIMARY KEY);
    INSERT INTO volatile SELECT generate_series(1, 100);
    CREATE SEQUENCE tickets;
    CREATE TABLE markers (step int PRIMARY KEY);
    CREATE MATERIALIZED VIEW seen AS SELECT n, count(*) FROM docs GROUP BY n;";

/// One round; rounds differ by `step`. It leaves the transaction `p{step}` prepared.
pub(crate) fn round(primary: &Pg, step: u32) {
    primary.script("postgres", &common(step));
    primary.script("postgres", &rare(step));
    if step > 0 {
        let before = step - 1;
        primary.script("postgres", &format!("COMMIT PREPARED 'p{before}'; DROP TABLE prepared{before}; DROP TABLE IF EXISTS pending{before};"));
    }
    primary.script("second", &format!("UPDATE t SET v = v || '{step}' WHERE id % 17 = {step} % 17;"));
    primary.script(
        "copied",
        &format!(
            "DELETE FROM t WHERE id % 101 = {step} % 101;
             INSERT INTO t SELECT 10000 * ({step} + 1) + i, 'new' FROM generate_series(1, 50) i;"
        ),
    );
    if step.is_multiple_of(3) {
        primary.sql("CHECKPOINT");
    }
    primary.sql(&format!("INSERT INTO markers VALUES ({step})"));
}

/// What every round does: rows in every access method, large values, sequences, subtransactions, row locks, two-phase.
fn common(step: u32) -> String {
    format!(
        "INSERT INTO docs (n, words, area, name, spot)
           SELECT i % 97, to_tsvector('simple', 'w' || i % 50 || ' v' || i % 7 || ' step{step}'),
                  box(point(i % 100, i % 37), point(i % 100 + 3, i % 37 + 2)),
                  'name ' || i % 300 || repeat('z', i % 40), point(i % 211, i % 173)
           FROM generate_series(1, 150) i;
         UPDATE docs SET n = n + 1 WHERE id % 13 = {step} % 13;
         UPDATE docs SET name = name || '+' WHERE id % 29 = {step} % 29;
         DELETE FROM docs WHERE id % 31 = {step} % 31;
         INSERT INTO wide SELECT {step}, repeat(md5('{step}'), 1200), string_agg(md5((i / 3)::text), '')
           FROM generate_series(1, 500) i
           ON CONFLICT (id) DO UPDATE SET body = excluded.body;
         SELECT nextval('tickets') FROM generate_series(1, 50);
         BEGIN;
         SAVEPOINT a; INSERT INTO markers VALUES (1000000 + {step}); ROLLBACK TO a;
         SAVEPOINT b; INSERT INTO markers VALUES (2000000 + {step}); RELEASE b;
         DO $$ BEGIN FOR i IN 1..70 LOOP BEGIN INSERT INTO parents VALUES (i, {step});
            EXCEPTION WHEN unique_violation THEN UPDATE parents SET n = {step} WHERE id = i; END; END LOOP; END $$;
         COMMIT;
         BEGIN; SELECT FROM parents WHERE id < 40 FOR KEY SHARE;
         SAVEPOINT c; UPDATE parents SET n = n + 1 WHERE id < 20; RELEASE c; COMMIT;
         BEGIN; INSERT INTO markers VALUES (3000000 + {step});
         SAVEPOINT d; CREATE TABLE prepared{step} AS SELECT generate_series(1, 100) AS i; RELEASE d;
         PREPARE TRANSACTION 'p{step}';
         BEGIN; INSERT INTO markers VALUES (4000000 + {step}); CREATE TABLE never (i int PRIMARY KEY);
         PREPARE TRANSACTION 'q{step}';
         ROLLBACK PREPARED 'q{step}';"
    )
}

/// What one round in thirteen does.
fn rare(step: u32) -> String {
    let turn = step / RARE;
    match step % RARE {
        0 => "VACUUM docs;".to_owned(),
        1 => "TRUNCATE wide;".to_owned(),
        2 => "VACUUM FULL parents;".to_owned(),
        // From the end: the heap gets shorter.
        3 => "DELETE FROM docs WHERE id > (SELECT max(id) - 200 FROM docs); VACUUM docs;".to_owned(),
        4 => format!(
            "CREATE TABLE dropped AS SELECT i, md5(i::text) FROM generate_series(1, 500) i; DROP TABLE dropped;
             CREATE DATABASE passing STRATEGY {} TABLESPACE spread;",
            pick(turn, ["file_copy", "wal_log"])
        ),
        5 => "VACUUM FREEZE docs; REINDEX TABLE docs; ALTER DATABASE passing SET TABLESPACE pg_default;".to_owned(),
        6 => "CLUSTER docs USING docs_pkey; ANALYZE; DROP DATABASE passing;".to_owned(),
        7 => "CREATE INDEX docs_n ON docs (n); DROP INDEX docs_n;".to_owned(),
        8 => format!("ALTER TABLE wide SET TABLESPACE {};", pick(turn, ["spread", "pg_default"])),
        9 => format!(
            "DROP DATABASE copied; CREATE DATABASE copied TEMPLATE second STRATEGY {};",
            pick(turn, ["wal_log", "file_copy"])
        ),
        10 => format!(
            "SET allow_in_place_tablespaces = on; CREATE TABLESPACE inner{turn} LOCATION '';
             CREATE TABLE inside{turn} (i int PRIMARY KEY) TABLESPACE inner{turn};
             INSERT INTO inside{turn} SELECT generate_series(1, 300);
             {}",
            if turn > 0 { format!("DROP TABLE inside{0}; DROP TABLESPACE inner{0};", turn - 1) } else { String::new() }
        ),
        11 => "BEGIN; TRUNCATE scratch; INSERT INTO scratch SELECT i, 'lost' FROM generate_series(1, 100) i; ROLLBACK;
               BEGIN; TRUNCATE scratch; INSERT INTO scratch SELECT i, 'kept' FROM generate_series(1, 400) i; COMMIT;
               DELETE FROM docs WHERE id < (SELECT max(id) - 1500 FROM docs); VACUUM docs;"
            .to_owned(),
        _ => format!(
            "ALTER TABLE parents ALTER COLUMN n TYPE {}; REFRESH MATERIALIZED VIEW seen;",
            pick(turn, ["bigint", "int"])
        ),
    }
}

fn pick<T: Copy>(turn: u32, of: [T; 2]) -> T {
    of[(turn % 2) as usize]
}

/// Many clients that write all the time, while it lives.
pub(crate) struct Load<'a> {
    primary: &'a Pg,
    pgbench: std::process::Child,
}

impl<'a> Load<'a> {
    /// Starts the clients: at a bounded rate, so that a fast machine writes no more than a slow one.
    pub(crate) fn start(primary: &'a Pg) -> Load<'a> {
        let mut pgbench = primary.client("pgbench");
        pgbench.args(["--no-vacuum", "--client=3", "--rate=60", "--time=3600", "--max-tries=10"]);
        for (index, script) in LOAD.iter().enumerate() {
            let path = primary.home().join(format!("load-{index}.sql"));
            std::fs::write(&path, script).expect("a script");
            pgbench.arg(format!("--file={}", path.display()));
        }
        pgbench.stdout(std::process::Stdio::null());
        Load { primary, pgbench: pgbench.spawn().expect("pgbench exists") }
    }

    /// Waits until the clients have committed something since the call.
    pub(crate) fn wait_until_it_writes(&self) {
        let before = self.primary.sql("SELECT count(*) FROM ledger");
        self.primary.wait_for(&format!("(SELECT count(*) > {before} + 5 FROM ledger)"));
    }

    /// Stops the clients and waits until the server has ended their transactions.
    pub(crate) fn stop(mut self) {
        self.pgbench.kill().expect("pgbench still runs");
        self.pgbench.wait().expect("pgbench ends");
        wait_until_alone(self.primary);
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        drop(self.pgbench.kill());
        drop(self.pgbench.wait());
    }
}

/// Waits until nobody else is connected.
fn wait_until_alone(primary: &Pg) {
    primary.wait_for(
        "NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())",
    );
}

/// What the clients do. None waits for a row that an open transaction of [`Open`] holds, nor for two of another client's.
const LOAD: [&str; 4] = [
    "\\set n random(1, 1000)
     INSERT INTO docs (n, words, area, name, spot)
       VALUES (:n, to_tsvector('simple', 'load w' || :n % 50), box(point(:n, 1), point(:n + 2, 3)), 'load ' || :n,
               point(:n, :n % 7));",
    "\\set n random(1, 1000)
     UPDATE docs SET n = n + 1
       WHERE id = (SELECT id FROM docs WHERE n >= :n % 97 LIMIT 1 FOR UPDATE SKIP LOCKED);",
    "\\set n random(1, 1000)
     BEGIN;
     INSERT INTO ledger (who, what) VALUES (:n, repeat('l' || :n || ' ', 20));
     SAVEPOINT a;
     UPDATE accounts SET balance = balance + 1 WHERE id = :n;
     RELEASE a;
     COMMIT;",
    "\\set n random(1, 20)
     INSERT INTO wide SELECT 1000000 + :n, NULL, string_agg(md5(random()::text), '') FROM generate_series(1, 200)
       ON CONFLICT (id) DO UPDATE SET packed = excluded.packed;",
];

/// Transactions that are open at a moment: they have written in every way, and none has ended.
pub(crate) struct Open {
    sessions: [Session; 3],
}

impl Open {
    /// Begins them.
    pub(crate) fn begin(primary: &Pg, step: u32) -> Open {
        let mut sessions =
            [primary.session("postgres"), primary.session("postgres"), primary.session("second")];
        let [first, other, elsewhere] = &mut sessions;
        // Two that hold the same rows: a multixact whose members both run.
        first.sql("BEGIN; SELECT FROM parents WHERE id BETWEEN 100 AND 120 FOR SHARE");
        other.sql("BEGIN; SELECT FROM parents WHERE id BETWEEN 110 AND 130 FOR KEY SHARE");
        // More subtransactions than a snapshot holds.
        first.sql(&format!(
            "DO $$ BEGIN FOR i IN 1..70 LOOP BEGIN INSERT INTO markers VALUES (5000000 + 100 * {step} + i);
               EXCEPTION WHEN unique_violation THEN NULL; END; END LOOP; END $$;
             UPDATE docs SET name = name || '-' WHERE id % 37 = {step} % 37;
             DELETE FROM scratch WHERE i % 50 = {step} % 50"
        ));
        other.sql(&format!(
            "INSERT INTO wide VALUES (2000000 + {step}, repeat(md5('open{step}'), 1000), NULL);
             SELECT nextval('tickets') FROM generate_series(1, 40);
             CREATE TABLE pending{step} (i int PRIMARY KEY, v text) TABLESPACE spread;
             INSERT INTO pending{step} SELECT i, repeat('p', 500) FROM generate_series(1, 200) i;
             CREATE INDEX ON pending{step} USING spgist (v)"
        ));
        elsewhere.sql(&format!("BEGIN; UPDATE t SET v = v || 'open' WHERE id % 23 = {step} % 23"));
        Open { sessions }
    }

    /// Ends them, some with success.
    pub(crate) fn end(mut self, step: u32) {
        let [first, other, elsewhere] = &mut self.sessions;
        first.sql("COMMIT");
        other.sql(pick(step, ["COMMIT", "ROLLBACK"]));
        elsewhere.sql(pick(step / 2, ["COMMIT", "ROLLBACK"]));
    }
}
