//! `zenith check --wal` on the WAL of a real server: everything agrees, and what was altered is told.

use bytes::Bytes;
use serde_json::Value;
use std::process::{Command, Output};
use std::sync::Arc;
use tempfile::TempDir;
use zenith_ingest::archive::WalArchive;
use zenith_manifest::Names;
use zenith_pgformat::wal::encode::seal;
use zenith_pgformat::wal::{Record, RmgrId, StreamStart, WalStream};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{Lsn, XLOG_BLCKSZ};
use zenith_store::{ClusterPaths, Env, Store, StoreSettings};
use zenith_testkit::outcome::{fails, said, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, command, give_to_server, server_dir};

/// Deep trees, long chains and a second session.
const DEEP: &str = include_str!("../../redo/tests/common/deep.sql");

/// What that leaves out: the access methods it does not touch, and what changes files.
const REST: &str = "
CREATE EXTENSION bloom;
CREATE SEQUENCE counter;
CREATE TABLE things (id bigserial PRIMARY KEY, n int, t text, p point, tags int[]);
CREATE INDEX things_gin ON things USING gin (tags) WITH (fastupdate = on, gin_pending_list_limit = 64);
CREATE INDEX things_spgist ON things USING spgist (p);
CREATE INDEX things_brin ON things USING brin (id, n) WITH (pages_per_range = 2);
CREATE INDEX things_bloom ON things USING bloom (n, t);
INSERT INTO things (n, t, p, tags)
  SELECT i % 97, 'row ' || md5(i::text), point(i * 7919 % 1000, i), ARRAY[i % 5, i % 501] FROM generate_series(1, 1200) i;
SELECT nextval('counter') FROM generate_series(1, 100);
CHECKPOINT;
SELECT brin_summarize_new_values('things_brin');
SELECT brin_desummarize_range('things_brin', 0);
UPDATE things SET n = n + 1 WHERE id % 7 = 0;
INSERT INTO things (id, n) VALUES (100, 1), (100000, 2) ON CONFLICT (id) DO UPDATE SET n = -1;
DELETE FROM things WHERE id > 900;
VACUUM things;
SELECT gin_clean_pending_list('things_gin');
SELECT count(*) FROM (SELECT * FROM things WHERE id < 20 FOR UPDATE) locked;
UPDATE things SET n = 3 WHERE id < 50;
VACUUM (FREEZE) things;
CREATE TABLE passing AS SELECT * FROM things;
TRUNCATE passing;
INSERT INTO passing SELECT * FROM things;
BEGIN; DROP TABLE passing; PREPARE TRANSACTION 'p';
COMMIT PREPARED 'p';
CREATE UNLOGGED TABLE fleeting (n int PRIMARY KEY);
CREATE DATABASE logged STRATEGY wal_log;
";

/// A primary that archives to a folder.
struct Archived {
    folder: TempDir,
    primary: Pg,
}

impl Archived {
    fn start(options: PgOptions) -> Archived {
        let folder = server_dir();
        let url = format!("file://{}/store", folder.path().display());
        let archive =
            format!("archive_command = '{} wal --store {url} %p'", env!("CARGO_BIN_EXE_zenith_push"));
        let options = options.conf("archive_mode = on").conf(&archive).conf("max_prepared_transactions = 5");
        let archived = Archived { folder, primary: Pg::start_new(&options) };
        archived.succeed(env!("CARGO_BIN_EXE_zenith_push"), &["base", "--checkpoint=fast"]);
        archived
    }

    fn url(&self) -> String {
        format!("file://{}/store", self.folder.path().display())
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut ours = command(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ZENITH_"))
        {
            ours.env_remove(name);
        }
        ours.args(arguments).args(["--store", &self.url()]);
        ours.env("PGHOST", self.primary.socket()).env("PGUSER", "postgres");
        ours
    }

    fn succeed(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program, arguments).output().expect("started");
        succeeds(&output);
        String::from_utf8(output.stdout).expect("text")
    }

    /// Archives and slices everything written so far.
    fn slice(&self) {
        let last = self.primary.sql("SELECT pg_walfile_name(pg_switch_wal())");
        self.primary
            .wait_for(&format!("(SELECT coalesce(last_archived_wal, '') >= '{last}' FROM pg_stat_archiver)"));
        self.succeed(env!("CARGO_BIN_EXE_zenith_slicedice"), &[]);
    }

    fn check(&self, arguments: &[&str]) -> Output {
        let arguments = [&["check", "--wal"], arguments].concat();
        self.command(env!("CARGO_BIN_EXE_zenith"), &arguments).output().expect("started")
    }

    /// The archive of the timeline "main", and the folder of its segments.
    async fn archive(&self) -> (WalArchive, std::path::PathBuf) {
        let store = Store::open(&self.url(), &StoreSettings::default()).expect("store");
        let cluster = ClusterPaths::new(&store.prefix, "main");
        let names = Names::new(Arc::clone(&store.objects), Env::system(), cluster.clone());
        let identity = names.identity(names.resolve("main").await.expect("main")).await.expect("identity");
        let size = WalSegSize::new(u64::from(identity.wal_segment_size)).expect("size");
        let paths = cluster.timeline(identity.timeline);
        let folder =
            self.folder.path().join(format!("store/main/timelines/{}/wal/00000001", identity.timeline));
        (WalArchive::new(store.objects, paths, size, identity.system_identifier), folder)
    }
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

fn count(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"))
}

#[test]
fn a_later_base_image_is_no_difference_though_it_has_hint_bits_that_the_wal_does_not_tell() {
    // With checksums hint bits are logged, but only those of a page that was not logged since the last checkpoint.
    let options = PgOptions::default()
        .initdb("--data-checksums")
        .conf("autovacuum = off")
        .conf("wal_consistency_checking = all");
    let archived = Archived::start(options);
    let change = |number: u32| {
        archived.primary.sql(&format!("UPDATE t SET n = {number} WHERE i % {number} = 0"));
        archived.primary.sql("SELECT count(*) FROM t");
    };
    archived.primary.sql("CREATE TABLE t AS SELECT i, 0 AS n FROM generate_series(1, 2000) i");
    change(2);
    archived.succeed(env!("CARGO_BIN_EXE_zenith_push"), &["base", "--checkpoint=fast"]);
    change(3);
    archived.slice();
    let output = archived.check(&["--json"]);
    let found = report(&output);
    assert_eq!((output.status.code(), count(&found, "differences")), (Some(0), 0), "{found}");
    assert!(count(&found, "images") > 2000 && count(&found, "pages_read") > 20, "{found}");
}

#[test]
fn every_page_after_every_record_is_the_servers_own_whole_and_as_it_is_stored() {
    let options = PgOptions::default().conf("wal_consistency_checking = all").conf("wal_compression = lz4");
    let archived = Archived::start(options);
    archived.primary.script("postgres", DEEP);
    archived.primary.script("postgres", REST);
    let numbers =
        "CREATE TABLE numbers (n int PRIMARY KEY); INSERT INTO numbers SELECT generate_series(1, 2000);";
    archived.primary.script("logged", numbers);
    archived.primary.sql("CREATE DATABASE copied TEMPLATE logged STRATEGY file_copy");
    archived.primary.script("copied", "DELETE FROM numbers WHERE n > 1500; VACUUM numbers;");
    archived.primary.sql("DROP DATABASE logged");
    archived.slice();
    let output = archived.check(&["--json"]);
    let report = report(&output);
    assert_eq!(count(&report, "differences"), 0, "{:#}", report["first"]);
    succeeds(&output);

    assert!(count(&report, "images") > 100_000 && count(&report, "pages_read") > 2_000, "{report:#}");
    let types = report["types"].as_array().expect("types");
    let compared = |rmgr: &str| -> u64 {
        types.iter().filter(|counts| counts["rmgr"] == rmgr).map(|counts| count(counts, "images")).sum()
    };
    let all = ["Heap", "Heap2", "Btree", "Hash", "Gin", "Gist", "SPGist", "BRIN", "Sequence", "Generic"];
    let missing: Vec<_> = all.iter().filter(|rmgr| compared(rmgr) == 0).collect();
    assert!(missing.is_empty(), "nothing of {missing:?} was compared: {report:#}");
    // The table of what redo does not stamp: every kind of it was met.
    for stamp in ["moved", "kept", "locked_only", "visibility_map"] {
        assert!(count(&report["stamps"], stamp) > 0, "{stamp}: {report:#}");
    }
    assert!(count(&report, "map_edits") > 0);
}

/// Lays a record of the same length over the one that begins at `at`, page headers left alone.
fn lay_over(segment: &mut [u8], mut at: usize, raw: &[u8]) {
    let mut rest = raw;
    while !rest.is_empty() {
        if at.is_multiple_of(XLOG_BLCKSZ) {
            at += if at == 0 { 40 } else { 24 };
        }
        let (part, later) = rest.split_at(rest.len().min(XLOG_BLCKSZ - at % XLOG_BLCKSZ));
        segment[at..at + part.len()].copy_from_slice(part);
        at += part.len();
        rest = later;
    }
}

/// All records of a segment that lie in it whole.
fn records(start: Lsn, size: WalSegSize, bytes: &Bytes, from: Lsn) -> Vec<Record> {
    let begin = StreamStart { lsn: from, prev: Lsn::INVALID, tli: 1, seg_size: size, system_identifier: 0 };
    let mut stream = WalStream::new(begin);
    stream.feed(start, bytes.clone()).expect("its segment");
    std::iter::from_fn(|| stream.next().ok().flatten()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_record_is_told_by_lsn_relation_block_and_byte() {
    let archived = Archived::start(PgOptions::default());
    let primary = &archived.primary;
    primary.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
    primary.sql("INSERT INTO t SELECT i, 'before' FROM generate_series(1, 500) i");
    archived.slice();
    let output = archived.check(&[]);
    succeeds(&output);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("no images") && text.contains("no differences"), "{text}");

    primary.sql("ALTER SYSTEM SET wal_consistency_checking = 'all'");
    primary.sql("SELECT pg_reload_conf()");
    primary.wait_for("current_setting('wal_consistency_checking') = 'all'");
    primary.sql("CHECKPOINT");
    let from: Lsn = primary.sql("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN");
    (501..520).for_each(|id| drop(primary.sql(&format!("INSERT INTO t VALUES ({id}, 'after')"))));
    let path = |name: &str| {
        let path = primary.sql(&format!("SELECT pg_relation_filepath('{name}')"));
        path.rsplit('/').next().expect("a number").to_owned()
    };
    let (table, index) = (path("t"), path("t_pkey"));
    archived.slice();
    let output = archived.check(&["--json", "--from", &from.to_string()]);
    succeeds(&output);
    assert!(count(&report(&output), "images") >= 36, "{}", report(&output));

    // In the table another value is inserted; of the index another page is said to have been the server's.
    let (archive, folder) = archived.archive().await;
    let size = archive.segment_size();
    let segment = size.segment_of(from);
    let file = WalFile::Segment { tli: 1, segment };
    let bytes = archive.get(file).await.expect("read").expect("archived");
    let start = size.start_of(segment);
    let records = records(start, size, &bytes, from);
    let checked = |rmgr: RmgrId| {
        let checked = |record: &&Record| {
            let of_the_table = record.blocks.first().is_some_and(|block| {
                block.node.rel.to_string() == if rmgr == RmgrId::HEAP { &*table } else { &*index }
            });
            record.rmgr == rmgr
                && of_the_table
                && record.blocks[0].image.as_ref().is_some_and(|image| !image.apply)
        };
        records.iter().filter(checked).nth(5).expect("an insertion")
    };
    let (heap, btree) = (checked(RmgrId::HEAP), checked(RmgrId::BTREE));
    assert!(heap.lsn < btree.lsn, "a row comes before its index entry");
    let mut altered = bytes.to_vec();
    let mut alter = |record: &Record, part: &Bytes, at: usize| {
        let mut raw = record.raw.to_vec();
        let offset = part.as_ptr() as usize - record.raw.as_ptr() as usize + at;
        raw[offset] ^= 0x20;
        seal(&mut raw);
        lay_over(&mut altered, record.lsn.since(start) as usize, &raw);
    };
    let data = heap.blocks[0].data.as_ref().expect("a row");
    alter(heap, data, data.len() - 1);
    // The link to the left neighbour, in the last 16 bytes.
    let image = &btree.blocks[0].image.as_ref().expect("an image").bytes;
    alter(btree, image, image.len() - 16);
    std::fs::remove_file(folder.join(file.name(size) + ".zst")).expect("the segment's object");
    archive.put(&Env::system(), file, &altered).await.expect("put");
    give_to_server(&folder.join(file.name(size) + ".zst"));

    let output = archived.check(&["--json", "--from", &from.to_string()]);
    fails(&output, &[]);
    let found = report(&output);
    assert_eq!(count(&found, "differences"), 2, "{found:#}");
    for (at, (record, relation)) in [(heap, &table), (btree, &index)].into_iter().enumerate() {
        let difference = &found["first"][at];
        assert_eq!(difference["start"], record.lsn.to_string(), "{difference}");
        assert_eq!(difference["rmgr"], record.rmgr.to_string());
        assert_eq!(difference["block"], record.blocks[0].block);
        assert_eq!(difference["problem"], "image");
        let named = difference["relation"].as_str().expect("a relation");
        assert!(named.ends_with(&format!("/{relation}")), "{named}");
    }
    assert_eq!(found["first"][1]["offset"], 8176);

    let output = archived.check(&["--from", &from.to_string(), "--list", "1"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("2 differences, of which the first 1 are listed"), "{text}");
    assert!(text.contains(&format!("{} Heap INSERT", heap.lsn)), "{text}");
    let output = archived.check(&["--from", &from.to_string(), "--to", &heap.lsn.to_string()]);
    succeeds(&output);
    let output = archived.check(&["--from", &heap.lsn.to_string(), "--to", &from.to_string()]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}
