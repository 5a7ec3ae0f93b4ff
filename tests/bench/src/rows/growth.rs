//! Time and memory of each command on a sixteenth, a quarter and all of the data, in a folder: as a table, and as a plot of
//! the time.

use super::{Bench, base};
use crate::data::Primary;
use crate::measure::{Runs, Took, time};
use crate::plot::{Curve, log_log};
use crate::stores::{Place, Reached};
use crate::table::Line;
use anyhow::Context;
use zenith_testkit::pg;

/// How much of the data, in sixteenths.
const SIXTEENTHS: [u32; 3] = [1, 4, 16];
/// All of it: a database of 10 GB, and 8 GB of WAL.
const SCALE: u32 = 672;
const SEGMENTS: usize = 512;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut curves: Vec<Curve> = Vec::new();
    for sixteenths in SIXTEENTHS {
        for (name, work, runs) in Size::new(bench, sixteenths)?.measure()? {
            let point = (f64::from(sixteenths), runs.seconds());
            match curves.iter_mut().find(|curve| curve.name == name) {
                Some(curve) => curve.points.push(point),
                None => curves.push(Curve { name: name.to_owned(), points: vec![point] }),
            }
            let what = format!("growth, {sixteenths}x: {work}");
            lines.push(Line { what, tool: name.to_owned(), runs, work: None, note: String::new() });
        }
    }
    if let Some(plot) = &bench.plot {
        let svg = log_log("how much of the data (1 is a sixteenth)", "seconds", &curves);
        std::fs::write(plot, svg).with_context(|| plot.display().to_string())?;
    }
    Ok(lines)
}

/// A primary with so much of the data.
struct Size<'a> {
    bench: &'a Bench,
    primary: Primary,
    scale: u32,
    segments: usize,
}

impl<'a> Size<'a> {
    fn new(bench: &'a Bench, sixteenths: u32) -> anyhow::Result<Size<'a>> {
        let scale = (bench.scale.unwrap_or(SCALE) * sixteenths / 16).max(1);
        let segments = (bench.segments.unwrap_or(SEGMENTS) * sixteenths as usize / 16).max(1);
        Ok(Size { bench, primary: Primary::new(scale)?, scale, segments })
    }

    /// What was measured, of how much: base image, archiving, slicing, restore, each on what the one before it left.
    fn measure(&self) -> anyhow::Result<Vec<(&'static str, String, Runs)>> {
        let database = format!("pgbench at scale {}", self.scale);
        let (mut runs, mut store) = (Runs::default(), self.bench.stores.empty(Place::Folder)?);
        for _ in 0..self.bench.repeats {
            store = self.bench.stores.empty(Place::Folder)?;
            runs.push(time(&mut base::push(&store, &self.primary))?);
        }
        let mut measured = vec![("zenith_push base", database, runs)];
        // What WAL there was until now is none of the work.
        self.primary.switch()?;
        store.push_wal(&self.primary.archived()?)?;
        time(&mut store.zenith("zenith_slicedice"))?;

        let segments = self.primary.load(self.segments)?;
        let wal = format!("{} segments of TPC-B", segments.len());
        let (runs, pushed) = self.repeat(&store, |store| store.push_wal(&segments))?;
        drop(store);
        measured.push(("zenith_push wal", format!("archive {wal}"), runs));
        let (runs, store) = self.repeat(&pushed, |store| time(&mut store.zenith("zenith_slicedice")))?;
        drop(pushed);
        measured.push(("zenith_slicedice", format!("slice {wal}"), runs));
        let mut runs = Runs::default();
        for _ in 0..self.bench.repeats {
            let home = pg::server_dir();
            runs.push(time(store.zenith("zenith_restore").arg("-D").arg(home.path().join("data")))?);
        }
        measured.push(("zenith_restore", format!("pgbench at scale {}, {wal}", self.scale), runs));
        Ok(measured)
    }

    /// Each run works on a copy of the store; the last one is left.
    fn repeat(
        &self,
        store: &Reached,
        work: impl Fn(&Reached) -> anyhow::Result<Took>,
    ) -> anyhow::Result<(Runs, Reached)> {
        let mut runs = Runs::default();
        let mut copy = store.copy()?;
        runs.push(work(&copy)?);
        for _ in 1..self.bench.repeats {
            copy = store.copy()?;
            runs.push(work(&copy)?);
        }
        Ok((runs, copy))
    }
}
