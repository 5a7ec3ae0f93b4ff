//! From the rows of one page to the page: pure but for redo itself, which the caller does in batches.
//!
//! Edits that stand alone are applied here; what needs PostgreSQL's redo is handed out by [`Build::next_request`], and the
//! page comes back through [`Build::took`]. Rows may be added some at a time, oldest first.

use crate::error::ReadError;
use crate::locate::Begins;
use crate::snapshot::bad;
use bytes::Bytes;
use std::collections::VecDeque;
use zenith_layers::{Key, KeyClass, Row, Value};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, Page, page};
use zenith_redo::native::Edit;
use zenith_redo::{Change, ChangeBody, PageRequest};

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
    page: Option<Known>,
    runs: VecDeque<Run>,
}

/// A page as far as it is built.
#[derive(Debug)]
enum Known {
    /// As it was stored: 8192 bytes.
    Stored(Bytes),
    /// Changed since.
    Changed(Box<Page>),
}

impl Known {
    const ZEROS: Known = Known::Stored(Bytes::from_static(&ZEROS));

    /// The page, to be changed.
    fn changed(self) -> Box<Page> {
        match self {
            Known::Stored(bytes) => {
                let page: Option<&Page> = bytes.as_ref().try_into().ok();
                // Only whole pages are kept.
                page.map_or_else(|| Box::new(ZEROS), |page| Box::new(*page))
            }
            Known::Changed(page) => page,
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Known::Stored(bytes) => bytes,
            Known::Changed(page) => Bytes::from_owner(page as Box<[u8]>),
        }
    }
}

impl Build {
    /// A page that nothing was added to yet.
    pub(crate) fn new(key: Key, begins: Begins) -> Build {
        let page = (begins == Begins::Zeros).then_some(Known::ZEROS);
        Build { key, page, runs: VecDeque::new() }
    }

    /// Which page.
    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// Adds the next row, oldest first.
    ///
    /// # Errors
    /// [`ReadError::LostBase`] when it needs an older one that never came.
    pub(crate) fn add(&mut self, row: Row, hints: &HintLogging) -> Result<(), ReadError> {
        let Row { key, lsn, value, .. } = row;
        if self.page.is_none() && self.runs.is_empty() && !value.starts_history() {
            return Err(ReadError::LostBase { key: self.key, lsn });
        }
        let change = match value {
            Value::Page(bytes) => {
                self.runs.clear();
                self.page = Some(stored_page(key, lsn, bytes)?);
                return Ok(());
            }
            Value::InitRecord(raw) => {
                // Redo makes the page out of nothing, or out of the record's image, which it may still change.
                self.runs.clear();
                self.page = None;
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
    /// `None`: the page holds all that was added.
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
                    base: self.page.take().map(Known::into_bytes),
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
        self.page = Some(Known::Changed(page));
    }

    /// The page, once all rows are in and [`Build::next_request`] has answered `None`.
    pub(crate) fn done(self, upto: Lsn, checksums: bool) -> Result<Bytes, ReadError> {
        let page = self.page.ok_or(ReadError::LostBase { key: self.key, lsn: upto })?;
        finish(self.key, page, upto, checksums)
    }

    /// The page as it is, for pages without header.
    pub(crate) fn into_bytes(self, upto: Lsn) -> Result<Bytes, ReadError> {
        let lost = ReadError::LostBase { key: self.key, lsn: upto };
        self.page.map(Known::into_bytes).ok_or(lost)
    }

    fn edit(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<(), ReadError> {
        let edit = Edit::decode(bytes).map_err(|error| bad(self.key, lsn, error.to_string()))?;
        let page = self.page.take().ok_or(ReadError::LostBase { key: self.key, lsn })?;
        let mut page = page.changed();
        edit.apply(&mut page, lsn).map_err(|error| bad(self.key, lsn, error.to_string()))?;
        self.page = Some(Known::Changed(page));
        Ok(())
    }
}

/// What PostgreSQL may be given (facts/stock-postgres.md §5): nothing newer than what was asked for, and with a
/// checksum of its own where the cluster has them, because rebuilt pages carry a stale one.
fn finish(key: Key, built: Known, upto: Lsn, checksums: bool) -> Result<Bytes, ReadError> {
    let page: &Page = match &built {
        Known::Stored(bytes) => bytes
            .as_ref()
            .try_into()
            .map_err(|_| bad(key, upto, format!("a page of {} bytes", bytes.len())))?,
        Known::Changed(page) => page,
    };
    if page::is_all_zeros(page) {
        return Ok(Bytes::from_static(&ZEROS));
    }
    let page_lsn = page::lsn(page);
    if page_lsn > upto {
        return Err(ReadError::PageFromTheFuture { key, page_lsn, lsn: upto });
    }
    // A page of a base image has its checksum.
    if !checksums || page::is_new(page) {
        return Ok(built.into_bytes());
    }
    let checksum = page::checksum(page, key.block);
    if page::PageHeader::decode(page).checksum == checksum {
        return Ok(built.into_bytes());
    }
    let mut page = built.changed();
    page::put_checksum(&mut page, checksum);
    Ok(Known::Changed(page).into_bytes())
}

/// The payload of [`Value::Page`].
fn stored_page(key: Key, lsn: Lsn, bytes: Bytes) -> Result<Known, ReadError> {
    match bytes.len() {
        0 => Ok(Known::ZEROS),
        BLCKSZ => Ok(Known::Stored(bytes)),
        length => Err(bad(key, lsn, format!("a page of {length} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zenith_layers::Source;
    use zenith_pgformat::RelNode;
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

    fn build(rows: Vec<Row>, hints: &HintLogging) -> Result<Build, ReadError> {
        let mut build = Build::new(key(), Begins::Row);
        rows.into_iter().try_for_each(|row| build.add(row, hints))?;
        Ok(build)
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
        let mut build = Build::new(copy, Begins::Row);
        let rows = [named(source, page_row(10, &full())), named(source, record(20)), named(copy, record(40))];
        rows.into_iter().for_each(|row| build.add(row, &plain()).unwrap());
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
        for needy in [record(20), clear(20, 0)] {
            assert!(matches!(build(vec![needy], &plain()), Err(ReadError::LostBase { lsn: Lsn(20), .. })));
        }
        let empty = build(vec![], &plain()).unwrap().done(Lsn(1000), false);
        assert!(matches!(empty, Err(ReadError::LostBase { lsn: Lsn(1000), .. })));
        let mut zeros = Build::new(key(), Begins::Zeros);
        zeros.add(clear(20, 0), &plain()).unwrap();
        assert_eq!(requests(&mut zeros), []);
        assert!(zeros.done(Lsn(1000), false).is_ok());
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

    #[test]
    fn rows_that_come_in_parts_go_on_with_the_page_that_the_part_before_gave() {
        let mut build = build(vec![page_row(10, &ZEROS), record(20)], &plain()).unwrap();
        let first = build.next_request().unwrap().unwrap();
        assert!(first.base.unwrap().iter().all(|byte| *byte == 0));
        build.took(Box::new(full()));
        assert!(build.next_request().unwrap().is_none());
        build.add(clear(30, 0), &plain()).unwrap();
        build.add(record(40), &plain()).unwrap();
        let second = build.next_request().unwrap().unwrap();
        assert_eq!(second.base.as_deref(), Some(&full()[..]));
        assert_eq!(second.changes.iter().map(|change| change.end.0).collect::<Vec<_>>(), [30, 40]);
    }

    #[test]
    fn a_record_that_makes_its_page_is_left_to_redo_and_what_came_before_it_is_forgotten() {
        let init = row(30, Value::InitRecord(Bytes::from_static(b"r")));
        let mut built = build(vec![page_row(10, &full()), record(20), init, record(40)], &plain()).unwrap();
        let request = built.next_request().unwrap().unwrap();
        assert!(request.base.is_none());
        assert_eq!(request.changes.iter().map(|change| change.end.0).collect::<Vec<_>>(), [30, 40]);
    }
}
