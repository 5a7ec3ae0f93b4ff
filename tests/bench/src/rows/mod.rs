//! What is measured, a file each.

mod archive;
mod base;
mod restore;
mod slice;

use crate::stores::{Place, Stores};
use crate::table::{Line, markdown};

/// What the rows are given.
pub(crate) struct Bench {
    /// Where stores come from.
    pub(crate) stores: Stores,
    /// How often everything is run.
    pub(crate) repeats: usize,
    /// pgbench's scale.
    pub(crate) scale: u32,
    /// How many segments are archived and, in `slice` and `restore`, sliced.
    pub(crate) segments: usize,
}

impl Bench {
    /// Measures at every place. What was measured so far is shown: a run takes long.
    fn at_each_place(mut at: impl FnMut(Place) -> anyhow::Result<Vec<Line>>) -> anyhow::Result<Vec<Line>> {
        let mut lines = Vec::new();
        for place in Place::ALL {
            lines.extend(at(place)?);
            eprintln!("{}", markdown(&lines));
        }
        Ok(lines)
    }
}

/// A kind of row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Row {
    /// `zenith_push wal`, a process for each segment.
    Archive,
    /// `zenith_push base`.
    Base,
    /// `zenith_slicedice`, of several kinds of WAL.
    Slice,
    /// `zenith_slicedice` once, and `zenith_restore` with and without WAL after the base image.
    Restore,
}

impl Row {
    /// Measures it.
    pub(crate) fn run(self, bench: &Bench) -> anyhow::Result<Vec<Line>> {
        match self {
            Row::Archive => archive::run(bench),
            Row::Base => base::run(bench),
            Row::Slice => slice::run(bench),
            Row::Restore => restore::run(bench),
        }
    }
}
