//! Where things lie in a store. The layout is part of the format: `docs/formats.md`.
//!
//! ```text
//! <cluster>/names/<name>/<20-digit n>
//! <cluster>/timelines/<id>/identity
//! <cluster>/timelines/<id>/wal/<8-hex TLI>/<segment>.zst
//! <cluster>/timelines/<id>/manifest/<20-digit version>.manifest, manifest-hint, index/<id>.parquet
//! <cluster>/timelines/<id>/layers/<id>.parquet
//! <cluster>/timelines/<id>/base/<id>/...
//! <cluster>/pins/<timeline id>/<id of who holds it>
//! <cluster>/gc/<timeline id>/manifest-boundary/<20-digit n>, horizon/<20-digit n>
//! ```

use object_store::path::Path;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// A timeline of Zenith's: never changes, never reused. Its name may be given up; PostgreSQL's timeline numbers
/// (TLI) are another matter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub Uuid);

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for TimelineId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<TimelineId, uuid::Error> {
        Uuid::try_parse(text).map(TimelineId)
    }
}

/// The objects of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPaths {
    root: Path,
}

/// The objects of one timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelinePaths {
    root: Path,
    gc: Path,
    id: TimelineId,
}

impl ClusterPaths {
    /// The cluster `name` below `prefix` (the path part of the store's URL).
    pub fn new(prefix: &Path, name: &str) -> ClusterPaths {
        ClusterPaths { root: prefix.clone().join(name) }
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        self.root.filename().unwrap_or_default()
    }

    /// All versions of all names.
    pub fn names(&self) -> Path {
        self.root.clone().join("names")
    }

    /// All versions of one name.
    pub fn name(&self, name: &str) -> Path {
        self.names().join(name)
    }

    /// One version of one name.
    pub fn name_version(&self, name: &str, version: u64) -> Path {
        self.name(name).join(format!("{version:020}"))
    }

    /// All timelines.
    pub fn timelines(&self) -> Path {
        self.root.clone().join("timelines")
    }

    /// One timeline.
    pub fn timeline(&self, id: TimelineId) -> TimelinePaths {
        TimelinePaths {
            root: self.timelines().join(id.to_string()),
            gc: self.root.clone().join("gc").join(id.to_string()),
            id,
        }
    }

    /// All pins.
    pub fn pins(&self) -> Path {
        self.root.clone().join("pins")
    }

    /// What keeps an LSN of a timeline, by the id of who holds it.
    pub fn pin(&self, timeline: TimelineId, holder: Uuid) -> Path {
        self.pins().join(timeline.to_string()).join(holder.simple().to_string())
    }

    /// Objects that exist only while conditional writes are probed.
    pub fn probe(&self, id: Uuid) -> Path {
        self.root.clone().join("probe").join(id.simple().to_string())
    }
}

impl TimelinePaths {
    /// Which timeline.
    pub fn id(&self) -> TimelineId {
        self.id
    }

    /// What the timeline is: immutable.
    pub fn identity(&self) -> Path {
        self.root.clone().join("identity")
    }

    /// Raw WAL of one TLI.
    pub fn wal(&self, tli: u32) -> Path {
        self.root.clone().join("wal").join(format!("{tli:08X}"))
    }

    /// Raw WAL of all TLIs.
    pub fn all_wal(&self) -> Path {
        self.root.clone().join("wal")
    }

    /// One archived WAL file, `name` as PostgreSQL calls it.
    pub fn wal_file(&self, tli: u32, name: &str) -> Path {
        self.wal(tli).join(format!("{name}.zst"))
    }

    /// All manifest versions.
    pub fn manifests(&self) -> Path {
        self.root.clone().join("manifest")
    }

    /// One manifest version.
    pub fn manifest(&self, version: u64) -> Path {
        self.manifests().join(format!("{version:020}.manifest"))
    }

    /// The newest version somebody knew of; may lag, never trusted.
    pub fn manifest_hint(&self) -> Path {
        self.root.clone().join("manifest-hint")
    }

    /// One of the numbered objects that say which manifest versions are void: collected, never to be used
    /// again. They count up from 1.
    pub fn manifest_boundary(&self, n: u64) -> Path {
        self.gc.clone().join("manifest-boundary").join(format!("{n:020}"))
    }

    /// One of the numbered objects that say below which LSN history may be gone. They count up from 1.
    pub fn horizon(&self, n: u64) -> Path {
        self.gc.clone().join("horizon").join(format!("{n:020}"))
    }

    /// One index page.
    pub fn index_page(&self, id: Uuid) -> Path {
        self.root.clone().join("index").join(format!("{}.parquet", id.simple()))
    }

    /// All layers.
    pub fn layers(&self) -> Path {
        self.root.clone().join("layers")
    }

    /// One layer.
    pub fn layer(&self, id: Uuid) -> Path {
        self.layers().join(format!("{}.parquet", id.simple()))
    }

    /// One object of one base image.
    pub fn base_object(&self, id: Uuid, object: &str) -> Path {
        self.root.clone().join("base").join(id.simple().to_string()).join(object)
    }
}
