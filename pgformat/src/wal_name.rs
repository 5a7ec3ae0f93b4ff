//! Names of WAL files and positions inside segments (access/xlog_internal.h: `XLogFileName`, `IsXLogFileName`,
//! `TLHistoryFileName`, `BackupHistoryFileName`, `IsPartialXLogFileName`).

use crate::{Lsn, Tli};
use std::fmt;

/// The size of WAL segments: a power of two from 1 MB to 1 GB (`IsValidWalSegSize`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalSegSize(u32);

impl WalSegSize {
    /// PostgreSQL's default, 16 MB.
    pub const DEFAULT: WalSegSize = WalSegSize(16 * 1024 * 1024);

    /// `None` for a size that PostgreSQL does not allow.
    pub fn new(bytes: u64) -> Option<WalSegSize> {
        let valid = bytes.is_power_of_two() && ((1 << 20)..=(1 << 30)).contains(&bytes);
        valid.then_some(WalSegSize(bytes as u32))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// The segment that holds the byte at `lsn` (`XLByteToSeg`).
    pub fn segment_of(self, lsn: Lsn) -> u64 {
        lsn.0 / self.bytes()
    }

    /// Where a segment begins; saturates for numbers past the end of the range.
    pub fn start_of(self, segment: u64) -> Lsn {
        Lsn(segment.saturating_mul(self.bytes()))
    }

    /// The offset of `lsn` in its segment (`XLogSegmentOffset`).
    pub fn offset_of(self, lsn: Lsn) -> u64 {
        lsn.0 % self.bytes()
    }

    /// Segments that share one value of the name's middle part (`XLogSegmentsPerXLogId`).
    fn per_log_id(self) -> u64 {
        0x1_0000_0000 / self.bytes()
    }
}

/// A WAL file that `archive_command` can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WalFile {
    /// A complete segment.
    Segment {
        /// PostgreSQL's timeline number.
        tli: Tli,
        /// Segment number, counted from LSN 0.
        segment: u64,
    },
    /// The last segment of a timeline that was left at a promotion.
    Partial {
        /// PostgreSQL's timeline number.
        tli: Tli,
        /// Segment number, counted from LSN 0.
        segment: u64,
    },
    /// A backup's history file.
    Backup {
        /// PostgreSQL's timeline number.
        tli: Tli,
        /// Segment number of the backup's start.
        segment: u64,
        /// Offset of the start in the segment.
        offset: u32,
    },
    /// A timeline's history file.
    History {
        /// The timeline that the file belongs to.
        tli: Tli,
    },
}

impl WalFile {
    /// Parses a file name, strictly as PostgreSQL writes it. `None` for any other file.
    pub fn parse(name: &str, size: WalSegSize) -> Option<WalFile> {
        if let Some(stem) = name.strip_suffix(".history") {
            return Some(WalFile::History { tli: hex8(stem)? });
        }
        let (stem, rest) = name.split_at_checked(24)?;
        let tli = hex8(stem.get(0..8)?)?;
        let log = u64::from(hex8(stem.get(8..16)?)?);
        let part = u64::from(hex8(stem.get(16..24)?)?);
        if part >= size.per_log_id() {
            return None;
        }
        let segment = log * size.per_log_id() + part;
        match rest {
            "" => Some(WalFile::Segment { tli, segment }),
            ".partial" => Some(WalFile::Partial { tli, segment }),
            _ => {
                let offset = hex8(rest.strip_prefix('.')?.strip_suffix(".backup")?)?;
                Some(WalFile::Backup { tli, segment, offset })
            }
        }
    }

    /// The name as PostgreSQL writes it.
    pub fn name(&self, size: WalSegSize) -> String {
        let stem = |tli: Tli, segment: u64| {
            format!("{tli:08X}{:08X}{:08X}", segment / size.per_log_id(), segment % size.per_log_id())
        };
        match *self {
            WalFile::Segment { tli, segment } => stem(tli, segment),
            WalFile::Partial { tli, segment } => format!("{}.partial", stem(tli, segment)),
            WalFile::Backup { tli, segment, offset } => format!("{}.{offset:08X}.backup", stem(tli, segment)),
            WalFile::History { tli } => format!("{tli:08X}.history"),
        }
    }

    /// The timeline number in the name.
    pub fn tli(&self) -> Tli {
        match *self {
            WalFile::Segment { tli, .. }
            | WalFile::Partial { tli, .. }
            | WalFile::Backup { tli, .. }
            | WalFile::History { tli } => tli,
        }
    }
}

/// Displays a segment of a given size by its file name.
pub struct SegmentName(pub Tli, pub u64, pub WalSegSize);

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&WalFile::Segment { tli: self.0, segment: self.1 }.name(self.2))
    }
}

/// Exactly eight upper-case hexadecimal digits, which is all that PostgreSQL's name tests accept.
fn hex8(digits: &str) -> Option<u32> {
    let valid = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if valid { u32::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_archived_name_reads_back() {
        for (name, size) in [
            ("000000010000000000000001", 1 << 24),
            ("0000000A000000FF000000FE", 1 << 24),
            ("000000010000000000000FFF", 1 << 20),
            ("000000010000000000000003.partial", 1 << 30),
            ("000000010000000000000002.00000028.backup", 1 << 24),
            ("00000002.history", 1 << 24),
        ] {
            let size = WalSegSize::new(size).expect("valid size");
            let file = WalFile::parse(name, size).expect(name);
            assert_eq!(file.name(size), name);
        }
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            "00000001000000000000000",
            "0000000100000000000000010",
            "00000001000000000000000a",
            "000000010000000000000100",
            "000000010000000000000001.backup",
            "2.history",
            "é0000001000000000000000001",
            "RECOVERYXLOG",
        ] {
            assert_eq!(WalFile::parse(name, WalSegSize::DEFAULT), None, "{name}");
        }
    }

    #[test]
    fn only_postgresqls_segment_sizes_are_valid() {
        assert!(WalSegSize::new(1 << 20).is_some());
        assert!(WalSegSize::new(1 << 30).is_some());
        assert!(WalSegSize::new(1 << 19).is_none());
        assert!(WalSegSize::new(1 << 31).is_none());
        assert!(WalSegSize::new(3 << 20).is_none());
    }
}
