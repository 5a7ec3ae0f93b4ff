//! Filling the caches before anything is asked for: one wave of requests instead of one after the other.

use crate::error::LayerError;
use crate::key::{Key, KeyRange};
use crate::map::ReadMode;
use crate::set::{LayerSet, open};
use futures::future::try_join;
use futures::stream::{StreamExt, TryStreamExt, iter};
use zenith_pgformat::Lsn;

/// Footers that are fetched at the same time.
const FOOTERS_PARALLEL: usize = 64;

impl LayerSet {
    /// Opens what a reader of everything at `upto` will look into, `max_layers` layers of it at most, and reads the first
    /// `max_rows` rows or so of `states`, all at the same time. What was read is in the caches then, as far as they have room;
    /// nothing depends on it.
    pub async fn warm(
        &self,
        states: KeyRange,
        upto: Lsn,
        mode: ReadMode,
        max_layers: usize,
        max_rows: usize,
    ) -> Result<(), LayerError> {
        let sources =
            self.history_sources(&[KeyRange { first: Key::CHECKPOINT, last: Key::MAX }], upto, mode)?;
        let footers = iter(sources.into_iter().take(max_layers)).map(|source| open(vec![source]));
        let footers = footers.buffer_unordered(FOOTERS_PARALLEL).try_for_each(async |_| Ok(()));
        let states = self.history_chunk(states, upto, mode, max_rows);
        try_join(footers, states).await.map(drop)
    }
}
