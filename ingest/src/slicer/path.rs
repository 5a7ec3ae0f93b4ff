//! Which TLI each segment is read from: the history that slicing follows (PROTOCOLS.md §4).

use crate::error::IngestError;
use zenith_manifest::{BaseImage, TliSwitch};
use zenith_pgformat::history::History;
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{Lsn, Tli};

/// The TLI that slicing stands on, and those that follow it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TliPath {
    current: Tli,
    /// In order.
    ahead: Vec<TliSwitch>,
}

impl TliPath {
    pub(super) fn only(current: Tli) -> TliPath {
        TliPath { current, ahead: Vec::new() }
    }

    /// The path along the newest of `histories` (those of TLIs above `current`), for slicing that has come to
    /// `sliced` along `followed`.
    pub(super) fn along(
        current: Tli,
        sliced: Lsn,
        followed: &[TliSwitch],
        histories: &[History],
    ) -> Result<TliPath, IngestError> {
        let Some(newest) = histories.iter().max_by_key(|history| history.tli()) else {
            return Ok(TliPath::only(current));
        };
        for other in histories.iter().filter(|history| history.tli() != newest.tli()) {
            if !newest.descends_from(other) {
                return Err(IngestError::TwoHistories { first: other.tli(), second: newest.tli() });
            }
        }
        let diverged =
            |from: Tli, switch: Lsn| Err(IngestError::Diverged { tli: newest.tli(), from, switch, sliced });
        let Some(leaves) = newest.switch_point(current) else {
            // It left this history before the current TLI began.
            let shared = newest
                .ancestors()
                .iter()
                .rev()
                .find(|entry| followed.iter().any(|switch| switch.tli == entry.tli));
            return diverged(current, shared.map_or(newest.begin(), |entry| entry.switch));
        };
        if leaves < sliced {
            return diverged(current, leaves);
        }
        let mut ahead = Vec::new();
        let mut from = leaves;
        for entry in newest.ancestors().iter().skip_while(|entry| entry.tli <= current) {
            ahead.push(TliSwitch { tli: entry.tli, from });
            from = entry.switch;
        }
        ahead.push(TliSwitch { tli: newest.tli(), from });
        Ok(TliPath { current, ahead })
    }

    /// The switch that comes next.
    pub(super) fn next_switch(&self) -> Option<TliSwitch> {
        self.ahead.first().copied()
    }

    /// The next switch was made.
    pub(super) fn enter_next(&mut self) {
        if !self.ahead.is_empty() {
            self.current = self.ahead.remove(0).tli;
        }
    }

    /// `tli` and the TLIs that follow it on the path.
    pub(super) fn from(&self, tli: Tli) -> Vec<Tli> {
        let ahead = self.ahead.iter().map(|switch| switch.tli).filter(|later| *later > tli);
        std::iter::once(tli).chain(ahead).collect()
    }

    /// Whether slicing may come to a base image ahead: one on this path, or of a TLI whose history is not archived.
    pub(super) fn may_lead_to(&self, base: &BaseImage) -> bool {
        let newest = self.ahead.last().map_or(self.current, |switch| switch.tli);
        let begun = self.ahead.iter().rev().find(|switch| switch.from <= base.redo);
        let there = begun.map_or(self.current, |switch| switch.tli);
        base.tli == there || base.tli > newest
    }

    /// The TLI whose file holds segment `segment`: the newest that has begun in it or before. Its first segment
    /// begins with its parent's pages.
    pub(super) fn tli_of_segment(&self, segment: u64, size: WalSegSize) -> Tli {
        let begun = self.ahead.iter().rev().find(|switch| size.segment_of(switch.from) <= segment);
        begun.map_or(self.current, |switch| switch.tli)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(tli: Tli, text: &str) -> History {
        History::parse(tli, text.as_bytes()).unwrap()
    }

    fn switch(tli: Tli, from: u64) -> TliSwitch {
        TliSwitch { tli, from: Lsn(from) }
    }

    #[test]
    fn slicing_goes_on_along_the_newest_history() {
        let second = history(2, "1\t0/3000100\tpromoted\n");
        let third = history(3, "1\t0/3000100\tpromoted\n2\t0/5000200\tpromoted\n");
        let path =
            TliPath::along(1, Lsn(0x3000100), &[switch(1, 0)], &[second.clone(), third.clone()]).unwrap();
        assert_eq!(path.ahead, [switch(2, 0x300_0100), switch(3, 0x500_0200)]);
        let size = WalSegSize::DEFAULT;
        let tlis: Vec<Tli> = (1..7).map(|segment| path.tli_of_segment(segment, size)).collect();
        assert_eq!(tlis, [1, 1, 2, 2, 3, 3]);
        let later =
            TliPath::along(2, Lsn(0x400_0000), &[switch(1, 0), switch(2, 0x300_0100)], &[third]).unwrap();
        assert_eq!(later.ahead, [switch(3, 0x500_0200)]);
    }

    #[test]
    fn a_history_that_left_before_the_sliced_lsn_stops_with_the_switch_point() {
        let second = history(2, "1\t0/3000100\tpromoted\n");
        let result = TliPath::along(1, Lsn(0x300_0108), &[switch(1, 0)], &[second]);
        assert!(
            matches!(result, Err(IngestError::Diverged { tli: 2, from: 1, switch: Lsn(0x300_0100), .. })),
            "{result:?}"
        );
        // TLI 3 left TLI 1 below where slicing entered TLI 2.
        let third = history(3, "1\t0/2000000\tpromoted\n");
        let result = TliPath::along(2, Lsn(0x400_0000), &[switch(1, 0), switch(2, 0x300_0100)], &[third]);
        assert!(
            matches!(result, Err(IngestError::Diverged { tli: 3, switch: Lsn(0x200_0000), .. })),
            "{result:?}"
        );
    }

    #[test]
    fn two_histories_that_do_not_continue_one_another_stop() {
        let second = history(2, "1\t0/3000100\tpromoted\n");
        let third = history(3, "1\t0/3000200\tpromoted\n");
        let result = TliPath::along(1, Lsn(0x100_0000), &[switch(1, 0)], &[second, third]);
        assert!(matches!(result, Err(IngestError::TwoHistories { first: 2, second: 3 })), "{result:?}");
    }
}
