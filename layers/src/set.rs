//! The layers of one manifest version, and of the ancestors behind it, as one thing to read.

use crate::error::LayerError;
use crate::events::{Event, EventFilter};
use crate::key::{Key, KeyRange};
use crate::layer::{Layer, Pick};
use crate::map::{LayerMap, ReadMode, UsedBase, overlapping};
use crate::merge::{Candidate, cut_histories, no_overlap, sort_newest_first};
use crate::reader::LayerStore;
use crate::row::Row;
use futures::future::try_join_all;
use futures::stream::{StreamExt, TryStreamExt, iter};
use std::collections::BTreeMap;
use std::sync::Arc;
use zenith_manifest::{KeyBytes, LayerEntry, LayerKind};
use zenith_pgformat::Lsn;

/// Footers that are opened, and row groups whose keys are loaded and searched, at the same time: what a search holds in
/// memory beyond what it found.
pub(crate) const PARALLEL: usize = 16;

/// What is known of one key at an LSN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyHistory {
    /// The key.
    pub key: Key,
    /// Never empty; newest first, down to and including the first row that starts a history
    /// ([`crate::Value::starts_history`]), or down to the base image if no row does.
    pub rows: Vec<Row>,
}

impl KeyHistory {
    /// Whether the oldest row starts the history; otherwise the key is absent from the base image, and what that
    /// means is the caller's knowledge.
    pub fn started(&self) -> bool {
        self.rows.last().is_some_and(|row| row.value.starts_history())
    }
}

/// Part of the histories of a wide range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryChunk {
    /// Histories of the keys from the asked range's first key on; may be empty though more follow.
    pub histories: Vec<KeyHistory>,
    /// What is left of the range; `None` at its end.
    pub rest: Option<KeyRange>,
}

/// An events layer of a set.
#[derive(Clone, Debug)]
pub struct EventLayer {
    /// The manifest's entry.
    pub entry: Arc<LayerEntry>,
    /// Events above this belong to the parent's own future.
    pub cap: Lsn,
    store: Arc<LayerStore>,
}

/// The layers of one manifest version, and the parent's up to the branch point. Immutable; a clone is cheap.
#[derive(Clone, Debug)]
pub struct LayerSet {
    inner: Arc<Inner>,
    /// Whether rows say where they come from.
    pub(crate) sources: bool,
}

#[derive(Debug)]
struct Inner {
    map: LayerMap,
    /// The store of each of the map's entries.
    stores: Vec<Arc<LayerStore>>,
    parent: Option<(Arc<LayerSet>, Lsn)>,
}

/// One timeline of a read: its layers up to `cap`, and the base if it is this one's.
struct Level<'a> {
    inner: &'a Inner,
    cap: Lsn,
    base: Option<&'a crate::map::BaseLayers>,
}

/// A layer that a read must look into, and the LSNs that count: `after < lsn <= upto`.
pub(crate) struct Source {
    pub(crate) entry: Arc<LayerEntry>,
    store: Arc<LayerStore>,
    after: Lsn,
    upto: Lsn,
}

/// An open [`Source`].
pub(crate) struct Opened {
    pub(crate) layer: Layer,
    pub(crate) after: Lsn,
    pub(crate) upto: Lsn,
}

impl LayerSet {
    /// The layers `entries` in `store`. `parent`: the layers of the timeline this one was branched off, and the
    /// branch point. Entries that contradict themselves or each other are refused.
    pub fn new(
        store: Arc<LayerStore>,
        entries: impl IntoIterator<Item = impl Into<Arc<LayerEntry>>>,
        parent: Option<(Arc<LayerSet>, Lsn)>,
    ) -> Result<LayerSet, LayerError> {
        let entries: Vec<Arc<LayerEntry>> = entries.into_iter().map(Into::into).collect();
        let stores = vec![store; entries.len()];
        let inner = Arc::new(Inner { map: LayerMap::new(entries)?, stores, parent });
        Ok(LayerSet { inner, sources: true })
    }

    /// The same set with layers of another store added: WAL that was sliced into a local folder, or layers that
    /// are stored and not yet committed.
    pub fn with_layers(
        &self,
        store: Arc<LayerStore>,
        entries: impl IntoIterator<Item = impl Into<Arc<LayerEntry>>>,
    ) -> Result<LayerSet, LayerError> {
        let mut all = self.inner.map.entries().to_vec();
        all.extend(entries.into_iter().map(Into::into));
        let mut stores = self.inner.stores.clone();
        stores.resize(all.len(), store);
        let parent = self.inner.parent.clone();
        let inner = Arc::new(Inner { map: LayerMap::new(all)?, stores, parent });
        Ok(LayerSet { inner, sources: self.sources })
    }

    /// The same set, whose rows do not say where they come from ([`crate::Source::NONE`]): that much less is read.
    #[must_use]
    pub fn without_sources(&self) -> LayerSet {
        LayerSet { inner: Arc::clone(&self.inner), sources: false }
    }

    /// The entries of this timeline (not of its ancestors), in the order given.
    pub fn entries(&self) -> &[Arc<LayerEntry>] {
        self.inner.map.entries()
    }

    /// The parent's layers and the branch point.
    pub fn parent(&self) -> Option<(&Arc<LayerSet>, Lsn)> {
        self.inner.parent.as_ref().map(|(set, lsn)| (set, *lsn))
    }

    /// The timelines from this one to its oldest ancestor, each with the LSN up to which it counts.
    fn chain(&self, upto: Lsn) -> Vec<(&Inner, Lsn)> {
        let (mut inner, mut cap) = (&*self.inner, upto);
        let mut chain = vec![(inner, cap)];
        while let Some((parent, branch)) = &inner.parent {
            (inner, cap) = (&*parent.inner, cap.min(*branch));
            chain.push((inner, cap));
        }
        chain
    }

    /// The timelines of a read, down to the one whose base image it uses.
    fn levels(&self, upto: Lsn, mode: ReadMode) -> Result<Vec<Level<'_>>, LayerError> {
        let mut levels = Vec::new();
        for (inner, cap) in self.chain(upto) {
            let base = inner.map.base_for(cap, mode);
            levels.push(Level { inner, cap, base });
            if base.is_some() {
                return Ok(levels);
            }
        }
        match mode {
            ReadMode::Serve => Ok(levels),
            ReadMode::From(base) => Err(LayerError::NoSuchBase { base, upto }),
        }
    }

    /// The base image that a read up to `upto` uses; `None` if none serves (or the named one does not exist).
    pub fn base_for(&self, upto: Lsn, mode: ReadMode) -> Option<UsedBase> {
        let chain = self.chain(upto).into_iter().enumerate();
        let mut bases = chain.filter_map(|(ancestor, (inner, cap))| {
            let base = inner.map.base_for(cap, mode)?;
            Some(UsedBase { id: base.id, lsn: base.lsn, serves_from: base.serves_from, ancestor })
        });
        bases.next()
    }

    /// The history at `upto` of every key in `ranges` that has any, in key order: rows above `upto` left out, and
    /// rows of deltas at or below the LSN of the base image used. Keys that lie in several ranges come once.
    ///
    /// Memory: all that is returned, and 56 bytes for every row that was looked at to choose it; see
    /// [`LayerSet::history_chunk`] for wide ranges of short histories, [`LayerSet::starts`] and [`LayerSet::rows`] for
    /// histories of any length.
    pub async fn history(
        &self,
        ranges: &[KeyRange],
        upto: Lsn,
        mode: ReadMode,
    ) -> Result<Vec<KeyHistory>, LayerError> {
        let ranges = KeyRange::normalise(ranges);
        let layers = open(self.history_sources(&ranges, upto, mode)?).await?;
        let mut candidates = search(&layers, &ranges, true).await?;
        sort_newest_first(&mut candidates);
        cut_histories(&mut candidates, |layer| object_of(&layers, layer))?;
        Ok(histories(fetch(&layers, &candidates, self.sources).await?))
    }

    /// As [`LayerSet::history`] for as many keys from the start of `range` as have about `max_rows` rows: a wide
    /// range in bounded memory. A key's history is never cut.
    pub async fn history_chunk(
        &self,
        range: KeyRange,
        upto: Lsn,
        mode: ReadMode,
        max_rows: usize,
    ) -> Result<HistoryChunk, LayerError> {
        let mut range = range;
        let mut rest = None;
        let mut ranges = KeyRange::normalise(&[range]);
        let layers = open(self.history_sources(&ranges, upto, mode)?).await?;
        if let Some(last) = enough_groups(&layers, &ranges, max_rows).filter(|last| *last < range.last) {
            rest = after(&last, &range);
            range.last = last;
            ranges = vec![range];
        }
        let mut candidates = search(&layers, &ranges, true).await?;
        sort_newest_first(&mut candidates);
        cut_histories(&mut candidates, |layer| object_of(&layers, layer))?;
        if let Some(last) = candidates.get(max_rows.max(1) - 1).map(|row| row.found.key) {
            let keep = candidates.partition_point(|row| row.found.key <= last);
            if keep < candidates.len() {
                candidates.truncate(keep);
                let end = rest.map_or(range.last, |rest| rest.last);
                rest = after(&last, &KeyRange { first: range.first, last: end });
            }
        }
        Ok(HistoryChunk { histories: histories(fetch(&layers, &candidates, self.sources).await?), rest })
    }

    /// The layers that a history may have rows in.
    pub(crate) fn history_sources(
        &self,
        ranges: &[KeyRange],
        upto: Lsn,
        mode: ReadMode,
    ) -> Result<Vec<Source>, LayerError> {
        let mut sources = Vec::new();
        for Level { inner, cap, base } in self.levels(upto, mode)? {
            let low = base.map_or(Lsn::INVALID, |base| base.lsn);
            let map = &inner.map;
            sources.extend(inner.sources(map.deltas(ranges, low, cap), low, cap));
            sources.extend(inner.sources(map.lone_images(ranges, low, cap), low, cap));
            if let Some(base) = base {
                let before = Lsn(base.lsn.0.saturating_sub(1));
                sources.extend(inner.sources(map.base_layers(base, ranges), before, cap));
            }
        }
        Ok(sources)
    }

    /// All changes (rows of delta layers, ancestors' included, whatever base images there are) with
    /// `after < lsn <= upto` of the keys in `ranges`, by key, then LSN ascending. For keys whose rows are events, not
    /// states.
    pub async fn versions(&self, ranges: &[KeyRange], after: Lsn, upto: Lsn) -> Result<Vec<Row>, LayerError> {
        let ranges = KeyRange::normalise(ranges);
        let mut sources = Vec::new();
        for (inner, cap) in self.chain(upto) {
            sources.extend(inner.sources(inner.map.deltas(&ranges, after, cap), after, cap));
        }
        let layers = open(sources).await?;
        let mut candidates = search(&layers, &ranges, false).await?;
        candidates.sort_unstable_by_key(|row| (row.found.key, row.found.lsn));
        no_overlap(&candidates, |layer| object_of(&layers, layer))?;
        fetch(&layers, &candidates, self.sources).await
    }

    /// Where delta layers end, ancestors' included, with `after < lsn < upto`, ascending: between two of them there is no more
    /// than a layer of each kind.
    pub fn delta_ends(&self, after: Lsn, upto: Lsn) -> Vec<Lsn> {
        let mut ends: Vec<Lsn> = Vec::new();
        for (inner, cap) in self.chain(upto) {
            let deltas = inner.map.entries().iter().filter(|entry| entry.kind == LayerKind::Delta);
            ends.extend(deltas.map(|entry| entry.lsn_to).filter(|end| *end > after && *end < cap));
        }
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// The events layers that may hold events with `after < lsn <= upto`, ancestors' included, oldest first.
    pub fn event_layers(&self, after: Lsn, upto: Lsn) -> Vec<EventLayer> {
        let mut layers = Vec::new();
        for (inner, cap) in self.chain(upto).into_iter().rev() {
            for position in inner.map.events(after, cap) {
                layers.extend(
                    inner.sources(vec![position], after, cap).into_iter().map(|source| EventLayer {
                        entry: source.entry,
                        cap,
                        store: source.store,
                    }),
                );
            }
        }
        layers
    }

    /// The events of one of [`LayerSet::event_layers`] with `after < lsn <= upto`, in LSN order.
    pub async fn read_events(
        &self,
        layer: &EventLayer,
        after: Lsn,
        upto: Lsn,
    ) -> Result<Vec<Event>, LayerError> {
        self.find_events(layer, after, upto, EventFilter::Any).await
    }

    /// As [`LayerSet::read_events`], those that are looked for: the layer's footer tells which of its row groups are read.
    pub async fn find_events(
        &self,
        layer: &EventLayer,
        after: Lsn,
        upto: Lsn,
        filter: EventFilter<'_>,
    ) -> Result<Vec<Event>, LayerError> {
        layer.store.open(&layer.entry).await?.events(after, upto.min(layer.cap), filter).await
    }

    /// All events with `after < lsn <= upto`, in LSN order. Memory: all of them; go by layers where they may be many.
    pub async fn events(&self, after: Lsn, upto: Lsn) -> Result<Vec<Event>, LayerError> {
        let mut events = Vec::new();
        for layer in self.event_layers(after, upto) {
            events.extend(self.read_events(&layer, after, upto).await?);
        }
        Ok(events)
    }
}

impl Inner {
    fn sources(&self, positions: Vec<usize>, after: Lsn, upto: Lsn) -> Vec<Source> {
        let pairs = positions
            .into_iter()
            .filter_map(|position| Some((self.map.entries().get(position)?, self.stores.get(position)?)));
        pairs
            .map(|(entry, store)| Source { entry: Arc::clone(entry), store: Arc::clone(store), after, upto })
            .collect()
    }
}

pub(crate) async fn open(sources: Vec<Source>) -> Result<Vec<Opened>, LayerError> {
    let opened = iter(sources).map(|source| async move {
        let Source { entry, store, after, upto } = source;
        Ok(Opened { layer: store.open(&entry).await?, after, upto })
    });
    opened.buffered(PARALLEL).try_collect().await
}

pub(crate) fn object_of(layers: &[Opened], layer: u32) -> String {
    layers.get(layer as usize).map(|opened| opened.layer.path().to_string()).unwrap_or_default()
}

/// The row groups that may hold rows of `ranges` (normalised), and for each the ranges that touch it.
fn touched_groups(layers: &[Opened], ranges: &[KeyRange]) -> Vec<(u32, u32, Vec<KeyRange>)> {
    let bytes: Vec<(KeyBytes, KeyBytes)> =
        ranges.iter().map(|range| (range.first.to_bytes(), range.last.to_bytes())).collect();
    let mut touched = Vec::new();
    for (layer, opened) in (0u32..).zip(layers) {
        for (group, about) in (0u32..).zip(opened.layer.group_table()) {
            let about = &about.entry;
            if about.lsn_max <= opened.after || about.lsn_min > opened.upto {
                continue;
            }
            let touching = overlapping(&bytes, about.first, about.last);
            if let Some(ranges) = ranges.get(touching).filter(|ranges| !ranges.is_empty()) {
                touched.push((layer, group, ranges.to_vec()));
            }
        }
    }
    touched
}

/// Looks into the keys of all row groups that may hold something: one wave of requests.
async fn search(layers: &[Opened], ranges: &[KeyRange], newest: bool) -> Result<Vec<Candidate>, LayerError> {
    let mut tasks = Vec::new();
    for (number, group, ranges) in touched_groups(layers, ranges) {
        if let Some(Opened { layer, after, upto }) = layers.get(number as usize) {
            tasks.push((number, group, ranges, layer.clone(), *after, *upto));
        }
    }
    let found = iter(tasks).map(|(number, group, ranges, layer, after, upto)| async move {
        let keys = layer.keys(group).await?;
        let image = layer.entry().kind == LayerKind::Image;
        let mut candidates = Vec::new();
        for range in &ranges {
            keys.search(range, after, upto, newest, |found| {
                candidates.push(Candidate { found, layer: number, group, image });
            });
        }
        Ok::<_, LayerError>(candidates)
    });
    found.buffer_unordered(PARALLEL).try_concat().await
}

/// The last key of so many row groups, from the start of the range, as hold about `max_rows` rows and one at least;
/// `None` if all together hold fewer.
fn enough_groups(layers: &[Opened], ranges: &[KeyRange], max_rows: usize) -> Option<Key> {
    let mut ends: Vec<(KeyBytes, usize)> = Vec::new();
    for (layer, group, _) in touched_groups(layers, ranges) {
        let about = layers.get(layer as usize)?.layer.group_table().get(group as usize)?;
        ends.push((about.entry.last, about.entry.rows as usize));
    }
    ends.sort_unstable();
    let mut rows = 0usize;
    for (last, more) in ends {
        rows = rows.saturating_add(more);
        if rows >= max_rows {
            return Key::from_bytes(&last);
        }
    }
    None
}

/// What of a range lies after a key.
fn after(key: &Key, range: &KeyRange) -> Option<KeyRange> {
    let first = key.successor().filter(|first| *first <= range.last)?;
    Some(KeyRange { first, last: range.last })
}

/// The rows of the candidates, in their order: one wave of requests.
pub(crate) async fn fetch(
    layers: &[Opened],
    candidates: &[Candidate],
    sources: bool,
) -> Result<Vec<Row>, LayerError> {
    let mut by_layer: BTreeMap<u32, (Vec<usize>, Vec<Pick>)> = BTreeMap::new();
    for (place, row) in candidates.iter().enumerate() {
        let (places, picks) = by_layer.entry(row.layer).or_default();
        places.push(place);
        picks.push(Pick { group: row.group, found: row.found });
    }
    let waves = by_layer.into_iter().filter_map(|(number, (places, picks))| {
        let layer = layers.get(number as usize)?.layer.clone();
        Some(async move { Ok::<_, LayerError>((places, layer.fetch(&picks, sources).await?)) })
    });
    let mut rows: Vec<Option<Row>> = Vec::new();
    rows.resize_with(candidates.len(), || None);
    for (places, fetched) in try_join_all(waves).await? {
        for (place, row) in places.into_iter().zip(fetched) {
            if let Some(slot) = rows.get_mut(place) {
                *slot = Some(row);
            }
        }
    }
    // A layer gives a row for every pick or an error, so that none is missing.
    Ok(rows.into_iter().flatten().collect())
}

/// Rows that are sorted by key, as one history for each.
fn histories(rows: Vec<Row>) -> Vec<KeyHistory> {
    let mut histories: Vec<KeyHistory> = Vec::new();
    for row in rows {
        match histories.last_mut() {
            Some(history) if history.key == row.key => history.rows.push(row),
            _ => histories.push(KeyHistory { key: row.key, rows: vec![row] }),
        }
    }
    histories
}
