//! Real WAL, made once for all tests of this binary, and what `pg_waldump` says of it.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use zenith_pgformat::wal::{Record, StreamStart, WalError, WalStream};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{BLCKSZ, Lsn, RelNode};
use zenith_testkit::pg::{Pg, PgOptions, StopMode, bin_dir, command};

/// The methods of `wal_compression`, each of which the workload runs under.
pub(crate) const METHODS: [&str; 4] = ["off", "pglz", "lz4", "zstd"];

/// What a workload left behind.
pub(crate) struct Wal {
    /// Segments by number.
    pub(crate) segments: BTreeMap<u64, Bytes>,
    /// At the first record.
    pub(crate) start: StreamStart,
    /// What `pg_waldump --bkp-details` printed, from the first record on.
    pub(crate) dump: String,
    /// An index for every compression method, and its file, written by the server after its image was logged.
    pub(crate) indexes: Vec<(&'static str, RelNode, Vec<u8>)>,
    /// Start of a record whose end was lost in a crash.
    pub(crate) lost: Lsn,
}

pub(crate) fn wal() -> &'static Wal {
    static WAL: OnceLock<Wal> = OnceLock::new();
    WAL.get_or_init(make)
}

pub(crate) fn seg_size() -> WalSegSize {
    WalSegSize::new(1 << 20).expect("a valid size")
}

/// Hands every record from `start` on to `each`; the error or lack of bytes that ends it, and the stream.
pub(crate) fn read(
    segments: &BTreeMap<u64, Bytes>,
    start: StreamStart,
    mut each: impl FnMut(&Record),
) -> (Option<WalError>, WalStream) {
    let mut stream = WalStream::new(start);
    loop {
        match stream.next() {
            Ok(Some(record)) => each(&record),
            Err(error) => return (Some(error), stream),
            Ok(None) => {
                let wanted = stream.wants();
                let Some(bytes) = segments.get(&seg_size().segment_of(wanted)) else {
                    return (None, stream);
                };
                stream.feed(wanted, bytes.clone()).expect("what it wants");
            }
        }
    }
}

fn make() -> Wal {
    let options = PgOptions::default()
        .initdb("--wal-segsize=1")
        .initdb("--data-checksums")
        .conf("wal_level = logical")
        .conf("max_prepared_transactions = 10")
        .conf("track_commit_timestamp = on")
        .conf("max_wal_size = 4GB")
        .conf("wal_keep_size = 4GB")
        .conf("full_page_writes = on")
        .conf("autovacuum = off");
    let pg = Pg::start_new(&options);
    let start = StreamStart {
        lsn: pg.sql("SELECT redo_lsn FROM pg_control_checkpoint()").parse().expect("an LSN"),
        prev: Lsn::INVALID,
        tli: 1,
        seg_size: seg_size(),
        system_identifier: pg
            .sql("SELECT system_identifier FROM pg_control_system()")
            .parse()
            .expect("a number"),
    };
    for method in METHODS {
        pg.script("postgres", &include_str!("workload.sql").replace("$METHOD$", method));
    }
    databases(&pg);
    multixacts(&pg);
    parameters(&pg);
    let lost = crash_inside_a_record(&pg, start);
    pg.sql("INSERT INTO t_off (a) SELECT i FROM generate_series(1, 1000) i");
    let nodes: Vec<(&str, RelNode)> = METHODS.iter().map(|method| (*method, index(&pg, method))).collect();
    pg.stop(StopMode::Fast);
    let indexes = nodes
        .into_iter()
        .map(|(method, node)| {
            let file = pg.data().join(format!("base/{}/{}", node.db, node.rel));
            (method, node, std::fs::read(file).expect("the index"))
        })
        .collect();
    let segments = segments(pg.data());
    let dump = dump(&pg, start.lsn);
    Wal { segments, start, dump, indexes, lost }
}

/// Databases by both strategies, moved and dropped; tablespaces.
fn databases(pg: &Pg) {
    let location = pg.home().join("space");
    std::fs::create_dir(&location).expect("a directory");
    zenith_testkit::pg::give_to_server(&location);
    pg.script(
        "postgres",
        &format!(
            "CREATE TABLESPACE space LOCATION '{}';
             CREATE DATABASE logged STRATEGY wal_log;
             CREATE DATABASE copied STRATEGY file_copy TABLESPACE space;
             ALTER DATABASE logged SET TABLESPACE space;
             DROP DATABASE logged;
             DROP DATABASE copied;
             DROP TABLESPACE space;",
            location.display()
        ),
    );
}

/// Rows locked by two transactions at once: one of them prepared, so that one session can make them.
fn multixacts(pg: &Pg) {
    pg.script(
        "postgres",
        "CREATE TABLE shared (id int PRIMARY KEY, v int);
         INSERT INTO shared SELECT i, 0 FROM generate_series(1, 300) i;
         BEGIN;
         SELECT count(*) FROM (SELECT 1 FROM shared FOR KEY SHARE) s;
         PREPARE TRANSACTION 'locks';
         BEGIN;
         SELECT count(*) FROM (SELECT 1 FROM shared WHERE id < 150 FOR SHARE) s;
         COMMIT;
         UPDATE shared SET v = 1 WHERE id > 150;
         UPDATE shared SET v = 2 WHERE id > 250;
         COMMIT PREPARED 'locks';
         BEGIN;
         UPDATE shared SET v = 3 WHERE id < 20;
         PREPARE TRANSACTION 'updates';
         SELECT count(*) FROM (SELECT 1 FROM shared FOR KEY SHARE) s;
         COMMIT PREPARED 'updates';
         VACUUM FREEZE shared;
         SET vacuum_multixact_freeze_min_age = 0;
         SET vacuum_freeze_min_age = 0;
         VACUUM FREEZE;",
    );
}

/// Settings that the WAL tells of.
fn parameters(pg: &Pg) {
    pg.sql("ALTER SYSTEM SET full_page_writes = off");
    pg.sql("SELECT pg_reload_conf()");
    pg.wait_for("current_setting('full_page_writes') = 'off'");
    pg.sql("CHECKPOINT");
    pg.sql("ALTER SYSTEM RESET full_page_writes");
    pg.sql("SELECT pg_reload_conf()");
    pg.sql("CHECKPOINT");
    pg.sql("SELECT pg_backup_start('a', true); SELECT pg_backup_stop(false)");
    pg.stop(StopMode::Fast);
    pg.configure(&["max_connections = 60"]);
    pg.start();
}

/// Crashes the server and takes away the last pages of a record over several, as a torn write does. The server then
/// writes `XLOG_OVERWRITE_CONTRECORD` where the rest would be. Returns the lost record.
fn crash_inside_a_record(pg: &Pg, start: StreamStart) -> Lsn {
    pg.sql("SELECT pg_logical_emit_message(false, 'lost', repeat('lost', 20000))");
    pg.sql("CHECKPOINT");
    let end: Lsn = pg
        .sql("SELECT pg_logical_emit_message(false, 'lost', repeat('lost', 20000))")
        .parse()
        .expect("an LSN");
    // Flushes the WAL: this message is the last thing that is committed.
    pg.sql("SELECT pg_logical_emit_message(true, 'flush', '')");
    pg.stop(StopMode::Immediate);
    let segments = segments(pg.data());
    let mut lost = Lsn::INVALID;
    let (error, stream) = read(&segments, start, |record| {
        if record.end == end {
            lost = record.lsn;
        }
    });
    assert!(lost.is_valid(), "no record ends at {end}; the WAL ends at {}: {error:?}", stream.position());
    let cut = Lsn(lost.0 - lost.0 % BLCKSZ as u64 + BLCKSZ as u64);
    for (segment, bytes) in segments {
        let from = seg_size().start_of(segment);
        let keep = usize::try_from(cut.since(from)).expect("fits").min(bytes.len());
        if keep < bytes.len() {
            let mut zeroed = bytes.to_vec();
            zeroed[keep..].fill(0);
            let path = pg.data().join("pg_wal").join(WalFile::Segment { tli: 1, segment }.name(seg_size()));
            std::fs::write(path, zeroed).expect("write a segment");
        }
    }
    pg.start();
    lost
}

fn index(pg: &Pg, method: &str) -> RelNode {
    let row = pg.sql(&format!(
        "SELECT d.oid || '|' || pg_relation_filenode('image_{method}_k') FROM pg_database d WHERE datname = 'postgres'"
    ));
    let (db, rel) = row.split_once('|').expect("two columns");
    RelNode { spc: 1663, db: db.parse().expect("an OID"), rel: rel.parse().expect("an OID") }
}

/// All segments of `pg_wal`, those that were only prepared for later included.
fn segments(data: &Path) -> BTreeMap<u64, Bytes> {
    let mut segments = BTreeMap::new();
    for entry in std::fs::read_dir(data.join("pg_wal")).expect("pg_wal") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a name");
        if let Some(WalFile::Segment { segment, .. }) = WalFile::parse(&name, seg_size()) {
            segments.insert(segment, Bytes::from(std::fs::read(entry.path()).expect("a segment")));
        }
    }
    segments
}

fn dump(pg: &Pg, start: Lsn) -> String {
    let output = command(bin_dir().join("pg_waldump"))
        .args(["--bkp-details", "-p"])
        .arg(pg.data().join("pg_wal"))
        .args(["-s", &start.to_string()])
        .output()
        .expect("pg_waldump runs");
    // It ends with an error at the end of the WAL, after it has printed everything.
    String::from_utf8_lossy(&output.stdout).into_owned()
}
