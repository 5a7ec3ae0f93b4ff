//! From segments to records (`XLogReadRecord`, xlogreader.c), as a push decoder.

use super::page::{LONG_HEADER, PageHeader, XLP_FIRST_IS_CONTRECORD, XLP_FIRST_IS_OVERWRITE_CONTRECORD};
use super::record::{RECORD_HEADER, RecordHeader, check_length};
use super::xlog::{self, XLOG_OVERWRITE_CONTRECORD, XLOG_SWITCH, XlogRecord};
use super::{Record, RmgrId, WalError};
use crate::wal_name::WalSegSize;
use crate::{Lsn, Tli, XLOG_BLCKSZ};
use bytes::Bytes;
use std::collections::VecDeque;

/// Segments that may wait in a stream; one more is refused, so that a caller cannot pile up an archive in memory.
pub const MAX_WAITING_SEGMENTS: usize = 4;

/// Memory for a record that crosses pages, before more of it has arrived: enough for one with a full-page image.
const PARTIAL_BYTES: usize = 2 * XLOG_BLCKSZ;

/// Where and in which WAL a stream begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamStart {
    /// Where the first record starts: the end of the one before, or a record's own start. A page's or segment's start
    /// is fine: the header is skipped.
    pub lsn: Lsn,
    /// Start of the record before, which the first one's `xl_prev` must name. [`Lsn::INVALID`] when it is not known:
    /// then `xl_prev` only has to be lower than the record itself, as PostgreSQL does for its first one.
    pub prev: Lsn,
    /// The timeline that the segments belong to by their names. Their pages are of it or of an ancestor: the first
    /// segment of a timeline begins with its parent's pages.
    pub tli: Tli,
    /// The cluster's segment size.
    pub seg_size: WalSegSize,
    /// The cluster's system identifier; 0 matches any.
    pub system_identifier: u64,
}

/// Turns segments into records: over pages and segments, past `XLOG_SWITCH`, through overwritten records, and with all
/// checks of PostgreSQL's reader.
///
/// Feed a segment, then call [`WalStream::next`] until it wants more. Memory: the segments that wait (at most
/// [`MAX_WAITING_SEGMENTS`]) and one record being put together (at most [`super::record::MAX_RECORD_LEN`], and never more
/// than 16 kB or twice what has arrived of it).
///
/// An error is final: every later call repeats it, and who wants to go on starts a new stream at
/// [`WalStream::position`].
#[derive(Debug)]
pub struct WalStream {
    start: StreamStart,
    segments: VecDeque<Segment>,
    /// Where the next record is looked for: `position`, or behind an overwritten record.
    at: Lsn,
    position: Lsn,
    prev: Lsn,
    records_read: bool,
    partial: Option<Partial>,
    overwritten: Option<Lsn>,
    checked: Option<(Lsn, PageHeader)>,
    failed: Option<WalError>,
}

/// A segment or its beginning.
#[derive(Debug)]
struct Segment {
    start: Lsn,
    bytes: Bytes,
}

/// A record of which some pages are still to come.
#[derive(Debug)]
struct Partial {
    lsn: Lsn,
    tot_len: usize,
    header_checked: bool,
    bytes: Vec<u8>,
    next_page: Lsn,
}

/// What one attempt at the bytes at hand yielded.
enum Step {
    /// More bytes are needed.
    Wait,
    /// The state moved on; look again.
    Again,
    /// A whole record, not yet decoded.
    Found { lsn: Lsn, end: Lsn, raw: Bytes },
}

impl WalStream {
    /// A stream that has seen nothing yet.
    pub fn new(start: StreamStart) -> WalStream {
        WalStream {
            start,
            segments: VecDeque::new(),
            at: start.lsn,
            position: start.lsn,
            prev: start.prev,
            records_read: false,
            partial: None,
            overwritten: None,
            checked: None,
            failed: None,
        }
    }

    /// End of the last complete record, or where the stream began. A record that is overwritten or cut off begins here.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Start of the last complete record, or what the stream began with.
    pub fn prev(&self) -> Lsn {
        self.prev
    }

    /// The start of a record of which only a part has arrived.
    pub fn partial(&self) -> Option<Lsn> {
        self.partial.as_ref().map(|partial| partial.lsn)
    }

    /// The start of the segment that [`WalStream::feed`] wants next: again the last one when only its beginning was fed.
    pub fn wants(&self) -> Lsn {
        match self.segments.back() {
            Some(last) if !self.is_whole(last) => last.start,
            Some(last) => Lsn(last.start.0.saturating_add(self.start.seg_size.bytes())),
            None => self.segment_start(self.reading_at()),
        }
    }

    /// The segments fed from now on belong to this timeline: the history went on along it.
    pub fn enter_timeline(&mut self, tli: Tli) {
        self.start.tli = tli;
    }

    /// Adds the segment that [`WalStream::wants`], whole or its beginning; a beginning may be fed again with more bytes.
    ///
    /// # Errors
    /// [`WalError::Feed`] when the bytes are another segment's, longer than a segment, shorter than before, or too many
    /// segments wait.
    pub fn feed(&mut self, segment_start: Lsn, bytes: Bytes) -> Result<(), WalError> {
        let refuse = |what: String| Err(WalError::Feed { lsn: segment_start, what });
        let wanted = self.wants();
        if segment_start != wanted {
            return refuse(format!("the segment at {wanted} comes next"));
        }
        if bytes.len() as u64 > self.start.seg_size.bytes() {
            return refuse(format!("{} bytes are more than a segment", bytes.len()));
        }
        if let Some(last) = self.segments.back_mut().filter(|last| last.start == segment_start) {
            if bytes.len() < last.bytes.len() {
                return refuse(format!("{} bytes where {} were known", bytes.len(), last.bytes.len()));
            }
            last.bytes = bytes;
            return Ok(());
        }
        if self.segments.len() >= MAX_WAITING_SEGMENTS {
            return refuse(format!("{MAX_WAITING_SEGMENTS} segments wait to be read"));
        }
        self.segments.push_back(Segment { start: segment_start, bytes });
        Ok(())
    }

    /// The next record, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// The WAL is not sound at or after [`WalStream::position`]; see [`WalError`] for how to tell its end from damage.
    // Not an iterator: it is fed between calls, and an error is not its end.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Record>, WalError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance();
        self.failed = result.as_ref().err().cloned();
        result
    }

    fn advance(&mut self) -> Result<Option<Record>, WalError> {
        loop {
            let step = if self.partial.is_some() { self.continue_record()? } else { self.begin_record()? };
            match step {
                Step::Wait => return Ok(None),
                Step::Again => {}
                Step::Found { lsn, end, raw } => return self.finish_record(lsn, end, raw).map(Some),
            }
        }
    }

    /// Looks for a record at `at`.
    fn begin_record(&mut self) -> Result<Step, WalError> {
        let page_start = page_of(self.at);
        if self.checked.is_none() && self.check_page(self.segment_start(self.at))?.is_none() {
            return Ok(Step::Wait);
        }
        let Some(header) = self.check_page(page_start)? else { return Ok(Step::Wait) };
        let offset = match self.at.since(page_start) as usize {
            0 => header.size(),
            offset if offset < header.size() => {
                return Err(WalError::invalid(self.at, "a record cannot begin inside a page header"));
            }
            offset => offset,
        };
        if header.has(XLP_FIRST_IS_CONTRECORD) && offset == header.size() {
            return Err(WalError::invalid(self.at, "the page begins with the rest of another record"));
        }
        let lsn = Lsn(page_start.0.saturating_add(offset as u64));
        let Some(bytes) = self.page(page_start, offset) else { return Ok(Step::Wait) };
        // Records are aligned to 8 bytes, so the length never crosses a page.
        let Some(length) = bytes.first_chunk::<4>() else { return Ok(Step::Wait) };
        let tot_len = u32::from_le_bytes(*length);
        check_length(tot_len, lsn)?;
        let tot_len = tot_len as usize;
        let room = XLOG_BLCKSZ - offset;
        let header_checked = RECORD_HEADER <= room;
        if header_checked {
            let Some(head) = bytes.get(..RECORD_HEADER) else { return Ok(Step::Wait) };
            self.check_record_header(head, lsn)?;
        }
        if bytes.len() < tot_len.min(room) {
            return Ok(Step::Wait);
        }
        if tot_len <= room {
            let end = Lsn(lsn.0.saturating_add(tot_len as u64)).max_align();
            let Some(raw) = self.shared(lsn, tot_len) else { return Ok(Step::Wait) };
            return Ok(Step::Found { lsn, end, raw });
        }
        let next_page = next_page(page_start);
        let here = bytes.get(..room).unwrap_or_default();
        let mut bytes = Vec::with_capacity(tot_len.min(PARTIAL_BYTES));
        bytes.extend_from_slice(here);
        self.partial = Some(Partial { lsn, tot_len, header_checked, bytes, next_page });
        self.drop_segments_before(next_page);
        Ok(Step::Again)
    }

    /// Appends the next page's part of a record that crosses pages.
    fn continue_record(&mut self) -> Result<Step, WalError> {
        let Some(partial) = &self.partial else { return Ok(Step::Again) };
        let (lsn, page_start) = (partial.lsn, partial.next_page);
        let missing = partial.tot_len - partial.bytes.len();
        let Some(header) = self.check_page(page_start)? else { return Ok(Step::Wait) };
        if header.has(XLP_FIRST_IS_OVERWRITE_CONTRECORD) {
            self.partial = None;
            self.overwritten = Some(lsn);
            self.at = page_start;
            return Ok(Step::Again);
        }
        if !header.has(XLP_FIRST_IS_CONTRECORD) {
            return Err(WalError::invalid(lsn, format!("the rest of the record is missing at {page_start}")));
        }
        if header.rem_len as usize != missing {
            return Err(WalError::invalid(
                lsn,
                format!(
                    "{missing} bytes of the record are missing, the page at {page_start} has {}",
                    header.rem_len
                ),
            ));
        }
        let len = missing.min(XLOG_BLCKSZ - header.size());
        let Some(part) = self.shared(Lsn(page_start.0.saturating_add(header.size() as u64)), len) else {
            return Ok(Step::Wait);
        };
        self.append_part(&part, page_start)?;
        if len < missing {
            self.drop_segments_before(next_page(page_start));
            return Ok(Step::Again);
        }
        // More records may follow on this page, the last one of its segment perhaps.
        let raw = self.partial.take().map(|partial| Bytes::from(partial.bytes)).unwrap_or_default();
        let end = Lsn(page_start.0.saturating_add((header.size() + len) as u64)).max_align();
        Ok(Step::Found { lsn, end, raw })
    }

    /// Adds one page's part to the record; the first one completes its header, which is checked then.
    fn append_part(&mut self, part: &[u8], page_start: Lsn) -> Result<(), WalError> {
        let Some(partial) = &mut self.partial else { return Ok(()) };
        partial.bytes.extend_from_slice(part);
        partial.next_page = next_page(page_start);
        if partial.header_checked {
            return Ok(());
        }
        partial.header_checked = true;
        let lsn = partial.lsn;
        match partial.bytes.first_chunk::<RECORD_HEADER>().copied() {
            Some(head) => self.check_record_header(&head, lsn),
            None => Err(WalError::invalid(lsn, "the record's header is cut off")),
        }
    }

    /// Checks what `ValidXLogRecordHeader` checks.
    fn check_record_header(&self, head: &[u8], lsn: Lsn) -> Result<(), WalError> {
        let header = RecordHeader::decode(head, lsn)?;
        let follows = if self.prev.is_valid() { header.prev == self.prev } else { header.prev < lsn };
        if follows {
            Ok(())
        } else {
            Err(WalError::invalid(
                lsn,
                format!("it follows the record at {}, not {}", header.prev, self.prev),
            ))
        }
    }

    /// Decodes a whole record and moves past it.
    fn finish_record(&mut self, lsn: Lsn, end: Lsn, raw: Bytes) -> Result<Record, WalError> {
        let mut record = Record::decode(raw, lsn, end)?;
        self.check_overwrite(&record)?;
        if record.rmgr == RmgrId::XLOG && record.op() == XLOG_SWITCH {
            let size = self.start.seg_size.bytes();
            record.end = Lsn(end.0.checked_next_multiple_of(size).unwrap_or(u64::MAX));
        }
        self.at = record.end;
        self.position = record.end;
        self.prev = lsn;
        self.records_read = true;
        self.overwritten = None;
        self.drop_segments_before(record.end);
        Ok(record)
    }

    /// A record stands over the rest of a lost one exactly when it says so, and names that one. Only a stream that begins
    /// with it cannot know.
    fn check_overwrite(&self, record: &Record) -> Result<(), WalError> {
        let told = if record.rmgr == RmgrId::XLOG && record.op() == XLOG_OVERWRITE_CONTRECORD {
            match xlog::parse(record)? {
                XlogRecord::OverwriteContrecord(overwrite) => Some(overwrite.overwritten_lsn),
                _ => None,
            }
        } else {
            None
        };
        if told == self.overwritten || (self.overwritten.is_none() && !self.records_read) {
            return Ok(());
        }
        let name = |lsn: Option<Lsn>| lsn.map_or("none".to_owned(), |lsn| lsn.to_string());
        Err(WalError::invalid(
            record.lsn,
            format!("it overwrites record {}, the WAL lost record {}", name(told), name(self.overwritten)),
        ))
    }

    /// The header of the page, checked once; `None` when its bytes have not arrived.
    fn check_page(&mut self, page_start: Lsn) -> Result<Option<PageHeader>, WalError> {
        if let Some((_, header)) = self.checked.filter(|(checked, _)| *checked == page_start) {
            return Ok(Some(header));
        }
        let Some(bytes) = self.page(page_start, 0).filter(|page| page.len() >= LONG_HEADER) else {
            return Ok(None);
        };
        let place = |error| match error {
            WalError::Invalid { what, .. } => WalError::Invalid { lsn: page_start, what },
            other => other,
        };
        let header = PageHeader::decode(bytes).map_err(place)?;
        header.check(page_start, self.start.seg_size, self.start.system_identifier)?;
        if header.tli > self.start.tli {
            return Err(WalError::invalid(
                page_start,
                format!(
                    "the WAL page is of timeline {}, its segment of timeline {}",
                    header.tli, self.start.tli
                ),
            ));
        }
        if let Some((_, last)) = self.checked.filter(|(at, last)| *at < page_start && last.tli > header.tli) {
            return Err(WalError::invalid(
                page_start,
                format!("out-of-sequence timeline {} after {}", header.tli, last.tli),
            ));
        }
        self.checked = Some((page_start, header));
        Ok(Some(header))
    }

    /// What has arrived of a page from `offset` on; `None` when nothing has.
    fn page(&self, page_start: Lsn, offset: usize) -> Option<&[u8]> {
        let segment = self.segment_with(page_start)?;
        let from = page_start.since(segment.start) as usize;
        let to = (from + XLOG_BLCKSZ).min(segment.bytes.len());
        segment.bytes.get(from + offset..to).filter(|bytes| !bytes.is_empty())
    }

    /// Bytes of one page, shared with the segment; `None` when not all have arrived.
    fn shared(&self, at: Lsn, len: usize) -> Option<Bytes> {
        let segment = self.segment_with(at)?;
        let from = at.since(segment.start) as usize;
        let to = from.checked_add(len).filter(|to| *to <= segment.bytes.len())?;
        Some(segment.bytes.slice(from..to))
    }

    fn segment_with(&self, lsn: Lsn) -> Option<&Segment> {
        let size = self.start.seg_size.bytes();
        self.segments.iter().find(|segment| segment.start <= lsn && lsn.since(segment.start) < size)
    }

    fn drop_segments_before(&mut self, lsn: Lsn) {
        let size = self.start.seg_size.bytes();
        while self.segments.front().is_some_and(|front| lsn.since(front.start) >= size) {
            self.segments.pop_front();
        }
    }

    fn is_whole(&self, segment: &Segment) -> bool {
        segment.bytes.len() as u64 == self.start.seg_size.bytes()
    }

    fn segment_start(&self, lsn: Lsn) -> Lsn {
        self.start.seg_size.start_of(self.start.seg_size.segment_of(lsn))
    }

    /// The first byte that is still needed.
    fn reading_at(&self) -> Lsn {
        self.partial.as_ref().map_or(self.at, |partial| partial.next_page)
    }
}

fn page_of(lsn: Lsn) -> Lsn {
    Lsn(lsn.0 - lsn.0 % XLOG_BLCKSZ as u64)
}

fn next_page(page_start: Lsn) -> Lsn {
    Lsn(page_start.0.saturating_add(XLOG_BLCKSZ as u64))
}

#[cfg(test)]
mod tests;
