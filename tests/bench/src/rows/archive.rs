//! Archiving: segments of TPC-B, one process each, as `archive_command` runs them.

use super::Bench;
use crate::data::Primary;
use crate::measure::{Runs, Took, time};
use crate::peers::{PgBackRest, waiting, zstd_and_sync};
use crate::stores::{Place, Reached};
use crate::table::Line;
use anyhow::Context;
use std::path::PathBuf;
use zenith_testkit::pg;

pub(super) fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let (primary, segments) = waiting_segments(bench, 64)?;
    bench.at_each_place(|place| at(bench, &primary, &segments, place))
}

/// A primary, and segments of TPC-B: one that makes the timeline and is not measured, and as many as were asked for.
pub(super) fn waiting_segments(bench: &Bench, own: usize) -> anyhow::Result<(Primary, Vec<PathBuf>)> {
    let primary = Primary::new(bench.scale())?;
    let count = 1 + bench.segments.unwrap_or(own);
    let mut segments = primary.load(count)?;
    segments.truncate(count);
    Ok((primary, segments))
}

fn at(bench: &Bench, primary: &Primary, segments: &[PathBuf], place: Place) -> anyhow::Result<Vec<Line>> {
    let [mut ours, mut ahead, mut theirs, mut theirs_async, mut floor] = [(); 5].map(|()| Runs::default());
    let mut note = String::new();
    for _ in 0..bench.repeats {
        let store = bench.stores.empty(place)?;
        store.push_wal(&segments[..1])?;
        let before = store.traffic();
        ours.push(store.push_wal(&segments[1..])?);
        note = traffic(before, &store, segments.len() - 1);
        ahead.push(push_ahead(&bench.stores.empty(place)?, primary, segments)?);
        let store = bench.stores.empty(place)?;
        theirs.push(PgBackRest::new(&store, primary)?.push(&segments[1..])?);
        let store = bench.stores.empty(place)?;
        let peer = PgBackRest::new(&store, primary)?;
        theirs_async.push(peer.push_asynchronously(&segments[1..])?);
        if place == Place::Folder {
            floor.push(zstd_and_sync(&segments[1..], pg::server_dir().path())?);
        }
    }
    let line = |tool: &str, runs, note: &str| Line {
        what: format!("archive {} segments, {}", segments.len() - 1, place.name()),
        tool: tool.to_owned(),
        runs,
        work: Some(((segments.len() - 1) as f64, "segments")),
        note: note.to_owned(),
    };
    let mut lines = vec![
        line("zenith_push wal", ours, &note),
        line("zenith_push wal --ahead 32", ahead, ""),
        line("pgBackRest archive-push", theirs, ""),
        line("pgBackRest archive-push, asynchronous", theirs_async, "CPU not known"),
    ];
    if place == Place::Folder {
        lines.push(line("zstd -1, sync", floor, "the least it can cost"));
    }
    Ok(lines)
}

/// As PostgreSQL works off a backlog: one file after the other, each one's mark removed when it is archived.
pub(super) fn push_ahead(store: &Reached, primary: &Primary, segments: &[PathBuf]) -> anyhow::Result<Took> {
    let directory = pg::server_dir();
    let wal = waiting(primary.server.data(), &segments[1..], &directory.path().join("data"))?;
    store.push_wal(&segments[..1])?;
    let mut all = Took::default();
    for segment in &segments[1..] {
        let name = segment.file_name().context("a segment")?;
        let mut push = store.zenith("zenith_push");
        all = all.and_then(time(push.args(["wal", "--ahead", "32"]).arg(wal.join(name)))?);
        std::fs::remove_file(wal.join("archive_status").join(name).with_extension("ready"))?;
    }
    Ok(all)
}

fn traffic(before: Option<[u64; 3]>, store: &Reached, segments: usize) -> String {
    let Some(traffic) = store.traffic_since(before) else { return String::new() };
    let [requests, sent, _] = traffic.map(|count| count as f64 / segments as f64);
    format!("{requests:.1} requests and {:.2} MB a segment", sent / 1e6)
}
