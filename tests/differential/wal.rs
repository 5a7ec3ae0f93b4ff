//! The WAL of a run: how many records, and at which of their ends to compare.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use zenith_pgformat::Lsn;
use zenith_pgformat::wal::{RmgrId, StreamStart, WalStream};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};

/// What an archive holds between two LSNs.
pub(crate) struct Archived {
    /// Ends of all records.
    ends: Vec<Lsn>,
    /// How many records each resource manager has.
    pub(crate) by_rmgr: BTreeMap<RmgrId, usize>,
    /// Bytes of WAL.
    pub(crate) bytes: u64,
}

impl Archived {
    /// Reads the plain segments of TLI 1 in a folder: the records that end after `from` and at or before `to`.
    pub(crate) fn read(folder: &Path, size: WalSegSize, from: Lsn, to: Lsn) -> Archived {
        let start =
            StreamStart { lsn: from, prev: Lsn::INVALID, tli: 1, seg_size: size, system_identifier: 0 };
        let mut stream = WalStream::new(start);
        let (mut ends, mut by_rmgr) = (Vec::new(), BTreeMap::new());
        loop {
            match stream.next().expect("sound WAL") {
                Some(record) if record.end > to => break,
                Some(record) => {
                    ends.push(record.end);
                    *by_rmgr.entry(record.rmgr).or_default() += 1;
                }
                None => {
                    let segment = stream.wants();
                    let name = WalFile::Segment { tli: 1, segment: size.segment_of(segment) }.name(size);
                    let bytes = std::fs::read(folder.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
                    stream.feed(segment, Bytes::from(bytes)).expect("the segment it wants");
                }
            }
        }
        Archived { ends, by_rmgr, bytes: to.0 - from.0 }
    }

    /// How many records there are.
    pub(crate) fn records(&self) -> usize {
        self.ends.len()
    }

    /// `count` ends of records, spread evenly over the records; the last one is the end of all.
    pub(crate) fn spread(&self, count: usize) -> Vec<Lsn> {
        let last = self.ends.len() - 1;
        let mut chosen: Vec<Lsn> = (1..=count).map(|index| self.ends[last * index / count]).collect();
        chosen.dedup();
        chosen
    }
}
