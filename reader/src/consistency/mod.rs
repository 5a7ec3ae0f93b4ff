//! Proves redo over a stretch of archived WAL. Every record is redone twice for each block that it refers to: whole, as it
//! stands in the archive, and by the value that the slicer stored of it, which is trimmed, an image or a native edit. Both
//! have to give the same page; the page has to equal, masked, the one that the server logged after the record
//! (`wal_consistency_checking`); redo has to stamp it as `zenith_redo::stamps` says; and what is read from the store afterwards
//! has to be the page that the whole records give (PROTOCOLS.md §3).
//!
//! WAL is taken in windows. A block's page before its first change in a window comes from the reader, or from the window
//! before; so the check trusts the base images and nothing else. Where a later base image begins to serve, everything
//! is read anew: its pages have hint bits, and what lies in unused space, as the server had them, of which the WAL does not
//! tell.

mod chain;
mod judge;
mod maps;
mod pages;
mod records;
mod report;
mod window;

pub use report::{Difference, Problem, StampCounts, Stretch, TypeCounts, WalCheck};

use crate::error::ReadError;
use crate::snapshot::Snapshot;
use crate::timeline::Timeline;
use crate::wal::LastRecord;
use bytes::Bytes;
use chain::{Answer, Ask, Bench, Chain, Stored};
use judge::first_difference_but_checksum;
use maps::MapWatch;
use records::Records;
use report::{Place, Tally};
use std::collections::{BTreeMap, VecDeque};
use std::vec;
use window::Window;
use zenith_layers::{Key, KeyRange, ReadMode, Row};
use zenith_manifest::BaseId;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::wal::xlog::{self, XlogRecord};
use zenith_pgformat::wal::{Record, RmgrId};
use zenith_pgformat::{Lsn, Page};
use zenith_redo::{PageRequest, RedoError};

/// What is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckOptions {
    /// Records that end above this LSN; `None`: from the first readable LSN on.
    pub from: Option<Lsn>,
    /// Records that end at or below this LSN; `None`: up to the last readable one.
    pub to: Option<Lsn>,
    /// How many differences are described; all are counted.
    pub listed: usize,
}

/// How far a check is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckProgress {
    /// Bytes of WAL that were checked.
    pub done: u64,
    /// Bytes of WAL that are to be checked.
    pub total: u64,
}

impl Timeline {
    /// Checks the WAL that is archived, sliced (or in this handle's tail) and readable: see the module. What lies inside a base
    /// image's fuzzy window or in a gap is left out, for no page can be read there.
    ///
    /// Memory: about 300 MB: a window's records, its pages before and after, and the values that are stored of it.
    ///
    /// # Errors
    /// What keeps the check from going on: a segment that is missing or damaged, a damaged layer, a redo process that does not
    /// start. What is wrong with single pages is no error but stands in the report.
    pub async fn check_wal(
        &self,
        options: &CheckOptions,
        mut progress: impl FnMut(CheckProgress),
    ) -> Result<WalCheck, ReadError> {
        let stretches = self.stretches(options)?;
        let total = stretches.iter().map(|(_, stretch)| stretch.to.since(stretch.from)).sum();
        let mut done = 0;
        let mut tally = Tally::new(options.listed);
        for (known, stretch) in stretches {
            let begin = match known {
                true => {
                    LastRecord { start: Lsn::INVALID, end: stretch.from, tli: self.tli_at(stretch.from)? }
                }
                false => self.last_record(stretch.from).await?,
            };
            tally.check.stretches.push(Stretch { from: begin.end, ..stretch });
            let checker = Checker {
                timeline: self,
                tally: &mut tally,
                carried: BTreeMap::new(),
                maps: MapWatch::default(),
                at: begin.end,
                base: self.base_at(begin.end),
            };
            let told = |at: Lsn| progress(CheckProgress { done: done + at.since(stretch.from), total });
            checker.run(Records::new(self, begin, stretch.to), told).await?;
            done += stretch.to.since(stretch.from);
        }
        Ok(tally.finish())
    }

    /// The base image that pages are read from at an LSN.
    fn base_at(&self, lsn: Lsn) -> Option<BaseId> {
        self.layers().base_for(lsn, ReadMode::Serve).map(|base| base.id)
    }

    /// The readable parts of what was asked for, and whether a record is known to end where they begin.
    fn stretches(&self, options: &CheckOptions) -> Result<Vec<(bool, Stretch)>, ReadError> {
        options.from.map_or(Ok(()), |from| self.check(from))?;
        options.to.map_or(Ok(()), |to| self.check(to))?;
        let (from, to) = (options.from.unwrap_or(Lsn::INVALID), options.to.unwrap_or(Lsn::MAX));
        let ranges = self.ranges();
        if ranges.is_empty() {
            self.end()?;
        }
        let parts = ranges.iter().map(|range| {
            let stretch = Stretch { from: range.from.max(from), to: range.to.min(to) };
            (stretch.from == range.from, stretch)
        });
        Ok(parts.filter(|(_, stretch)| stretch.from < stretch.to).collect())
    }
}

/// One stretch being checked.
struct Checker<'a> {
    timeline: &'a Timeline,
    tally: &'a mut Tally,
    /// Pages after the last window.
    carried: BTreeMap<Key, Bytes>,
    maps: MapWatch,
    /// Where the next window begins.
    at: Lsn,
    /// The base image that serves there.
    base: Option<BaseId>,
}

impl Checker<'_> {
    async fn run(mut self, mut records: Records<'_>, mut told: impl FnMut(Lsn)) -> Result<(), ReadError> {
        let start = self.timeline.snapshot(self.at).await?;
        if !start.checkpoint().await?.full_page_writes {
            self.maps.turn_off();
        }
        let mut window = Window::default();
        while let Some(record) = records.next().await? {
            let base = self.timeline.base_at(record.end);
            let another_base = base != self.base;
            if another_base {
                self.close(&mut window, &mut told).await?;
            }
            self.tally.record(&record);
            if turns_page_writes_off(&record) {
                self.maps.turn_off();
            }
            let (tli, lsn) = (records.tli(), record.lsn);
            window.add(record).map_err(|source| ReadError::Wal { tli, lsn, source })?;
            // Read back beside a page of the base before: the record that crosses into a base image is the end of the backup or
            // a checkpoint, which touch no block.
            if another_base || window.is_full() {
                self.close(&mut window, &mut told).await?;
            }
            if another_base {
                self.carried.clear();
                self.base = base;
            }
        }
        self.close(&mut window, &mut told).await
    }

    /// Checks a window and begins the next.
    async fn close(&mut self, window: &mut Window, told: &mut impl FnMut(Lsn)) -> Result<(), ReadError> {
        let Some(end) = window.end() else { return Ok(()) };
        self.check(window, end).await?;
        self.maps.settle(end, self.tally);
        self.tally.end_window();
        told(end);
        (*window, self.at) = (Window::default(), end);
        Ok(())
    }

    async fn check(&mut self, window: &Window, end: Lsn) -> Result<(), ReadError> {
        if window.steps.is_empty() {
            return Ok(());
        }
        let after = self.timeline.snapshot(end).await?;
        let mut chains = self.chains(window, end).await?;
        self.redo(window, &after, &mut chains).await?;
        let right = chains.iter().filter_map(|chain| Some((chain.key(), chain.page()?.clone())));
        let right: BTreeMap<Key, Bytes> = right.collect();
        self.carried = self.read_back(&after, right).await?;
        Ok(())
    }

    /// The blocks of a window: their pages before it and the values that are stored of it.
    async fn chains(&mut self, window: &Window, end: Lsn) -> Result<Vec<Chain>, ReadError> {
        let ranges: Vec<KeyRange> = window.steps.keys().map(|key| KeyRange::one(*key)).collect();
        let mut stored: BTreeMap<Key, VecDeque<Row>> = BTreeMap::new();
        for row in self.timeline.layers().versions(&ranges, self.at, end).await? {
            stored.entry(row.key).or_default().push_back(row);
        }
        let mut pages = std::mem::take(&mut self.carried);
        let unknown = window
            .steps
            .iter()
            .filter(|(key, steps)| !pages.contains_key(key) && Chain::needs_base(steps, window));
        let unknown: Vec<Key> = unknown.map(|(key, _)| *key).collect();
        if !unknown.is_empty() {
            let before = self.timeline.snapshot(self.at).await?;
            for (key, page) in pages::read(&before, &unknown).await? {
                match page {
                    Ok(Some(page)) => drop(pages.insert(key, page)),
                    Ok(None) => {}
                    Err(message) => {
                        self.tally.difference(Place::At(self.at), key, Problem::NotRead { message });
                    }
                }
            }
        }
        let chain = |key: &Key| Chain::new(*key, pages.remove(key), stored.remove(key).unwrap_or_default());
        Ok(window.steps.keys().map(chain).collect())
    }

    /// Redoes the steps of all blocks, one of each at a time.
    async fn redo(
        &mut self,
        window: &Window,
        after: &Snapshot,
        chains: &mut [Chain],
    ) -> Result<(), ReadError> {
        let pool = self.timeline.redo().pool().await?;
        let mut bench = Bench { window, hints: &after.inner.hints, maps: &mut self.maps, tally: self.tally };
        let mut open: Vec<&mut Chain> = chains.iter_mut().collect();
        loop {
            let (mut asked, mut requests) = (Vec::new(), Vec::new());
            for chain in open {
                if let Some(Ask { record, block, whole, stored }) = chain.advance(&mut bench) {
                    requests.push(whole);
                    asked.push((chain, (record, block), stored.split(&mut requests)));
                }
            }
            if asked.is_empty() {
                return Ok(());
            }
            let mut answers = pool.redo(requests).await.into_iter();
            open = Vec::with_capacity(asked.len());
            for (chain, place, stored) in asked {
                let whole = answer(chain.key(), &mut answers)?;
                let stored = match stored {
                    Later::Known(known) => known,
                    Later::Asked => match answer(chain.key(), &mut answers)? {
                        Ok(page) => Ok(Some(Bytes::from_owner(page as Box<[u8]>))),
                        Err(error) => Err(Problem::StoredRedo { message: error.to_string() }),
                    },
                };
                chain.took(place, whole, stored, &mut bench);
                open.push(chain);
            }
        }
    }

    /// Holds the pages against what the reader gives; those that are equal come back.
    async fn read_back(
        &mut self,
        after: &Snapshot,
        mut right: BTreeMap<Key, Bytes>,
    ) -> Result<BTreeMap<Key, Bytes>, ReadError> {
        let keys: Vec<Key> = right.keys().copied().collect();
        let at = Place::At(after.lsn());
        for (key, read) in pages::read(after, &keys).await? {
            self.tally.check.pages_read += 1;
            let problem = match read {
                Ok(Some(page)) => right.get(&key).and_then(|ours| differs(ours, &page)),
                Ok(None) => Some(Problem::NotRead { message: "it does not exist there".to_owned() }),
                Err(message) => Some(Problem::NotRead { message }),
            };
            if let Some(problem) = problem {
                right.remove(&key);
                self.tally.difference(at, key, problem);
            }
        }
        Ok(right)
    }
}

fn differs(ours: &Bytes, read: &Bytes) -> Option<Problem> {
    let (ours, read): (&Page, &Page) = (ours.as_ref().try_into().ok()?, read.as_ref().try_into().ok()?);
    first_difference_but_checksum(ours, read).map(|offset| Problem::Read { offset })
}

/// Whether pages are no longer logged whole behind this record.
fn turns_page_writes_off(record: &Record) -> bool {
    if record.rmgr != RmgrId::XLOG {
        return false;
    }
    match xlog::parse(record) {
        Ok(XlogRecord::FpwChange(on)) => !on,
        Ok(XlogRecord::CheckpointOnline(bytes) | XlogRecord::CheckpointShutdown(bytes)) => {
            CheckPoint::decode(&bytes).is_ok_and(|checkpoint| !checkpoint.full_page_writes)
        }
        _ => false,
    }
}

/// What a stored value gives, when the whole records' pages are there.
enum Later {
    Known(Result<Option<Bytes>, Problem>),
    Asked,
}

impl Stored {
    /// Adds the request that it takes, if it takes one.
    fn split(self, requests: &mut Vec<PageRequest>) -> Later {
        match self {
            Stored::Same => Later::Known(Ok(None)),
            Stored::Page(page) => Later::Known(Ok(Some(page))),
            Stored::Wrong(problem) => Later::Known(Err(problem)),
            Stored::Asked(request) => {
                requests.push(request);
                Later::Asked
            }
        }
    }
}

/// The next answer. That no process could be had is no fault of the page's.
fn answer(key: Key, answers: &mut vec::IntoIter<Answer>) -> Result<Answer, ReadError> {
    match answers.next() {
        Some(Err(source @ (RedoError::Unavailable { .. } | RedoError::ShuttingDown { .. }))) => {
            Err(ReadError::Redo { key, lsn: Lsn::INVALID, source })
        }
        Some(answer) => Ok(answer),
        None => Err(ReadError::Interrupted("redo gave fewer pages than it was asked for".to_owned())),
    }
}
