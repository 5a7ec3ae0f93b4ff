CREATE TABLE kept (id int PRIMARY KEY, v text) TABLESPACE here;
INSERT INTO kept SELECT i, md5(i::text) FROM generate_series(1, 2000) i;
CREATE TABLE shared_by_two AS SELECT i AS n FROM generate_series(1, 500) i;
VACUUM FULL pg_class;
VACUUM FULL pg_database;
CREATE DATABASE copied TEMPLATE second STRATEGY file_copy;
CREATE DATABASE copied_again TEMPLATE copied STRATEGY file_copy;
CREATE DATABASE logged TEMPLATE second STRATEGY wal_log;
CREATE DATABASE moved;
ALTER DATABASE moved SET TABLESPACE here;
CREATE DATABASE dropped STRATEGY file_copy;
\c copied
CREATE TABLE own AS SELECT i AS n FROM generate_series(1, 3000) i;
CREATE INDEX ON own (n);
COMMENT ON TABLE own IS 'changes rows of a catalog that came with the copy';
VACUUM;
\c copied_again
CREATE TABLE other (t text);
INSERT INTO other SELECT repeat('x', 500) FROM generate_series(1, 200);
DELETE FROM other;
VACUUM other;
INSERT INTO other SELECT 'y' FROM generate_series(1, 10);
\c second
CREATE TABLE after_the_copy AS SELECT 1 AS n;
VACUUM pg_attribute;
\c moved
CREATE TABLE lives_here AS SELECT i FROM generate_series(1, 1000) i;
\c dropped
CREATE TABLE goes AS SELECT 1 AS n;
\c postgres
DROP DATABASE dropped;
DROP TABLE shared_by_two;
ALTER TABLE kept SET TABLESPACE pg_default;
CREATE TABLE there TABLESPACE here AS SELECT i FROM generate_series(1, 100) i;
BEGIN;
INSERT INTO there VALUES (-1);
SAVEPOINT one;
INSERT INTO there VALUES (-2);
PREPARE TRANSACTION 'pending';
BEGIN;
SELECT count(*) FROM (SELECT * FROM kept WHERE id < 100 FOR SHARE) locked;
SAVEPOINT deep;
SELECT count(*) FROM (SELECT * FROM kept WHERE id < 50 FOR UPDATE) locked;
UPDATE kept SET v = 'u' WHERE id < 10;
COMMIT;
CREATE TABLE shrinking AS SELECT i, repeat('z', 100) AS pad FROM generate_series(1, 20000) i;
CREATE INDEX ON shrinking (i);
DELETE FROM shrinking WHERE i > 50;
VACUUM shrinking;
INSERT INTO shrinking SELECT i, 'again' FROM generate_series(1, 3000) i;
BEGIN;
CREATE TABLE never AS SELECT i FROM generate_series(1, 1000) i;
ROLLBACK;
DO $$ BEGIN FOR i IN 1..300 LOOP
  BEGIN INSERT INTO there VALUES (i); IF i % 3 = 0 THEN RAISE 'undone'; END IF; EXCEPTION WHEN OTHERS THEN NULL; END;
END LOOP; END $$;
