CREATE EXTENSION bloom;
CREATE SEQUENCE counter;
CREATE TABLE things (id bigserial PRIMARY KEY, n int, t text, p point, tags int[], v text);
CREATE INDEX things_n ON things (n);
CREATE INDEX things_hash ON things USING hash (n);
CREATE INDEX things_gin ON things USING gin (tags) WITH (fastupdate = on, gin_pending_list_limit = 64);
CREATE INDEX things_gin_slow ON things USING gin (tags) WITH (fastupdate = off);
CREATE INDEX things_gist ON things USING gist (p);
CREATE INDEX things_spgist ON things USING spgist (t);
CREATE INDEX things_quad ON things USING spgist (p);
CREATE INDEX things_brin ON things USING brin (id, n) WITH (pages_per_range = 2, autosummarize = on);
CREATE INDEX things_bloom ON things USING bloom (n, t);

CREATE FUNCTION fill(first int, last int) RETURNS void LANGUAGE sql AS $$
  INSERT INTO things (n, t, p, tags, v)
  SELECT i % 97, 'row ' || md5(i::text), point(i * 7919 % 1000, i * 104729 % 1009),
         ARRAY[i % 5, i % 11, i % 501], CASE WHEN i % 200 = 0 THEN repeat(md5(i::text), 400) END
  FROM generate_series(first, last) i $$;

SELECT fill(1, 1500);
DO $$ BEGIN FOR i IN 1501..1900 LOOP PERFORM fill(i, i); PERFORM nextval('counter'); END LOOP; END $$;
SELECT count(*) FROM things;
CHECKPOINT;
SELECT fill(1901, 3000);
SELECT brin_summarize_new_values('things_brin');
UPDATE things SET v = 'changed' WHERE id % 7 = 0;
UPDATE things SET n = n + 1000 WHERE id % 31 = 0;
CHECKPOINT;
UPDATE things SET v = v || '!' WHERE id % 14 = 0;
SELECT count(*) FROM (SELECT * FROM things WHERE id % 13 = 0 FOR UPDATE) locked;
SELECT count(*) FROM (SELECT * FROM things WHERE id % 17 = 0 FOR KEY SHARE) locked;
DELETE FROM things WHERE id BETWEEN 200 AND 1700;
VACUUM things;
VACUUM things;
SELECT brin_desummarize_range('things_brin', 0);
SELECT brin_summarize_new_values('things_brin');
SELECT fill(3001, 4200);
SELECT gin_clean_pending_list('things_gin');
INSERT INTO things (id, n) VALUES (4000, 1), (100000, 2) ON CONFLICT (id) DO UPDATE SET n = -1;
DELETE FROM things WHERE n % 3 = 0;
VACUUM (FREEZE) things;
SELECT count(*) FROM things WHERE n = 5;
CHECKPOINT;
DELETE FROM things WHERE id > 3500;
VACUUM things;
SELECT fill(5001, 5600);
BEGIN;
SELECT fill(6001, 6100);
SAVEPOINT a;
UPDATE things SET n = 12 WHERE id > 5000;
ROLLBACK TO a;
DELETE FROM things WHERE n = 13;
COMMIT;
BEGIN;
DELETE FROM things WHERE n = 14;
ROLLBACK;

CREATE TABLE words (w text);
INSERT INTO words SELECT md5((i % 300)::text) FROM generate_series(1, 4000) i;
CREATE INDEX words_w ON words (w);
CREATE INDEX words_hash ON words USING hash (w);
INSERT INTO words SELECT md5((i % 300)::text) FROM generate_series(1, 3000) i;
DELETE FROM words WHERE w < '8';
VACUUM words;
INSERT INTO words SELECT md5((i % 300)::text) FROM generate_series(1, 2000) i;

CREATE TABLE sparse (k int, a int[]) WITH (fillfactor = 50);
CREATE INDEX sparse_gin ON sparse USING gin (a) WITH (fastupdate = off);
INSERT INTO sparse SELECT i, ARRAY[1, 2] FROM generate_series(1, 6000) i;
DELETE FROM sparse WHERE k > 300;
VACUUM sparse;
INSERT INTO sparse SELECT i, ARRAY[1, 3] FROM generate_series(1, 2000) i;
UPDATE sparse SET k = k + 1 WHERE k < 50;
UPDATE sparse SET k = k + 1 WHERE k < 50;
SELECT count(*) FROM sparse WHERE k < 50;
UPDATE sparse SET k = k + 1 WHERE k < 50;

CREATE TABLE narrow (k int PRIMARY KEY) WITH (autovacuum_enabled = off);
INSERT INTO narrow SELECT generate_series(1, 3000);
DELETE FROM narrow WHERE k < 2900;
VACUUM narrow;
INSERT INTO narrow SELECT generate_series(1, 2800);
DELETE FROM narrow WHERE k > 100;
VACUUM narrow;
VACUUM FULL narrow;
CLUSTER words USING words_w;

CREATE UNLOGGED TABLE fleeting (n int, p point);
CREATE INDEX fleeting_hash ON fleeting USING hash (n);
CREATE INDEX fleeting_gist ON fleeting USING gist (p);
CREATE INDEX fleeting_btree ON fleeting (n);
INSERT INTO fleeting SELECT i, point(i, i) FROM generate_series(1, 100) i;

CREATE TABLE gone AS SELECT * FROM things;
CREATE INDEX ON gone (n);
TRUNCATE gone;
INSERT INTO gone (n) SELECT generate_series(1, 100);
CREATE MATERIALIZED VIEW seen AS SELECT * FROM things WHERE n < 50;
REFRESH MATERIALIZED VIEW seen;
ALTER TABLE words ADD COLUMN more int DEFAULT 5;
ANALYZE;
SELECT setval('counter', 500);
SELECT nextval('counter');
CREATE DATABASE second;
