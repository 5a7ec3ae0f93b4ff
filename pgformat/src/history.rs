//! Timeline history files, `XXXXXXXX.history` (access/timeline.h, timeline.c).
//!
//! One line for each ancestor, oldest first: its TLI, the position where the next one begins, and a reason, separated
//! by tabs. The newest timeline has no line of its own.

use crate::{Lsn, Tli};
use std::fmt::Write as _;

/// A stretch of WAL on one timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryEntry {
    /// The timeline.
    pub tli: Tli,
    /// Where the next one begins: everything before belongs to this one.
    pub switch: Lsn,
}

/// A timeline and its ancestors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    tli: Tli,
    ancestors: Vec<HistoryEntry>,
}

/// Why a text is no history file. Callers add the file's name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HistoryError {
    /// A line that PostgreSQL could not read.
    #[error("line {line} of the timeline history does not read \"TLI, tab, LSN, tab, reason\": \"{text}\"")]
    Syntax {
        /// Line number from 1.
        line: usize,
        /// Its text.
        text: String,
    },
    /// Timelines must grow down the file and stay below the file's own.
    #[error("line {line} of the history of timeline {tli}: timeline {found} is out of order")]
    Order {
        /// Line number from 1.
        line: usize,
        /// The file's own timeline.
        tli: Tli,
        /// The timeline on the line.
        found: Tli,
    },
    /// Switch points must not go back.
    #[error("line {line} of the history of timeline {tli}: switch point {switch} is before the one above it")]
    SwitchPoint {
        /// Line number from 1.
        line: usize,
        /// The file's own timeline.
        tli: Tli,
        /// The switch point on the line.
        switch: Lsn,
    },
}

impl History {
    /// The history of a timeline that has no file: timeline 1, or one whose past is unknown.
    pub fn first(tli: Tli) -> History {
        History { tli, ancestors: Vec::new() }
    }

    /// The history of a child that leaves this one at `switch`. `None` unless the child's TLI is higher and `switch`
    /// is not before this timeline's own beginning.
    pub fn branch(&self, child: Tli, switch: Lsn) -> Option<History> {
        let own_start = self.begin();
        if child <= self.tli || switch < own_start {
            return None;
        }
        let mut ancestors = self.ancestors.clone();
        ancestors.push(HistoryEntry { tli: self.tli, switch });
        Some(History { tli: child, ancestors })
    }

    /// Parses the history file of `tli` as `readTimeLineHistory` does: blank lines and `#` comments are skipped.
    pub fn parse(tli: Tli, text: &[u8]) -> Result<History, HistoryError> {
        let text = String::from_utf8_lossy(text);
        let mut ancestors: Vec<HistoryEntry> = Vec::new();
        for (index, text) in text.lines().enumerate() {
            let line = index + 1;
            let trimmed = text.trim_start();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let entry = parse_line(trimmed)
                .ok_or_else(|| HistoryError::Syntax { line, text: text.chars().take(100).collect() })?;
            let above = ancestors.last().map_or((0, Lsn::INVALID), |above| (above.tli, above.switch));
            if entry.tli <= above.0 || entry.tli >= tli {
                return Err(HistoryError::Order { line, tli, found: entry.tli });
            }
            if entry.switch < above.1 {
                return Err(HistoryError::SwitchPoint { line, tli, switch: entry.switch });
            }
            ancestors.push(entry);
        }
        Ok(History { tli, ancestors })
    }

    /// The newest timeline.
    pub fn tli(&self) -> Tli {
        self.tli
    }

    /// The ancestors, oldest first.
    pub fn ancestors(&self) -> &[HistoryEntry] {
        &self.ancestors
    }

    /// Where the newest timeline begins; 0/0 for the first one.
    pub fn begin(&self) -> Lsn {
        self.ancestors.last().map_or(Lsn::INVALID, |entry| entry.switch)
    }

    /// Whether `tli` is the newest timeline or one of its ancestors (`tliInHistory`).
    pub fn contains(&self, tli: Tli) -> bool {
        tli == self.tli || self.ancestors.iter().any(|entry| entry.tli == tli)
    }

    /// The timeline that the byte at `lsn` belongs to (`tliOfPointInHistory`).
    pub fn tli_of(&self, lsn: Lsn) -> Tli {
        self.ancestors.iter().find(|entry| lsn < entry.switch).map_or(self.tli, |entry| entry.tli)
    }

    /// Where an ancestor was left (`tliSwitchPoint`); `None` for the newest timeline and for strangers.
    pub fn switch_point(&self, tli: Tli) -> Option<Lsn> {
        self.ancestors.iter().find(|entry| entry.tli == tli).map(|entry| entry.switch)
    }

    /// Whether `other`'s newest timeline is an ancestor of this one, or this one itself, with the same way there.
    pub fn descends_from(&self, other: &History) -> bool {
        let way: Vec<HistoryEntry> =
            self.ancestors.iter().copied().take_while(|entry| entry.tli < other.tli).collect();
        self.contains(other.tli) && way == other.ancestors
    }
}

/// The text of a child's history file (`writeTimeLineHistory`): the parent's file, then one line for the parent.
/// `reason` is one line of text for people.
pub fn child_file(parent_file: &[u8], parent: Tli, switch: Lsn, reason: &str) -> Vec<u8> {
    let mut line = String::new();
    if !parent_file.is_empty() {
        line.push('\n');
    }
    let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(line, "{parent}\t{switch}\t{reason}");
    [parent_file, line.as_bytes()].concat()
}

/// `TLI LSN …`, white space between; PostgreSQL's `sscanf("%u\t%X/%X")` takes any.
fn parse_line(line: &str) -> Option<HistoryEntry> {
    let mut words = line.split_whitespace();
    let tli = words.next()?.parse().ok().filter(|tli| *tli > 0)?;
    let switch = words.next()?.parse().ok()?;
    Some(HistoryEntry { tli, switch })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const THREE: &[u8] = b"1\t0/3000000\tno recovery target specified\n\n2\t0/5000028\tbefore 2000-01-01\n";

    #[test]
    fn positions_belong_to_the_timeline_that_was_current() {
        let history = History::parse(3, THREE).expect("valid");
        assert_eq!(history.tli_of(Lsn(0)), 1);
        assert_eq!(history.tli_of(Lsn(0x2FF_FFFF)), 1);
        assert_eq!(history.tli_of(Lsn(0x300_0000)), 2);
        assert_eq!(history.tli_of(Lsn(0x500_0028)), 3);
        assert_eq!(history.switch_point(1), Some(Lsn(0x300_0000)));
        assert_eq!(history.switch_point(3), None);
        assert_eq!(history.begin(), Lsn(0x500_0028));
        assert!(history.contains(2) && !history.contains(4));
    }

    #[test]
    fn a_childs_file_reads_back_with_its_parents() {
        let first = child_file(b"", 1, Lsn(0x300_0000), "no recovery target specified");
        assert_eq!(first, b"1\t0/3000000\tno recovery target specified\n");
        let second = child_file(&first, 2, Lsn(0x500_0028), "before 2000-01-01");
        assert_eq!(second, THREE);
        let parent = History::parse(2, &first).expect("valid");
        assert_eq!(History::parse(3, &second).ok(), parent.branch(3, Lsn(0x500_0028)));
    }

    #[test]
    fn a_reason_cannot_break_the_file() {
        let text = child_file(b"", 1, Lsn(0x28), "two\nlines");
        assert_eq!(text, b"1\t0/28\ttwo lines\n");
    }

    #[test]
    fn comments_and_blank_lines_are_skipped() {
        let history = History::parse(2, b"# why\n\n  1 0/28\n").expect("valid");
        assert_eq!(history.ancestors(), [HistoryEntry { tli: 1, switch: Lsn(0x28) }]);
    }

    #[test]
    fn damage_is_named_with_its_line() {
        for text in ["x\t0/0\n", "1\n", "1\t0\n", "0\t0/28\n", "-1\t0/28\n"] {
            let error = History::parse(9, text.as_bytes()).expect_err(text);
            assert!(matches!(error, HistoryError::Syntax { line: 1, .. }), "{error}");
        }
        let order = History::parse(9, b"2\t0/28\n1\t0/30\n");
        assert!(matches!(order, Err(HistoryError::Order { line: 2, found: 1, .. })));
        assert!(matches!(History::parse(2, b"2\t0/28\n"), Err(HistoryError::Order { line: 1, .. })));
        let back = History::parse(9, b"1\t0/30\n2\t0/28\n");
        assert!(matches!(back, Err(HistoryError::SwitchPoint { line: 2, .. })));
    }

    #[test]
    fn only_a_child_of_the_same_past_descends() {
        let parent = History::parse(2, b"1\t0/3000000\tx\n").expect("valid");
        let child = parent.branch(3, Lsn(0x500_0000)).expect("later");
        assert!(child.descends_from(&parent) && child.descends_from(&History::first(1)));
        assert!(child.descends_from(&child) && !parent.descends_from(&child));
        let other = History::parse(2, b"1\t0/2000000\tx\n").expect("valid");
        assert!(!child.descends_from(&other));
        assert_eq!(parent.branch(2, Lsn(0x500_0000)), None);
        assert_eq!(parent.branch(3, Lsn(0x200_0000)), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), tli in any::<u32>()) {
            if let Ok(history) = History::parse(tli, &bytes) {
                history.tli_of(Lsn(5));
            }
        }

        #[test]
        fn any_order_of_numbers_never_panics(lines in prop::collection::vec((0u32..6, 0u64..9), 0..5)) {
            let text: String = lines.iter().map(|(tli, lsn)| format!("{tli}\t0/{lsn}\tx\n")).collect();
            if let Ok(history) = History::parse(6, text.as_bytes()) {
                prop_assert_eq!(history.ancestors().len(), lines.len());
            }
        }
    }
}
