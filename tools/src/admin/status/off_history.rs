//! Segments that are archived and never read: what a server wrote on a TLI after another TLI had left it.

use serde::Serialize;
use std::collections::BTreeMap;
use zenith_manifest::TliSwitch;
use zenith_pgformat::history::History;
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{Lsn, Tli};

/// Segments of one TLI past the point where the history left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OffHistory {
    /// PostgreSQL's timeline number.
    pub tli: Tli,
    /// Where the next TLI begins; `None` where the history does not hold this one at all.
    pub switch: Option<Lsn>,
    /// The file name of the first; the switch may lie inside of it.
    pub first: String,
    /// And of the last.
    pub last: String,
    /// How many are archived.
    pub segments: u64,
}

/// By TLI, of `segments` in order. `sliced` is the history up to where slicing stands, `newest` the one that goes on from there.
pub(super) fn off_history(
    segments: impl IntoIterator<Item = (Tli, u64)>,
    sliced: &[TliSwitch],
    newest: Option<&History>,
    size: WalSegSize,
) -> Vec<OffHistory> {
    let (Some(begun), Some(last)) = (sliced.first(), sliced.last()) else { return Vec::new() };
    let mut left: BTreeMap<Tli, Lsn> = BTreeMap::new();
    left.extend(sliced.windows(2).filter_map(|pair| match pair {
        [before, after] => Some((before.tli, after.from)),
        _ => None,
    }));
    let ahead = newest.map_or(&[][..], History::ancestors);
    left.extend(ahead.iter().filter(|entry| entry.tli >= last.tli).map(|entry| (entry.tli, entry.switch)));
    let current = newest.map_or(last.tli, History::tli);

    let mut found: BTreeMap<Tli, (u64, u64, u64)> = BTreeMap::new();
    for (tli, segment) in segments {
        // Older than the first base image, or of a TLI whose history has not come yet.
        if tli < begun.tli || tli >= current {
            continue;
        }
        if left.get(&tli).is_none_or(|switch| size.start_of(segment.saturating_add(1)) > *switch) {
            let (_, last, count) = found.entry(tli).or_insert((segment, segment, 0));
            *last = segment;
            *count += 1;
        }
    }
    let name = |tli, segment| WalFile::Segment { tli, segment }.name(size);
    let entry = |(tli, (first, last, segments)): (Tli, (u64, u64, u64))| OffHistory {
        tli,
        switch: left.get(&tli).copied(),
        first: name(tli, first),
        last: name(tli, last),
        segments,
    };
    found.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: WalSegSize = WalSegSize::DEFAULT;

    fn switch(tli: Tli, from: Lsn) -> TliSwitch {
        TliSwitch { tli, from }
    }

    #[test]
    fn segments_past_a_switch_are_told_before_and_after_it_is_sliced() {
        let left = Lsn(SIZE.start_of(4).0 + 0x100);
        let history = History::parse(2, format!("1\t{left}\tpromoted\n").as_bytes()).expect("valid");
        let wal = [(1, 2), (1, 3), (1, 4), (1, 6), (2, 4), (2, 5), (3, 5)];
        let expected = OffHistory {
            tli: 1,
            switch: Some(left),
            first: "000000010000000000000004".to_owned(),
            last: "000000010000000000000006".to_owned(),
            segments: 2,
        };
        let first = switch(1, SIZE.start_of(2));
        let ahead = off_history(wal, &[first], Some(&history), SIZE);
        assert_eq!(ahead, std::slice::from_ref(&expected));
        assert_eq!(off_history(wal, &[first, switch(2, left)], None, SIZE), [expected]);
        assert_eq!(off_history(wal, &[first], None, SIZE), [], "nobody has left TLI 1");
        assert_eq!(off_history(wal, &[], None, SIZE), [], "nothing is sliced");
    }

    #[test]
    fn a_segment_that_ends_where_it_was_left_is_read_and_one_of_another_history_is_not() {
        let left = SIZE.start_of(4);
        let wal = [(1, 2), (1, 3), (2, 4), (3, 4)];
        let sliced = [switch(1, SIZE.start_of(2)), switch(3, left)];
        let found = off_history(wal, &sliced, None, SIZE);
        let told: Vec<_> = found.iter().map(|off| (off.tli, off.switch, off.segments)).collect();
        assert_eq!(told, [(2, None, 1)]);
    }
}
