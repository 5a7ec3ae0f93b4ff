//! Slicing of several kinds of WAL, in a folder: each repeat on a copy of the same store, archived to and not yet sliced.

use super::{Bench, base};
use crate::data::Primary;
use crate::measure::{Runs, time};
use crate::peers::zstd_and_sync;
use crate::stores::{Place, Reached, size_of};
use crate::table::Line;
use std::collections::BTreeSet;
use std::path::PathBuf;
use zenith_testkit::pg;

/// What fills WAL beside TPC-B. `{n}` in its statements stands for a number that grows with the segments asked for.
struct Kind {
    name: &'static str,
    /// Numbers for each segment.
    n: usize,
    /// What comes before and is not measured.
    before: &'static str,
    /// What is.
    statements: &'static [&'static str],
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "wide rows, inserted and updated",
        n: 2_000,
        before: "CREATE TABLE wide (id int PRIMARY KEY, n int, body text);
                 ALTER TABLE wide ALTER body SET STORAGE PLAIN;
                 CREATE FUNCTION body(seed int) RETURNS text LANGUAGE sql AS
                 $$ SELECT string_agg(md5((seed * 64 + part)::text), '') FROM generate_series(1, 60) part $$",
        statements: &[
            "INSERT INTO wide SELECT id, 0, body(id) FROM generate_series(1, {n}) id",
            "UPDATE wide SET n = n + 1, body = body(-id) WHERE id % 2 = 0",
        ],
    },
    Kind {
        name: "index builds, a B-tree and a GIN",
        n: 10_000,
        before:
            "CREATE TABLE documents AS SELECT id, ARRAY(SELECT (id::bigint * 7919 + word * 104729) % 50021
                 FROM generate_series(1, 20) word) AS words FROM generate_series(1, {n}) id",
        statements: &[
            "CREATE INDEX ON pgbench_accounts (bid, abalance, aid)",
            "CREATE INDEX ON documents USING gin (words)",
        ],
    },
    Kind {
        name: "a bulk COPY",
        n: 60_000,
        before: "CREATE TABLE copied (id int, at timestamptz, what text, amount numeric);
                 COPY (SELECT id, now() + id * interval '1 second', md5(id::text), id * 1.25
                 FROM generate_series(1, {n}) id) TO PROGRAM 'cat > copied.txt'",
        statements: &["COPY copied FROM PROGRAM 'cat copied.txt'"],
    },
];

pub(super) fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let (scale, segments) = (bench.scale(), bench.segments.unwrap_or(64));
    let primary = Primary::new(scale)?;
    let store = bench.stores.empty(Place::Folder)?;
    time(&mut base::push(&store, &primary))?;
    let mut history = History { primary, store, pushed: BTreeSet::new() };
    let mut lines = Vec::new();
    for count in [segments / 16, segments / 4, segments] {
        history.go_on()?;
        let segments = history.primary.load(count.max(1))?;
        lines.extend(history.slice(bench, "TPC-B", &segments)?);
    }
    for kind in &KINDS {
        let n = (kind.n * segments).to_string();
        history.primary.server.sql(&kind.before.replace("{n}", &n));
        history.go_on()?;
        let segments = history.primary.segments_of(|server| {
            for statement in kind.statements {
                server.sql(&statement.replace("{n}", &n));
            }
        })?;
        lines.extend(history.slice(bench, kind.name, &segments)?);
    }
    Ok(lines)
}

/// A primary and the store that its WAL goes to.
struct History {
    primary: Primary,
    store: Reached,
    /// Segments that the store has.
    pushed: BTreeSet<PathBuf>,
}

impl History {
    /// Slices everything so far.
    fn go_on(&mut self) -> anyhow::Result<()> {
        self.primary.switch()?;
        self.push()?;
        time(&mut self.store.zenith("zenith_slicedice"))?;
        Ok(())
    }

    fn push(&mut self) -> anyhow::Result<()> {
        let mut new = self.primary.archived()?;
        new.retain(|segment| !self.pushed.contains(segment));
        self.store.push_wal(&new)?;
        self.pushed.extend(new);
        Ok(())
    }

    fn slice(&mut self, bench: &Bench, kind: &str, segments: &[PathBuf]) -> anyhow::Result<Vec<Line>> {
        self.push()?;
        let raw = segments.len() as f64 * segments.first().map_or(0, |one| size_of(one)) as f64;
        let (mut ours, mut stored) = (Runs::default(), 0);
        for _ in 0..bench.repeats {
            let copy = self.store.copy()?;
            let before = copy.stored();
            ours.push(time(&mut copy.zenith("zenith_slicedice"))?);
            stored = before.zip(copy.stored()).map_or(0, |(before, after)| after - before);
        }
        let frames = pg::server_dir();
        let mut floor = Runs::default();
        floor.push(zstd_and_sync(segments, frames.path())?);
        let line = |tool: &str, runs: Runs, stored: u64| Line {
            what: format!("slice {} segments: {kind}", segments.len()),
            tool: tool.to_owned(),
            work: Some((raw / 1e6, "MB")),
            note: format!(
                "{:.0} MB a second of CPU, {:.3} of the WAL stored",
                raw / 1e6 / runs.cpu(),
                stored as f64 / raw
            ),
            runs,
        };
        let compressed = size_of(frames.path());
        Ok(vec![line("zenith_slicedice", ours, stored), line("zstd -1 of the WAL, sync", floor, compressed)])
    }
}
