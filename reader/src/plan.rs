//! Which rows of a fork's blocks are visible at an LSN, and where the rest of a block's history lies. Pure.
//!
//! A fork's pages come from one or more *scopes*: the fork's own rows and, where its database was made by copying
//! files (`ingest::model::Alias`), the source's fork as it was at the copy, and so on.

use crate::assemble::Absent;
use tokio::sync::OnceCell;
use zenith_ingest::model::RelEvent;
use zenith_layers::Row;
use zenith_pgformat::{Fork, Lsn, RelNode};

/// A fork at an LSN.
#[derive(Clone, Debug)]
pub(crate) struct ForkPlan {
    /// The fork.
    pub(crate) fork: Fork,
    /// Its size in blocks.
    pub(crate) blocks: u32,
    /// Never empty; the fork's own first.
    pub(crate) scopes: Vec<Scope>,
    /// The size that the base image says of the last scope's fork: known once a block is absent there.
    pub(crate) base_blocks: OnceCell<u32>,
}

/// One place where a fork's history lies.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// Under which relation.
    pub(crate) node: RelNode,
    /// Up to which LSN it counts.
    pub(crate) upto: Lsn,
    /// Rows below this LSN belong to an earlier relation or database of the same number.
    pub(crate) floor: Lsn,
    /// Truncations and skipped ranges with `floor <= lsn <= upto`, oldest first.
    pub(crate) events: Vec<(Lsn, RelEvent)>,
}

/// What one scope says of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockFloor {
    /// Rows at or above this LSN are visible.
    pub(crate) from: Lsn,
    /// The block cannot go on in an older scope or the base image: it was cut off or skipped since.
    ended: Option<Absent>,
}

impl ForkPlan {
    /// Bytes of memory, roughly.
    pub(crate) fn weight(&self) -> usize {
        let events: usize = self.scopes.iter().map(|scope| scope.events.len()).sum();
        size_of::<ForkPlan>() + self.scopes.len() * size_of::<Scope>() + events * size_of::<(Lsn, RelEvent)>()
    }
}

impl Scope {
    /// Where the history of `block` begins in this scope.
    pub(crate) fn block_floor(&self, block: u32) -> BlockFloor {
        let mut floor = BlockFloor { from: self.floor, ended: None };
        for (lsn, event) in &self.events {
            match *event {
                // The record that truncates writes no block that it removes.
                RelEvent::Truncated { to } if to <= block => {
                    floor = BlockFloor { from: Lsn(lsn.0.saturating_add(1)), ended: Some(Absent::Lost) };
                }
                RelEvent::Gap { from, to } if (from..to).contains(&block) => {
                    floor = BlockFloor { from: *lsn, ended: Some(Absent::Zeros) };
                }
                _ => {}
            }
        }
        floor
    }

    /// Whether what a base image at `redo` brought is visible here: it holds the fork as it was then.
    pub(crate) fn shows_base(&self, redo: Lsn) -> bool {
        self.floor <= redo
    }
}

/// What is known of a block after one scope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The rows start its history.
    Started,
    /// The rows do not start its history, and no older scope or base does.
    Ended(Absent),
    /// The history goes on in the next scope or in the base image.
    GoesOn,
}

impl BlockFloor {
    /// Keeps the visible ones of `rows` (newest first) and says what follows.
    pub(crate) fn cut(&self, rows: &mut Vec<Row>) -> Verdict {
        let visible = rows.iter().take_while(|row| row.lsn >= self.from).count();
        rows.truncate(visible);
        match (rows.last(), self.ended) {
            (Some(row), _) if row.value.starts_history() => Verdict::Started,
            (_, Some(absent)) => Verdict::Ended(absent),
            (_, None) => Verdict::GoesOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use zenith_layers::{Key, Source, Value};

    const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16384 };

    fn scope(floor: u64, events: &[(u64, RelEvent)]) -> Scope {
        let events = events.iter().map(|(lsn, event)| (Lsn(*lsn), *event)).collect();
        Scope { node: NODE, upto: Lsn(1000), floor: Lsn(floor), events }
    }

    fn row(lsn: u64, value: Value) -> Row {
        Row { key: Key::rel_block(NODE, Fork::Main, 3), lsn: Lsn(lsn), value, source: Source::NONE }
    }

    fn page() -> Value {
        Value::Page(Bytes::new())
    }

    fn record() -> Value {
        Value::Record(Bytes::new())
    }

    fn cut(scope: &Scope, mut rows: Vec<Row>) -> (Vec<u64>, Verdict) {
        let verdict = scope.block_floor(3).cut(&mut rows);
        (rows.iter().map(|row| row.lsn.0).collect(), verdict)
    }

    #[test]
    fn rows_from_before_the_creation_are_not_visible_and_one_at_it_is() {
        let rows = || vec![row(50, record()), row(40, page())];
        assert_eq!(cut(&scope(40, &[]), rows()), (vec![50, 40], Verdict::Started));
        assert_eq!(cut(&scope(41, &[]), rows()), (vec![50], Verdict::GoesOn));
    }

    #[test]
    fn a_truncation_below_the_block_hides_what_came_before_it() {
        let cut_to = |to| scope(0, &[(45, RelEvent::Truncated { to })]);
        let rows = || vec![row(40, page())];
        assert_eq!(cut(&cut_to(4), rows()), (vec![40], Verdict::Started));
        assert_eq!(cut(&cut_to(3), rows()), (vec![], Verdict::Ended(Absent::Lost)));
        assert_eq!(cut(&cut_to(0), vec![row(50, page()), row(40, page())]), (vec![50], Verdict::Started));
    }

    #[test]
    fn a_skipped_block_begins_as_zeros_and_rows_of_the_same_record_follow() {
        let gap = scope(0, &[(45, RelEvent::Truncated { to: 1 }), (48, RelEvent::Gap { from: 2, to: 4 })]);
        let zeros = Verdict::Ended(Absent::Zeros);
        assert_eq!(cut(&gap, vec![row(40, page())]), (vec![], zeros));
        assert_eq!(
            cut(&gap, vec![row(60, record()), row(48, record()), row(40, page())]),
            (vec![60, 48], zeros)
        );
        let elsewhere = scope(0, &[(48, RelEvent::Gap { from: 4, to: 9 })]);
        assert_eq!(cut(&elsewhere, vec![row(40, page())]), (vec![40], Verdict::Started));
    }

    #[test]
    fn a_gap_before_a_truncation_is_gone_with_it() {
        let gone = scope(0, &[(45, RelEvent::Gap { from: 2, to: 4 }), (48, RelEvent::Truncated { to: 0 })]);
        assert_eq!(cut(&gone, vec![]), (vec![], Verdict::Ended(Absent::Lost)));
    }
}
