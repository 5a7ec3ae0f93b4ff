//! The first WAL of the new timeline: the parent's bytes up to the LSN, then the fabricated checkpoint record.
//!
//! PostgreSQL lays out a promotion in the same way (`XLogFileCopy`, xlog.c): recovery that follows the fork reads the
//! segment from the *new* timeline, so what lies before the fork must be in it.

use anyhow::{Result, bail};
use bytes::Bytes;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::wal::encode::encode_record;
use zenith_pgformat::wal::page::{
    LONG_HEADER, LongHeader, PageHeader, SHORT_HEADER, XLP_FIRST_IS_CONTRECORD,
};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{Lsn, Tli, XLOG_BLCKSZ};

/// `XLOG_CHECKPOINT_SHUTDOWN` (catalog/pg_control.h).
const CHECKPOINT_SHUTDOWN: u8 = 0x00;

/// In which WAL the record is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The new timeline.
    pub(crate) tli: Tli,
    /// The cluster.
    pub(crate) system_identifier: u64,
    /// Its segment size.
    pub(crate) segment_size: WalSegSize,
}

/// WAL from a fork on: page headers and one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// Where `bytes` begin: the fork.
    pub(crate) from: Lsn,
    /// Where the record starts.
    pub(crate) record: Lsn,
    /// Everything from the fork to the end of the record.
    pub(crate) bytes: Vec<u8>,
}

/// One segment file's contents up to where zeros begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    /// The segment's number.
    pub(crate) number: u64,
    /// Its first bytes; the rest of the file is zeros.
    pub(crate) bytes: Bytes,
}

impl Place {
    /// Where the first record after `fork` starts: there, or past the header of the page that begins there.
    ///
    /// # Errors
    /// When no record can end at `fork`.
    pub(crate) fn record_position(&self, fork: Lsn) -> Result<Lsn> {
        let in_page = fork.0 % XLOG_BLCKSZ as u64;
        let header = self.header_len(Lsn(fork.0 - in_page)) as u64;
        let aligned = fork.is_valid() && fork == fork.max_align();
        if !aligned || (in_page > 0 && in_page < header) {
            bail!("{fork} is not the end of a WAL record: choose the end of the last record before it");
        }
        if in_page == 0 { fork_after(fork, header) } else { Ok(fork) }
    }

    fn header_len(&self, page: Lsn) -> usize {
        if self.segment_size.offset_of(page) == 0 { LONG_HEADER } else { SHORT_HEADER }
    }

    /// The shutdown checkpoint laid over pages from `fork` on. `prev` is the start of the last record before.
    pub(crate) fn fabricate(&self, fork: Lsn, prev: Lsn, checkpoint: &CheckPoint) -> Result<Run> {
        let start = self.record_position(fork)?;
        if prev >= fork || !prev.is_valid() {
            bail!("the last record before {fork} cannot start at {prev}");
        }
        let record = encode_record(RmgrId::XLOG, CHECKPOINT_SHUTDOWN, 0, prev, &checkpoint.encode());
        Ok(Run { from: fork, record: start, bytes: self.lay(fork, &record)? })
    }

    /// Lays one record over pages (`CopyXLogRecordToWAL`, xlog.c), up to where the next one may start.
    fn lay(&self, fork: Lsn, record: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(record.len() + 2 * LONG_HEADER);
        let mut rest = record;
        while !rest.is_empty() {
            let at = fork_after(fork, bytes.len() as u64)?;
            let in_page = (at.0 % XLOG_BLCKSZ as u64) as usize;
            if in_page == 0 {
                let continued = if rest.len() == record.len() { 0 } else { rest.len() as u32 };
                bytes.extend(self.page_header(at, continued).encode());
                continue;
            }
            let (now, later) = rest.split_at(rest.len().min(XLOG_BLCKSZ - in_page));
            bytes.extend_from_slice(now);
            rest = later;
        }
        let end = fork_after(fork, bytes.len() as u64)?.max_align();
        bytes.resize(end.since(fork) as usize, 0);
        Ok(bytes)
    }

    fn page_header(&self, page: Lsn, continued: u32) -> PageHeader {
        let long = (self.segment_size.offset_of(page) == 0).then(|| LongHeader {
            system_identifier: self.system_identifier,
            seg_size: self.segment_size.bytes() as u32,
            xlog_blcksz: XLOG_BLCKSZ as u32,
        });
        let info = if continued > 0 { XLP_FIRST_IS_CONTRECORD } else { 0 };
        PageHeader { info, tli: self.tli, page_addr: page, rem_len: continued, long }
    }

    /// The segment files: the parent's bytes (`head`, from the start of the fork's segment) and the run after them.
    /// Two when the record crosses into the next segment.
    pub(crate) fn segments(&self, head: &[u8], run: &Run) -> Result<Vec<Segment>> {
        self.check_head(head, run.from)?;
        let size = self.segment_size.bytes() as usize;
        let whole = [head, &run.bytes].concat();
        let first = self.segment_size.segment_of(run.from);
        let parts = whole.chunks(size).zip(first..);
        Ok(parts.map(|(part, number)| Segment { number, bytes: Bytes::copy_from_slice(part) }).collect())
    }

    /// The parent's bytes must be of this cluster and stand where they belong.
    fn check_head(&self, head: &[u8], fork: Lsn) -> Result<()> {
        let start = self.segment_size.start_of(self.segment_size.segment_of(fork));
        if head.len() as u64 != fork.since(start) {
            bail!(
                "the WAL from {start} to {fork} is {} bytes, but {} were found: archive the whole segment first",
                fork.since(start),
                head.len()
            );
        }
        for (page, address) in head.chunks(XLOG_BLCKSZ).zip((start.0..).step_by(XLOG_BLCKSZ)) {
            PageHeader::decode(page)?.check(Lsn(address), self.segment_size, self.system_identifier)?;
        }
        Ok(())
    }
}

fn fork_after(fork: Lsn, bytes: u64) -> Result<Lsn> {
    match fork.checked_add(bytes) {
        Some(lsn) => Ok(lsn),
        None => bail!("no WAL fits behind {fork}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: WalSegSize = WalSegSize::DEFAULT;
    /// 24 bytes of header, 2 of data header, 88 of checkpoint, aligned.
    const RECORD: u64 = 120;

    fn place() -> Place {
        Place { tli: 2, system_identifier: 77, segment_size: SIZE }
    }

    fn fabricate(fork: u64) -> Run {
        let place = place();
        let at = place.record_position(Lsn(fork)).expect("end of a record");
        let checkpoint = CheckPoint { redo: at, tli: 2, prev_tli: 1, ..CheckPoint::default() };
        place.fabricate(Lsn(fork), Lsn(fork - 64), &checkpoint).expect("end of a record")
    }

    fn header_at(run: &Run, page: u64) -> PageHeader {
        let offset = (page - run.from.0) as usize;
        PageHeader::decode(&run.bytes[offset..]).expect("a page header")
    }

    #[test]
    fn a_record_inside_a_page_stands_at_the_fork() {
        let run = fabricate(0x300_0100);
        assert_eq!(run.record, Lsn(0x300_0100));
        assert_eq!(run.bytes.len() as u64, RECORD);
    }

    #[test]
    fn a_fork_between_pages_moves_past_the_short_header() {
        let run = fabricate(0x300_2000);
        assert_eq!(run.record, Lsn(0x300_2018));
        let header = header_at(&run, 0x300_2000);
        assert_eq!((header.tli, header.page_addr, header.rem_len), (2, Lsn(0x300_2000), 0));
        assert!(header.long.is_none() && !header.has(XLP_FIRST_IS_CONTRECORD));
    }

    #[test]
    fn a_fork_between_segments_moves_past_the_long_header() {
        let run = fabricate(0x300_0000);
        assert_eq!(run.record, Lsn(0x300_0028));
        let long = header_at(&run, 0x300_0000).long.expect("a long header");
        assert_eq!((long.system_identifier, long.seg_size), (77, 1 << 24));
        let segments = place().segments(&[], &run).expect("nothing before");
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0].number, 3);
    }

    #[test]
    fn a_record_that_crosses_a_page_goes_on_behind_a_header_that_says_so() {
        let run = fabricate(0x300_1FF8);
        assert_eq!(run.record, Lsn(0x300_1FF8));
        let header = header_at(&run, 0x300_2000);
        assert!(header.has(XLP_FIRST_IS_CONTRECORD));
        assert_eq!(header.rem_len, 114 - 8);
        assert_eq!(run.bytes.len() as u64, 8 + 24 + 112);
    }

    #[test]
    fn a_record_that_crosses_a_segment_makes_two_files() {
        let run = fabricate(0x3FF_FFE0);
        let head = head_before(0x3FF_FFE0);
        let segments = place().segments(&head, &run).expect("head fits");
        assert_eq!(segments.iter().map(|segment| segment.number).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(segments[0].bytes.len() as u64, SIZE.bytes());
        let header = PageHeader::decode(&segments[1].bytes).expect("a long header");
        assert!(header.long.is_some());
        assert_eq!(header.rem_len, 114 - 32);
    }

    /// A parent's segment up to `fork`: page headers, zeros between.
    fn head_before(fork: u64) -> Vec<u8> {
        let parent = Place { tli: 1, ..place() };
        let start = SIZE.start_of(SIZE.segment_of(Lsn(fork))).0;
        let mut head = Vec::new();
        for page in (start..fork).step_by(XLOG_BLCKSZ) {
            let mut bytes = parent.page_header(Lsn(page), 0).encode();
            bytes.resize(XLOG_BLCKSZ.min((fork - page) as usize), 0);
            head.extend(bytes);
        }
        head
    }

    #[test]
    fn the_parents_bytes_stay_as_they_are() {
        let head = head_before(0x300_2100);
        let run = fabricate(0x300_2100);
        let segments = place().segments(&head, &run).expect("head fits");
        assert_eq!(segments[0].bytes[..head.len()], head);
        assert_eq!(segments[0].bytes[head.len()..], run.bytes);
    }

    #[test]
    fn a_head_that_is_cut_or_of_another_cluster_is_refused() {
        let run = fabricate(0x300_2100);
        let head = head_before(0x300_2100);
        assert!(place().segments(&head[8..], &run).is_err());
        assert!(place().segments(&[], &run).is_err());
        let other = Place { system_identifier: 78, ..place() };
        assert!(other.segments(&head, &run).is_err());
        let mut damaged = head;
        damaged[0x2000] ^= 1;
        assert!(place().segments(&damaged, &run).is_err());
    }

    #[test]
    fn only_the_end_of_a_record_is_a_fork() {
        for lsn in [0, 0x300_0101, 0x300_0020, 0x300_2010] {
            assert!(place().record_position(Lsn(lsn)).is_err(), "{lsn:#x}");
        }
        let checkpoint = CheckPoint::default();
        assert!(place().fabricate(Lsn(0x300_0100), Lsn(0x300_0100), &checkpoint).is_err());
        assert!(place().fabricate(Lsn(u64::MAX - 7), Lsn(0x300_0100), &checkpoint).is_err());
    }
}
