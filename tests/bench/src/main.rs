//! `make bench`: Zenith's commands and their peers, on the same data in the same run, as a table.

mod data;
mod measure;
mod operation;
mod page_history;
mod peers;
mod plot;
mod proxy;
mod rows;
mod stores;
mod table;

use clap::{Parser, ValueEnum};
use rows::{Bench, Measured, Row};
use std::path::PathBuf;
use stores::{Place, Stores};

/// Measures Zenith's commands beside pgBackRest's, and prints a table.
#[derive(Parser, Debug)]
struct Options {
    /// What to measure; everything without it.
    rows: Vec<Row>,
    /// How often everything is run.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// pgbench's scale, instead of each row's own.
    #[arg(long)]
    scale: Option<u32>,
    /// Segments of WAL, instead of each row's own.
    #[arg(long)]
    segments: Option<usize>,
    /// The places of the stores, instead of all.
    #[arg(long, value_delimiter = ',')]
    places: Vec<Place>,
    /// Where to keep the history that `redo` and `get-page` read, for the next run.
    #[arg(long)]
    history: Option<PathBuf>,
    /// Where `growth` draws its plot, as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    eprintln!("pgBackRest: {}", peers::PgBackRest::version()?);
    let (repeats, scale) = (options.repeats.max(1), options.scale);
    let segments = options.segments.map(|segments| segments.max(2));
    let (history, plot) = (options.history, options.plot);
    let places = if options.places.is_empty() { Place::value_variants().to_vec() } else { options.places };
    let bench = Bench { stores: Stores::new()?, places, repeats, scale, segments, history, plot };
    let rows = if options.rows.is_empty() { Row::value_variants().to_vec() } else { options.rows };
    let mut measured = Measured::default();
    for row in rows {
        eprintln!("{row:?}");
        measured.and(row.run(&bench)?);
    }
    if !measured.lines.is_empty() {
        println!("{}", table::markdown(&measured.lines));
    }
    if !measured.operations.is_empty() {
        println!("{}", operation::markdown(&measured.operations));
    }
    Ok(())
}
