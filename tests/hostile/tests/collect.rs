//! Writes `seeds/`: `cargo test -p zenith-hostile --test collect -- --ignored`, then read the difference.

#[path = "../../../pgformat/tests/waldump/wal.rs"]
#[allow(dead_code, reason = "its other users compare more")]
mod wal;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use zenith_pgformat::wal::Record;
use zenith_testkit::pg::{Pg, PgOptions, StopMode};

/// Longer records add nothing that shorter ones have not, but for images.
const RECORD_BYTES_MAX: usize = 700;

/// What makes a record worth keeping beside others: its type, and the shape of each block reference.
type Shape = (u8, u8, bool, bool, Vec<(bool, Option<u8>, bool)>);

fn shape(record: &Record) -> Shape {
    let block = |block: &zenith_pgformat::wal::BlockRef| {
        (block.will_init, block.image.as_ref().map(|image| image.info), block.data.is_some())
    };
    let blocks = record.blocks.iter().map(block).collect();
    (record.rmgr.0, record.info, record.origin.is_some(), record.top_xid.is_some(), blocks)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn write(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    std::fs::write(path, text).expect("written");
}

#[test]
#[ignore = "writes source files"]
fn write_records() {
    let wal = wal::wal();
    let mut chosen: BTreeMap<Shape, Record> = BTreeMap::new();
    let _ = wal::read(&wal.segments, wal.start, |record| {
        let known = chosen.get(&shape(record)).map_or(RECORD_BYTES_MAX, |known| known.raw.len() - 1);
        if record.raw.len() <= known {
            chosen.insert(shape(record), record.clone());
        }
    });
    let mut text = "# Records of a real server, one of each type and shape: end LSN, bytes.\n".to_owned();
    for record in chosen.values() {
        writeln!(text, "{} {}", record.end, hex(&record.raw)).expect("written");
    }
    write("records.txt", &text);
}

#[test]
#[ignore = "writes source files"]
fn write_files() {
    let options = PgOptions::default().initdb("--data-checksums").conf("max_prepared_transactions = 5");
    let pg = Pg::start_new(&options);
    pg.script(
        "postgres",
        "CREATE TABLE t (x int); CREATE TABLE gone (x int);
         BEGIN; INSERT INTO t VALUES (1); SAVEPOINT s; INSERT INTO t VALUES (2); DROP TABLE gone;
         CREATE TABLE made (x int); PREPARE TRANSACTION 'a name';
         CHECKPOINT",
    );
    let label = "SELECT pg_backup_start('a label', true); SELECT labelfile FROM pg_backup_stop(false)";
    let label = pg.script("postgres", label);
    let (_, label) = label.split_once('\n').expect("two answers");
    write("backup_label.txt", label);
    pg.stop(StopMode::Fast);
    let read = |path: &str| std::fs::read(pg.data().join(path)).expect("read");
    let prepared = std::fs::read_dir(pg.data().join("pg_twophase")).expect("read").next().expect("one");
    let two_phase = std::fs::read(prepared.expect("read").path()).expect("read");
    // The rest is zeros (PG_CONTROL_FILE_SIZE, catalog/pg_control.h).
    write("pg_control.txt", &format!("{}\n", hex(&read("global/pg_control")[..296])));
    write("pg_filenode.map.txt", &format!("{}\n", hex(&read("global/pg_filenode.map"))));
    write("two_phase.txt", &format!("{}\n", hex(&two_phase)));
}
