//! Writes `src/selftest.txt`: `cargo test -p zenith-redo --test self_test_vectors -- --ignored`, then read the difference.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod common;

use common::{History, pool, record};
use std::collections::BTreeSet;
use std::fmt::Write;
use zenith_pgformat::{Fork, Page};
use zenith_redo::ChangeBody;
use zenith_testkit::mask::first_difference;
use zenith_testkit::pg::PgOptions;

const WORKLOAD: &str = "
CREATE TABLE t (n int, v text, p point, a int[]);
CREATE INDEX t_btree ON t (n);
CREATE INDEX t_hash ON t USING hash (n);
CREATE INDEX t_gin ON t USING gin (a) WITH (fastupdate = off);
CREATE INDEX t_gist ON t USING gist (p);
CREATE INDEX t_spgist ON t USING spgist (v);
CREATE INDEX t_brin ON t USING brin (n);
CREATE SEQUENCE s;
INSERT INTO t VALUES (1, 'one', '(1,1)', '{1,2}');
INSERT INTO t VALUES (2, 'two', '(2,2)', '{2,3}'), (3, 'three', '(3,3)', '{3}');
UPDATE t SET v = 'zwei' WHERE n = 2;
SELECT n FROM t WHERE n = 3 FOR UPDATE;
DELETE FROM t WHERE n = 1;
VACUUM t;
INSERT INTO t VALUES (4, 'four', '(4,4)', '{1,4}');
SELECT nextval('s');
SELECT brin_summarize_new_values('t_brin');
UPDATE t SET n = 10 WHERE n = 4;
";

/// At most so many bytes of records in one test.
const LONGEST: usize = 1500;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The parts of a page that are not zero, gaps of less than 16 zeros included.
fn spans(page: &Page) -> Vec<(usize, Vec<u8>)> {
    let mut spans: Vec<(usize, Vec<u8>)> = Vec::new();
    for (at, byte) in page.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        match spans.last_mut() {
            Some((start, bytes)) if at - *start - bytes.len() < 16 => {
                bytes.resize(at - *start, 0);
                bytes.push(*byte);
            }
            _ => spans.push((at, vec![*byte])),
        }
    }
    spans
}

fn is_small(history: &History) -> bool {
    let bytes: usize = history.steps.iter().map(|step| step.trimmed.bytes().len()).sum();
    let records = history.steps.iter().all(|step| matches!(step.trimmed.body, ChangeBody::Record(_)));
    history.base.is_none() && records && history.steps.len() >= 2 && bytes < LONGEST
}

#[test]
#[ignore = "writes a source file"]
fn write_vectors() {
    let options = PgOptions::default().conf("full_page_writes = off").conf("wal_log_hints = on");
    let recording = record(&options, true, |pg| drop(pg.script("postgres", WORKLOAD)));
    let (pool, _directory) = pool(1);
    let mut text = String::from(
        "# Records of a real server and the pages that they build; see tests/self_test_vectors.rs.\n\
         # test NAME, block SPC/DB/REL BLOCK, record END HEX, page OFFSET HEX (what is not zero),\n\
         # loose OFFSET BITS (what minor releases differ in).\n",
    );
    let theirs = recording.pages();
    let chosen = recording
        .histories
        .iter()
        .filter(|((node, fork, _), history)| node.rel >= 16_384 && *fork == Fork::Main && is_small(history));
    for (key, history) in chosen {
        let (node, _, block) = *key;
        let changes: Vec<_> = history.steps.iter().map(|step| step.trimmed.clone()).collect();
        let page = pool.redo_blocking(vec![recording.request(*key, None, changes)]).remove(0).unwrap();
        if let Some(theirs) = theirs.get(key) {
            let difference = first_difference(page.as_slice(), theirs, block);
            assert!(difference.is_none() || block == 0, "{key:?}: byte {difference:?}");
        }
        let kinds: BTreeSet<String> = history
            .steps
            .iter()
            .map(|step| step.what.split(" block").next().unwrap_or_default().to_lowercase())
            .collect();
        let kinds = kinds.into_iter().collect::<Vec<_>>().join(", ");
        writeln!(text, "\ntest {kinds}\nblock {}/{}/{} {block}", node.spc, node.db, node.rel).unwrap();
        if kinds.starts_with("gist") {
            // `F_TUPLES_DELETED`.
            writeln!(text, "loose 8188 04").unwrap();
        }
        for step in &history.steps {
            writeln!(text, "record {} {}", step.trimmed.end, hex(step.trimmed.bytes())).unwrap();
        }
        for (at, bytes) in spans(&page) {
            writeln!(text, "page {at} {}", hex(&bytes)).unwrap();
        }
    }
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/selftest.txt"), text).unwrap();
}
