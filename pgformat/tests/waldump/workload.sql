-- Makes WAL of every kind that one session can make. $METHOD$ is replaced by a wal_compression method.
SET wal_compression = '$METHOD$';
CHECKPOINT;
CREATE EXTENSION IF NOT EXISTS btree_gin;
CREATE TABLE t_$METHOD$ (id serial PRIMARY KEY, a int, b text, c int[], p point);
INSERT INTO t_$METHOD$ (a, b, c, p)
    SELECT i % 300, repeat(md5(i::text), 1 + i % 5), ARRAY[i % 17, i % 19, i], point(i % 100, i % 97)
    FROM generate_series(1, 3000) i;
CREATE INDEX i_$METHOD$_btree ON t_$METHOD$ (a);
CREATE INDEX i_$METHOD$_hash ON t_$METHOD$ USING hash (a);
CREATE INDEX i_$METHOD$_gin ON t_$METHOD$ USING gin (c);
CREATE INDEX i_$METHOD$_gin_slow ON t_$METHOD$ USING gin (b) WITH (fastupdate = off);
CREATE INDEX i_$METHOD$_gist ON t_$METHOD$ USING gist (p);
CREATE INDEX i_$METHOD$_spgist ON t_$METHOD$ USING spgist (p);
CREATE INDEX i_$METHOD$_sptext ON t_$METHOD$ USING spgist (b);
CREATE INDEX i_$METHOD$_brin ON t_$METHOD$ USING brin (id) WITH (pages_per_range = 2, autosummarize = off);
INSERT INTO t_$METHOD$ (a, b, c, p)
    SELECT i % 300, md5(i::text), ARRAY[i % 5, i], point(i % 1000, (i * 7) % 977) FROM generate_series(1, 3000) i;
SELECT brin_summarize_new_values('i_$METHOD$_brin');
SELECT brin_desummarize_range('i_$METHOD$_brin', 4);
SELECT gin_clean_pending_list('i_$METHOD$_gin');
UPDATE t_$METHOD$ SET a = a + 1 WHERE id % 3 = 0;
UPDATE t_$METHOD$ SET b = b || 'x', id = id + 100000 WHERE id % 7 = 0;
VACUUM (FREEZE) t_$METHOD$;
UPDATE t_$METHOD$ SET a = a + 1 WHERE id % 50 = 1;
SELECT count(*) FROM (SELECT 1 FROM t_$METHOD$ WHERE id % 90 = 2 FOR UPDATE) locked;
DELETE FROM t_$METHOD$ WHERE id % 2 = 1 OR a BETWEEN 10 AND 150;
VACUUM (INDEX_CLEANUP on) t_$METHOD$;
INSERT INTO t_$METHOD$ (id, a) VALUES (-5, 1) ON CONFLICT (id) DO UPDATE SET a = 2;
DELETE FROM t_$METHOD$ WHERE id > 200;
VACUUM t_$METHOD$;

-- Subtransactions: some committed, some not, more than a commit record keeps in shared memory.
DO $$ BEGIN
    FOR i IN 1..150 LOOP
        BEGIN
            INSERT INTO t_$METHOD$ (a) VALUES (i);
            IF i % 3 = 0 THEN RAISE division_by_zero; END IF;
        EXCEPTION WHEN division_by_zero THEN NULL;
        END;
    END LOOP;
END $$;

-- Two-phase commit, with subtransactions, dropped and created relations.
CREATE TABLE drop_me_$METHOD$ (x text);
BEGIN;
INSERT INTO t_$METHOD$ (a) VALUES (-1);
SAVEPOINT s;
DROP TABLE drop_me_$METHOD$;
CREATE TABLE keep_$METHOD$ (x int);
PREPARE TRANSACTION 'commit $METHOD$';
COMMIT PREPARED 'commit $METHOD$';
BEGIN;
CREATE TABLE never_$METHOD$ (x int);
PREPARE TRANSACTION 'abort $METHOD$';
ROLLBACK PREPARED 'abort $METHOD$';
BEGIN;
CREATE TABLE gone_$METHOD$ (x int);
INSERT INTO gone_$METHOD$ VALUES (1);
ROLLBACK;

-- Small and huge values: records over many pages and over segments.
SELECT pg_logical_emit_message(false, 'small', 'x');
SELECT pg_logical_emit_message(true, 'huge', repeat('0123456789', 350000));
CREATE TABLE big_$METHOD$ (b text);
ALTER TABLE big_$METHOD$ ALTER b SET STORAGE EXTERNAL;
INSERT INTO big_$METHOD$ SELECT repeat(md5(i::text), 20000) FROM generate_series(1, 2) i;
TRUNCATE big_$METHOD$;
CREATE UNLOGGED TABLE unlogged_$METHOD$ (x int PRIMARY KEY);
ALTER TABLE unlogged_$METHOD$ SET LOGGED;
CREATE MATERIALIZED VIEW m_$METHOD$ AS SELECT * FROM t_$METHOD$;
REFRESH MATERIALIZED VIEW m_$METHOD$;
CLUSTER t_$METHOD$ USING i_$METHOD$_btree;
VACUUM FULL pg_class;
SELECT nextval('t_$METHOD$_id_seq') FROM generate_series(1, 50);
SELECT pg_create_restore_point('point $METHOD$');
SELECT pg_replication_origin_create('origin_$METHOD$');
SELECT pg_replication_origin_session_setup('origin_$METHOD$');
BEGIN;
SELECT pg_replication_origin_xact_setup('0/ABCDEF', now());
INSERT INTO t_$METHOD$ (a) VALUES (-2);
COMMIT;
SELECT pg_replication_origin_session_reset();
SELECT pg_replication_origin_advance('origin_$METHOD$', '0/ABCDFF');
SELECT pg_replication_origin_drop('origin_$METHOD$');

-- Images that are only checks, over every resource manager that has them.
SET wal_consistency_checking = 'all';
INSERT INTO t_$METHOD$ (a, b, c, p)
    SELECT i, md5(i::text), ARRAY[i, i + 1], point(i, i) FROM generate_series(1, 200) i;
UPDATE t_$METHOD$ SET a = a + 1 WHERE a < 100;
RESET wal_consistency_checking;
CHECKPOINT;
UPDATE t_$METHOD$ SET b = 'after the checkpoint' WHERE id % 5 = 0;
SELECT pg_switch_wal();

-- Left alone from here on: its images are compared with its file.
CREATE TABLE image_$METHOD$ AS SELECT repeat(i::text, 3) AS k FROM generate_series(1, 2000) i;
CREATE INDEX image_$METHOD$_k ON image_$METHOD$ (k);
