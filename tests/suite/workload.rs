//! A workload over every access method, with everything that changes files: small enough to be restored many times.

use zenith_testkit::pg::Pg;

/// Databases that the workload leaves.
pub(crate) const DATABASES: [&str; 3] = ["postgres", "second", "copied"];

/// Makes tables with an index of every access method.
pub(crate) fn create(primary: &Pg) {
    primary.script(
        "postgres",
        "CREATE EXTENSION IF NOT EXISTS btree_gin;
         CREATE TABLE docs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, words tsvector, area box,
                            name text, spot point, at timestamptz DEFAULT now());
         CREATE INDEX docs_hash ON docs USING hash (n);
         CREATE INDEX docs_gin ON docs USING gin (words);
         CREATE INDEX docs_gin_n ON docs USING gin (n);
         CREATE INDEX docs_gist ON docs USING gist (area);
         CREATE INDEX docs_spgist ON docs USING spgist (spot);
         CREATE INDEX docs_spgist_name ON docs USING spgist (name);
         CREATE INDEX docs_brin ON docs USING brin (at) WITH (pages_per_range = 2);
         CREATE TABLE wide (id int PRIMARY KEY, body text);
         ALTER TABLE wide ALTER COLUMN body SET STORAGE EXTERNAL;
         CREATE TABLE parents (id int PRIMARY KEY, n int);
         INSERT INTO parents SELECT i, 0 FROM generate_series(1, 200) i;
         CREATE UNLOGGED TABLE volatile (id int PRIMARY KEY);
         INSERT INTO volatile SELECT generate_series(1, 100);
         CREATE SEQUENCE tickets;
         CREATE TABLE markers (step int PRIMARY KEY);",
    );
    primary.sql("CREATE DATABASE second");
    primary.script("second", "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 2000) i;");
    primary.sql("CREATE DATABASE copied TEMPLATE second STRATEGY file_copy");
}

/// One round; rounds differ by `step`.
pub(crate) fn round(primary: &Pg, step: u32) {
    primary.script(
        "postgres",
        &format!(
            "INSERT INTO docs (n, words, area, name, spot)
               SELECT i % 97, to_tsvector('simple', 'w' || i % 50 || ' v' || i % 7 || ' step{step}'),
                      box(point(i % 100, i % 37), point(i % 100 + 3, i % 37 + 2)),
                      'name ' || i % 300 || repeat('z', i % 40), point(i % 211, i % 173)
               FROM generate_series(1, 400) i;
             UPDATE docs SET n = n + 1 WHERE id % 13 = {step} % 13;
             UPDATE docs SET name = name || '+' WHERE id % 29 = {step} % 29;
             DELETE FROM docs WHERE id % 31 = {step} % 31;
             INSERT INTO wide VALUES ({step}, repeat(md5('{step}'), 4000))
               ON CONFLICT (id) DO UPDATE SET body = excluded.body;
             SELECT nextval('tickets') FROM generate_series(1, 50);
             BEGIN;
             SAVEPOINT a; INSERT INTO markers VALUES (1000000 + {step}); ROLLBACK TO a;
             SAVEPOINT b; INSERT INTO markers VALUES (2000000 + {step}); RELEASE b;
             DO $$ BEGIN FOR i IN 1..70 LOOP BEGIN INSERT INTO parents VALUES (i, {step});
                EXCEPTION WHEN unique_violation THEN UPDATE parents SET n = {step} WHERE id = i; END; END LOOP; END $$;
             COMMIT;
             BEGIN; SELECT * FROM parents WHERE id < 40 FOR KEY SHARE;
             SAVEPOINT c; UPDATE parents SET n = n + 1 WHERE id < 20; RELEASE c; COMMIT;"
        ),
    );
    let rare = match step % 8 {
        0 => "VACUUM docs",
        1 => "TRUNCATE wide",
        2 => "VACUUM FULL parents",
        3 => "DELETE FROM docs WHERE id > (SELECT max(id) - 300 FROM docs); VACUUM docs",
        4 => {
            "CREATE TABLE dropped AS SELECT i, md5(i::text) FROM generate_series(1, 500) i; DROP TABLE dropped"
        }
        5 => "VACUUM FREEZE docs; REINDEX TABLE docs",
        6 => "CLUSTER docs USING docs_pkey; ANALYZE",
        _ => "CREATE INDEX IF NOT EXISTS docs_n ON docs (n); DROP INDEX docs_n",
    };
    for statement in rare.split("; ") {
        primary.sql(statement);
    }
    primary.script(
        "postgres",
        &format!(
            "BEGIN; INSERT INTO markers VALUES (3000000 + {step}); PREPARE TRANSACTION 'p{step}';
             BEGIN; INSERT INTO markers VALUES (4000000 + {step}); PREPARE TRANSACTION 'q{step}';
             ROLLBACK PREPARED 'q{step}';"
        ),
    );
    if step > 0 {
        primary.sql(&format!("COMMIT PREPARED 'p{}'", step - 1));
    }
    primary.script("second", &format!("UPDATE t SET v = v || '{step}' WHERE id % 17 = {step} % 17;"));
    primary.script("copied", &format!("DELETE FROM t WHERE id % 101 = {step}; INSERT INTO t SELECT 10000 * ({step} + 1) + i, 'new' FROM generate_series(1, 50) i;"));
    if step % 5 == 4 {
        primary.sql(&format!("CREATE DATABASE passing{step}"));
        primary.sql(&format!("DROP DATABASE passing{step}"));
    }
    if step.is_multiple_of(3) {
        primary.sql("CHECKPOINT");
    }
    primary.sql(&format!("INSERT INTO markers VALUES ({step})"));
}
