//! The root of one manifest version: small, whatever the size of the history.

use crate::entry::{BaseId, LayerEntry};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zenith_pgformat::{Lsn, Tli};
use zenith_store::TimelineId;

/// Where a timeline was branched off its parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ancestor {
    /// The parent.
    pub timeline: TimelineId,
    /// Everything up to this LSN is the parent's.
    pub lsn: Lsn,
    /// PostgreSQL's timeline number at that LSN in the parent.
    pub tli: Tli,
}

/// A range of LSNs that can be read. Ranges never overlap.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReadableRange {
    /// Reads begin here: the end of the base image, or the branch point of a child.
    pub from: Lsn,
    /// Last readable LSN; `None` while it is the newest range, which ends where slicing stands.
    pub to: Option<Lsn>,
    /// The base image that begins it; `None` for the first range of a child.
    pub base: Option<BaseId>,
}

/// How a base image was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseKind {
    /// Of a running server: fuzzy between `redo` and `end`.
    Online,
    /// Of a cleanly stopped data directory.
    Directory,
}

/// A base image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BaseImage {
    /// Names its objects.
    pub id: BaseId,
    /// How it was taken.
    pub kind: BaseKind,
    /// PostgreSQL's timeline number.
    pub tli: Tli,
    /// `START WAL LOCATION` (`Online`); where its shutdown checkpoint starts (`Directory`). Its values are
    /// stored at this LSN and slicing begins here.
    pub redo: Lsn,
    /// Start of the checkpoint record that it begins with.
    pub checkpoint: Lsn,
    /// The first LSN it serves: the end of the backup (`Online`), the end of the shutdown checkpoint record
    /// (`Directory`).
    pub end: Lsn,
    /// The slicer has met its `BACKUP_END` record (its shutdown checkpoint) in this timeline's WAL.
    pub confirmed: bool,
    /// When it was finished, RFC 3339, for people.
    pub taken_at: String,
    /// Bytes of the relation files that it holds.
    pub data_bytes: u64,
    /// Bytes of its objects.
    pub stored_bytes: u64,
    /// Data checksums are on.
    pub data_checksums: bool,
}

/// A writing role; each holds an epoch (I6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Turns WAL into layers.
    Slicer,
    /// Turns layers into fewer layers.
    Compactor,
    /// Deletes what nothing can reach.
    Gc,
}

/// The epoch of each role; 0 means it was never taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Epochs {
    /// See [`Role::Slicer`].
    pub slicer: u64,
    /// See [`Role::Compactor`].
    pub compactor: u64,
    /// See [`Role::Gc`].
    pub gc: u64,
}

/// A switch from one PostgreSQL timeline number to the next that slicing followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TliSwitch {
    /// The number that begins.
    pub tli: Tli,
    /// Where it begins.
    pub from: Lsn,
}

/// How far WAL is sliced, and what the slicer has to remember from there to go on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SlicedPosition {
    /// PostgreSQL's timeline number.
    pub tli: Tli,
    /// End of the last sliced record.
    pub lsn: Lsn,
    /// Start of the last sliced record, which the next one's `xl_prev` must name; invalid at a base image.
    pub prev: Lsn,
    /// The slicer's own state, opaque here (the invalid pages of an open base image, say).
    pub state: serde_json::Value,
}

/// A reference to an index page: an immutable Parquet object of layer entries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IndexPageRef {
    /// Names the object: `index/<id>.parquet`.
    pub id: Uuid,
    /// How many entries.
    pub entries: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// CRC-32C of the object.
    pub crc: u32,
}

/// The root of one manifest version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Root {
    /// Consecutive from 1.
    pub version: u64,
    /// Who wrote it: resolves an unknown outcome (I5).
    pub commit_id: Uuid,
    /// Which timeline.
    pub timeline: TimelineId,
    /// Copied from the identity.
    pub ancestor: Option<Ancestor>,
    /// The roles' epochs.
    pub epochs: Epochs,
    /// Base images, by `redo`.
    pub bases: Vec<BaseImage>,
    /// Readable ranges, by LSN.
    pub ranges: Vec<ReadableRange>,
    /// PostgreSQL's timeline numbers along which WAL was sliced.
    pub history: Vec<TliSwitch>,
    /// How far WAL is sliced; `None` before the first base image.
    pub sliced: Option<SlicedPosition>,
    /// Full index pages.
    pub pages: Vec<IndexPageRef>,
    /// The newest layers, not yet in an index page; bounded.
    pub recent: Vec<LayerEntry>,
}
