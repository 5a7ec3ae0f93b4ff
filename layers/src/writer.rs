//! Writing a layer: rows in, one immutable Parquet object out.

use crate::error::LayerError;
use crate::row::Row;
use object_store::{ObjectStore, PutPayload};
use std::sync::Arc;
use uuid::Uuid;
use zenith_manifest::{BaseId, LayerEntry, LayerKind};
use zenith_pgformat::{Lsn, Tli};
use zenith_store::{Env, TimelinePaths};

/// What a layer is to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriterOptions {
    kind: LayerKind,
    tli: Tli,
    lsn_from: Lsn,
    lsn_to: Lsn,
    base: Option<BaseId>,
}

impl WriterOptions {
    /// A delta layer: rows with `lsn_from < lsn <= lsn_to`.
    pub fn delta(tli: Tli, lsn_from: Lsn, lsn_to: Lsn) -> WriterOptions {
        WriterOptions { kind: LayerKind::Delta, tli, lsn_from, lsn_to, base: None }
    }

    /// An image layer: rows with `lsn == lsn`, of the base image `base` if it belongs to one.
    pub fn image(tli: Tli, lsn: Lsn, base: Option<BaseId>) -> WriterOptions {
        WriterOptions { kind: LayerKind::Image, tli, lsn_from: lsn, lsn_to: lsn, base }
    }
}

/// Writes one image or delta layer into memory.
#[derive(Debug)]
pub struct LayerWriter {
    options: WriterOptions,
}

/// A layer that is encoded and not yet stored.
#[derive(Debug)]
pub struct FinishedLayer {
    entry: LayerEntry,
    payload: PutPayload,
}

impl LayerWriter {
    /// A writer without rows.
    pub fn new(options: WriterOptions) -> Result<LayerWriter, LayerError> {
        Ok(LayerWriter { options })
    }

    /// Adds a row. Keys ascend, LSNs of one key ascend; a duplicate or disorder is refused.
    pub fn push(&mut self, row: &Row) -> Result<(), LayerError> {
        Err(LayerError::Refused(format!("{:?} {:?}", self.options, row.key)))
    }

    /// Number of rows so far.
    pub fn rows(&self) -> u64 {
        0
    }

    /// About how large the object would be if it were finished now; tells when to begin another.
    pub fn estimated_bytes(&self) -> u64 {
        0
    }

    /// Ends the layer. A layer without rows is refused: ask [`LayerWriter::rows`].
    pub fn finish(self) -> Result<FinishedLayer, LayerError> {
        Err(LayerError::Refused("it has no rows".to_owned()))
    }
}

impl FinishedLayer {
    /// The entry as it will be under this id.
    pub fn entry(&self, id: Uuid) -> LayerEntry {
        LayerEntry { id, ..self.entry.clone() }
    }

    /// Size of the object.
    pub fn bytes(&self) -> u64 {
        self.entry.bytes
    }
}

/// Stores a finished layer by one put-if-absent under a fresh id and returns its entry for the manifest. An outcome
/// that stays unknown after reading back is resolved by storing it again under another id.
///
/// The entry of a base's image layer says `serves_from = lsn_from`; whoever takes the base raises it to the
/// base's end before it commits the entry.
pub async fn store_layer(
    store: &Arc<dyn ObjectStore>,
    paths: &TimelinePaths,
    env: &Env,
    layer: &FinishedLayer,
) -> Result<LayerEntry, LayerError> {
    let id = env.ids.fresh();
    let _ = (store, &layer.payload);
    Err(LayerError::Unknown { object: paths.layer(id).to_string(), what: String::new() })
}
