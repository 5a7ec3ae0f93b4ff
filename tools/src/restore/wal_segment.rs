//! The first WAL of the new timeline: the parent's bytes up to the LSN, then the fabricated checkpoint record.
//!
//! PostgreSQL lays out a promotion in the same way (`XLogFileCopy`, xlog.c): recovery that follows the fork reads the
//! segment from the *new* timeline, so what lies before the fork must be in it.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::wal::encode::{WalWriter, WriterStart};
use zenith_pgformat::wal::page::{LONG_HEADER, PageHeader, SHORT_HEADER};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{Lsn, Tli, XLOG_BLCKSZ};

/// `XLOG_CHECKPOINT_SHUTDOWN` (catalog/pg_control.h).
const CHECKPOINT_SHUTDOWN: u8 = 0x00;

/// Where a timeline leaves its parent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fork {
    /// The end of the parent's last record that is in.
    pub(crate) lsn: Lsn,
    /// Where that record starts.
    pub(crate) last_record: Lsn,
    /// The new timeline.
    pub(crate) tli: Tli,
    /// The cluster.
    pub(crate) system_identifier: u64,
    /// Its segment size.
    pub(crate) segment_size: WalSegSize,
}

/// One segment of the new timeline, in its full length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    /// Its number.
    pub(crate) number: u64,
    /// Its contents.
    pub(crate) bytes: Bytes,
}

impl Fork {
    /// Where the first record after the fork starts: there, or past the header of the page that begins there.
    ///
    /// # Errors
    /// When no record can end at the fork.
    pub(crate) fn record_position(&self) -> Result<Lsn> {
        let in_page = self.lsn.0 % XLOG_BLCKSZ as u64;
        let page = Lsn(self.lsn.0 - in_page);
        let header = if self.segment_size.offset_of(page) == 0 { LONG_HEADER } else { SHORT_HEADER } as u64;
        let aligned = self.lsn.is_valid() && self.lsn == self.lsn.max_align();
        if !aligned || (in_page > 0 && in_page < header) {
            bail!("{} is not the end of a WAL record: choose the end of the last record before it", self.lsn);
        }
        if self.last_record >= self.lsn || !self.last_record.is_valid() {
            bail!("the last record before {} cannot start at {}", self.lsn, self.last_record);
        }
        let position = if in_page == 0 { self.lsn.checked_add(header) } else { Some(self.lsn) };
        let within_reach = position.filter(|position| position.0 < u64::MAX - 2 * self.segment_size.bytes());
        within_reach.with_context(|| format!("no WAL fits behind {}", self.lsn))
    }

    /// The new timeline's segments: the parent's bytes from the start of the fork's segment (`head`), then the shutdown
    /// checkpoint, whose redo position is its own. Two segments when the record crosses into the next one.
    ///
    /// # Errors
    /// A head that is not this segment's, up to the fork, of this cluster.
    pub(crate) fn segments(&self, head: &[u8], checkpoint: &CheckPoint) -> Result<Vec<Segment>> {
        self.check_head(head)?;
        let start = WriterStart {
            lsn: self.lsn,
            prev: self.last_record,
            tli: self.tli,
            seg_size: self.segment_size,
            system_identifier: self.system_identifier,
        };
        let mut writer = WalWriter::continue_segment(start, head)?;
        let placed = writer.append(RmgrId::XLOG, CHECKPOINT_SHUTDOWN, 0, &checkpoint.encode());
        ensure!(
            placed.lsn == checkpoint.redo,
            "the checkpoint of {} was written at {}",
            checkpoint.redo,
            placed.lsn
        );
        let bytes = Bytes::from(writer.finish());
        let size = self.segment_size.bytes() as usize;
        let numbers = self.segment_size.segment_of(self.lsn)..;
        let starts = (0..bytes.len()).step_by(size);
        Ok(starts
            .zip(numbers)
            .map(|(from, number)| Segment { number, bytes: bytes.slice(from..from + size) })
            .collect())
    }

    /// The parent's bytes must be of this cluster and stand where they belong.
    fn check_head(&self, head: &[u8]) -> Result<()> {
        let start = self.segment_size.start_of(self.segment_size.segment_of(self.lsn));
        let length = self.lsn.since(start);
        if head.len() as u64 != length {
            bail!(
                "the WAL from {start} to {} is {length} bytes, but {} were found: archive that segment first",
                self.lsn,
                head.len()
            );
        }
        for (page, address) in head.chunks(XLOG_BLCKSZ).zip((start.0..).step_by(XLOG_BLCKSZ)) {
            PageHeader::decode(page)?.check(Lsn(address), self.segment_size, self.system_identifier)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zenith_pgformat::wal::page::{LongHeader, XLP_FIRST_IS_CONTRECORD};

    const SIZE: WalSegSize = WalSegSize::DEFAULT;

    fn fork(lsn: u64) -> Fork {
        Fork { lsn: Lsn(lsn), last_record: Lsn(lsn - 64), tli: 2, system_identifier: 77, segment_size: SIZE }
    }

    fn checkpoint(fork: &Fork) -> CheckPoint {
        let redo = fork.record_position().expect("end of a record");
        CheckPoint { redo, tli: 2, prev_tli: 1, ..CheckPoint::default() }
    }

    /// A parent's segment up to the fork: page headers, zeros between.
    fn head(fork: &Fork) -> Vec<u8> {
        let start = SIZE.start_of(SIZE.segment_of(fork.lsn));
        let mut head = Vec::new();
        for page in (start.0..fork.lsn.0).step_by(XLOG_BLCKSZ) {
            let long = LongHeader { system_identifier: 77, seg_size: 1 << 24, xlog_blcksz: 8192 };
            let long = (page == start.0).then_some(long);
            let header = PageHeader { info: 0, tli: 1, page_addr: Lsn(page), rem_len: 0, long };
            let mut bytes = header.encode();
            bytes.resize(XLOG_BLCKSZ.min((fork.lsn.0 - page) as usize), 0);
            head.extend(bytes);
        }
        head
    }

    fn segments(lsn: u64) -> Vec<Segment> {
        let fork = fork(lsn);
        fork.segments(&head(&fork), &checkpoint(&fork)).expect("head fits")
    }

    fn header_at(segment: &Segment, offset: usize) -> PageHeader {
        PageHeader::decode(&segment.bytes[offset..]).expect("a page header")
    }

    /// `xl_tot_len` and `xl_prev` of the record at an offset.
    fn record_at(segment: &Segment, offset: usize) -> (u32, u64) {
        let bytes = &segment.bytes[offset..];
        (
            u32::from_le_bytes(bytes[..4].try_into().expect("4")),
            u64::from_le_bytes(bytes[8..16].try_into().expect("8")),
        )
    }

    #[test]
    fn a_record_inside_a_page_stands_at_the_fork_behind_the_parents_bytes() {
        let segments = segments(0x300_2100);
        assert_eq!(segments.len(), 1);
        assert_eq!((segments[0].number, segments[0].bytes.len() as u64), (3, SIZE.bytes()));
        assert_eq!(segments[0].bytes[..0x2100], head(&fork(0x300_2100)));
        assert_eq!(record_at(&segments[0], 0x2100), (114, 0x300_2100 - 64));
        assert!(segments[0].bytes[0x2100 + 120..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_fork_between_pages_moves_past_the_short_header() {
        let segments = segments(0x300_2000);
        let header = header_at(&segments[0], 0x2000);
        assert_eq!((header.tli, header.page_addr, header.rem_len), (2, Lsn(0x300_2000), 0));
        assert!(header.long.is_none() && !header.has(XLP_FIRST_IS_CONTRECORD));
        assert_eq!(record_at(&segments[0], 0x2018).0, 114);
    }

    #[test]
    fn a_fork_between_segments_moves_past_the_long_header() {
        let segments = segments(0x300_0000);
        let long = header_at(&segments[0], 0).long.expect("a long header");
        assert_eq!((long.system_identifier, long.seg_size, segments[0].number), (77, 1 << 24, 3));
        assert_eq!(record_at(&segments[0], 0x28).0, 114);
    }

    #[test]
    fn a_record_that_crosses_a_page_goes_on_behind_a_header_that_says_so() {
        let segments = segments(0x300_1FF8);
        let header = header_at(&segments[0], 0x2000);
        assert!(header.has(XLP_FIRST_IS_CONTRECORD));
        assert_eq!(header.rem_len, 114 - 8);
    }

    #[test]
    fn a_record_that_crosses_a_segment_makes_two_files() {
        let segments = segments(0x3FF_FFE0);
        assert_eq!(segments.iter().map(|segment| segment.number).collect::<Vec<_>>(), [3, 4]);
        let header = header_at(&segments[1], 0);
        assert!(header.long.is_some());
        assert_eq!((header.tli, header.rem_len), (2, 114 - 32));
    }

    #[test]
    fn a_head_that_is_cut_damaged_or_of_another_cluster_is_refused() {
        let fork = fork(0x300_2100);
        let checkpoint = checkpoint(&fork);
        let head = head(&fork);
        assert!(fork.segments(&head[8..], &checkpoint).is_err());
        assert!(fork.segments(&[], &checkpoint).is_err());
        let other = Fork { system_identifier: 78, ..fork };
        assert!(other.segments(&head, &checkpoint).is_err());
        let mut damaged = head;
        damaged[0x2000] ^= 1;
        assert!(fork.segments(&damaged, &checkpoint).is_err());
    }

    #[test]
    fn only_the_end_of_a_record_is_a_fork() {
        for lsn in [0x300_0101, 0x300_0020, 0x300_2010, u64::MAX - 7] {
            assert!(fork(lsn).record_position().is_err(), "{lsn:#x}");
        }
        for last_record in [0, 0x300_2100] {
            assert!(Fork { last_record: Lsn(last_record), ..fork(0x300_2100) }.record_position().is_err());
        }
        assert!(Fork { lsn: Lsn(0), ..fork(0x300_2100) }.record_position().is_err());
    }
}
