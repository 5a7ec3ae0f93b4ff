//! The stored form of a root: an envelope around JSON, layers as compact arrays.

use crate::check::check_stored;
use crate::entry::{BaseId, KeyBytes, LayerEntry, LayerKind};
use crate::envelope::{self, ROOT};
use crate::error::ManifestError;
use crate::root::{
    Ancestor, BaseImage, Epochs, IndexPageRef, ReadableRange, Root, SlicedPosition, TliSwitch,
};
use bytes::Bytes;
use object_store::path::Path;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;
use zenith_pgformat::{Lsn, Tli};
use zenith_store::TimelineId;

/// The largest stored root; the slicer's state is the only part that could grow.
pub const ROOT_BYTES_MAX: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    version: u64,
    commit_id: Uuid,
    timeline: TimelineId,
    ancestor: Option<Ancestor>,
    epochs: Epochs,
    bases: Vec<BaseImage>,
    ranges: Vec<ReadableRange>,
    history: Vec<TliSwitch>,
    sliced: Option<SlicedPosition>,
    pages: Vec<IndexPageRef>,
    recent: Vec<Row>,
}

/// One layer as `[id, kind, tli, key_min, key_max, lsn_from, lsn_to, serves_from, base, rows, bytes, meta_offset,
/// meta_crc, max_time]`; keys in hexadecimal, LSNs as numbers.
#[derive(Serialize, Deserialize)]
struct Row(
    #[serde(with = "uuid::serde::simple")] Uuid,
    LayerKind,
    Tli,
    Hex,
    Hex,
    u64,
    u64,
    u64,
    Option<BaseId>,
    u64,
    u64,
    u64,
    u32,
    Option<i64>,
);

struct Hex(KeyBytes);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits = self.0.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let text: String = digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hex, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
        let bytes: Option<Vec<u8>> = digits.map(|digits| {
            digits.chunks(2).map(|pair| pair.iter().fold(0, |high, low| high << 4 | low)).collect()
        });
        let key = bytes.and_then(|bytes| <[u8; 18]>::try_from(bytes).ok()).filter(|_| text.len() == 36);
        key.map(|key| Hex(KeyBytes(key)))
            .ok_or_else(|| D::Error::custom("a key is not 36 hexadecimal digits"))
    }
}

impl From<&LayerEntry> for Row {
    fn from(l: &LayerEntry) -> Row {
        Row(
            l.id,
            l.kind,
            l.tli,
            Hex(l.key_min),
            Hex(l.key_max),
            l.lsn_from.0,
            l.lsn_to.0,
            l.serves_from.0,
            l.base,
            l.rows,
            l.bytes,
            l.meta_offset,
            l.meta_crc,
            l.max_time,
        )
    }
}

impl From<Row> for LayerEntry {
    fn from(row: Row) -> LayerEntry {
        LayerEntry {
            id: row.0,
            kind: row.1,
            tli: row.2,
            key_min: row.3.0,
            key_max: row.4.0,
            lsn_from: Lsn(row.5),
            lsn_to: Lsn(row.6),
            serves_from: Lsn(row.7),
            base: row.8,
            rows: row.9,
            bytes: row.10,
            meta_offset: row.11,
            meta_crc: row.12,
            max_time: row.13,
        }
    }
}

/// The bytes of a root, to be stored as `object`.
pub fn encode_root(object: &Path, root: &Root) -> Result<Bytes, ManifestError> {
    let body = Body {
        version: root.version,
        commit_id: root.commit_id,
        timeline: root.timeline,
        ancestor: root.ancestor,
        epochs: root.epochs,
        bases: root.bases.clone(),
        ranges: root.ranges.clone(),
        history: root.history.clone(),
        sliced: root.sliced.clone(),
        pages: root.pages.clone(),
        recent: root.recent.iter().map(Row::from).collect(),
    };
    let bytes = envelope::seal(ROOT, object, &body)?;
    if bytes.len() as u64 > ROOT_BYTES_MAX {
        let reason = format!("it would have {} bytes, more than {ROOT_BYTES_MAX}", bytes.len());
        return Err(ManifestError::Damaged { object: object.to_string(), reason });
    }
    Ok(bytes)
}

/// The root stored as `object`; one that is damaged, newer, or breaks a rule that holds of every root is an error
/// that names it.
pub fn decode_root(object: &Path, bytes: &[u8]) -> Result<Root, ManifestError> {
    let body: Body = envelope::open(ROOT, object, bytes)?;
    let root = Root {
        version: body.version,
        commit_id: body.commit_id,
        timeline: body.timeline,
        ancestor: body.ancestor,
        epochs: body.epochs,
        bases: body.bases,
        ranges: body.ranges,
        history: body.history,
        sliced: body.sliced,
        pages: body.pages,
        recent: body.recent.into_iter().map(LayerEntry::from).collect(),
    };
    check_stored(&root).map_err(|reason| ManifestError::Damaged { object: object.to_string(), reason })?;
    Ok(root)
}
