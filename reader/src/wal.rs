//! Raw WAL around an LSN: which record is the last one that is in, and what a new timeline's first segment begins with.

use crate::error::ReadError;
use crate::timeline::Timeline;
use bytes::Bytes;
use std::sync::PoisonError;
use zenith_ingest::base::read_base_wal;
use zenith_pgformat::wal::page::{PageHeader, XLP_FIRST_IS_CONTRECORD};
use zenith_pgformat::wal::{StreamStart, WalStream};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{Lsn, Tli, XLOG_BLCKSZ};

/// `SizeOfXLogShortPHD`.
const SHORT_HEADER: u64 = 24;
/// `SizeOfXLogLongPHD`, on the first page of a segment.
const LONG_HEADER: u64 = 40;
const PAGE: u64 = XLOG_BLCKSZ as u64;

/// The last record that a state holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastRecord {
    /// Where it starts: what the next record's `xl_prev` names.
    pub start: Lsn,
    /// Where it ends: the normalised LSN of every LSN from here to the end of the next record.
    pub end: Lsn,
    /// The timeline whose segment it was read from.
    pub tli: Tli,
}

/// An LSN inside a page header means the page's start: no record ends there, and a server reports such positions as
/// "where the next record will start" (`XLogBytePosToRecPtr`), while records end before the header.
pub(crate) fn before_header(lsn: Lsn, segment_bytes: u64) -> Lsn {
    let header = if lsn.0 % segment_bytes < PAGE { LONG_HEADER } else { SHORT_HEADER };
    let offset = lsn.0 % PAGE;
    if offset <= header { Lsn(lsn.0 - offset) } else { lsn }
}

/// Where the first record of a page starts, `None` if none does: the page holds only the middle of one.
pub(crate) fn first_record(page_start: Lsn, header: &PageHeader) -> Option<Lsn> {
    let size = header.size() as u64;
    let rest =
        if header.has(XLP_FIRST_IS_CONTRECORD) { Lsn(u64::from(header.rem_len)).max_align().0 } else { 0 };
    let offset = size.checked_add(rest).filter(|offset| *offset < PAGE)?;
    page_start.checked_add(offset)
}

impl Timeline {
    /// A raw WAL segment by PostgreSQL's timeline and number, from this timeline's archive or, for what is on its own
    /// history, an ancestor's. `None` if it is not archived. The last one is kept, if it is of the usual size: a target and
    /// what is restored there lie in the same one.
    pub async fn raw_wal(&self, tli: Tli, segment: u64) -> Result<Option<Bytes>, ReadError> {
        let wanted = (tli, segment);
        let kept = || self.state.segment.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = kept().as_ref().filter(|(known, _)| *known == wanted) {
            return Ok(Some(bytes.clone()));
        }
        let found = self.archive().find(WalFile::Segment { tli, segment }).await?;
        if let Some(bytes) = found.as_ref().filter(|bytes| bytes.len() as u64 <= WalSegSize::DEFAULT.bytes())
        {
            *kept() = Some((wanted, bytes.clone()));
        }
        Ok(found)
    }

    /// A history file, from this timeline's archive or, for what is on its own history, an ancestor's.
    pub async fn history_file(&self, tli: Tli) -> Result<Option<Bytes>, ReadError> {
        Ok(self.archive().find(WalFile::History { tli }).await?)
    }

    /// The segment that holds the WAL just before `upto` on this timeline's history, and the timeline of its name. After
    /// a promotion in its middle the new timeline's segment holds the old one's WAL too, and may be the only whole one.
    pub(crate) async fn segment_before(&self, upto: Lsn) -> Result<(Tli, Bytes), ReadError> {
        let size = self.segment_size();
        let segment = size.segment_of(Lsn(upto.0.saturating_sub(1)));
        let end = size.start_of(segment.saturating_add(1));
        let history = self.tli_history(end);
        let first = history.iter().rposition(|switch| switch.from < upto).unwrap_or(0);
        let mut tried = None;
        for switch in history.iter().skip(first) {
            if let Some(bytes) = self.raw_wal(switch.tli, segment).await? {
                return Ok((switch.tli, bytes));
            }
            tried = tried.or(Some(switch.tli));
        }
        let tli = tried.ok_or(ReadError::NoTli { lsn: upto, timeline: self.id() })?;
        if let Some(bytes) = self.base_wal_before(upto, segment).await? {
            return Ok((tli, bytes));
        }
        let segment = WalFile::Segment { tli, segment }.name(size);
        Err(ReadError::MissingSegment { segment, timeline: self.id() })
    }

    /// The WAL up to the end of a base image lies with it too; that of a stopped directory is perhaps nowhere else.
    async fn base_wal_before(&self, upto: Lsn, segment: u64) -> Result<Option<Bytes>, ReadError> {
        let size = self.segment_size();
        let bases = self.root().bases.iter();
        for base in bases.filter(|base| upto <= base.end && size.segment_of(base.redo) <= segment) {
            let objects = &*self.state.shared.store.objects;
            let found = read_base_wal(objects, self.paths(), base.id, base.tli, segment, size).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        match &self.state.parent {
            Some((parent, branch)) if upto <= branch.lsn => {
                Box::pin(parent.base_wal_before(upto, segment)).await
            }
            _ => Ok(None),
        }
    }

    /// The last record whose end is at most `lsn`, by decoding the WAL just before it. The layers cannot tell: many
    /// records leave no row.
    ///
    /// Memory: the segments that the last record lies in, one as a rule.
    pub async fn last_record(&self, lsn: Lsn) -> Result<LastRecord, ReadError> {
        let lsn = before_header(lsn, self.segment_size().bytes());
        let floor = self.first_wal();
        // The segments from the one that is looked at to the one that holds `lsn`, oldest first.
        let mut segments: Vec<(Tli, Lsn, Bytes)> = Vec::new();
        let mut page = page_before(lsn);
        loop {
            let loaded = segments.first().is_some_and(|(_, start, _)| *start <= page);
            if !loaded {
                let upto = segments.first().map_or(lsn, |(_, start, _)| *start);
                let (tli, bytes) = self.segment_before(upto).await?;
                segments.insert(0, (tli, self.segment_start(page), bytes));
            }
            if let Some(found) = self.last_in(&segments, page, lsn)? {
                return Ok(found);
            }
            if page <= floor || page.0 == 0 {
                return Err(ReadError::NoRecord { lsn });
            }
            page = page_before(page);
        }
    }

    /// Decodes from the first record of `page` on; the last one that ends at most at `lsn`.
    fn last_in(
        &self,
        segments: &[(Tli, Lsn, Bytes)],
        page: Lsn,
        lsn: Lsn,
    ) -> Result<Option<LastRecord>, ReadError> {
        let Some((tli, start, bytes)) = segments.first() else { return Ok(None) };
        let wal = |source| ReadError::Wal { tli: *tli, lsn: page, source };
        let offset = usize::try_from(page.since(*start)).unwrap_or(usize::MAX);
        let bytes_here = bytes.get(offset..).unwrap_or_default();
        if bytes_here.iter().take(PAGE as usize).all(|byte| *byte == 0) {
            // Behind a switch the rest of a segment is zeros, page headers too (`CopyXLogRecordToWAL`, xlog.c).
            return Ok(None);
        }
        let header = PageHeader::decode(bytes_here).map_err(wal)?;
        let Some(first) = first_record(page, &header).filter(|first| *first < lsn) else { return Ok(None) };
        let mut stream = WalStream::new(StreamStart {
            lsn: first,
            prev: Lsn::INVALID,
            tli: *tli,
            seg_size: self.segment_size(),
            system_identifier: self.identity().system_identifier,
        });
        let mut found = None;
        for (tli, start, bytes) in segments {
            stream.enter_timeline(*tli);
            stream.feed(*start, bytes.clone()).map_err(wal)?;
            loop {
                match stream.next() {
                    Ok(Some(record)) if record.end <= lsn => {
                        found = Some(LastRecord { start: record.lsn, end: record.end, tli: *tli });
                    }
                    Ok(Some(_)) => return Ok(found),
                    Ok(None) => break,
                    // What follows the last record need not be whole; up to `lsn` slicing has read it all.
                    Err(_) if found.is_some_and(|found: LastRecord| found.end == lsn) => return Ok(found),
                    Err(source) => return Err(ReadError::Wal { tli: *tli, lsn: stream.position(), source }),
                }
            }
        }
        Ok(found)
    }

    /// Nothing before this LSN belongs to what the timeline holds.
    fn first_wal(&self) -> Lsn {
        let own = self.root().history.first().map_or(Lsn::INVALID, |first| first.from);
        self.parent().map_or(own, Timeline::first_wal)
    }

    fn segment_start(&self, lsn: Lsn) -> Lsn {
        let size = self.segment_size();
        size.start_of(size.segment_of(lsn))
    }
}

/// The start of the page that holds the byte before `lsn`.
fn page_before(lsn: Lsn) -> Lsn {
    let before = lsn.0.saturating_sub(1);
    Lsn(before - before % PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    #[test]
    fn a_position_inside_a_page_header_means_the_end_of_the_page_before() {
        for (lsn, normal) in [
            (SEGMENT, SEGMENT),
            (SEGMENT + 40, SEGMENT),
            (SEGMENT + 48, SEGMENT + 48),
            (SEGMENT + PAGE + 24, SEGMENT + PAGE),
            (SEGMENT + PAGE + 32, SEGMENT + PAGE + 32),
            (SEGMENT + 2 * PAGE, SEGMENT + 2 * PAGE),
        ] {
            assert_eq!(before_header(Lsn(lsn), SEGMENT), Lsn(normal), "{lsn:X}");
        }
    }

    #[test]
    fn the_byte_before_a_boundary_belongs_to_the_page_before() {
        assert_eq!(page_before(Lsn(PAGE)), Lsn(0));
        assert_eq!(page_before(Lsn(PAGE + 1)), Lsn(PAGE));
    }
}
