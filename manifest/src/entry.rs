//! What a manifest says of one layer. Keys are opaque bytes here: their order is all that matters.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zenith_pgformat::{Lsn, Tli};

/// A key as ordered bytes; what they mean is `zenith_layers::Key`'s business.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct KeyBytes(pub [u8; 18]);

/// A base image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BaseId(pub Uuid);

/// What a layer object holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerKind {
    /// Values of keys at one LSN.
    Image,
    /// Changes of keys over a range of LSNs.
    Delta,
    /// Commits, aborts, restore points and checkpoints over a range of LSNs.
    Events,
}

/// One layer object as a manifest names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerEntry {
    /// Names the object: `layers/<id>.parquet`.
    pub id: Uuid,
    /// What it holds.
    pub kind: LayerKind,
    /// PostgreSQL's timeline number of the WAL (delta, events) or of the base image.
    pub tli: Tli,
    /// Lowest key in it.
    pub key_min: KeyBytes,
    /// Highest key in it.
    pub key_max: KeyBytes,
    /// Delta, events: every row's LSN is above this. Image: the LSN its values are stored at.
    pub lsn_from: Lsn,
    /// Delta, events: every row's LSN is at most this. Image: equal to `lsn_from`.
    pub lsn_to: Lsn,
    /// Image: reads below this LSN must not use it (a base image is fuzzy until its end). Else equal to
    /// `lsn_from`.
    pub serves_from: Lsn,
    /// Image of a base: which one. All image layers of a base together cover the whole key space at its LSN.
    pub base: Option<BaseId>,
    /// Number of rows.
    pub rows: u64,
    /// Size of the object in bytes.
    pub bytes: u64,
    /// From this offset to the object's end lie page indexes and footer, read and verified as one.
    pub meta_offset: u64,
    /// CRC-32C of the bytes from `meta_offset` to the end.
    pub meta_crc: u32,
    /// Events: the latest commit, abort, restore point or checkpoint time in it, in microseconds since
    /// 2000-01-01 UTC (`TimestampTz`).
    pub max_time: Option<i64>,
}
