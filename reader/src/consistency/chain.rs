//! One block on its way through a window: the page after each of its steps, once by whole records and once by the values
//! that are stored. Pure but for redo itself, which the caller does in batches.

use super::judge::{Redone, is_checked_map};
use super::maps::MapWatch;
use super::report::{Place, Problem, Tally};
use super::window::{Step, Window};
use crate::assemble::{HintLogging, ZEROS};
use bytes::Bytes;
use std::collections::VecDeque;
use zenith_layers::{Key, Row, Value};
use zenith_pgformat::wal::{BlockRef, Record, image};
use zenith_pgformat::{Lsn, Page};
use zenith_redo::native::Edit;
use zenith_redo::{Change, PageRequest, RedoError};

/// See the module.
#[derive(Debug)]
pub(super) struct Chain {
    key: Key,
    /// The page after the steps so far; `None` where there is none.
    page: Option<Bytes>,
    /// A difference was found: nothing is told of the block until it begins anew.
    lost: bool,
    next: usize,
    rows: VecDeque<Row>,
}

/// What the value that is stored gives.
#[derive(Debug)]
pub(super) enum Stored {
    /// The same bytes as the whole record.
    Same,
    /// The page.
    Page(Bytes),
    /// What redo of it gives.
    Asked(PageRequest),
    /// Nothing.
    Wrong(Problem),
}

/// A block reference that is ready to be redone.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) record: usize,
    pub(super) block: usize,
    pub(super) whole: PageRequest,
    pub(super) stored: Stored,
}

/// What checking a window takes beside the blocks.
pub(super) struct Bench<'a> {
    pub(super) window: &'a Window,
    pub(super) hints: &'a HintLogging,
    pub(super) maps: &'a mut MapWatch,
    pub(super) tally: &'a mut Tally,
}

/// A page, or why there is none.
pub(super) type Answer = Result<Box<Page>, RedoError>;

impl Chain {
    /// A block whose page before the window is `page`, and the values that are stored of it in the window, by LSN.
    pub(super) fn new(key: Key, page: Option<Bytes>, rows: VecDeque<Row>) -> Chain {
        Chain { key, page, lost: false, next: 0, rows }
    }

    /// Which block.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// The page at the end, unless it is not known to be right or there is none.
    pub(super) fn page(&self) -> Option<&Bytes> {
        self.page.as_ref().filter(|_| !self.lost)
    }

    /// Whether the block's page before the window matters to its first step.
    pub(super) fn needs_base(steps: &[Step], window: &Window) -> bool {
        match steps.first() {
            Some(Step::Reference { record, block }) => {
                reference(window, *record, *block).is_none_or(|(_, block)| !block.starts_history())
            }
            Some(Step::MapEdit { .. }) => true,
            Some(Step::Gone) | None => false,
        }
    }

    /// Goes on to the next reference that has to be redone; `None` at the end of the window.
    pub(super) fn advance(&mut self, bench: &mut Bench<'_>) -> Option<Ask> {
        let steps = bench.window.steps.get(&self.key)?;
        while let Some(step) = steps.get(self.next) {
            self.next += 1;
            match *step {
                Step::Gone => {
                    (self.page, self.lost) = (None, false);
                    bench.maps.gone(self.key);
                }
                Step::MapEdit { record } => self.edit_map(record, bench),
                Step::Reference { record, block } => {
                    let ask = self.ask(record, block, bench);
                    if ask.is_some() {
                        return ask;
                    }
                }
            }
        }
        for row in std::mem::take(&mut self.rows) {
            self.unexplained(&row, bench);
        }
        None
    }

    /// A value that no record explains.
    fn unexplained(&self, row: &Row, bench: &mut Bench<'_>) {
        bench.tally.difference(place(bench.window, row.lsn), self.key, Problem::Unexplained);
    }

    /// The value stored for a record.
    fn take_row(&mut self, end: Lsn, bench: &mut Bench<'_>) -> Option<Row> {
        while let Some(row) = self.rows.pop_front_if(|row| row.lsn <= end) {
            if row.lsn == end {
                return Some(row);
            }
            self.unexplained(&row, bench);
        }
        None
    }

    fn lose(&mut self, record: &Record, problem: Problem, tally: &mut Tally) {
        self.lost = true;
        tally.difference(Place::Record(record), self.key, problem);
    }

    /// A map page that is not there has no bit to clear.
    fn edit_map(&mut self, record: usize, bench: &mut Bench<'_>) {
        let Some(record) = bench.window.records.get(record) else { return };
        let row = self.take_row(record.end, bench);
        bench.tally.check.map_edits += 1;
        let Some(page) = self.page().cloned() else { return };
        let edited = match row {
            Some(row) => edited(&row, &page).map_err(|message| Problem::StoredRedo { message }),
            None => Err(Problem::NotStored),
        };
        match edited {
            Ok(page) => {
                bench.maps.cleared(self.key, &page);
                self.page = Some(Bytes::from_owner(page as Box<[u8]>));
            }
            Err(problem) => self.lose(record, problem, bench.tally),
        }
    }

    fn ask(&mut self, at: usize, index: usize, bench: &mut Bench<'_>) -> Option<Ask> {
        let (record, block) = reference(bench.window, at, index)?;
        let row = self.take_row(record.end, bench);
        if self.lost && !block.starts_history() {
            return None;
        }
        self.lost = false;
        let request = |base: Option<Bytes>, change: Change| PageRequest {
            node: block.node,
            fork: block.fork,
            block: block.block,
            base,
            changes: vec![change],
            hint_bits_logged: bench.hints.at(record.end),
        };
        let page = || self.page.clone();
        let whole = request(page(), Change::record(record.end, record.raw.clone()));
        let stored = match row.map(|row| row.value) {
            None => Stored::Wrong(Problem::NotStored),
            Some(Value::Page(bytes)) if bytes.is_empty() => Stored::Page(Bytes::from_static(&ZEROS)),
            Some(Value::Page(bytes)) => Stored::Page(bytes),
            Some(Value::Record(raw)) if raw == record.raw => Stored::Same,
            Some(Value::Record(raw)) => Stored::Asked(request(page(), Change::record(record.end, raw))),
            Some(Value::InitRecord(raw)) => Stored::Asked(request(None, Change::record(record.end, raw))),
            Some(Value::Edit(edit)) => Stored::Asked(request(page(), Change::edit(record.end, edit))),
            Some(Value::State(_) | Value::Tombstone) => {
                Stored::Wrong(Problem::StoredRedo { message: "it is no page, record or edit".to_owned() })
            }
        };
        Some(Ask { record: at, block: index, whole, stored })
    }

    /// Judges the answers to what [`Chain::advance`] asked for; `stored` is `Ok(None)` where the stored value is the
    /// whole record.
    pub(super) fn took(
        &mut self,
        (at, index): (usize, usize),
        whole: Answer,
        stored: Result<Option<Bytes>, Problem>,
        bench: &mut Bench<'_>,
    ) {
        let Some((record, block)) = reference(bench.window, at, index) else { return };
        match self.judge(record, block, whole, stored, bench) {
            Ok(page) => self.page = Some(Bytes::from_owner(page as Box<[u8]>)),
            Err(problem) => self.lose(record, problem, bench.tally),
        }
    }

    fn judge(
        &self,
        record: &Record,
        block: &BlockRef,
        whole: Answer,
        stored: Result<Option<Bytes>, Problem>,
        bench: &mut Bench<'_>,
    ) -> Result<Box<Page>, Problem> {
        let whole = whole.map_err(|error| Problem::Redo { message: error.to_string() })?;
        let stored = stored?;
        let stored: &Page = match &stored {
            None => &whole,
            Some(page) => page
                .as_ref()
                .try_into()
                .map_err(|_| Problem::StoredRedo { message: format!("a page of {} bytes", page.len()) })?,
        };
        let before = self.page.as_ref().and_then(|page| page.as_ref().try_into().ok()).unwrap_or(&ZEROS);
        let hint_bits_logged = bench.hints.at(record.end);
        let redone = Redone { record, block, hint_bits_logged, before, whole: &whole, stored };
        bench.tally.reference(record, redone.has_check());
        if let Some(stamp) = redone.stamp() {
            bench.tally.check.stamps.count(stamp);
        }
        if let Some(problem) = redone.problem() {
            return Err(problem);
        }
        if is_checked_map(block)
            && let Some(Ok(theirs)) = block.image.as_ref().map(image::restore)
        {
            bench.maps.compare(self.key, record, &whole, &theirs);
        }
        Ok(whole)
    }
}

fn reference(window: &Window, record: usize, block: usize) -> Option<(&Record, &BlockRef)> {
    let record = window.records.get(record)?;
    Some((record, record.blocks.get(block)?))
}

/// The record that ends at an LSN, or the LSN.
fn place(window: &Window, lsn: Lsn) -> Place<'_> {
    let found = window.records.binary_search_by_key(&lsn, |record| record.end);
    found.ok().and_then(|at| window.records.get(at)).map_or(Place::At(lsn), Place::Record)
}

/// The page after a native edit.
fn edited(row: &Row, page: &[u8]) -> Result<Box<Page>, String> {
    let Value::Edit(bytes) = &row.value else { return Err("it is no edit".to_owned()) };
    let edit = Edit::decode(bytes).map_err(|error| error.to_string())?;
    let page: Result<Page, _> = page.try_into();
    let mut page = Box::new(page.map_err(|_| "the page before it has a wrong length".to_owned())?);
    edit.apply(&mut page, row.lsn).map_err(|error| error.to_string())?;
    Ok(page)
}
