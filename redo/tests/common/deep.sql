-- What needs deep trees, long chains, or a second session.
CREATE EXTENSION dblink;

-- Hash: one bucket with many overflow pages, emptied in part (MOVE_PAGE_CONTENTS, SQUEEZE_PAGE behind the primary page).
CREATE TABLE chain (k int, n int);
CREATE INDEX chain_hash ON chain USING hash (k);
INSERT INTO chain SELECT 7, i FROM generate_series(1, 5000) i;
DELETE FROM chain WHERE n % 3 <> 0;
VACUUM chain;
DELETE FROM chain WHERE n % 2 = 0;
VACUUM chain;

-- Index tuples that a scan marks dead are removed by the next insert (VACUUM_ONE_PAGE of hash, DELETE of GiST and B-tree).
CREATE TABLE marked (k int, p point);
INSERT INTO marked SELECT i % 2, point(i % 10, i % 7) FROM generate_series(1, 300) i;
CREATE INDEX marked_hash ON marked USING hash (k);
CREATE INDEX marked_gist ON marked USING gist (p);
CREATE INDEX marked_btree ON marked (k) WITH (deduplicate_items = off);
DELETE FROM marked;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(*) FROM marked WHERE k = 1;
SELECT count(*) FROM marked WHERE p <@ box '(0,0),(20,20)';
DROP INDEX marked_hash;
CREATE INDEX marked_hash ON marked USING hash (k);
INSERT INTO marked SELECT 1, point(i % 10, i % 7) FROM generate_series(1, 150) i;
DELETE FROM marked;
SELECT count(*) FROM marked WHERE k = 1;
INSERT INTO marked SELECT 1, point(i % 10, i % 7) FROM generate_series(1, 900) i;
RESET enable_seqscan;
RESET enable_bitmapscan;

-- GiST of four tuples a page (enough words make a signature of 1,800 bytes): inner splits, then whole pages deleted.
CREATE TABLE signs (i int, v tsvector);
CREATE INDEX signs_gist ON signs USING gist (v tsvector_ops (siglen = 1800));
INSERT INTO signs SELECT i, (SELECT to_tsvector('simple', string_agg('w' || i * j, ' ')) FROM generate_series(1, 700) j)
FROM generate_series(1, 100) i;
CREATE TABLE grid (p point);
CREATE INDEX grid_gist ON grid USING gist (p);
INSERT INTO grid SELECT point(i / 40, i % 40) FROM generate_series(1, 1600) i;
DELETE FROM grid WHERE p[0] < 30;
VACUUM grid;
VACUUM grid;

-- GIN with long keys: inner splits that finish a child's; a posting tree that loses pages.
CREATE TABLE essays (t text[]);
CREATE INDEX essays_gin ON essays USING gin (t) WITH (fastupdate = off);
INSERT INTO essays SELECT ARRAY[(SELECT string_agg(md5((i * 100 + j)::text), '') FROM generate_series(1, 50) j)]
FROM generate_series(1, 120) i;
CREATE TABLE common (a int[]) WITH (fillfactor = 100);
INSERT INTO common SELECT ARRAY[1] FROM generate_series(1, 40000) i;
CREATE INDEX common_gin ON common USING gin (a);
DELETE FROM common WHERE ctid < '(170,0)' AND ctid > '(5,0)';
VACUUM common;

-- SP-GiST: prefixes that split, inner tuples that grow and move.
CREATE TABLE paths (t text);
CREATE INDEX paths_spgist ON paths USING spgist (t);
INSERT INTO paths SELECT '/usr/lib/postgresql/15/' || md5(i::text) FROM generate_series(1, 600) i;
INSERT INTO paths VALUES ('/usr/lib/x'), ('/usr'), ('/'), ('zebra'), ('/usr/lib/postgresql/14/bin');
INSERT INTO paths SELECT chr(65 + i % 20) || chr(35 + i / 20 % 60) || repeat(md5(i::text), 9)
FROM generate_series(1, 3600) i;

-- B-tree: a level that shrinks to one page and grows again (UNLINK_PAGE_META, INSERT_META).
CREATE TABLE fast (k int PRIMARY KEY);
INSERT INTO fast SELECT generate_series(1, 3000);
DELETE FROM fast WHERE k < 2990;
VACUUM fast;
VACUUM fast;
INSERT INTO fast SELECT generate_series(3001, 4000);

-- A row that another session is updating is locked (LOCK_UPDATED).
CREATE TABLE contested (k int PRIMARY KEY, n int);
INSERT INTO contested SELECT i, i FROM generate_series(1, 20) i;
SELECT dblink_connect('other', 'dbname=postgres user=postgres host=' || current_setting('unix_socket_directories'));
SELECT dblink_exec('other', 'BEGIN');
SELECT dblink_exec('other', 'UPDATE contested SET n = n + 1 WHERE k < 10');
SELECT count(*) FROM (SELECT * FROM contested FOR KEY SHARE) locked;
SELECT dblink_exec('other', 'COMMIT');
SELECT dblink_disconnect('other');
