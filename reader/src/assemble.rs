//! From the rows of one page to the page: pure but for redo itself, which the caller does in batches.
//!
//! Full-page images are restored here, and edits that stand alone are applied here; what needs PostgreSQL's redo is
//! handed out by [`Build::next_request`], and the page comes back through [`Build::took`].

use crate::error::ReadError;
use crate::snapshot::bad;
use bytes::Bytes;
use std::collections::VecDeque;
use zenith_layers::{Key, KeyClass, Row, Value};
use zenith_pgformat::wal::{Record, image};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, Page, page};
use zenith_redo::native::Edit;
use zenith_redo::{Change, ChangeBody, PageRequest, stamps};

/// A page of zeros to hand out.
pub(crate) static ZEROS: Page = [0; BLCKSZ];

/// Whether redo logs hint bits, by LSN: they are with data checksums or `wal_log_hints`, and then some records
/// stamp pages that they otherwise leave alone (PROTOCOLS.md §3, "Redo follows PostgreSQL").
#[derive(Clone, Debug)]
pub(crate) struct HintLogging {
    checksums: bool,
    first: bool,
    changes: Vec<(Lsn, bool)>,
}

impl HintLogging {
    /// `first`: `wal_log_hints` at the base image; `changes`: what it became, by ascending end LSN of the record.
    pub(crate) fn new(checksums: bool, first: bool, changes: Vec<(Lsn, bool)>) -> HintLogging {
        HintLogging { checksums, first, changes }
    }

    /// For the record that ends at `lsn`.
    pub(crate) fn at(&self, lsn: Lsn) -> bool {
        let before = self.changes.partition_point(|(changed, _)| *changed < lsn);
        let logged = before.checked_sub(1).and_then(|last| self.changes.get(last));
        self.checksums || logged.map_or(self.first, |(_, on)| *on)
    }
}

/// What a page begins as when its rows do not start a history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Absent {
    /// A page of zeros: skipped by growth, or a hole of the base image.
    Zeros,
    /// Nobody knows (I9).
    Lost,
}

/// Consecutive changes that one request to redo can hold.
#[derive(Debug)]
struct Run {
    /// The block as the records of the run know it: a copied database keeps its source's records.
    target: Key,
    hints_logged: bool,
    changes: Vec<Change>,
}

impl Run {
    fn needs_redo(&self) -> bool {
        self.changes.iter().any(|change| matches!(change.body, ChangeBody::Record(_)))
    }
}

/// A page being built.
#[derive(Debug)]
pub(crate) struct Build {
    key: Key,
    page: Option<Box<Page>>,
    runs: VecDeque<Run>,
}

impl Build {
    /// From the visible rows, newest first, down to the one that starts the history if there is one.
    pub(crate) fn new(
        key: Key,
        upto: Lsn,
        rows: Vec<Row>,
        absent: Absent,
        hints: &HintLogging,
    ) -> Result<Build, ReadError> {
        let mut build = Build { key, page: None, runs: VecDeque::new() };
        match rows.last().map(|row| row.value.starts_history()) {
            Some(true) => {}
            _ if absent == Absent::Zeros => build.page = Some(Box::new(ZEROS)),
            _ => return Err(ReadError::LostBase { key, lsn: upto }),
        }
        for row in rows.into_iter().rev() {
            build.add(row, hints)?;
        }
        Ok(build)
    }

    /// A page that nothing is to be applied to.
    pub(crate) fn whole(key: Key, page: Box<Page>) -> Build {
        Build { key, page: Some(page), runs: VecDeque::new() }
    }

    /// Which page.
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    fn add(&mut self, row: Row, hints: &HintLogging) -> Result<(), ReadError> {
        let Row { key, lsn, value, .. } = row;
        let change = match value {
            Value::Page(bytes) => {
                self.runs.clear();
                self.page = Some(decode_page(key, lsn, &bytes)?);
                return Ok(());
            }
            Value::InitRecord(raw) => {
                self.runs.clear();
                self.page = restore_image(key, lsn, &raw)?;
                if self.page.is_some() {
                    return Ok(());
                }
                Change::record(lsn, raw)
            }
            Value::Record(raw) => Change::record(lsn, raw),
            Value::Edit(bytes) => Change::edit(lsn, bytes),
            Value::State(_) => return Err(bad(key, lsn, "a state where a page belongs")),
            Value::Tombstone => return Err(bad(key, lsn, "a tombstone where a page belongs")),
        };
        let hints_logged = hints.at(lsn);
        match self.runs.back_mut() {
            Some(run) if run.hints_logged == hints_logged && run.target == key => run.changes.push(change),
            _ => self.runs.push_back(Run { target: key, hints_logged, changes: vec![change] }),
        }
        Ok(())
    }

    /// Applies what can be applied here, and gives out the next request to redo; [`Build::took`] takes its answer.
    /// `None`: the page is [`Build::done`].
    pub(crate) fn next_request(&mut self) -> Result<Option<PageRequest>, ReadError> {
        while let Some(run) = self.runs.pop_front() {
            if run.needs_redo() {
                let fork = Fork::from_number(run.target.fork)
                    .filter(|_| run.target.class == KeyClass::RelBlock)
                    .ok_or_else(|| bad(self.key, Lsn::INVALID, "a WAL record where none belongs"))?;
                return Ok(Some(PageRequest {
                    node: run.target.node(),
                    fork,
                    block: run.target.block,
                    base: self.page.take().map(|page| Bytes::from_owner(page as Box<[u8]>)),
                    changes: run.changes,
                    hint_bits_logged: run.hints_logged,
                }));
            }
            for change in run.changes {
                self.edit(change.end, change.bytes())?;
            }
        }
        Ok(None)
    }

    /// The page after the changes of the last request.
    pub(crate) fn took(&mut self, page: Box<Page>) {
        self.page = Some(page);
    }

    /// The page, once [`Build::next_request`] has answered `None`.
    pub(crate) fn done(self, upto: Lsn, checksums: bool) -> Result<Bytes, ReadError> {
        let page = self.page.ok_or(ReadError::LostBase { key: self.key, lsn: upto })?;
        finish(self.key, page, upto, checksums)
    }

    /// The page as it is, for pages without header.
    pub(crate) fn into_bytes(self) -> Result<Bytes, ReadError> {
        let lost = ReadError::LostBase { key: self.key, lsn: Lsn::INVALID };
        self.page.map(|page| Bytes::from_owner(page as Box<[u8]>)).ok_or(lost)
    }

    fn edit(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<(), ReadError> {
        let edit = Edit::decode(bytes).map_err(|error| bad(self.key, lsn, error.to_string()))?;
        let Some(page) = self.page.as_mut() else {
            return Err(ReadError::LostBase { key: self.key, lsn });
        };
        edit.apply(page, lsn).map_err(|error| bad(self.key, lsn, error.to_string()))
    }
}

/// What PostgreSQL may be given (facts/stock-postgres.md §5): nothing newer than what was asked for, and with a
/// checksum of its own where the cluster has them, because rebuilt pages carry a stale one.
fn finish(key: Key, mut built: Box<Page>, upto: Lsn, checksums: bool) -> Result<Bytes, ReadError> {
    if page::is_all_zeros(&built) {
        return Ok(Bytes::from_static(&ZEROS));
    }
    let page_lsn = page::lsn(&built);
    if page_lsn > upto {
        return Err(ReadError::PageFromTheFuture { key, page_lsn, lsn: upto });
    }
    if checksums {
        page::set_checksum(&mut built, key.block);
    }
    Ok(Bytes::from_owner(built as Box<[u8]>))
}

/// The newest image among the rows; zeros when there is none. For free-space maps, which are hints and which
/// redo cannot reproduce.
pub(crate) fn newest_image(key: Key, rows: &[Row]) -> Result<Box<Page>, ReadError> {
    for row in rows {
        let page = match &row.value {
            Value::Page(bytes) => Some(decode_page(key, row.lsn, bytes)?),
            Value::InitRecord(raw) => restore_image(key, row.lsn, raw)?,
            _ => None,
        };
        if let Some(page) = page {
            return Ok(page);
        }
    }
    Ok(Box::new(ZEROS))
}

/// The payload of [`Value::Page`].
fn decode_page(key: Key, lsn: Lsn, bytes: &[u8]) -> Result<Box<Page>, ReadError> {
    if bytes.is_empty() {
        return Ok(Box::new(ZEROS));
    }
    let page: Result<Page, _> = bytes.try_into();
    let length = bytes.len();
    page.map(Box::new).map_err(|_| bad(key, lsn, format!("a page of {length} bytes")))
}

/// The page that the record's image of this block restores to (`XLogReadBufferForRedoExtended`: the image gets
/// the record's end as its LSN unless it is new). `None` when there is none to apply, or when redo goes on to change
/// the restored page: then redo has to build it.
fn restore_image(key: Key, end: Lsn, raw: &Bytes) -> Result<Option<Box<Page>>, ReadError> {
    // A row does not say where its record started; only messages of the decoder use it.
    let record = Record::decode(raw.clone(), end, end).map_err(|error| bad(key, end, error.to_string()))?;
    let mine = record
        .blocks
        .iter()
        .find(|block| block.node == key.node() && block.fork as u8 == key.fork && block.block == key.block);
    let Some(block) = mine else {
        return Err(bad(key, end, "a record that does not refer to this block"));
    };
    let is_final = stamps::image_is_final(record.rmgr, record.info, block.id);
    let Some(found) = block.image.as_ref().filter(|image| image.apply && is_final) else { return Ok(None) };
    let mut restored = image::restore(found).map_err(|error| bad(key, end, error.to_string()))?;
    if !page::is_new(&restored) {
        page::set_lsn(&mut restored, end);
    }
    Ok(Some(restored))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zenith_layers::Source;
    use zenith_pgformat::RelNode;
    use zenith_pgformat::wal::encode::{Parts, encode_with_blocks};
    use zenith_pgformat::wal::{BlockImage, BlockRef, RmgrId};
    use zenith_redo::native::ALL_VISIBLE;

    const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16384 };

    fn key() -> Key {
        Key::rel_block(NODE, Fork::Vm, 0)
    }

    fn row(lsn: u64, value: Value) -> Row {
        Row { key: key(), lsn: Lsn(lsn), value, source: Source::NONE }
    }

    fn record(lsn: u64) -> Row {
        row(lsn, Value::Record(Bytes::from_static(b"r")))
    }

    fn clear(lsn: u64, block: u16) -> Row {
        row(lsn, Value::Edit(Edit::ClearVisibility { blocks: vec![(block, ALL_VISIBLE)] }.encode()))
    }

    fn page_row(lsn: u64, page: &Page) -> Row {
        row(lsn, Value::Page(Bytes::copy_from_slice(page)))
    }

    fn full() -> Page {
        let mut page = [0xFF; BLCKSZ];
        page::set_lsn(&mut page, Lsn(5));
        page
    }

    fn build(mut rows: Vec<Row>, hints: &HintLogging) -> Result<Build, ReadError> {
        rows.reverse();
        Build::new(key(), Lsn(1000), rows, Absent::Lost, hints)
    }

    fn plain() -> HintLogging {
        HintLogging::new(false, false, Vec::new())
    }

    /// LSNs of the changes of every request, answered with the page that it began with or zeros.
    fn requests(build: &mut Build) -> Vec<(bool, Vec<u64>)> {
        let mut seen = Vec::new();
        while let Some(request) = build.next_request().unwrap() {
            seen.push((request.hint_bits_logged, request.changes.iter().map(|c| c.end.0).collect()));
            let base = request.base.and_then(|bytes| Page::try_from(&bytes[..]).ok()).unwrap_or(ZEROS);
            build.took(Box::new(base));
        }
        seen
    }

    #[test]
    fn records_and_the_edits_between_them_are_one_request() {
        let mut build =
            build(vec![page_row(10, &full()), record(20), clear(30, 0), record(40)], &plain()).unwrap();
        assert_eq!(requests(&mut build), [(false, vec![20, 30, 40])]);
    }

    #[test]
    fn a_change_of_settings_inside_a_history_splits_it() {
        let hints = HintLogging::new(false, false, vec![(Lsn(30), true), (Lsn(60), false)]);
        let rows = vec![page_row(10, &full()), record(20), record(30), record(40), record(60), record(70)];
        let split = requests(&mut build(rows.clone(), &hints).unwrap());
        assert_eq!(split, [(false, vec![20, 30]), (true, vec![40, 60]), (false, vec![70])]);
        let checksums = HintLogging::new(true, false, vec![(Lsn(30), true), (Lsn(60), false)]);
        assert_eq!(requests(&mut build(rows, &checksums).unwrap()), [(true, vec![20, 30, 40, 60, 70])]);
    }

    #[test]
    fn records_that_know_the_block_by_another_name_are_asked_for_by_it() {
        let copy = Key::rel_block(RelNode { db: 77, ..NODE }, Fork::Main, 3);
        let source = Key::rel_block(NODE, Fork::Main, 3);
        let named = |key, row: Row| Row { key, ..row };
        let rows =
            vec![named(copy, record(40)), named(source, record(20)), named(source, page_row(10, &full()))];
        let mut build = Build::new(copy, Lsn(100), rows, Absent::Lost, &plain()).unwrap();
        let first = build.next_request().unwrap().unwrap();
        build.took(Box::new(full()));
        let second = build.next_request().unwrap().unwrap();
        assert_eq!((first.node.db, second.node.db), (5, 77));
    }

    #[test]
    fn edits_alone_need_no_redo_process() {
        let mut build = build(vec![page_row(10, &full()), clear(20, 0), clear(30, 1)], &plain()).unwrap();
        assert_eq!(requests(&mut build), []);
        assert_eq!(build.done(Lsn(1000), false).unwrap()[24], 0b1111_1010);
    }

    #[test]
    fn a_history_without_a_beginning_is_lost_and_never_begins_as_zeros() {
        assert!(matches!(build(vec![record(20)], &plain()), Err(ReadError::LostBase { .. })));
        assert!(matches!(build(vec![], &plain()), Err(ReadError::LostBase { .. })));
        let zeros = Build::new(key(), Lsn(1000), vec![clear(20, 0)], Absent::Zeros, &plain()).unwrap();
        assert_eq!(requests(&mut { zeros }), []);
    }

    #[test]
    fn values_that_are_no_page_are_refused_by_name() {
        for value in [Value::Page(Bytes::from_static(b"short")), Value::State(Bytes::new()), Value::Tombstone]
        {
            let error = build(vec![row(10, value)], &plain()).unwrap_err().to_string();
            assert!(error.contains("1663/5/16384") && error.contains("0/A"), "{error}");
        }
        let mut damaged =
            build(vec![page_row(10, &full()), row(20, Value::Edit(Bytes::from_static(b"\xFF")))], &plain())
                .unwrap();
        assert!(matches!(damaged.next_request(), Err(ReadError::BadValue { lsn: Lsn(20), .. })));
    }

    fn image_record(page: &Page, apply: bool) -> Bytes {
        image_record_of(RmgrId::HEAP2, 0, page, apply)
    }

    fn image_record_of(rmgr: RmgrId, info: u8, page: &Page, apply: bool) -> Bytes {
        let image = BlockImage {
            bytes: Bytes::copy_from_slice(page),
            hole_offset: 0,
            hole_length: 0,
            info: if apply { 0x02 } else { 0 },
            apply,
        };
        let block = BlockRef {
            id: 0,
            node: NODE,
            fork: Fork::Vm,
            block: 0,
            will_init: !apply,
            image: Some(image),
            data: None,
        };
        let parts = Parts { rmgr, info, xid: 0, prev: Lsn(0), origin: None, top_xid: None, main_data: &[] };
        Bytes::from(encode_with_blocks(&parts, std::iter::once(&block)))
    }

    #[test]
    fn an_image_is_restored_here_and_gets_the_end_of_its_record() {
        let rows = vec![row(30, Value::InitRecord(image_record(&full(), true))), record(40)];
        let mut built = build(rows, &plain()).unwrap();
        let request = built.next_request().unwrap().unwrap();
        let base = request.base.unwrap();
        assert_eq!(page::lsn(base[..].try_into().unwrap()), Lsn(30));
        assert_eq!(request.changes.len(), 1);
        // An image that is only a check leaves the work to redo.
        let mut checked =
            build(vec![row(30, Value::InitRecord(image_record(&full(), false)))], &plain()).unwrap();
        let request = checked.next_request().unwrap().unwrap();
        assert!(request.base.is_none() && request.changes.len() == 1);
    }

    #[test]
    fn an_image_that_redo_still_changes_is_left_to_redo() {
        // XLOG_GIST_PAGE_SPLIT: redo clears the follow-right flag of the child whose image it restored.
        let split = image_record_of(RmgrId::GIST, 0x30, &full(), true);
        let mut built = build(vec![row(30, Value::InitRecord(split))], &plain()).unwrap();
        let request = built.next_request().unwrap().unwrap();
        assert!(request.base.is_none() && request.changes.len() == 1);
    }

    #[test]
    fn the_newest_image_of_a_hint_is_served_and_records_on_it_are_not_wanted() {
        let rows = vec![record(50), page_row(40, &full())];
        assert_eq!(newest_image(key(), &rows).unwrap()[100], 0xFF);
        assert_eq!(newest_image(key(), &[record(50)]).unwrap(), Box::new(ZEROS));
    }
}
