//! Which rows of a fork's blocks are visible at an LSN, and where the rest of a block's history lies. Pure.
//!
//! A fork's pages come from one or more *scopes*: the fork's own rows and, where its database was made by copying
//! files (`ingest::model::Alias`), the source's fork as it was at the copy, and so on.

use tokio::sync::OnceCell;
use zenith_ingest::model::RelEvent;
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

/// What a block is that no row begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Absent {
    /// A page of zeros: skipped by growth.
    Zeros,
    /// Nobody knows (I9).
    Lost,
}

/// What one scope says of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockFloor {
    /// Rows at or above this LSN are visible.
    from: Lsn,
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
    /// From which LSN on a scope's rows count, the newest of which to start a history is at `start`; and what is known
    /// with them.
    pub(crate) fn judge(&self, start: Option<Lsn>) -> (Lsn, Verdict) {
        match (start.filter(|start| *start >= self.from), self.ended) {
            (Some(start), _) => (start, Verdict::Started),
            (None, Some(absent)) => (self.from, Verdict::Ended(absent)),
            (None, None) => (self.from, Verdict::GoesOn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16384 };

    fn scope(floor: u64, events: &[(u64, RelEvent)]) -> Scope {
        let events = events.iter().map(|(lsn, event)| (Lsn(*lsn), *event)).collect();
        Scope { node: NODE, upto: Lsn(1000), floor: Lsn(floor), events }
    }

    /// A row that starts a history, and one that needs an older one.
    const PAGE: bool = true;
    const RECORD: bool = false;

    /// Which of block 3's rows (newest first) are visible, and what is known with them.
    fn cut(scope: &Scope, rows: &[(u64, bool)]) -> (Vec<u64>, Verdict) {
        let start = rows.iter().find(|(_, starts)| *starts).map(|(lsn, _)| Lsn(*lsn));
        let (from, verdict) = scope.block_floor(3).judge(start);
        (rows.iter().map(|(lsn, _)| *lsn).filter(|lsn| Lsn(*lsn) >= from).collect(), verdict)
    }

    #[test]
    fn rows_from_before_the_creation_are_not_visible_and_one_at_it_is() {
        let rows = [(50, RECORD), (40, PAGE)];
        assert_eq!(cut(&scope(40, &[]), &rows), (vec![50, 40], Verdict::Started));
        assert_eq!(cut(&scope(41, &[]), &rows), (vec![50], Verdict::GoesOn));
    }

    #[test]
    fn a_truncation_below_the_block_hides_what_came_before_it() {
        let cut_to = |to| scope(0, &[(45, RelEvent::Truncated { to })]);
        let rows = [(40, PAGE)];
        assert_eq!(cut(&cut_to(4), &rows), (vec![40], Verdict::Started));
        assert_eq!(cut(&cut_to(3), &rows), (vec![], Verdict::Ended(Absent::Lost)));
        assert_eq!(cut(&cut_to(0), &[(50, PAGE), (40, PAGE)]), (vec![50], Verdict::Started));
    }

    #[test]
    fn a_skipped_block_begins_as_zeros_and_rows_of_the_same_record_follow() {
        let gap = scope(0, &[(45, RelEvent::Truncated { to: 1 }), (48, RelEvent::Gap { from: 2, to: 4 })]);
        let zeros = Verdict::Ended(Absent::Zeros);
        assert_eq!(cut(&gap, &[(40, PAGE)]), (vec![], zeros));
        assert_eq!(cut(&gap, &[(60, RECORD), (48, RECORD), (40, PAGE)]), (vec![60, 48], zeros));
        let elsewhere = scope(0, &[(48, RelEvent::Gap { from: 4, to: 9 })]);
        assert_eq!(cut(&elsewhere, &[(40, PAGE)]), (vec![40], Verdict::Started));
    }

    #[test]
    fn a_gap_before_a_truncation_is_gone_with_it() {
        let gone = scope(0, &[(45, RelEvent::Gap { from: 2, to: 4 }), (48, RelEvent::Truncated { to: 0 })]);
        assert_eq!(cut(&gone, &[]), (vec![], Verdict::Ended(Absent::Lost)));
    }
}
