//! The short history of one key, with as little work as it takes: what a reader of single pages asks for.

use crate::error::LayerError;
use crate::index::GroupKeys;
use crate::key::{Key, KeyRange};
use crate::layer::Pick;
use crate::map::ReadMode;
use crate::merge::{Candidate, cut_histories, sort_newest_first};
use crate::row::{Row, kind_starts_history};
use crate::set::{LayerSet, Opened, PARALLEL, fetch, object_of, open};
use crate::stream::{RowLimit, Touched, touched};
use futures::stream::{StreamExt, TryStreamExt, iter};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use zenith_manifest::LayerKind;
use zenith_pgformat::Lsn;

impl LayerSet {
    /// The rows of one key from the newest on that starts a history ([`crate::Value::starts_history`]), oldest first, if it
    /// lies at `from <= lsn <= upto`. `None` if there is no such row, or if the history is longer than the limit: see
    /// [`LayerSet::starts`] and [`LayerSet::rows`].
    ///
    /// Memory: 56 bytes for each row of a row group beside what the limit allows.
    pub async fn newest_history(
        &self,
        key: Key,
        from: Lsn,
        upto: Lsn,
        mode: ReadMode,
        limit: RowLimit,
    ) -> Result<Option<Vec<Row>>, LayerError> {
        let range = KeyRange::one(key);
        let mut sources = self.history_sources(&[range], upto, mode)?;
        sources.retain(|source| source.entry.lsn_to >= from);
        sources.sort_by_key(|source| Reverse(source.entry.lsn_to));
        let layers = open(sources).await?;
        let mut search = Search { key, from, layers: &layers, candidates: Vec::new(), start: None, limit };
        let mut unknown = Vec::new();
        for group in touched(&layers, &[(key.to_bytes(), key.to_bytes())]) {
            match layers.get(group.layer as usize) {
                Some(opened) if search.wants(opened) => match opened.layer.cached_keys(group.number).await {
                    Some(keys) => search.look(opened, &group, &keys),
                    None => unknown.push(group),
                },
                _ => {}
            }
        }
        unknown.retain(|group: &Touched| {
            layers.get(group.layer as usize).is_some_and(|opened| search.wants(opened))
        });
        let opened = &layers;
        let loads = iter(unknown).map(async |group: Touched| {
            let Some(opened) = opened.get(group.layer as usize) else { return Ok(None) };
            let keys = opened.layer.keys(group.number).await?;
            Ok::<_, LayerError>(Some((group, keys)))
        });
        let mut loads = loads.buffer_unordered(PARALLEL);
        while let Some(found) = loads.try_next().await? {
            if let Some((group, keys)) = found
                && let Some(opened) = layers.get(group.layer as usize)
            {
                search.look(opened, &group, &keys);
            }
        }
        drop(loads);
        let Some(mut candidates) = search.found()? else { return Ok(None) };
        candidates.reverse();
        Ok(Some(fetch(&layers, &candidates, self.sources).await?))
    }
}

/// What was found of a key so far.
struct Search<'a> {
    key: Key,
    from: Lsn,
    layers: &'a [Opened],
    candidates: Vec<Candidate>,
    /// The newest row that starts a history.
    start: Option<Lsn>,
    limit: RowLimit,
}

impl Search<'_> {
    /// Whether a layer may hold rows that count.
    fn wants(&self, opened: &Opened) -> bool {
        self.start.is_none_or(|start| opened.layer.entry().lsn_to >= start)
    }

    fn look(&mut self, opened: &Opened, group: &Touched, keys: &GroupKeys) {
        let image = opened.layer.entry().kind == LayerKind::Image;
        let after = opened.after.max(Lsn(self.from.0.saturating_sub(1)));
        keys.search(&KeyRange::one(self.key), after, opened.upto, true, |found| {
            if kind_starts_history(found.kind) {
                self.start = self.start.max(Some(found.lsn));
            }
            self.candidates.push(Candidate { found, layer: group.layer, group: group.number, image });
        });
    }

    /// The rows, newest first.
    fn found(mut self) -> Result<Option<Vec<Candidate>>, LayerError> {
        sort_newest_first(&mut self.candidates);
        cut_histories(&mut self.candidates, |layer| object_of(self.layers, layer))?;
        let started = self.candidates.last().is_some_and(|row| kind_starts_history(row.found.kind));
        if !started || self.candidates.len() > self.limit.rows {
            return Ok(None);
        }
        let mut pages = BTreeSet::new();
        let mut bytes = 0usize;
        for row in &self.candidates {
            let Some(opened) = self.layers.get(row.layer as usize) else { continue };
            let (page, decoded) = opened.layer.decoded_page(&Pick { group: row.group, found: row.found })?;
            if pages.insert((row.layer, page)) {
                bytes = bytes.saturating_add(decoded);
            }
        }
        Ok((bytes <= self.limit.bytes || pages.len() == 1).then_some(self.candidates))
    }
}
