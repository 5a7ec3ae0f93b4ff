//! Where the history of a page lies, before any of it is read: what the page begins as, in which scopes its rows are, and
//! from which LSN on.

use crate::error::ReadError;
use crate::plan::{Absent, ForkPlan, Scope, Verdict};
use crate::snapshot::Snapshot;
use std::collections::BTreeMap;
use std::sync::Arc;
use zenith_layers::{Key, KeyRange, Span};
use zenith_pgformat::{Fork, Lsn, RelNode};

/// A page that is wanted; it exists.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) node: RelNode,
    pub(crate) plan: Arc<ForkPlan>,
    pub(crate) block: u32,
}

/// A page's history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    /// The page.
    pub(crate) key: Key,
    pub(crate) begins: Begins,
    /// Where its rows are.
    pub(crate) parts: Vec<Part>,
}

/// What a page begins as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Begins {
    /// As its oldest row says.
    Row,
    /// A page of zeros: skipped by growth, or a hole of the base image.
    Zeros,
}

/// The rows of one scope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    /// 0 for the fork's own scope; the deeper, the older.
    pub(crate) depth: usize,
    /// Up to which LSN the scope counts.
    pub(crate) upto: Lsn,
    pub(crate) span: Span,
}

impl Wanted {
    pub(crate) fn key(&self) -> Key {
        Key::rel_block(self.node, self.plan.fork, self.block)
    }

    /// Free-space maps are hints that redo cannot reproduce: the newest image is served, whatever came after it.
    pub(crate) fn is_hint(&self) -> bool {
        self.plan.fork == Fork::Fsm
    }

    fn key_in(&self, scope: &Scope) -> Key {
        Key::rel_block(scope.node, self.plan.fork, self.block)
    }
}

/// A search that goes from scope to scope.
#[derive(Debug)]
struct Search<'a> {
    wanted: &'a Wanted,
    parts: Vec<Part>,
    /// What the last scope said.
    verdict: Verdict,
}

impl Search<'_> {
    /// Takes in what the scope at `depth` says.
    fn settle(&mut self, depth: usize, start: Option<Lsn>) {
        let Some(scope) = self.wanted.plan.scopes.get(depth) else { return };
        let (from, verdict) = scope.block_floor(self.wanted.block).judge(start);
        self.verdict = verdict;
        let hint = self.wanted.is_hint();
        if !hint || verdict == Verdict::Started {
            let upto = if hint { from } else { scope.upto };
            let span = Span { key: self.wanted.key_in(scope), from, upto };
            self.parts.push(Part { depth, upto: scope.upto, span });
        }
    }
}

impl Snapshot {
    /// The histories of some pages. Reads no payload: a search of the layers' keys for each scope.
    ///
    /// # Errors
    /// [`ReadError::LostBase`] for a page of which nobody knows what it begins as (I9).
    pub(crate) async fn locate(&self, wanted: &[Wanted]) -> Result<Vec<Line>, ReadError> {
        let mut searches: Vec<Search<'_>> = wanted
            .iter()
            .map(|wanted| Search { wanted, parts: Vec::new(), verdict: Verdict::GoesOn })
            .collect();
        for depth in 0.. {
            let mut by_upto: BTreeMap<Lsn, Vec<(Key, &mut Search<'_>)>> = BTreeMap::new();
            for search in searches.iter_mut().filter(|search| search.verdict == Verdict::GoesOn) {
                if let Some(scope) = search.wanted.plan.scopes.get(depth) {
                    by_upto.entry(scope.upto).or_default().push((search.wanted.key_in(scope), search));
                }
            }
            if by_upto.is_empty() {
                break;
            }
            for (upto, searches) in by_upto {
                let ranges = ranges_of(searches.iter().map(|(key, _)| *key).collect());
                let starts = self.inner.timeline.values().starts(&ranges, upto, self.mode(upto)).await?;
                let starts: BTreeMap<Key, Lsn> = starts.into_iter().collect();
                for (key, search) in searches {
                    search.settle(depth, starts.get(&key).copied());
                }
            }
        }
        let mut lines = Vec::with_capacity(searches.len());
        for Search { wanted, parts, verdict } in searches {
            let begins = match verdict {
                Verdict::Started => Begins::Row,
                Verdict::Ended(Absent::Zeros) => Begins::Zeros,
                Verdict::Ended(Absent::Lost) | Verdict::GoesOn if wanted.is_hint() => Begins::Zeros,
                // A base image leaves out the pages that are zeros.
                Verdict::GoesOn if wanted.block < self.base_blocks(&wanted.plan).await? => Begins::Zeros,
                Verdict::Ended(Absent::Lost) | Verdict::GoesOn => {
                    return Err(ReadError::LostBase { key: wanted.key(), lsn: self.inner.lsn });
                }
            };
            lines.push(Line { key: wanted.key(), begins, parts });
        }
        Ok(lines)
    }
}

/// Keys as ranges of those that follow one another.
fn ranges_of(mut keys: Vec<Key>) -> Vec<KeyRange> {
    keys.sort_unstable();
    keys.dedup();
    let mut ranges: Vec<KeyRange> = Vec::new();
    for key in keys {
        match ranges.last_mut() {
            Some(range) if range.last.successor() == Some(key) => range.last = key,
            _ => ranges.push(KeyRange::one(key)),
        }
    }
    ranges
}
