//! Laying out a batch in a region, and reading it back.

use crate::request::{BlockName, ChangeBody, PageRequest, RedoError};
use crate::shm::{self, ARENA, ChangeHeader, Item, ItemHead, Region};
use bytes::Bytes;
use std::sync::atomic::{AtomicU32, Ordering};
use zenith_pgformat::{BLCKSZ, Lsn, Page};

/// A request on its way through one or more batches.
pub(crate) struct Job {
    /// Its place in the caller's list.
    pub(crate) index: usize,
    pub(crate) request: PageRequest,
    /// The page after the changes before `next`; `None` while that is the request's base.
    pub(crate) page: Option<Box<Page>>,
    /// The first change that has not been applied.
    pub(crate) next: usize,
}

impl Job {
    /// Checks the base page.
    pub(crate) fn new(index: usize, request: PageRequest) -> Result<Job, RedoError> {
        match request.base.as_ref().map(Bytes::len) {
            None | Some(0 | BLCKSZ) => Ok(Job { index, request, page: None, next: 0 }),
            Some(length) => Err(RedoError::BadBase { key: request.name(), length }),
        }
    }

    /// The page as it is now; `None` for zeros.
    fn page(&self) -> Option<&Page> {
        match &self.page {
            Some(page) => Some(page),
            None => self.request.base.as_deref().and_then(|base| base.try_into().ok()),
        }
    }

    /// The page as it is now, to be changed.
    pub(crate) fn take_page(&mut self) -> Box<Page> {
        match self.page.take() {
            Some(page) => page,
            None => self.page().map_or_else(|| Box::new([0; BLCKSZ]), |page| Box::new(*page)),
        }
    }

    /// End of the record of a change.
    pub(crate) fn lsn(&self, change: usize) -> Lsn {
        self.request.changes.get(change).map_or(Lsn::INVALID, |change| change.end)
    }

    /// The block's name.
    pub(crate) fn name(&self) -> BlockName {
        self.request.name()
    }
}

/// Where one job's item lies, and which of its changes it holds.
pub(crate) struct Placed {
    pub(crate) job: Job,
    offset: usize,
    /// One past the last change in the batch.
    pub(crate) until: usize,
}

/// What became of an item.
pub(crate) enum Outcome {
    /// All of the item's changes are applied.
    Done(Box<Page>),
    /// It ended with an error.
    Failed(RedoError),
    /// It was not finished.
    Unfinished,
}

/// Bytes that a change takes in a region.
fn room_for(length: usize) -> usize {
    size_of::<ChangeHeader>() + shm::aligned(length)
}

/// The longest record that fits a region.
pub(crate) fn longest_change(region_length: usize) -> usize {
    region_length.saturating_sub(ARENA + size_of::<Item>() + size_of::<ChangeHeader>() + shm::ALIGN)
}

/// A batch being laid out.
pub(crate) struct Batch<'a> {
    region: &'a mut Region,
    end: usize,
    pub(crate) placed: Vec<Placed>,
}

impl<'a> Batch<'a> {
    /// An empty batch.
    pub(crate) fn new(region: &'a mut Region) -> Batch<'a> {
        Batch { region, end: ARENA, placed: Vec::new() }
    }

    /// Adds a job, or hands it back when there is no room. The first one of a batch may be added in part; what is
    /// added always holds at least one change.
    pub(crate) fn add(&mut self, job: Job) -> Result<(), Job> {
        let free = self.region.length() - self.end;
        let mut length = size_of::<Item>();
        let mut until = job.next;
        for change in job.request.changes.iter().skip(job.next) {
            let longer = length + room_for(change.bytes().len());
            if longer > free {
                break;
            }
            length = longer;
            until += 1;
        }
        let whole = until == job.request.changes.len();
        if until == job.next || !whole && !self.placed.is_empty() {
            return Err(job);
        }
        self.write(&job, until, length);
        self.placed.push(Placed { job, offset: self.end, until });
        self.end += length;
        self.region.header_mut().items += 1;
        Ok(())
    }

    fn write(&mut self, job: &Job, until: usize, length: usize) {
        let Some(place) = self.region.at(self.end, length) else { return };
        let request = &job.request;
        let changes = request.changes.get(job.next..until).unwrap_or_default();
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let head = ItemHead {
            spc: request.node.spc,
            db: request.node.db,
            rel: request.node.rel,
            block: request.block,
            fork: request.fork as u32,
            hint_bits_logged: request.hint_bits_logged.into(),
            changes: number(changes.len()),
            length: number(length),
            status: AtomicU32::new(shm::PENDING),
            change: 0,
            text_length: 0,
            padding: 0,
        };
        let item = place.cast::<Item>().as_ptr();
        // SAFETY: `length` bytes lie inside of the region and are the sum of what is written; all parts are aligned.
        unsafe {
            (&raw mut (*item).head).write(head);
            let page = &raw mut (*item).page;
            match job.page() {
                Some(base) => page.copy_from_nonoverlapping(base, 1),
                None => page.write_bytes(0, 1),
            }
            let mut next = place.add(size_of::<Item>());
            for change in changes {
                let bytes = change.bytes();
                let kind = match change.body {
                    ChangeBody::Record(_) => shm::RECORD,
                    ChangeBody::Edit(_) => shm::EDIT,
                };
                let header = ChangeHeader { end: change.end.0, kind, length: number(bytes.len()) };
                next.cast::<ChangeHeader>().write(header);
                let body = next.add(size_of::<ChangeHeader>());
                body.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
                next = next.add(room_for(bytes.len()));
            }
        }
    }
}

/// What became of an item; for whoever's turn it is.
pub(crate) fn outcome(region: &Region, placed: &Placed) -> Outcome {
    let Some(item) = region.item(placed.offset) else { return Outcome::Unfinished };
    // SAFETY: inside of the region; the process has answered, or is dead. Everything is copied before it is looked at.
    let (status, change, text_length) = unsafe {
        let head = &item.as_ref().head;
        (head.status.load(Ordering::Acquire), (&raw const head.change).read_volatile(), head.text_length)
    };
    let page = || {
        let mut page = Box::<Page>::new_uninit();
        // SAFETY: as above; the copy fills the page.
        unsafe {
            page.as_mut_ptr().copy_from_nonoverlapping(&raw const (*item.as_ptr()).page, 1);
            page.assume_init()
        }
    };
    let job = &placed.job;
    let change = job.next.saturating_add(change as usize);
    let (key, lsn) = (job.name(), job.lsn(change));
    let text = || {
        let page = page();
        let text = page.get(..text_length as usize).unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    };
    match status {
        shm::PENDING => Outcome::Unfinished,
        shm::DONE => Outcome::Done(page()),
        shm::LOST_BASE => Outcome::Failed(RedoError::LostBase { key, lsn }),
        shm::FAILED => Outcome::Failed(RedoError::Failed { key, lsn, message: text() }),
        shm::BAD_EDIT => Outcome::Failed(RedoError::BadEdit { key, lsn, message: text() }),
        _ => Outcome::Failed(RedoError::BadRecord { key, lsn, message: text() }),
    }
}
