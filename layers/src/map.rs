//! Which layers a read needs: pure, over the entries of a manifest version.

use crate::error::LayerError;
use crate::key::KeyRange;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use zenith_manifest::{BaseId, KeyBytes, LayerEntry, LayerKind};
use zenith_pgformat::Lsn;

/// Which base image a read starts from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReadMode {
    /// The newest base image with `serves_from <= upto`: what a reader wants.
    Serve,
    /// This base image and the deltas after it, from its own LSN on: what the slicer wants, inside the window in
    /// which the base does not serve yet.
    From(BaseId),
}

/// The base image that a read uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsedBase {
    /// Which.
    pub id: BaseId,
    /// Its values are stored at this LSN.
    pub lsn: Lsn,
    /// The first LSN that it serves.
    pub serves_from: Lsn,
    /// 0: of the timeline itself; 1: of its parent; and so on.
    pub ancestor: usize,
}

/// The layers of one base image.
#[derive(Debug)]
pub(crate) struct BaseLayers {
    pub(crate) id: BaseId,
    pub(crate) lsn: Lsn,
    pub(crate) serves_from: Lsn,
    layers: Intervals,
}

/// The layers of a manifest version, arranged for searching. Layers are named by their position in
/// [`LayerMap::entries`].
#[derive(Debug)]
pub struct LayerMap {
    entries: Vec<Arc<LayerEntry>>,
    /// By LSN, the newest last.
    bases: Vec<BaseLayers>,
    /// Images that belong to no base: each speaks for the keys that it holds.
    images: Intervals,
    deltas: Intervals,
    /// By LSN.
    events: Vec<usize>,
}

impl LayerMap {
    /// Arranges the entries; such as contradict themselves or each other are refused.
    pub fn new(entries: Vec<Arc<LayerEntry>>) -> Result<LayerMap, LayerError> {
        let mut ids = HashSet::with_capacity(entries.len());
        let mut bases: BTreeMap<BaseId, (Lsn, Lsn, Vec<usize>)> = BTreeMap::new();
        let (mut images, mut deltas, mut events) = (Vec::new(), Vec::new(), Vec::new());
        for (position, entry) in entries.iter().enumerate() {
            let bad = |what: &str| {
                Err(LayerError::BadEntry { object: entry.id.to_string(), what: what.to_owned() })
            };
            if let Some(what) = contradiction(entry) {
                return bad(what);
            }
            if !ids.insert(entry.id) {
                return bad("it is named twice");
            }
            match (entry.kind, entry.base) {
                (LayerKind::Delta, _) => deltas.push(position),
                (LayerKind::Events, _) => events.push(position),
                (LayerKind::Image, None) => images.push(position),
                (LayerKind::Image, Some(base)) => {
                    let (lsn, serves_from, layers) =
                        bases.entry(base).or_insert((entry.lsn_from, entry.serves_from, Vec::new()));
                    if (*lsn, *serves_from) != (entry.lsn_from, entry.serves_from) {
                        return bad("other layers of its base have other LSNs");
                    }
                    layers.push(position);
                }
            }
        }
        events.sort_by_key(|&position| entries.get(position).map(|entry| (entry.lsn_from, entry.lsn_to)));
        let bases = bases.into_iter().map(|(id, (lsn, serves_from, layers))| {
            let layers = Intervals::new(&entries, layers);
            BaseLayers { id, lsn, serves_from, layers }
        });
        let mut bases: Vec<BaseLayers> = bases.collect();
        bases.sort_by_key(|base| (base.lsn, base.serves_from, base.id));
        let (images, deltas) = (Intervals::new(&entries, images), Intervals::new(&entries, deltas));
        Ok(LayerMap { entries, bases, images, deltas, events })
    }

    /// All entries, in the order given.
    pub fn entries(&self) -> &[Arc<LayerEntry>] {
        &self.entries
    }

    /// The base image that a read up to `upto` uses.
    pub(crate) fn base_for(&self, upto: Lsn, mode: ReadMode) -> Option<&BaseLayers> {
        self.bases.iter().rev().find(|base| match mode {
            ReadMode::Serve => base.serves_from <= upto && base.lsn <= upto,
            ReadMode::From(id) => base.id == id && base.lsn <= upto,
        })
    }

    /// The layers of a base that may hold keys of `ranges` (normalised).
    pub(crate) fn base_layers(&self, base: &BaseLayers, ranges: &[KeyRange]) -> Vec<usize> {
        base.layers.overlapping(&self.entries, ranges, |_| true)
    }

    /// The images of no base, above `after`, that serve `upto` and may hold keys of `ranges` (normalised).
    pub(crate) fn lone_images(&self, ranges: &[KeyRange], after: Lsn, upto: Lsn) -> Vec<usize> {
        let wanted = |entry: &LayerEntry| {
            entry.lsn_from > after && entry.lsn_from <= upto && entry.serves_from <= upto
        };
        self.images.overlapping(&self.entries, ranges, wanted)
    }

    /// The delta layers that may hold rows of `ranges` (normalised) with `after < lsn <= upto`.
    pub(crate) fn deltas(&self, ranges: &[KeyRange], after: Lsn, upto: Lsn) -> Vec<usize> {
        let wanted = |entry: &LayerEntry| entry.lsn_to > after && entry.lsn_from < upto;
        self.deltas.overlapping(&self.entries, ranges, wanted)
    }

    /// The events layers that may hold events with `after < lsn <= upto`, in LSN order.
    pub(crate) fn events(&self, after: Lsn, upto: Lsn) -> Vec<usize> {
        let wanted = |position: &usize| {
            let entry = self.entries.get(*position);
            entry.is_some_and(|entry| entry.lsn_to > after && entry.lsn_from < upto)
        };
        self.events.iter().copied().filter(wanted).collect()
    }
}

fn contradiction(entry: &LayerEntry) -> Option<&'static str> {
    let image = entry.kind == LayerKind::Image;
    if entry.key_min > entry.key_max {
        Some("its lowest key is above its highest")
    } else if entry.lsn_from > entry.lsn_to || entry.serves_from < entry.lsn_from {
        Some("its LSNs are out of order")
    } else if image != (entry.lsn_from == entry.lsn_to) {
        Some("its LSNs do not fit its kind")
    } else if !image && entry.base.is_some() {
        Some("only an image belongs to a base")
    } else {
        None
    }
}

/// Layers by their range of keys: an interval tree in an array, each middle element the root of its half-open part.
#[derive(Debug)]
struct Intervals {
    /// By lowest key.
    layers: Vec<Node>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    position: usize,
    first: KeyBytes,
    last: KeyBytes,
    /// Highest key below this root.
    max: KeyBytes,
}

impl Intervals {
    fn new(entries: &[Arc<LayerEntry>], positions: Vec<usize>) -> Intervals {
        let nodes = positions.into_iter().filter_map(|position| {
            let entry = entries.get(position)?;
            Some(Node { position, first: entry.key_min, last: entry.key_max, max: entry.key_max })
        });
        let mut layers: Vec<Node> = nodes.collect();
        layers.sort_by_key(|node| (node.first, node.last, node.position));
        raise(&mut layers);
        Intervals { layers }
    }

    /// Positions, ascending, of the layers that share a key with `ranges` (normalised) and that are `wanted`.
    fn overlapping(
        &self,
        entries: &[Arc<LayerEntry>],
        ranges: &[KeyRange],
        wanted: impl Fn(&LayerEntry) -> bool,
    ) -> Vec<usize> {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return Vec::new() };
        let bytes: Vec<(KeyBytes, KeyBytes)> =
            ranges.iter().map(|range| (range.first.to_bytes(), range.last.to_bytes())).collect();
        let mut found = Vec::new();
        visit(&self.layers, first.first.to_bytes(), last.last.to_bytes(), &mut |node| {
            let touched = overlapping(&bytes, node.first, node.last);
            if !touched.is_empty() && entries.get(node.position).is_some_and(|entry| wanted(entry)) {
                found.push(node.position);
            }
        });
        found.sort_unstable();
        found
    }
}

/// Which of some ranges (normalised) share a key with `first..=last`.
pub(crate) fn overlapping(ranges: &[(KeyBytes, KeyBytes)], first: KeyBytes, last: KeyBytes) -> Range<usize> {
    let start = ranges.partition_point(|range| range.1 < first);
    let end = ranges.partition_point(|range| range.0 <= last);
    start..end.max(start)
}

/// Sets `max` of every root; returns the highest key of all.
fn raise(nodes: &mut [Node]) -> Option<KeyBytes> {
    let middle = nodes.len() / 2;
    let (left, rest) = nodes.split_at_mut(middle);
    let (root, right) = rest.split_first_mut()?;
    root.max = root.last.max(raise(left).unwrap_or(root.last)).max(raise(right).unwrap_or(root.last));
    Some(root.max)
}

fn visit(nodes: &[Node], first: KeyBytes, last: KeyBytes, found: &mut impl FnMut(&Node)) {
    let (left, rest) = nodes.split_at(nodes.len() / 2);
    let Some((root, right)) = rest.split_first() else { return };
    if root.max < first {
        return;
    }
    visit(left, first, last, found);
    if root.first <= last {
        if root.last >= first {
            found(root);
        }
        visit(right, first, last, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;
    use crate::test_rows::{any_key, any_key_range};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn base(number: u8) -> BaseId {
        BaseId(Uuid::from_u128(u128::from(number)))
    }

    fn entry(
        kind: LayerKind,
        keys: (Key, Key),
        lsns: (u64, u64),
        serves: u64,
        of: Option<BaseId>,
    ) -> LayerEntry {
        LayerEntry {
            id: Uuid::nil(),
            kind,
            tli: 1,
            key_min: keys.0.min(keys.1).to_bytes(),
            key_max: keys.0.max(keys.1).to_bytes(),
            lsn_from: Lsn(lsns.0),
            lsn_to: Lsn(lsns.1),
            serves_from: Lsn(serves),
            base: of,
            rows: 1,
            bytes: 100,
            meta_offset: 50,
            meta_crc: 0,
            max_time: None,
        }
    }

    fn any_entry() -> impl Strategy<Value = LayerEntry> {
        let keys = || (any_key(), any_key());
        prop_oneof![
            4 => (keys(), 1u64..100, 1u64..50).prop_map(|(keys, from, length)| {
                entry(LayerKind::Delta, keys, (from, from + length), from, None)
            }),
            2 => (keys(), 1u8..4).prop_map(|(keys, of)| {
                let lsn = u64::from(of) * 20;
                entry(LayerKind::Image, keys, (lsn, lsn), lsn + 30 / u64::from(of), Some(base(of)))
            }),
            1 => (keys(), 1u64..100, 0u64..20).prop_map(|(keys, lsn, more)| {
                entry(LayerKind::Image, keys, (lsn, lsn), lsn + more, None)
            }),
            1 => (1u64..100, 1u64..50).prop_map(|(from, length)| {
                entry(LayerKind::Events, (Key::MIN, Key::MIN), (from, from + length), from, None)
            }),
        ]
    }

    fn numbered(entries: Vec<LayerEntry>) -> Vec<Arc<LayerEntry>> {
        let numbered = entries.into_iter().zip(1u128..);
        numbered.map(|(entry, id)| Arc::new(LayerEntry { id: Uuid::from_u128(id), ..entry })).collect()
    }

    fn naive(
        entries: &[Arc<LayerEntry>],
        ranges: &[KeyRange],
        wanted: impl Fn(&LayerEntry) -> bool,
    ) -> Vec<usize> {
        let touches = |entry: &LayerEntry| {
            ranges.iter().any(|range| {
                range.first <= range.last
                    && range.first.to_bytes() <= entry.key_max
                    && entry.key_min <= range.last.to_bytes()
            })
        };
        let positions = entries.iter().enumerate().filter(|(_, entry)| wanted(entry) && touches(entry));
        positions.map(|(position, _)| position).collect()
    }

    proptest! {
        #[test]
        fn a_search_names_the_layers_that_a_look_at_every_entry_names(
            entries in vec(any_entry(), 0..60),
            ranges in vec(any_key_range(), 0..6),
            after in 0u64..160,
            upto in 0u64..160,
            from in proptest::option::of(1u8..4),
        ) {
            let entries = numbered(entries);
            let map = LayerMap::new(entries.clone()).unwrap();
            let sorted = KeyRange::normalise(&ranges);
            let (after, upto) = (Lsn(after), Lsn(upto));
            prop_assert_eq!(
                map.deltas(&sorted, after, upto),
                naive(&entries, &ranges, |e| e.kind == LayerKind::Delta && e.lsn_to > after && e.lsn_from < upto)
            );
            prop_assert_eq!(
                map.lone_images(&sorted, after, upto),
                naive(&entries, &ranges, |e| e.kind == LayerKind::Image
                    && e.base.is_none()
                    && e.lsn_from > after
                    && e.lsn_from <= upto
                    && e.serves_from <= upto)
            );
            let mode = from.map_or(ReadMode::Serve, |number| ReadMode::From(base(number)));
            let expected = entries
                .iter()
                .filter(|e| e.base.is_some_and(|id| from.is_none_or(|number| id == base(number))))
                .filter(|e| e.lsn_from <= upto && (from.is_some() || e.serves_from <= upto))
                .max_by_key(|e| e.lsn_from)
                .map(|e| e.base.unwrap());
            let found = map.base_for(upto, mode);
            prop_assert_eq!(found.map(|base| base.id), expected);
            if let Some(found) = found {
                prop_assert_eq!(
                    map.base_layers(found, &sorted),
                    naive(&entries, &ranges, |e| e.base == Some(found.id))
                );
            }
            let events = map.events(after, upto).into_iter().map(|n| (entries[n].lsn_from, entries[n].lsn_to));
            let events = events.collect::<Vec<_>>();
            let mut expected: Vec<(Lsn, Lsn)> = entries
                .iter()
                .filter(|e| e.kind == LayerKind::Events && e.lsn_to > after && e.lsn_from < upto)
                .map(|e| (e.lsn_from, e.lsn_to))
                .collect();
            expected.sort();
            prop_assert_eq!(events, expected);
        }
    }

    #[test]
    fn a_point_among_ten_thousand_layers_is_found_by_few_comparisons() {
        let key = |block| Key { block, ..Key::MAX };
        let entries = (0..10_000u32)
            .map(|n| entry(LayerKind::Delta, (key(n * 10), key(n * 10 + 9)), (1, 2), 1, None))
            .collect();
        let map = LayerMap::new(numbered(entries)).unwrap();
        let mut looked = 0;
        let at = key(54_321).to_bytes();
        visit(&map.deltas.layers, at, at, &mut |_| looked += 1);
        assert_eq!(looked, 1);
        assert_eq!(map.deltas(&[KeyRange::one(key(54_321))], Lsn(0), Lsn(9)), [5432]);
    }

    #[test]
    fn entries_that_contradict_themselves_or_each_other_are_refused() {
        let keys = (Key::MIN, Key::MAX);
        let delta = entry(LayerKind::Delta, keys, (5, 9), 5, None);
        let image = entry(LayerKind::Image, keys, (5, 5), 7, Some(base(1)));
        let bad = [
            vec![LayerEntry { key_min: delta.key_max, key_max: delta.key_min, ..delta.clone() }],
            vec![LayerEntry { lsn_to: Lsn(4), ..delta.clone() }],
            vec![LayerEntry { base: Some(base(1)), ..delta.clone() }],
            vec![LayerEntry { serves_from: Lsn(4), ..image.clone() }],
            vec![LayerEntry { lsn_to: Lsn(6), ..image.clone() }],
            vec![image.clone(), LayerEntry { serves_from: Lsn(8), ..image.clone() }],
        ];
        for entries in bad {
            assert!(matches!(LayerMap::new(numbered(entries)), Err(LayerError::BadEntry { .. })));
        }
        let twice = vec![Arc::new(delta.clone()), Arc::new(delta)];
        assert!(matches!(LayerMap::new(twice), Err(LayerError::BadEntry { .. })));
    }
}
