//! The root of one manifest version: small, whatever the size of the history.
//!
//! What holds of every root is in [`crate::check`]; how one becomes the next is in [`crate::change`].

use crate::entry::{BaseId, LayerEntry};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zenith_pgformat::{Lsn, Tli};
use zenith_store::TimelineId;

/// Where a timeline was branched off its parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
pub struct TliSwitch {
    /// The number that begins.
    pub tli: Tli,
    /// Where it begins.
    pub from: Lsn,
}

/// How far WAL is sliced, and what the slicer has to remember from there to go on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[serde(deny_unknown_fields)]
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

impl Epochs {
    /// The epoch of a role.
    pub fn of(&self, role: Role) -> u64 {
        match role {
            Role::Slicer => self.slicer,
            Role::Compactor => self.compactor,
            Role::Gc => self.gc,
        }
    }

    pub(crate) fn of_mut(&mut self, role: Role) -> &mut u64 {
        match role {
            Role::Slicer => &mut self.slicer,
            Role::Compactor => &mut self.compactor,
            Role::Gc => &mut self.gc,
        }
    }
}

/// Why an LSN cannot be read. The LSNs say what can be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unreadable {
    /// No base image was ever registered.
    #[error("the timeline holds no base image yet; take one with zenith_push base")]
    Empty,
    /// Nothing that old is kept here.
    #[error("LSN {lsn} is before {from}, where this timeline can first be read")]
    BeforeFirst {
        /// Asked for.
        lsn: Lsn,
        /// The first readable LSN.
        from: Lsn,
    },
    /// Between two ranges: WAL is missing there.
    #[error("LSN {lsn} lies in a gap: WAL is missing after {to}, and the next base image ends at {from}")]
    Gap {
        /// Asked for.
        lsn: Lsn,
        /// The last readable LSN before it.
        to: Lsn,
        /// The first readable LSN after it.
        from: Lsn,
    },
    /// Not sliced yet.
    #[error("LSN {lsn} is past {sliced}, up to which WAL is sliced")]
    NotSliced {
        /// Asked for.
        lsn: Lsn,
        /// The end of what is sliced.
        sliced: Lsn,
    },
    /// The base image's end was not met in this timeline's WAL.
    #[error(
        "LSN {lsn} needs the base image {base:?} ending at {end}, whose end is not confirmed by sliced WAL"
    )]
    NotConfirmed {
        /// Asked for.
        lsn: Lsn,
        /// Which base image.
        base: BaseId,
        /// Its end.
        end: Lsn,
    },
}

impl Root {
    /// The root of a timeline that has no manifest yet: version 0, which is never stored.
    pub fn empty(timeline: TimelineId, ancestor: Option<Ancestor>) -> Root {
        Root {
            version: 0,
            commit_id: Uuid::nil(),
            timeline,
            ancestor,
            epochs: Epochs::default(),
            bases: Vec::new(),
            ranges: Vec::new(),
            history: Vec::new(),
            sliced: None,
            pages: Vec::new(),
            recent: Vec::new(),
        }
    }

    /// The base image of that id.
    pub fn base(&self, id: BaseId) -> Option<&BaseImage> {
        self.bases.iter().find(|base| base.id == id)
    }

    /// PostgreSQL's timeline number of the record that starts at `lsn`, as far as WAL was sliced.
    pub fn tli_starting_at(&self, lsn: Lsn) -> Option<Tli> {
        self.history.iter().rev().find(|switch| switch.from <= lsn).map(|switch| switch.tli)
    }

    /// PostgreSQL's timeline number of the record that ends at `lsn`: at a switch point, still the old one.
    pub fn tli_ending_at(&self, lsn: Lsn) -> Option<Tli> {
        let switch = self.history.iter().rev().find(|switch| switch.from < lsn);
        switch.or_else(|| self.history.first().filter(|first| first.from == lsn)).map(|switch| switch.tli)
    }

    /// Where slicing of a range began: the redo LSN of its base image, or the branch point.
    pub fn run_start(&self, range: &ReadableRange) -> Lsn {
        range.base.and_then(|id| self.base(id)).map_or(range.from, |base| base.redo)
    }

    /// The last LSN of a range that can be read now.
    pub fn run_end(&self, range: &ReadableRange) -> Lsn {
        range.to.or_else(|| self.sliced.as_ref().map(|sliced| sliced.lsn)).unwrap_or(Lsn::INVALID)
    }

    /// The range in which `lsn` can be read, or why it cannot. A child's LSNs up to its branch point are its
    /// ancestor's to answer for.
    pub fn readable(&self, lsn: Lsn) -> Result<&ReadableRange, Unreadable> {
        let first = self.ranges.first().ok_or(Unreadable::Empty)?;
        let Some(at) = self.ranges.iter().rposition(|range| range.from <= lsn) else {
            return Err(Unreadable::BeforeFirst { lsn, from: first.from });
        };
        let (Some(range), next) = (self.ranges.get(at), self.ranges.get(at + 1)) else {
            return Err(Unreadable::Empty);
        };
        let end = self.run_end(range);
        if lsn > end {
            return Err(match next {
                Some(next) => Unreadable::Gap { lsn, to: end, from: next.from },
                None => Unreadable::NotSliced { lsn, sliced: end },
            });
        }
        match self.not_confirmed(lsn, range) {
            Some(unreadable) => Err(unreadable),
            None => Ok(range),
        }
    }

    fn not_confirmed(&self, lsn: Lsn, range: &ReadableRange) -> Option<Unreadable> {
        let base = range.base.and_then(|id| self.base(id)).filter(|base| !base.confirmed)?;
        Some(Unreadable::NotConfirmed { lsn, base: base.id, end: base.end })
    }
}
