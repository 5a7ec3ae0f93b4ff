//! Which layers a read needs: pure, over the entries of a manifest version.

use zenith_manifest::BaseId;
use zenith_pgformat::Lsn;

/// Which base image a read starts from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReadMode {
    /// The newest base image with `serves_from <= upto`: what a reader wants.
    Serve,
    /// This base image and the deltas after it, from its own LSN on: what the slicer wants, inside the window in
    /// which the base does not serve yet.
    From(BaseId),
}

/// The base image that a read uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsedBase {
    /// Which.
    pub id: BaseId,
    /// Its values are stored at this LSN.
    pub lsn: Lsn,
    /// The first LSN that it serves.
    pub serves_from: Lsn,
    /// 0: of the timeline itself; 1: of its parent; and so on.
    pub ancestor: usize,
}
