//! What a check of WAL finds, on real records and layers written by hand: nothing where all is well, and each way in which
//! layers can be wrong by its LSN and block.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod world;

use bytes::Bytes;
use world::*;
use zenith_ingest::model::{RelEvent, RelSize};
use zenith_layers::{Key, Row, Source, Value};
use zenith_pgformat::wal::encode::{WalWriter, WriterStart, seal};
use zenith_pgformat::wal::{Record, RmgrId, trim};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{Fork, Lsn};
use zenith_reader::consistency::{Problem, Stretch};
use zenith_reader::{CheckOptions, WalCheck};
use zenith_redo::selftest;

const START: u64 = 0x10_0028;

/// Records of a B-tree that begin with a new root, in a segment of WAL behind one record that does nothing.
struct Wal {
    /// End of the first one, where the base image ends.
    base_end: u64,
    records: Vec<Record>,
    bytes: Vec<u8>,
}

fn wal() -> Wal {
    let seg_size = WalSegSize::new(1 << 20).unwrap();
    let start = WriterStart { lsn: Lsn(START), prev: Lsn(8), tli: 1, seg_size, system_identifier: SYSTEM };
    let mut writer = WalWriter::new(start).unwrap();
    let noop = writer.append(RmgrId::XLOG, 0x20, 0, &[]);
    let vectors = selftest::vectors().unwrap();
    let vector = vectors.into_iter().find(|vector| vector.name.starts_with("btree info 0x00")).unwrap();
    let mut records = Vec::new();
    for (_, raw) in vector.records {
        let mut raw = raw.to_vec();
        raw[8..16].copy_from_slice(&writer.prev().0.to_le_bytes());
        seal(&mut raw);
        let placed = writer.append_raw(&raw);
        records.push(Record::decode(Bytes::from(raw), placed.lsn, placed.end).unwrap());
    }
    assert!(records.len() > 4, "{}", records.len());
    Wal { base_end: noop.end.0, records, bytes: writer.finish() }
}

impl Wal {
    /// What a slicer stores.
    fn rows(&self) -> Vec<Row> {
        let of = |record: &Record| -> Vec<Row> {
            let row = |(index, block): (usize, &zenith_pgformat::wal::BlockRef)| {
                let raw = trim::for_block(record, index);
                let value = if block.starts_history() { Value::InitRecord(raw) } else { Value::Record(raw) };
                let key = Key::rel_block(block.node, block.fork, block.block);
                Row { key, lsn: record.end, value, source: Source::NONE }
            };
            record.blocks.iter().enumerate().map(row).collect()
        };
        let mut rows: Vec<Row> = self.records.iter().flat_map(of).collect();
        let first = rows[0].clone();
        rows.push(size(first.key.node(), first.lsn.0, 8, first.lsn.0));
        rows
    }

    fn end(&self) -> u64 {
        self.records.last().unwrap().end.0
    }

    /// The check of this WAL beside layers that hold `rows`.
    async fn check(&self, seed: u64, rows: Vec<Row>) -> WalCheck {
        self.check_part(seed, rows, None, None, 10).await
    }

    async fn check_part(
        &self,
        seed: u64,
        rows: Vec<Row>,
        from: Option<u64>,
        to: Option<u64>,
        listed: usize,
    ) -> WalCheck {
        let mut world = World::new(seed).await;
        world.archive(Lsn(0x10_0000), &self.bytes).await;
        let base = world.base(START, self.base_end, vec![]).await;
        world.slice(self.end(), rows, &[], &[base]).await;
        let options = CheckOptions { from: from.map(Lsn), to: to.map(Lsn), listed };
        world.open().await.check_wal(&options, |_| {}).await.unwrap()
    }

    /// The last change of the block that the most records change, but one.
    fn place(&self) -> (usize, Key) {
        let at = self.records.len() - 2;
        let block = &self.records[at].blocks[0];
        (at, Key::rel_block(block.node, block.fork, block.block))
    }
}

/// What was found, when it is one thing.
fn only(check: &WalCheck) -> (Lsn, Problem) {
    assert_eq!((check.differences, check.first.len()), (1, 1), "{:#?}", check.first);
    (check.first[0].end, check.first[0].problem.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_hold_every_record_give_no_difference_and_all_is_counted() {
    let wal = wal();
    let check = wal.check(1, wal.rows()).await;
    assert_eq!(check.first, []);
    let references: usize = wal.records.iter().map(|record| record.blocks.len()).sum();
    assert_eq!((check.records, check.references), (wal.records.len() as u64, references as u64));
    assert_eq!((check.images, check.differences), (0, 0));
    assert!(check.pages_read > 0 && check.stamps.moved > 0);
    let whole = Stretch { from: Lsn(wal.base_end), to: Lsn(wal.end()) };
    assert_eq!(check.stretches, [whole]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_begins_on_the_pages_that_the_reader_gives_there() {
    let wal = wal();
    let (from, to) = (wal.records[1].end.0, wal.records[3].end.0);
    // In the middle of a record: it ends above, so it is in.
    let check = wal.check_part(2, wal.rows(), Some(from + 8), Some(to), 10).await;
    assert_eq!((check.first.as_slice(), check.records), (&[][..], 2));
    assert_eq!(check.stretches, [Stretch { from: Lsn(from), to: Lsn(to) }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_value_that_gives_another_page_is_found_at_its_record() {
    let wal = wal();
    let (at, key) = wal.place();
    let mut rows = wal.rows();
    let (wrong, right) = (&wal.records[at], &wal.records[at - 1]);
    let row = rows.iter_mut().find(|row| row.key == key && row.lsn == wrong.end).unwrap();
    row.value = Value::Record(trim::for_block(right, 0));
    let check = wal.check(3, rows).await;
    let (lsn, problem) = only(&check);
    assert_eq!(lsn, wrong.end);
    assert!(matches!(problem, Problem::Stored { .. } | Problem::StoredRedo { .. }), "{problem:?}");
    let first = &check.first[0];
    assert_eq!((first.start, first.block), (wrong.lsn, key.block));
    assert_eq!(first.relation, key.node().to_string());
    assert_eq!(first.rmgr.as_deref(), Some("Btree"));
    assert!(first.to_string().contains(&wrong.lsn.to_string()), "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_missing_and_one_that_no_record_explains_are_found() {
    let wal = wal();
    let (at, key) = wal.place();
    let end = wal.records[at].end;
    let mut rows = wal.rows();
    rows.retain(|row| row.key != key || row.lsn != end);
    assert_eq!(only(&wal.check(4, rows).await), (end, Problem::NotStored));

    let mut rows = wal.rows();
    let mut more = rows.iter().find(|row| row.key == key && row.lsn == end).unwrap().clone();
    more.lsn = Lsn(end.0 - 8);
    rows.push(more);
    let check = wal.check(5, rows).await;
    let found: Vec<_> = check.first.iter().map(|found| (found.end, found.problem.clone())).collect();
    assert_eq!(found[0], (Lsn(end.0 - 8), Problem::Unexplained));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_the_reader_does_not_give_is_found_at_the_lsn_where_it_was_read() {
    let wal = wal();
    let (_, key) = wal.place();
    let mut rows = wal.rows();
    let first = rows[0].lsn;
    rows.retain(|row| row.key.class != Key::rel_size(key.node(), Fork::Main).class);
    // A truncation that never happened: the values are all there, and the page is not.
    let end = wal.end();
    let cut = RelSize { blocks: 8, created: first, last_truncation: Lsn(end), last_gap: Lsn::INVALID };
    rows.push(state(Key::rel_size(key.node(), Fork::Main), end, cut.encode()));
    rows.push(happened(key.node(), end, RelEvent::Truncated { to: key.block }));
    let check = wal.check(6, rows).await;
    let found = check.first.iter().find(|found| found.block == key.block).unwrap();
    assert_eq!((found.start, found.end), (Lsn(end), Lsn(end)));
    assert!(matches!(found.problem, Problem::NotRead { .. }), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_differences_are_counted_and_the_first_by_lsn_are_listed() {
    let wal = wal();
    let mut rows = wal.rows();
    rows.retain(|row| row.key.class == Key::rel_size(NODE, Fork::Main).class);
    let check = wal.check_part(7, rows, None, None, 1).await;
    assert!(check.differences > 1, "{}", check.differences);
    assert_eq!(only_listed(&check), wal.records[0].end);
    let types: u64 = check.types.iter().map(|counts| counts.differences).sum();
    assert_eq!(types, check.differences);
}

fn only_listed(check: &WalCheck) -> Lsn {
    assert_eq!(check.first.len(), 1);
    check.first[0].end
}
