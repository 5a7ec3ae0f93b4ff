//! A set of layers answers as a model that keeps all rows in memory, however the rows lie in layers (I8).

use crate::error::LayerError;
use crate::key::{Key, KeyRange, Slru};
use crate::map::ReadMode;
use crate::reader::{CacheOptions, LayerCaches};
use crate::row::{Row, Source, Value};
use crate::set::{KeyHistory, LayerSet};
use crate::stream::{RowLimit, Span};
use crate::test_env::Place;
use crate::test_rows::{any_key, any_key_range, any_value};
use crate::writer::WriterOptions;
use bytes::Bytes;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;
use zenith_manifest::{BaseId, LayerEntry};
use zenith_pgformat::Lsn;

const ALL: KeyRange = KeyRange { first: Key::MIN, last: Key::MAX };

/// A base image of the model.
#[derive(Clone, Debug)]
struct Base {
    id: BaseId,
    lsn: u64,
    serves_from: u64,
    values: BTreeMap<Key, Value>,
}

/// A timeline of the model: changes above `from`, bases, and how all of it is cut into layers.
#[derive(Clone, Debug)]
struct Timeline {
    /// The branch point, 0 for the first timeline.
    from: u64,
    changes: BTreeMap<(Key, u64), Value>,
    bases: Vec<Base>,
    /// LSNs at which delta layers end.
    lsn_cuts: BTreeSet<u64>,
    /// Keys at which layers of one range of LSNs end.
    key_cuts: BTreeSet<Key>,
    /// Layers whose number is in it lie in a second store.
    elsewhere: BTreeSet<usize>,
}

const LSN_MAX: u64 = 60;

fn any_base(number: u128) -> impl Strategy<Value = Base> {
    let state = vec(any::<u8>(), 0..9).prop_map(|bytes| Value::State(Bytes::from(bytes)));
    let value = prop_oneof![state, Just(Value::Page(Bytes::new())), Just(Value::Tombstone)];
    (1..LSN_MAX, 0u64..20, btree_map(any_key(), value, 1..20)).prop_map(move |(lsn, fuzzy, values)| Base {
        id: BaseId(Uuid::from_u128(number)),
        lsn,
        serves_from: lsn + fuzzy,
        values,
    })
}

fn any_timeline(number: u128) -> impl Strategy<Value = Timeline> {
    let bases = (any_base(number * 10), any_base(number * 10 + 1), 0usize..3).prop_map(|(a, b, count)| {
        let mut bases = vec![a, b];
        bases.truncate(count);
        bases
    });
    (
        btree_map((any_key(), 1..LSN_MAX), any_value(), 0..60),
        bases,
        btree_set(1..LSN_MAX, 0..5),
        btree_set(any_key(), 0..3),
        btree_set(0usize..12, 0..6),
    )
        .prop_map(|(changes, bases, lsn_cuts, key_cuts, elsewhere)| Timeline {
            from: 0,
            changes,
            bases,
            lsn_cuts,
            key_cuts,
            elsewhere,
        })
}

/// A timeline, and perhaps a parent and its parent, oldest first. A child's changes and bases lie above its branch point.
fn any_family() -> impl Strategy<Value = Vec<Timeline>> {
    let links = (1..LSN_MAX, 1..LSN_MAX);
    (any_timeline(1), any_timeline(2), any_timeline(3), links, 1usize..4).prop_map(
        |(first, second, third, (a, b), count)| {
            let mut family = vec![first, second, third];
            family.truncate(count);
            for (timeline, from) in family.iter_mut().skip(1).zip([a.min(b), a.max(b)]) {
                timeline.from = from;
                timeline.changes.retain(|(_, lsn), _| *lsn > from);
                timeline.bases.retain(|base| base.lsn > from);
            }
            family
        },
    )
}

impl Timeline {
    fn row(key: Key, lsn: u64, value: &Value) -> Row {
        Row { key, lsn: Lsn(lsn), value: value.clone(), source: Source { xid: lsn as u32, ..Source::NONE } }
    }

    /// The model's history: the definition, word by word.
    fn history(family: &[Timeline], key: &Key, upto: u64, mode: ReadMode) -> Vec<Row> {
        let Some((this, ancestors)) = family.split_last() else { return Vec::new() };
        let base = this
            .bases
            .iter()
            .filter(|base| match mode {
                ReadMode::Serve => base.serves_from <= upto,
                ReadMode::From(id) => base.id == id && base.lsn <= upto,
            })
            .max_by_key(|base| (base.lsn, base.serves_from, base.id));
        let low = base.map_or(0, |base| base.lsn);
        let mut rows = Vec::new();
        for lsn in (low + 1..=upto.min(LSN_MAX)).rev() {
            if let Some(value) = this.changes.get(&(*key, lsn)) {
                rows.push(Timeline::row(*key, lsn, value));
                if value.starts_history() {
                    return rows;
                }
            }
        }
        match base {
            Some(base) => {
                rows.extend(base.values.get(key).map(|value| Timeline::row(*key, base.lsn, value)));
            }
            None => rows.extend(Timeline::history(ancestors, key, upto.min(this.from), mode)),
        }
        rows
    }

    fn versions(family: &[Timeline], key: &Key, after: u64, upto: u64) -> Vec<Row> {
        let Some((this, ancestors)) = family.split_last() else { return Vec::new() };
        let mut rows = Timeline::versions(ancestors, key, after, upto.min(this.from));
        for lsn in after + 1..=upto.min(LSN_MAX) {
            rows.extend(this.changes.get(&(*key, lsn)).map(|value| Timeline::row(*key, lsn, value)));
        }
        rows
    }

    /// Stores the timeline's layers, some of them elsewhere, and opens them.
    async fn store(&self, place: &Place, other: &Place, parent: Option<(Arc<LayerSet>, Lsn)>) -> LayerSet {
        let mut here = Vec::new();
        let mut there = Vec::new();
        let mut number = 0;
        let mut put = |entry: Arc<LayerEntry>| {
            let list = if self.elsewhere.contains(&number) { &mut there } else { &mut here };
            list.push(entry);
            number += 1;
            self.elsewhere.contains(&number)
        };
        let mut next_elsewhere = self.elsewhere.contains(&0);
        let mut low = 0;
        for high in self.lsn_cuts.iter().copied().chain([LSN_MAX]) {
            let mut rows: Vec<Row> = Vec::new();
            let inside = self.changes.iter().filter(|((_, lsn), _)| low < *lsn && *lsn <= high);
            rows.extend(inside.map(|((key, lsn), value)| Timeline::row(*key, *lsn, value)));
            for rows in self.cut(rows) {
                let at = if next_elsewhere { other } else { place };
                let options = WriterOptions::delta(1, Lsn(low), Lsn(high));
                next_elsewhere = put(at.layer(options, &rows).await);
            }
            low = high;
        }
        for base in &self.bases {
            let rows = base.values.iter().map(|(key, value)| Timeline::row(*key, base.lsn, value)).collect();
            for rows in self.cut(rows) {
                let at = if next_elsewhere { other } else { place };
                let entry = at.layer(WriterOptions::image(1, Lsn(base.lsn), Some(base.id)), &rows).await;
                let entry = LayerEntry { serves_from: Lsn(base.serves_from), ..(*entry).clone() };
                next_elsewhere = put(Arc::new(entry));
            }
        }
        let set = LayerSet::new(Arc::clone(&place.store), here, parent).unwrap();
        set.with_layers(Arc::clone(&other.store), there).unwrap()
    }

    fn cut(&self, rows: Vec<Row>) -> Vec<Vec<Row>> {
        let mut parts: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
        for row in rows {
            let part = self.key_cuts.iter().take_while(|cut| **cut <= row.key).count();
            parts.entry(part).or_default().push(row);
        }
        parts.into_values().collect()
    }
}

async fn store_family(family: &[Timeline], caches: &LayerCaches) -> LayerSet {
    let mut set: Option<Arc<LayerSet>> = None;
    // Ids are unique among all stores: here by the number of the place.
    for (number, timeline) in (1u128..).zip(family) {
        let place = Place::numbered(number * 2, caches.clone());
        let other = Place::numbered(number * 2 + 1, caches.clone());
        let parent = set.map(|set| (set, Lsn(timeline.from)));
        set = Some(Arc::new(timeline.store(&place, &other, parent).await));
    }
    Arc::unwrap_or_clone(set.unwrap())
}

fn keys_of(family: &[Timeline]) -> BTreeSet<Key> {
    let changed = family.iter().flat_map(|timeline| timeline.changes.keys().map(|(key, _)| *key));
    let imaged =
        family.iter().flat_map(|timeline| &timeline.bases).flat_map(|base| base.values.keys().copied());
    changed.chain(imaged).collect()
}

fn expected(family: &[Timeline], ranges: &[KeyRange], upto: u64, mode: ReadMode) -> Vec<KeyHistory> {
    let keys = keys_of(family).into_iter().filter(|key| ranges.iter().any(|range| range.contains(key)));
    let histories = keys.map(|key| KeyHistory { key, rows: Timeline::history(family, &key, upto, mode) });
    histories.filter(|history| !history.rows.is_empty()).collect()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn caches() -> impl Strategy<Value = CacheOptions> {
    // From no room at all to room for everything: the answer is the same.
    prop_oneof![Just(0u64), Just(4 << 10), Just(1 << 20)].prop_map(|bytes| CacheOptions {
        index_bytes: bytes,
        block_bytes: bytes,
        whole_bytes: bytes,
        requests: 3,
        ahead_bytes: bytes,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn histories_and_versions_are_those_of_the_model(
        family in any_family(),
        caches in caches(),
        reads in vec((vec(any_key_range(), 1..4), 0..LSN_MAX + 20, 0..LSN_MAX, 0usize..4), 1..5),
    ) {
        run(async {
            let set = store_family(&family, &LayerCaches::new(caches)).await;
            let bases: Vec<&Base> = family.iter().flat_map(|timeline| &timeline.bases).collect();
            for (ranges, upto, after, mode) in reads {
                let versions = set.versions(&ranges, Lsn(after), Lsn(upto)).await.unwrap();
                let keys = keys_of(&family).into_iter();
                let keys = keys.filter(|key| ranges.iter().any(|range| range.contains(key)));
                let model: Vec<Row> =
                    keys.flat_map(|key| Timeline::versions(&family, &key, after, upto)).collect();
                assert_eq!(versions, model);

                let mode = match bases.get(mode) {
                    Some(base) => ReadMode::From(base.id),
                    None => ReadMode::Serve,
                };
                match set.history(&ranges, Lsn(upto), mode).await {
                    Ok(histories) => {
                        assert_eq!(histories, expected(&family, &ranges, upto, mode));
                        if let ReadMode::From(id) = mode {
                            assert_eq!(set.base_for(Lsn(upto), mode).map(|base| base.id), Some(id));
                        }
                    }
                    Err(error) => {
                        assert!(matches!(error, LayerError::NoSuchBase { .. }), "{error}");
                        assert_eq!(set.base_for(Lsn(upto), mode), None);
                    }
                }
            }
        });
    }

    #[test]
    fn a_history_in_chunks_is_the_history(
        family in any_family(),
        range in any_key_range(),
        upto in 0..LSN_MAX + 20,
        max_rows in 0usize..30,
    ) {
        run(async {
            let set = store_family(&family, &LayerCaches::new(CacheOptions::default())).await;
            let whole = set.history(&[range], Lsn(upto), ReadMode::Serve).await.unwrap();
            let mut parts = Vec::new();
            let mut rest = Some(range);
            while let Some(range) = rest {
                let chunk =
                    set.history_chunk(range, Lsn(upto), ReadMode::Serve, max_rows).await.unwrap();
                let rows: usize = chunk.histories.iter().map(|history| history.rows.len()).sum();
                let last = chunk.histories.last().map_or(0, |history| history.rows.len());
                assert!(rows - last < max_rows.max(1), "{rows} rows");
                assert!(chunk.rest.is_none_or(|rest| rest.first > range.first && rest.last == range.last));
                parts.extend(chunk.histories);
                rest = chunk.rest;
            }
            assert_eq!(parts, whole);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn the_newest_history_of_a_key_is_its_history_if_it_is_short_and_young_enough(
        family in any_family(),
        from in 0..LSN_MAX,
        upto in 0..LSN_MAX + 20,
        rows in 0usize..12,
    ) {
        run(async {
            let set = store_family(&family, &LayerCaches::new(CacheOptions::default())).await;
            let limit = RowLimit { rows, bytes: usize::MAX };
            for key in keys_of(&family) {
                let range = [KeyRange::one(key)];
                let model = expected(&family, &range, upto, ReadMode::Serve).pop();
                let model = model.filter(|history| {
                    let oldest = history.rows.last().unwrap();
                    history.started() && oldest.lsn.0 >= from && history.rows.len() <= rows
                });
                let model: Option<Vec<Row>> =
                    model.map(|history| history.rows.into_iter().rev().collect());
                // Once with nothing in the cache, once with the keys.
                for _ in 0..2 {
                    let found =
                        set.newest_history(key, Lsn(from), Lsn(upto), ReadMode::Serve, limit).await.unwrap();
                    assert_eq!(found, model);
                }
                let blank = |rows: Vec<Row>| -> Vec<Row> {
                    rows.into_iter().map(|row| Row { source: crate::Source::NONE, ..row }).collect()
                };
                let values = set.without_sources();
                let found =
                    values.newest_history(key, Lsn(from), Lsn(upto), ReadMode::Serve, limit).await.unwrap();
                assert_eq!(found, model.map(blank));
            }
        });
    }

    #[test]
    fn the_rows_from_the_starts_on_are_the_histories_whatever_the_limit(
        family in any_family(),
        ranges in vec(any_key_range(), 1..4),
        upto in 0..LSN_MAX + 20,
        rows in 0usize..12,
        bytes in prop_oneof![Just(0usize), Just(9000), Just(usize::MAX)],
    ) {
        run(async {
            let set = store_family(&family, &LayerCaches::new(CacheOptions::default())).await;
            let (upto, limit) = (Lsn(upto), RowLimit { rows, bytes });
            let histories = expected(&family, &ranges, upto.0, ReadMode::Serve);
            let starts = set.starts(&ranges, upto, ReadMode::Serve).await.unwrap();
            let oldest = |history: &KeyHistory| (history.key, history.rows.last().unwrap().lsn);
            let model = histories.iter().filter(|history| history.started()).map(oldest);
            assert_eq!(starts, model.collect::<Vec<_>>());

            let starts: BTreeMap<Key, Lsn> = starts.into_iter().collect();
            let keys = keys_of(&family).into_iter();
            let keys = keys.filter(|key| ranges.iter().any(|range| range.contains(key)));
            let from = |key: &Key| starts.get(key).copied().unwrap_or_default();
            let mut spans: Vec<Span> = keys.map(|key| Span { key, from: from(&key), upto }).collect();
            let mut found = Vec::new();
            while !spans.is_empty() {
                let chunk = set.rows(&spans, upto, ReadMode::Serve, limit).await.unwrap();
                assert!(chunk.rows.len() <= rows.max(1), "{} rows", chunk.rows.len());
                let payload: usize = chunk.rows.iter().map(|row| row.value.payload().len()).sum();
                assert!(payload <= bytes.max(64 << 10), "{payload} bytes");
                assert!(!chunk.rows.is_empty() || chunk.rest.is_empty());
                found.extend(chunk.rows);
                spans = chunk.rest;
            }
            let mut model: Vec<Row> = histories.into_iter().flat_map(|history| history.rows).collect();
            model.sort_by_key(|row| (row.key, row.lsn));
            assert_eq!(found, model);
        });
    }
}

#[tokio::test]
async fn part_of_a_history_is_read_without_the_rest() {
    let place = Place::new();
    let key = Key::slru_page(Slru::Xact, 0, 0);
    let edit = |lsn| Timeline::row(key, lsn, &Value::Edit(Bytes::from(vec![lsn as u8; 20])));
    let mut entries = Vec::new();
    for layer in 0..20u64 {
        let rows: Vec<Row> = (layer * 10 + 1..=layer * 10 + 10).map(edit).collect();
        let options = WriterOptions::delta(1, Lsn(layer * 10), Lsn(layer * 10 + 10));
        entries.push(place.layer(options, &rows).await);
    }
    let cold = place.cold(0);
    let set = LayerSet::new(cold, entries, None).unwrap();
    let limit = RowLimit { rows: 15, bytes: usize::MAX };
    let (span, before) = (Span { key, from: Lsn(91), upto: Lsn(200) }, place.gets());
    let chunk = set.rows(&[span], Lsn(200), ReadMode::Serve, limit).await.unwrap();
    assert_eq!(chunk.rows, (91..=105).map(edit).collect::<Vec<_>>());
    assert_eq!(chunk.rest, [Span { from: Lsn(106), ..span }]);
    let spent = place.gets() - before;
    // Eleven footers; no keys or payload of the layers below; of those above at most what was looked into meanwhile.
    assert!((11 + 2 + 2..=11 + 11 + 2 * 2).contains(&spent), "{spent} requests");
}

#[tokio::test]
async fn rows_take_no_more_payload_pages_at_a_time_than_they_may() {
    let place = Place::new();
    // Of every key one row, each in a payload page of its own.
    let row = |block: u32| {
        let key = Key::slru_page(Slru::Xact, 0, block);
        Timeline::row(key, 5, &Value::Edit(Bytes::from(vec![block as u8; 70_000])))
    };
    let rows: Vec<Row> = (0..8).map(row).collect();
    let entry = place.layer(WriterOptions::delta(1, Lsn(1), Lsn(9)), &rows).await;
    let set = LayerSet::new(Arc::clone(&place.store), [entry], None).unwrap();
    let spans: Vec<Span> = rows.iter().map(|row| Span { key: row.key, from: Lsn(5), upto: Lsn(9) }).collect();
    for (bytes, taken) in [(0, 1), (140_007, 1), (140_008, 2), (usize::MAX, 8)] {
        let limit = RowLimit { rows: 100, bytes };
        let chunk = set.rows(&spans, Lsn(9), ReadMode::Serve, limit).await.unwrap();
        assert_eq!((chunk.rows.len(), chunk.rest.len()), (taken, 8 - taken), "{bytes}");
        assert_eq!(chunk.rest, spans[taken..]);
    }
}

#[tokio::test]
async fn two_layers_with_one_value_are_an_error_that_names_both() {
    let place = Place::new();
    let row = Timeline::row(Key::CHECKPOINT, 5, &Value::State(Bytes::new()));
    let a = place.layer(WriterOptions::delta(1, Lsn(1), Lsn(9)), std::slice::from_ref(&row)).await;
    let b = place.layer(WriterOptions::delta(1, Lsn(1), Lsn(9)), &[row]).await;
    let set = LayerSet::new(Arc::clone(&place.store), [Arc::clone(&a), Arc::clone(&b)], None).unwrap();
    let limit = RowLimit { rows: 1, bytes: 0 };
    let span = |from| Span { key: Key::CHECKPOINT, from: Lsn(from), upto: Lsn(9) };
    let errors = [
        set.history(&[ALL], Lsn(9), ReadMode::Serve).await.unwrap_err(),
        set.versions(&[ALL], Lsn(0), Lsn(9)).await.unwrap_err(),
        set.rows(&[span(1)], Lsn(9), ReadMode::Serve, limit).await.unwrap_err(),
    ];
    for error in errors {
        let text = error.to_string();
        assert!(
            text.contains(&a.id.simple().to_string()) && text.contains(&b.id.simple().to_string()),
            "{text}"
        );
    }
    assert_eq!(set.history(&[ALL], Lsn(4), ReadMode::Serve).await.unwrap(), []);
}

#[tokio::test]
async fn an_image_of_no_base_stands_for_what_led_to_it() {
    let place = Place::new();
    let at = |lsn, byte: u8| Timeline::row(Key::CHECKPOINT, lsn, &Value::State(Bytes::from(vec![byte])));
    let edit = |lsn| Timeline::row(Key::CHECKPOINT, lsn, &Value::Edit(Bytes::new()));
    let rows = [at(3, 1), edit(5), edit(7)];
    let delta = place.layer(WriterOptions::delta(1, Lsn(1), Lsn(9)), &rows).await;
    let image = place.layer(WriterOptions::image(1, Lsn(5), None), &[at(5, 9)]).await;
    let image = Arc::new(LayerEntry { serves_from: Lsn(6), ..(*image).clone() });
    let set = LayerSet::new(Arc::clone(&place.store), [delta, image], None).unwrap();
    let read = async |upto| set.history(&[ALL], Lsn(upto), ReadMode::Serve).await.unwrap().remove(0).rows;
    assert_eq!(read(5).await, [edit(5), at(3, 1)]);
    assert_eq!(read(6).await, [at(5, 9)]);
    assert_eq!(read(8).await, [edit(7), at(5, 9)]);
    let (spans, limit) =
        ([Span { key: Key::CHECKPOINT, from: Lsn(5), upto: Lsn(9) }], RowLimit { rows: 1, bytes: 0 });
    let first = set.rows(&spans, Lsn(8), ReadMode::Serve, limit).await.unwrap();
    let second = set.rows(&first.rest, Lsn(8), ReadMode::Serve, limit).await.unwrap();
    assert_eq!((first.rows, second.rows, second.rest), (vec![at(5, 9)], vec![edit(7)], vec![]));
}

#[tokio::test]
async fn events_of_a_child_follow_those_of_its_parent_up_to_the_branch_point() {
    use crate::events::{Event, EventKind, EventWriter};
    let place = Place::new();
    let event = |lsn| Event {
        start: Lsn(lsn - 1),
        lsn: Lsn(lsn),
        kind: EventKind::Commit,
        xid: 7,
        time: 0,
        name: String::new(),
        subxacts: 0,
    };
    let layer = async |from, to, lsns: &[u64]| {
        let mut writer = EventWriter::new(1, Lsn(from), Lsn(to)).unwrap();
        lsns.iter().for_each(|lsn| writer.push(&event(*lsn)).unwrap());
        place.store(&writer.finish().unwrap()).await.unwrap()
    };
    let parents = [layer(20, 40, &[25, 35]).await, layer(1, 20, &[10, 15]).await];
    let parent = LayerSet::new(Arc::clone(&place.store), parents, None).unwrap();
    let children = [layer(30, 50, &[33, 45]).await];
    let set = LayerSet::new(Arc::clone(&place.store), children, Some((Arc::new(parent), Lsn(30)))).unwrap();
    let lsns = async |after, upto| -> Vec<u64> {
        set.events(Lsn(after), Lsn(upto)).await.unwrap().iter().map(|event| event.lsn.0).collect()
    };
    assert_eq!(lsns(0, 99).await, [10, 15, 25, 33, 45]);
    assert_eq!(lsns(10, 33).await, [15, 25, 33]);
    assert_eq!(lsns(0, 12).await, [10]);
}

#[tokio::test]
async fn events_are_looked_for_only_in_row_groups_that_can_hold_them() {
    use crate::events::{Event, EventFilter, EventKind, EventWriter};
    let place = Place::new();
    let long = "n".repeat(63);
    let event = |lsn: u64, kind, xid, name: &str| Event {
        start: Lsn(lsn - 1),
        lsn: Lsn(lsn),
        kind,
        xid,
        time: 0,
        name: name.to_owned(),
        subxacts: 0,
    };
    let mut all = Vec::new();
    let mut entries = Vec::new();
    for layer in 0..10u64 {
        // Transaction numbers wrap around in the sixth layer.
        let xid = 0xFFFF_FF00u32.wrapping_add(layer as u32 * 50);
        let lsn = layer * 100 + 10;
        let mut events = vec![
            event(lsn, EventKind::Commit, xid, ""),
            event(lsn + 1, EventKind::CommitPrepared, xid.wrapping_add(20), "middle"),
        ];
        match layer {
            0 => events.push(event(lsn + 2, EventKind::Checkpoint, 0, "")),
            3 => events.push(event(lsn + 2, EventKind::RestorePoint, 0, "middle")),
            7 => events.push(event(lsn + 2, EventKind::RestorePoint, 0, &long)),
            _ => {}
        }
        let mut writer = EventWriter::new(1, Lsn(layer * 100), Lsn(layer * 100 + 100)).unwrap();
        events.iter().for_each(|event| writer.push(event).unwrap());
        entries.push(place.store(&writer.finish().unwrap()).await.unwrap());
        all.push(events);
    }
    for (filter, groups) in [
        (EventFilter::Any, 10),
        // The layer that holds it; those where the numbers wrap around, and where an event of no transaction is the lowest.
        (EventFilter::Xid(0xFFFF_FF00 + 70), 3),
        (EventFilter::Xid(150), 4),
        (EventFilter::Xid(500), 3),
        (EventFilter::RestorePoint, 2),
        (EventFilter::Named("middle"), 2),
        (EventFilter::Named(&long), 1),
        (EventFilter::Named("zz"), 0),
    ] {
        let set = LayerSet::new(place.cold(0), entries.clone(), None).unwrap();
        let mut found = Vec::new();
        let before = place.gets();
        for layer in set.event_layers(Lsn(0), Lsn::MAX) {
            found.extend(set.find_events(&layer, Lsn(0), Lsn::MAX, filter).await.unwrap());
        }
        let expected: Vec<Event> =
            all.iter().flatten().filter(|event| filter.takes(event)).cloned().collect();
        assert_eq!(found, expected, "{filter:?}");
        assert_eq!(place.gets() - before, 10 + groups, "{filter:?}: footers, and row groups");
    }
}

#[test]
fn reads_can_be_spawned() {
    fn spawnable<T: Send>(_: &T) {}
    let place = Place::new();
    let set = LayerSet::new(Arc::clone(&place.store), Vec::<LayerEntry>::new(), None).unwrap();
    spawnable(&set.history(&[ALL], Lsn(1), ReadMode::Serve));
    spawnable(&set.history_chunk(ALL, Lsn(1), ReadMode::Serve, 1));
    spawnable(&set.versions(&[ALL], Lsn(1), Lsn(2)));
    spawnable(&set.starts(&[ALL], Lsn(1), ReadMode::Serve));
    spawnable(&set.rows(&[], Lsn(1), ReadMode::Serve, RowLimit { rows: 1, bytes: 1 }));
    spawnable(&set.events(Lsn(1), Lsn(2)));
}
