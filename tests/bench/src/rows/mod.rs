//! What is measured, a file each.

mod archive;
mod backlog;
pub(crate) mod base;
mod get_page;
mod growth;
mod redo;
mod restore;
mod slice;

use crate::operation::Operation;
use crate::stores::{Place, Stores};
use crate::table::{Line, markdown};
use std::path::PathBuf;

/// What the rows are given.
pub(crate) struct Bench {
    /// Where stores come from.
    pub(crate) stores: Stores,
    /// Where they lie, for the rows that are measured at several places.
    pub(crate) places: Vec<Place>,
    /// How often everything is run.
    pub(crate) repeats: usize,
    /// pgbench's scale that was asked for, instead of a row's own.
    pub(crate) scale: Option<u32>,
    /// How many segments were asked for, instead of a row's own.
    pub(crate) segments: Option<usize>,
    /// Where the history that single pages are read from is kept; made where it is missing.
    pub(crate) history: Option<PathBuf>,
    /// Where `growth` draws its plot.
    pub(crate) plot: Option<PathBuf>,
}

/// What rows measured.
#[derive(Default)]
pub(crate) struct Measured {
    /// Commands.
    pub(crate) lines: Vec<Line>,
    /// Operations inside this process.
    pub(crate) operations: Vec<Operation>,
}

impl Measured {
    /// Both.
    pub(crate) fn and(&mut self, more: Measured) {
        self.lines.extend(more.lines);
        self.operations.extend(more.operations);
    }
}

impl From<Vec<Line>> for Measured {
    fn from(lines: Vec<Line>) -> Measured {
        Measured { lines, ..Measured::default() }
    }
}

impl From<Vec<Operation>> for Measured {
    fn from(operations: Vec<Operation>) -> Measured {
        Measured { operations, ..Measured::default() }
    }
}

impl Bench {
    /// pgbench's scale.
    pub(crate) fn scale(&self) -> u32 {
        self.scale.unwrap_or(50)
    }

    /// Measures at every place. What was measured so far is shown: a run takes long.
    fn at_each_place(
        &self,
        mut at: impl FnMut(Place) -> anyhow::Result<Vec<Line>>,
    ) -> anyhow::Result<Vec<Line>> {
        let mut lines = Vec::new();
        for place in &self.places {
            lines.extend(at(*place)?);
            eprintln!("{}", markdown(&lines));
        }
        Ok(lines)
    }
}

/// What was asked for, else what the row's targets are about.
fn sizes<T: Copy>(asked: Option<T>, own: &[T]) -> Vec<T> {
    asked.map_or_else(|| own.to_vec(), |asked| vec![asked])
}

/// A kind of row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Row {
    /// `zenith_push wal`, a process for each segment.
    Archive,
    /// `zenith_push wal --ahead` of many waiting segments, at a distance.
    Backlog,
    /// `zenith_push base`.
    Base,
    /// `zenith_slicedice`, of several kinds of WAL.
    Slice,
    /// `zenith_slicedice` once, and `zenith_restore` with and without WAL after the base image.
    Restore,
    /// `zenith_restore` of WAL with few images of pages.
    OneCheckpoint,
    /// Redo of single pages in this process.
    Redo,
    /// Reading single pages in this process.
    GetPage,
    /// Each command on a sixteenth, a quarter and all of the data.
    Growth,
}

impl Row {
    /// Measures it.
    pub(crate) fn run(self, bench: &Bench) -> anyhow::Result<Measured> {
        Ok(match self {
            Row::Archive => archive::run(bench)?.into(),
            Row::Backlog => backlog::run(bench)?.into(),
            Row::Base => base::run(bench)?.into(),
            Row::Slice => slice::run(bench)?.into(),
            Row::Restore => restore::with_checkpoints(bench)?.into(),
            Row::OneCheckpoint => restore::with_one_checkpoint(bench)?.into(),
            Row::Redo => redo::run(bench)?.into(),
            Row::GetPage => get_page::run(bench)?.into(),
            Row::Growth => growth::run(bench)?.into(),
        })
    }
}
