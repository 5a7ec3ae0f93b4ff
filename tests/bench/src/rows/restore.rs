//! Slicing, and complete restores with and without WAL after the base image, until the server takes writes.

use super::{Bench, base, sizes};
use crate::data::{Primary, first_answer};
use crate::measure::{Runs, Took, time};
use crate::peers::PgBackRest;
use crate::stores::{Place, Reached};
use crate::table::Line;
use anyhow::Context;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use zenith_testkit::pg;

/// A primary's history in one store, as Zenith and as pgBackRest keep it.
struct History {
    ours: Reached,
    peer: PgBackRest,
    _theirs: Reached,
    /// Segments that both have.
    pushed: BTreeSet<PathBuf>,
}

/// PostgreSQL's checkpoints, `max_wal_size` 1 GB. The stores of all places keep the same history.
pub(super) fn with_checkpoints(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let primary = Primary::new(bench.scale())?;
    let mut histories = Vec::new();
    let mut lines = bench.at_each_place(|place| {
        let mut history = History::begin(bench, &primary, place)?;
        history.push(&primary)?;
        time(&mut history.ours.zenith("zenith_slicedice"))?;
        let lines = history.restores(bench, &format!("restore, no WAL, {}", place.name()));
        histories.push(history);
        lines
    })?;
    let mut loaded = 0;
    // 2 GB and 8 GB.
    for count in sizes(bench.segments, &[128, 512]) {
        loaded += primary.load(count.saturating_sub(loaded).max(1))?.len();
        let mut histories = histories.iter_mut();
        lines.extend(bench.at_each_place(|place| {
            let history = histories.next().context("a history for each place")?;
            let segments = history.push(&primary)?;
            let mut lines = vec![history.slice(&segments, place)?];
            let what = format!("restore, {loaded} segments of WAL, {}", place.name());
            lines.extend(history.restores(bench, &what)?);
            Ok(lines)
        })?);
    }
    Ok(lines)
}

/// One checkpoint, and so few images of pages: most of a restore is redo. In a folder, on one core too.
pub(super) fn with_one_checkpoint(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let place = Place::Folder;
    let primary = Primary::without_checkpoints(bench.scale())?;
    let mut history = History::begin(bench, &primary, place)?;
    let segments = primary.load(bench.segments.unwrap_or(128))?;
    history.push(&primary)?;
    time(&mut history.ours.zenith("zenith_slicedice"))?;
    let what = format!("restore, {} segments of WAL, one checkpoint, {}", segments.len(), place.name());
    let mut lines = history.restores(bench, &what)?;
    lines.insert(1, history.restores_on_one_core(bench, &what)?);
    Ok(lines)
}

impl History {
    fn begin(bench: &Bench, primary: &Primary, place: Place) -> anyhow::Result<History> {
        let (ours, theirs) = (bench.stores.empty(place)?, bench.stores.empty(place)?);
        time(&mut base::push(&ours, primary))?;
        let peer = PgBackRest::new(&theirs, primary)?;
        time(peer.command().args(["--type=full", "backup"]))?;
        primary.switch()?;
        Ok(History { ours, peer, _theirs: theirs, pushed: BTreeSet::new() })
    }

    /// Archives what is not, and answers with it.
    fn push(&mut self, primary: &Primary) -> anyhow::Result<Vec<PathBuf>> {
        let mut segments = primary.archived()?;
        segments.retain(|segment| self.pushed.insert(segment.clone()));
        self.ours.push_wal(&segments)?;
        self.peer.push(&segments)?;
        Ok(segments)
    }

    /// Slicing changes the store, so there is one run.
    fn slice(&self, segments: &[PathBuf], place: Place) -> anyhow::Result<Line> {
        let (before, traffic) = (self.ours.stored(), self.ours.traffic());
        let took = time(&mut self.ours.zenith("zenith_slicedice"))?;
        let raw =
            segments.iter().filter_map(|segment| segment.metadata().ok()).map(|about| about.len()).sum();
        let mut runs = Runs::default();
        runs.push(took);
        Ok(Line {
            what: format!("slice {} segments of TPC-B, {}", segments.len(), place.name()),
            tool: "zenith_slicedice".to_owned(),
            runs,
            work: Some((mega(raw), "MB")),
            note: format!(
                "{:.0} MB of WAL a second of CPU, {}",
                mega(raw) / took.cpu.as_secs_f64(),
                match (before.zip(self.ours.stored()), self.ours.traffic_since(traffic)) {
                    (Some((before, after)), _) =>
                        format!("{:.2} of the WAL stored", (after - before) as f64 / raw as f64),
                    (_, Some([requests, ..])) => format!("{requests} requests"),
                    _ => String::new(),
                }
            ),
        })
    }

    fn restores(&self, bench: &Bench, what: &str) -> anyhow::Result<Vec<Line>> {
        let [mut ours, mut our_answers, mut theirs, mut their_answers] = [(); 4].map(|()| Runs::default());
        let mut note = String::new();
        for _ in 0..bench.repeats {
            let home = pg::server_dir();
            let data = home.path().join("data");
            let before = self.ours.traffic();
            let took = time(self.ours.zenith("zenith_restore").arg("-D").arg(&data))?;
            note = self.requests(before);
            ours.push(took);
            our_answers.push(Took { cpu: Duration::ZERO, ..took }.and_then(first_answer(&data, home)?));

            let home = pg::server_dir();
            let data = home.path().join("data");
            pg::run(pg::command("mkdir").arg(&data));
            let mut restore = self.peer.command();
            restore.arg(format!("--pg1-path={}", data.display())).arg("restore");
            let took = time(&mut restore)?;
            theirs.push(took);
            their_answers.push(Took { cpu: Duration::ZERO, ..took }.and_then(first_answer(&data, home)?));
        }
        let line = |what: &str, tool: &str, runs, note: &str| {
            let (what, tool, note) = (what.to_owned(), tool.to_owned(), note.to_owned());
            Line { what, tool, runs, work: None, note }
        };
        let answer = format!("{what}: until the first answer of a server that takes writes");
        Ok(vec![
            line(what, "zenith_restore", ours, &note),
            line(what, "pgBackRest restore", theirs, "recovery not begun"),
            line(&answer, "zenith_restore", our_answers, ""),
            line(&answer, "pgBackRest restore, PostgreSQL's recovery", their_answers, ""),
        ])
    }

    /// One redo worker, and nothing beside it.
    fn restores_on_one_core(&self, bench: &Bench, what: &str) -> anyhow::Result<Line> {
        let mut runs = Runs::default();
        for _ in 0..bench.repeats {
            let home = pg::server_dir();
            let restore = self.ours.zenith("zenith_restore");
            let mut command = pg::command("taskset");
            command.args(["-c", "0"]).arg(restore.get_program());
            command.envs(restore.get_envs().filter_map(|(name, value)| Some((name, value?))));
            runs.push(time(command.arg("-D").arg(home.path().join("data")))?);
        }
        let (what, tool) = (what.to_owned(), "zenith_restore on one core, one redo worker".to_owned());
        Ok(Line { what, tool, runs, work: None, note: String::new() })
    }

    fn requests(&self, before: Option<[u64; 3]>) -> String {
        let Some([requests, _, read]) = self.ours.traffic_since(before) else { return String::new() };
        format!("{requests} requests, {:.1} MB read", mega(read))
    }
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
