//! What a run of the slicer tells.

use zenith_manifest::{BaseId, TliSwitch};
use zenith_pgformat::wal::WalError;
use zenith_pgformat::{Lsn, Tli};

/// Why a run ended where it did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// The archive has no more WAL: its last complete record is sliced.
    EndOfArchive {
        /// The segment that would go on.
        next: String,
    },
    /// A segment is missing although later ones are there: it may still be on its way.
    Waiting {
        /// The missing segment.
        missing: String,
        /// The highest one that is there.
        later: String,
    },
    /// The last archived segment holds no sound record after this position, and nothing follows it.
    EndOfRecords(WalError),
    /// [`super::SlicerOptions::stop_at`] is reached.
    Target,
    /// WAL is missing for good: a base image past it begins a new range. Open a new slicer to go on there.
    RangeBegun {
        /// The base image.
        base: BaseId,
    },
    /// It was asked to stop. There may be more WAL.
    Asked,
    /// It has not ended: it follows, and there is more WAL at hand.
    Going,
}

/// What a run did.
#[derive(Clone, PartialEq, Debug)]
pub struct SliceReport {
    /// Where it began.
    pub from: Lsn,
    /// End of the last sliced record.
    pub to: Lsn,
    /// Its TLI.
    pub tli: Tli,
    /// Records.
    pub records: u64,
    /// Values written.
    pub rows: u64,
    /// Layers written.
    pub layers: u64,
    /// Their bytes.
    pub layer_bytes: u64,
    /// Commits.
    pub commits: u64,
    /// Base images whose end was met.
    pub confirmed: Vec<BaseId>,
    /// TLIs that were entered.
    pub switches: Vec<TliSwitch>,
    /// WAL that is missing for good, because a base image past it begins a new range: from, to.
    pub gap: Option<(Lsn, Lsn)>,
    /// Why it ended.
    pub stopped: Stopped,
}

impl SliceReport {
    /// Of a run that has done nothing yet.
    pub(super) fn new(from: Lsn, tli: Tli) -> SliceReport {
        SliceReport {
            from,
            to: from,
            tli,
            records: 0,
            rows: 0,
            layers: 0,
            layer_bytes: 0,
            commits: 0,
            confirmed: Vec::new(),
            switches: Vec::new(),
            gap: None,
            stopped: Stopped::Going,
        }
    }
}

/// What a slicer that follows tells while it does.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Told<'a> {
    /// Something was committed, or it ends. The next report begins where this one ends.
    Report(&'a SliceReport),
    /// A look at the archive found nothing that is not committed.
    CaughtUp,
}
