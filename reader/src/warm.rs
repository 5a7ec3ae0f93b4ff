//! What nearly every use of a whole timeline begins with, read into the caches at once: a store that is far away answers many
//! questions together as fast as one.

use crate::error::ReadError;
use crate::timeline::Timeline;
use zenith_layers::{KeyClass, KeyRange, ReadMode};
use zenith_pgformat::Lsn;

/// Footers of layers: those of some 100 GB of WAL.
const LAYERS_MAX: usize = 1024;
/// Settings, databases, relations.
const ROWS_MAX: usize = 8192;

impl Timeline {
    /// Reads into the caches what a reader of the whole timeline at `lsn`, or at its end, begins with: the layers' footers, and
    /// the settings, databases and sizes of relations. Meant to run beside other work.
    ///
    /// # Errors
    /// Need not be looked at: what goes wrong here goes wrong again where it matters.
    pub async fn warm(&self, lsn: Option<Lsn>) -> Result<(), ReadError> {
        let lsn = lsn.map_or_else(|| self.end(), Ok)?;
        let states = KeyRange {
            first: KeyRange::class(KeyClass::Checkpoint).first,
            last: KeyRange::class(KeyClass::RelEvent).last,
        };
        Ok(self.layers().warm(states, lsn, ReadMode::Serve, LAYERS_MAX, ROWS_MAX).await?)
    }
}
