//! A backlog: segments that wait after an outage, archived at a distance as PostgreSQL works them off, one process each.

use super::Bench;
use super::archive::{push_ahead, waiting_segments};
use crate::measure::Runs;
use crate::peers::PgBackRest;
use crate::stores::Place;
use crate::table::Line;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let (primary, segments) = waiting_segments(bench, 1000)?;
    let (mut ours, mut theirs) = (Runs::default(), Runs::default());
    for _ in 0..bench.repeats {
        ours.push(push_ahead(&bench.stores.empty(Place::Distant)?, &primary, &segments)?);
        let store = bench.stores.empty(Place::Distant)?;
        theirs.push(PgBackRest::new(&store, &primary)?.push_asynchronously(&segments[1..])?);
    }
    let line = |tool: &str, runs, note: &str| Line {
        what: format!("a backlog of {} segments, {}", segments.len() - 1, Place::Distant.name()),
        tool: tool.to_owned(),
        runs,
        work: Some(((segments.len() - 1) as f64, "segments")),
        note: note.to_owned(),
    };
    Ok(vec![
        line("zenith_push wal --ahead 32", ours, ""),
        line("pgBackRest archive-push, asynchronous", theirs, "CPU not known"),
    ])
}
