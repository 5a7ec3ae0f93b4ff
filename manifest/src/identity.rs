//! What a timeline is: written once, never changed.

use crate::root::Ancestor;
use serde::{Deserialize, Serialize};
use zenith_store::TimelineId;

/// The immutable object `timelines/<id>/identity`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Version of this object's format: 1.
    pub format: u16,
    /// Names itself, so that a copied object is noticed.
    pub timeline: TimelineId,
    /// `system_identifier` of pg_control.
    pub system_identifier: u64,
    /// PostgreSQL's major version: 15.
    pub pg_major: u32,
    /// `wal_segment_size` in bytes.
    pub wal_segment_size: u32,
    /// `BLCKSZ`: 8192.
    pub block_size: u32,
    /// Where it was branched off, if it was.
    pub ancestor: Option<Ancestor>,
    /// Client-side encryption to come: `None` is plain. A reader that finds another value refuses by name.
    pub encryption: Option<String>,
}

impl Identity {
    /// The format that this program writes, and the newest that it reads.
    pub const FORMAT: u16 = 1;
}
