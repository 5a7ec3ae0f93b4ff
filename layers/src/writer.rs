//! Writing a layer: rows in, one immutable Parquet object out.

use crate::columns::RowColumns;
use crate::error::LayerError;
use crate::group::{GroupWriter, Line};
use crate::key::Key;
use crate::object::About;
use crate::row::{Row, Value};
use crate::schema::{row_properties, row_schema};
use bytes::Bytes;
use object_store::ObjectStore;
use uuid::Uuid;
use zenith_manifest::{BaseId, KeyBytes, LayerEntry, LayerKind};
use zenith_pgformat::{BLCKSZ, Lsn, Tli};
use zenith_store::{Creation, Env, StoreError, TimelinePaths};

/// The longest payload: Parquet counts the bytes of a page in 31 bits, and PostgreSQL's records end at 1 GB.
const PAYLOAD_BYTES_MAX: usize = 1 << 30;
/// How many ids are tried for one layer.
const STORE_TRIES: usize = 3;

/// What a layer is to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriterOptions {
    about: About,
    base: Option<BaseId>,
}

impl WriterOptions {
    /// A delta layer: rows with `lsn_from < lsn <= lsn_to`.
    pub fn delta(tli: Tli, lsn_from: Lsn, lsn_to: Lsn) -> WriterOptions {
        WriterOptions { about: About { kind: LayerKind::Delta, tli, lsn_from, lsn_to }, base: None }
    }

    /// An image layer: rows at exactly `lsn`, of the base image `base` if it belongs to one.
    pub fn image(tli: Tli, lsn: Lsn, base: Option<BaseId>) -> WriterOptions {
        WriterOptions { about: About { kind: LayerKind::Image, tli, lsn_from: lsn, lsn_to: lsn }, base }
    }
}

/// Writes one image or delta layer into memory.
///
/// It holds the encoded object so far, the open row group's encoded pages (at most 16 MB of payload before
/// compression) and a batch of about 1 MB that is not encoded yet, whose payloads it shares with whoever pushed them.
#[derive(Debug)]
pub struct LayerWriter {
    groups: GroupWriter<Row>,
    base: Option<BaseId>,
    last: Option<(Key, Lsn)>,
}

/// A layer that is encoded and not yet stored.
#[derive(Clone, Debug)]
pub struct FinishedLayer {
    pub(crate) entry: LayerEntry,
    pub(crate) object: Bytes,
}

impl LayerWriter {
    /// A writer without rows.
    pub fn new(options: WriterOptions) -> Result<LayerWriter, LayerError> {
        let About { lsn_from, lsn_to, .. } = options.about;
        if lsn_from > lsn_to || !lsn_to.is_valid() {
            return Err(LayerError::Refused(format!("no row can lie above {lsn_from} and up to {lsn_to}")));
        }
        let groups = GroupWriter::new(options.about, &row_schema(), row_properties(options.about.kind)?)?;
        Ok(LayerWriter { groups, base: options.base, last: None })
    }

    /// Adds a row. Keys ascend, LSNs of one key ascend; a duplicate or disorder is refused, and so is an LSN that
    /// the layer cannot hold.
    pub fn push(&mut self, row: &Row) -> Result<(), LayerError> {
        self.check(row)?;
        self.groups.push(row)?;
        self.last = Some((row.key, row.lsn));
        Ok(())
    }

    fn check(&self, row: &Row) -> Result<(), LayerError> {
        let refuse = |why: String| Err(LayerError::Refused(format!("{} at {}: {why}", row.key, row.lsn)));
        if let Some((key, lsn)) = self.last
            && (key, lsn) >= (row.key, row.lsn)
        {
            return refuse(format!("it does not sort after {key} at {lsn}"));
        }
        let About { kind, lsn_from, lsn_to, .. } = self.groups.about();
        let held = match kind {
            LayerKind::Image => row.lsn == lsn_from,
            LayerKind::Delta | LayerKind::Events => lsn_from < row.lsn && row.lsn <= lsn_to,
        };
        if !held {
            return refuse(format!("the layer holds {lsn_from} to {lsn_to}"));
        }
        if kind == LayerKind::Image && !row.value.starts_history() {
            return refuse("an image cannot need an older value".to_owned());
        }
        let bytes = row.value.payload().len();
        if matches!(row.value, Value::Page(_)) && bytes != 0 && bytes != BLCKSZ {
            return refuse(format!("a page of {bytes} bytes"));
        }
        if bytes > PAYLOAD_BYTES_MAX {
            return refuse(format!("a payload of {bytes} bytes"));
        }
        Ok(())
    }

    /// Number of rows so far.
    pub fn rows(&self) -> u64 {
        self.groups.rows()
    }

    /// About how large the object would be if it were finished now; tells when to begin another.
    pub fn estimated_bytes(&self) -> u64 {
        self.groups.estimated_bytes()
    }

    /// Ends the layer. A layer without rows is refused: ask [`LayerWriter::rows`].
    pub fn finish(self) -> Result<FinishedLayer, LayerError> {
        let mut layer = self.groups.finish()?;
        layer.entry.base = self.base;
        Ok(layer)
    }
}

impl Line for Row {
    type Columns = RowColumns;

    fn key(&self) -> KeyBytes {
        self.key.to_bytes()
    }

    fn lsn(&self) -> Lsn {
        self.lsn
    }

    fn payload_bytes(&self) -> usize {
        self.value.payload().len()
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

    /// The object itself.
    pub fn object(&self) -> &Bytes {
        &self.object
    }
}

/// Stores a finished layer by one put-if-absent under a fresh id and returns its entry for the manifest. An outcome
/// that stays unknown after reading back is resolved by storing it again under another id; what the first attempt may
/// have left behind is garbage collection's.
///
/// The entry of a base's image layer says `serves_from = lsn_from`; whoever takes the base raises it to the
/// base's end before it commits the entry.
pub async fn store_layer(
    store: &dyn ObjectStore,
    paths: &TimelinePaths,
    env: &Env,
    layer: &FinishedLayer,
) -> Result<LayerEntry, LayerError> {
    let mut last = None;
    for _ in 0..STORE_TRIES {
        let id = env.ids.fresh();
        let path = paths.layer(id);
        match zenith_store::create(store, env, &path, layer.object.clone()).await {
            Ok(Creation::Created | Creation::Same) => return Ok(layer.entry(id)),
            Ok(Creation::Other) => {
                tracing::warn!(object = %path, "a fresh id was taken already; trying another");
                let (object, reason) = (path.to_string(), "its fresh id is taken".to_owned());
                last = Some(StoreError::Refused { object, reason });
            }
            Err(source @ StoreError::Unknown { .. }) => {
                tracing::warn!(%source, "storing the layer under another id");
                last = Some(source);
            }
            Err(source) => return Err(LayerError::Store { doing: "storing", source }),
        }
    }
    let source =
        last.unwrap_or_else(|| StoreError::Settings("a layer was not tried to be stored".to_owned()));
    Err(LayerError::Store { doing: "storing", source })
}
