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
pub(crate) type Type = (RmgrId, &'static str);

/// Record types whose both sides are always looked at: a restore begins at a checkpoint, behind a switch the next
/// record is in another segment, and before an overwritten record lies one that was lost.
const BOTH_SIDES: [Type; 6] = [
    (RmgrId::XLOG, "OVERWRITE_CONTRECORD"),
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

    /// How many records each type has.
    pub(crate) fn by_type(&self) -> BTreeMap<Type, usize> {
        self.types.iter().map(|(kind, indexes)| (*kind, indexes.len())).collect()
    }

    /// Up to `count` ends of records and why each was chosen: a third spread evenly over the records, of which the last is
    /// the end of all; the others right before and right behind a record, by turns one of those named above and one of
    /// the rarest type, for few others reach it.
    pub(crate) fn moments(&self, count: usize) -> BTreeMap<Lsn, String> {
        let last = self.ends.len() - 1;
        let even = count.div_ceil(3);
        let even = (1..=even).map(|index| (last * index / even, "in passing".to_owned()));
        let (mut named, mut rare) = (self.named(), self.rare());
        let mut turn = false;
        let awkward = std::iter::from_fn(|| {
            turn = !turn;
            if turn { named.next().or_else(|| rare.next()) } else { rare.next().or_else(|| named.next()) }
        });
        let mut chosen = BTreeMap::new();
        for (index, why) in even.chain(awkward) {
            if chosen.len() < count {
                chosen.entry(self.ends[index]).or_insert(why);
            }
        }
        chosen
    }

    fn named(&self) -> impl Iterator<Item = (usize, String)> {
        let known = BOTH_SIDES.into_iter().filter(|kind| self.types.contains_key(kind));
        known.flat_map(|kind| [self.beside(kind, false), self.beside(kind, true)]).flatten()
    }

    fn rare(&self) -> impl Iterator<Item = (usize, String)> {
        let mut types: Vec<Type> = self.types.keys().copied().collect();
        types.retain(|kind| !BOTH_SIDES.contains(kind));
        types.sort_by_key(|kind| self.types[kind].len());
        types.into_iter().enumerate().filter_map(|(index, kind)| self.beside(kind, index % 2 == 0))
    }

    /// One side of the record in the middle of those of a type.
    fn beside(&self, kind: Type, behind: bool) -> Option<(usize, String)> {
        let (rmgr, name) = kind;
        let all = &self.types[&kind];
        let index = all[all.len() / 2];
        let (index, side) = if behind { (index, "behind") } else { (index.checked_sub(1)?, "before") };
        Some((index, format!("right {side} {rmgr} {name}")))
    }
}

#[test]
fn runs_are_compared_on_both_sides_of_checkpoints_beside_rare_records_and_at_their_end() {
    let mut archived =
        Archived { ends: (1..=100).map(|index| Lsn(8 * index)).collect(), ..Archived::default() };
    let shutdown = (RmgrId::XLOG, "CHECKPOINT_SHUTDOWN");
    let map = (RmgrId::RELMAP, "UPDATE");
    archived.types = BTreeMap::from([(shutdown, vec![39]), (map, vec![0, 70, 80])]);
    archived.types.insert((RmgrId::HEAP, "INSERT"), (1..39).chain(40..70).chain(81..100).collect());
    let chosen: Vec<u64> = archived.moments(6).into_keys().map(|lsn| lsn.0 / 8).collect();
    // At the half and the end; before and behind the shutdown; behind the map's change; before an insertion.
    assert_eq!(chosen, [39, 40, 45, 50, 71, 100]);
    assert_eq!(archived.moments(1).into_keys().last(), Some(Lsn(800)));
}
