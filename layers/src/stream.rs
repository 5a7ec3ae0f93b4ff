//! Histories of any length in bounded memory: first where each begins, then their rows, oldest first, some at a time.

use crate::error::LayerError;
use crate::key::{Key, KeyRange};
use crate::layer::Pick;
use crate::map::{ReadMode, overlapping};
use crate::merge::{Candidate, no_overlap};
use crate::row::{Row, kind_starts_history};
use crate::set::{LayerSet, Opened, PARALLEL, fetch, object_of, open};
use futures::stream::{StreamExt, TryStreamExt, iter};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use zenith_manifest::{KeyBytes, LayerKind};
use zenith_pgformat::Lsn;

/// Part of the history of one key: its rows with `from <= lsn <= upto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The key.
    pub key: Key,
    /// The lowest LSN.
    pub from: Lsn,
    /// The highest LSN.
    pub upto: Lsn,
}

impl Span {
    /// Whether a row of the key at `lsn` belongs to it.
    pub fn holds(&self, lsn: Lsn) -> bool {
        self.from <= lsn && lsn <= self.upto
    }
}

/// How much [`LayerSet::rows`] gives at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowLimit {
    /// Rows; at least one is given.
    pub rows: usize,
    /// Bytes of the payload pages that they lie in, decoded: 64 KiB each, more only for a longer row. What has to be
    /// decoded to get at the rows stays below it, and so does what the rows hold. One page at least is taken.
    pub bytes: usize,
}

/// Some rows of some histories.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowChunk {
    /// By key, each key's oldest first.
    pub rows: Vec<Row>,
    /// What is left: the spans from the first one on that is not complete, which goes on where the rows end.
    pub rest: Vec<Span>,
}

impl LayerSet {
    /// Where the histories at `upto` of the keys in `ranges` begin: for every key the newest row that starts one
    /// ([`crate::Value::starts_history`]), in key order. A key without such a row is left out; what that means is the
    /// caller's knowledge.
    ///
    /// Memory: a key and an LSN for each key, and the key columns of 16 row groups, however long the histories are.
    pub async fn starts(
        &self,
        ranges: &[KeyRange],
        upto: Lsn,
        mode: ReadMode,
    ) -> Result<Vec<(Key, Lsn)>, LayerError> {
        let ranges = KeyRange::normalise(ranges);
        let layers = open(self.history_sources(&ranges, upto, mode)?).await?;
        let bounds: Vec<(KeyBytes, KeyBytes)> =
            ranges.iter().map(|range| (range.first.to_bytes(), range.last.to_bytes())).collect();
        let (ranges, layers) = (&ranges, &layers);
        let found = iter(touched(layers, &bounds)).map(async |group| {
            let mut found: Vec<(Key, Lsn)> = Vec::new();
            let Some(opened) = layers.get(group.layer as usize) else { return Ok(found) };
            let keys = opened.layer.keys(group.number).await?;
            for range in ranges.get(group.asked).unwrap_or_default() {
                keys.search(range, opened.after, opened.upto, true, |row| {
                    found.extend(kind_starts_history(row.kind).then_some((row.key, row.lsn)));
                });
            }
            Ok::<_, LayerError>(found)
        });
        let mut found = found.buffer_unordered(PARALLEL);
        let mut starts: BTreeMap<Key, Lsn> = BTreeMap::new();
        while let Some(found) = found.try_next().await? {
            for (key, lsn) in found {
                let newest = starts.entry(key).or_default();
                *newest = lsn.max(*newest);
            }
        }
        Ok(starts.into_iter().collect())
    }

    /// The rows of some spans, which ascend by key, one for a key; as many from the start as the limit allows. Where an
    /// image and the change that it contains have one LSN, the image is given.
    ///
    /// Memory: the rows; besides them, for a moment, the limit's bytes of decoded pages with what is stored of them, 112
    /// bytes for every row of the limit, and the key columns of 16 row groups with 56 bytes for every row of one.
    pub async fn rows(
        &self,
        spans: &[Span],
        upto: Lsn,
        mode: ReadMode,
        limit: RowLimit,
    ) -> Result<RowChunk, LayerError> {
        let ranges: Vec<KeyRange> = spans.iter().map(|span| KeyRange::one(span.key)).collect();
        let from = spans.iter().map(|span| span.from).min().unwrap_or_default();
        let mut sources = self.history_sources(&ranges, upto, mode)?;
        sources.retain(|source| source.entry.lsn_to >= from);
        let layers = open(sources).await?;
        let mut lowest = search(&layers, spans, limit.rows.max(1)).await?;
        lowest.end(|layer| object_of(&layers, layer))?;
        lowest.shorten(&layers, limit.bytes)?;
        let rows = fetch(&layers, &lowest.kept, self.sources).await?;
        let rest = lowest.bound.map_or_else(Vec::new, |bound| rest_of(spans, bound));
        Ok(RowChunk { rows, rest })
    }
}

/// The spans from a row on.
fn rest_of(spans: &[Span], (key, lsn): (Key, Lsn)) -> Vec<Span> {
    let left = spans.iter().filter(|span| span.key >= key);
    left.map(|span| if span.key == key { Span { from: lsn, ..*span } } else { *span }).collect()
}

/// A row group to look into.
#[derive(Debug)]
pub(crate) struct Touched {
    pub(crate) layer: u32,
    pub(crate) number: u32,
    /// Which of the keys asked for may be in it.
    asked: Range<usize>,
}

/// The row groups that may hold rows of some ranges of keys, which ascend and share no key.
pub(crate) fn touched(layers: &[Opened], bounds: &[(KeyBytes, KeyBytes)]) -> Vec<Touched> {
    let mut touched = Vec::new();
    for (layer, opened) in (0u32..).zip(layers) {
        for (number, about) in (0u32..).zip(opened.layer.group_table()) {
            let about = &about.entry;
            let asked = overlapping(bounds, about.first, about.last);
            if about.lsn_max > opened.after && about.lsn_min <= opened.upto && !asked.is_empty() {
                touched.push(Touched { layer, number, asked });
            }
        }
    }
    touched
}

/// The lowest rows of the spans, by key and LSN: `limit` of them, or up to twice that.
async fn search(layers: &[Opened], spans: &[Span], limit: usize) -> Result<Lowest, LayerError> {
    let bounds: Vec<(KeyBytes, KeyBytes)> =
        spans.iter().map(|span| (span.key.to_bytes(), span.key.to_bytes())).collect();
    // Groups with the lowest rows first, so that most of the others need not be looked into.
    let mut groups: Vec<((Key, Lsn), Touched)> = touched(layers, &bounds)
        .into_iter()
        .filter_map(|group| Some((lowest_of(layers, spans, &group)?, group)))
        .collect();
    groups.sort_unstable_by_key(|(lowest, _)| *lowest);
    let lowest = Mutex::new(Lowest { limit, kept: Vec::new(), bound: None });
    let (shared, name) = (&lowest, |layer| object_of(layers, layer));
    let looks = iter(groups).map(async |(first, group)| {
        let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(opened) = layers.get(group.layer as usize).filter(|_| lock().admits(first)) else {
            return Ok(());
        };
        let keys = opened.layer.keys(group.number).await?;
        let image = opened.layer.entry().kind == LayerKind::Image;
        let mut lowest = lock();
        for span in spans.get(group.asked).unwrap_or_default() {
            let after = opened.after.max(Lsn(span.from.0.saturating_sub(1)));
            keys.search(&KeyRange::one(span.key), after, opened.upto.min(span.upto), false, |row| {
                if row.lsn >= span.from && lowest.admits((row.key, row.lsn)) {
                    lowest.kept.push(Candidate {
                        found: row,
                        layer: group.layer,
                        group: group.number,
                        image,
                    });
                }
            });
            lowest.tidy(name)?;
        }
        Ok::<_, LayerError>(())
    });
    looks.buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
    Ok(lowest.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Where the first row may lie that a row group holds of the spans; `None` if it holds none.
fn lowest_of(layers: &[Opened], spans: &[Span], group: &Touched) -> Option<(Key, Lsn)> {
    let about = layers.get(group.layer as usize)?.layer.group_table().get(group.number as usize)?;
    let (min, max) = (about.entry.lsn_min, about.entry.lsn_max);
    let mut asked = spans.get(group.asked.clone())?.iter();
    let first = asked.find(|span| span.from <= max && min <= span.upto)?;
    Some((first.key, first.from.max(min)))
}

/// The lowest rows by key and LSN of all that it is shown.
struct Lowest {
    limit: usize,
    kept: Vec<Candidate>,
    /// The lowest row that was left out: from there on none is kept.
    bound: Option<(Key, Lsn)>,
}

impl Lowest {
    fn admits(&self, at: (Key, Lsn)) -> bool {
        self.bound.is_none_or(|bound| at < bound)
    }

    /// Leaves rows out when it holds twice as many as it is to give.
    fn tidy(&mut self, name: impl Fn(u32) -> String) -> Result<(), LayerError> {
        if self.kept.len() >= self.limit.saturating_mul(2) { self.end(name) } else { Ok(()) }
    }

    /// Sorts the rows and leaves out those past the limit.
    fn end(&mut self, name: impl Fn(u32) -> String) -> Result<(), LayerError> {
        let at = |row: &Candidate| (row.found.key, row.found.lsn);
        self.kept.sort_unstable_by_key(|row| (at(row), !row.image));
        no_overlap(&self.kept, name)?;
        self.kept.dedup_by(|later, first| at(later) == at(first));
        self.leave_out(self.limit);
        Ok(())
    }

    /// Keeps the first `count` rows.
    fn leave_out(&mut self, count: usize) {
        if let Some(first) = self.kept.get(count) {
            self.bound = Some((first.found.key, first.found.lsn));
            self.kept.truncate(count);
        }
    }

    /// Keeps the rows whose payload pages have together at most `bytes` when they are decoded; one page at least.
    fn shorten(&mut self, layers: &[Opened], bytes: usize) -> Result<(), LayerError> {
        let mut pages: HashSet<(u32, usize)> = HashSet::new();
        let mut sum = 0usize;
        for (place, row) in self.kept.iter().enumerate() {
            let Some(opened) = layers.get(row.layer as usize) else { continue };
            let pick = Pick { group: row.group, found: row.found };
            let (page, decoded) = opened.layer.decoded_page(&pick)?;
            if pages.insert((row.layer, page)) {
                sum = sum.saturating_add(decoded);
                if sum > bytes && pages.len() > 1 {
                    self.leave_out(place);
                    break;
                }
            }
        }
        Ok(())
    }
}
