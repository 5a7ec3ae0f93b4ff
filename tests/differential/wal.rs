//! The WAL of a run: how many records, and at which of their ends to compare.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use zenith_pgformat::Lsn;
use zenith_pgformat::wal::{Record, RmgrId, StreamStart, WalStream, describe};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};

/// What an archive holds between two LSNs.
#[derive(Default)]
pub(crate) struct Archived {
    /// Ends of all records.
    ends: Vec<Lsn>,
    /// Which of them each record type has.
    types: BTreeMap<Type, Vec<usize>>,
    /// How many records each resource manager has.
    pub(crate) by_rmgr: BTreeMap<RmgrId, usize>,
    /// Bytes of WAL.
    pub(crate) bytes: u64,
}

/// A record type, as `pg_waldump` names it.
type Type = (RmgrId, &'static str);

/// Record types whose both sides are always looked at: a restore begins at a checkpoint, and behind a switch the next
/// record is in another segment.
const BOTH_SIDES: [Type; 5] = [
    (RmgrId::XLOG, "CHECKPOINT_SHUTDOWN"),
    (RmgrId::XLOG, "CHECKPOINT_ONLINE"),
    (RmgrId::XLOG, "SWITCH"),
    (RmgrId::XACT, "PREPARE"),
    (RmgrId::XACT, "COMMIT_PREPARED"),
];

impl Archived {
    /// Reads the plain segments of TLI 1 in a folder: the records that end after `from` and at or before `to`.
    pub(crate) fn read(folder: &Path, size: WalSegSize, from: Lsn, to: Lsn) -> Archived {
        let start =
            StreamStart { lsn: from, prev: Lsn::INVALID, tli: 1, seg_size: size, system_identifier: 0 };
        let mut stream = WalStream::new(start);
        let mut archived = Archived { bytes: to.0 - from.0, ..Archived::default() };
        loop {
            match stream.next().expect("sound WAL") {
                Some(record) if record.end > to => return archived,
                Some(record) => archived.add(&record),
                None => {
                    let segment = stream.wants();
                    if segment >= to {
                        return archived;
                    }
                    let name = WalFile::Segment { tli: 1, segment: size.segment_of(segment) }.name(size);
                    let bytes = std::fs::read(folder.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
                    stream.feed(segment, Bytes::from(bytes)).expect("the segment it wants");
                }
            }
        }
    }

    fn add(&mut self, record: &Record) {
        let name = describe::type_name(record.rmgr, record.info).expect("a known record");
        self.types.entry((record.rmgr, name)).or_default().push(self.ends.len());
        self.ends.push(record.end);
        *self.by_rmgr.entry(record.rmgr).or_default() += 1;
    }

    /// How many records there are.
    pub(crate) fn records(&self) -> usize {
        self.ends.len()
    }

    /// How many record types there are.
    pub(crate) fn types(&self) -> usize {
        self.types.len()
    }

    /// Up to `count` ends of records and why each was chosen: a third spread evenly over the records, of which the last is
    /// the end of all; the others right before and right behind a record, those of rare types first, for few others
    /// reach them.
    pub(crate) fn moments(&self, count: usize) -> BTreeMap<Lsn, String> {
        let last = self.ends.len() - 1;
        let even = count.div_ceil(3);
        let even = (1..=even).map(|index| (last * index / even, "in passing".to_owned()));
        let mut chosen = BTreeMap::new();
        for (index, why) in even.chain(self.awkward()) {
            if chosen.len() < count {
                chosen.entry(self.ends[index]).or_insert(why);
            }
        }
        chosen
    }

    fn awkward(&self) -> impl Iterator<Item = (usize, String)> {
        let both = BOTH_SIDES.into_iter().filter(|kind| self.types.contains_key(kind));
        let both = both.flat_map(|kind| [(kind, false), (kind, true)]);
        let mut rare: Vec<&Type> = self.types.keys().filter(|kind| !BOTH_SIDES.contains(kind)).collect();
        rare.sort_by_key(|kind| self.types[kind].len());
        let rare = rare.into_iter().enumerate().map(|(index, kind)| (*kind, index % 2 == 0));
        both.chain(rare).filter_map(|((rmgr, name), behind)| {
            let all = &self.types[&(rmgr, name)];
            let index = all[all.len() / 2];
            let index = if behind { index } else { index.checked_sub(1)? };
            Some((index, format!("right {} {rmgr} {name}", if behind { "behind" } else { "before" })))
        })
    }
}
