//! What a restore chose and what it did, for people and for machines.

use super::Restored;
use crate::cli::{time, units};
use crate::replay::ReplayReport;
use jiff::tz::TimeZone;
use serde_json::json;
use std::path::Path;
use zenith_reader::Resolved;

/// What was chosen, before anything is written.
pub(crate) fn target(resolved: &Resolved) -> String {
    let zone = TimeZone::system();
    let mut text = format!("target: LSN {} on TLI {}", resolved.lsn, resolved.tli);
    if let Some(at) = resolved.time {
        text.push_str(&format!(", {}", time::format(at, &zone)));
    }
    match &resolved.last_commit {
        Some(commit) => text.push_str(&format!(
            "; last transaction in it: {}, committed {}",
            commit.xid,
            time::format(commit.time, &zone)
        )),
        None => text.push_str("; no transaction has committed since the base image"),
    }
    text
}

impl Restored {
    pub(super) fn to_json(&self) -> serde_json::Value {
        json!({
            "directory": self.directory,
            "report": self.report,
            "time": self.resolved.time.map(|at| time::format(at, &TimeZone::UTC)),
            "last_xid": self.resolved.last_commit.as_ref().map(|commit| commit.xid),
            "timeline": self.timeline.as_ref().map(|(name, id)| json!({ "name": name, "id": id.to_string() })),
            "seconds": self.seconds,
        })
    }

    pub(super) fn describe(&self) -> String {
        let report = &self.report;
        let mut text = format!(
            "{} holds the state at {}: {} in {} forks{}, on TLI {} (a child of {}), {}\n",
            self.directory.display(),
            report.lsn,
            units::size(report.bytes),
            report.forks,
            match report.later {
                0 => String::new(),
                later => format!(", {} to be fetched when they are touched", units::size(later)),
            },
            report.tli,
            report.parent_tli,
            units::duration(std::time::Duration::from_secs_f64(self.seconds.max(0.0))),
        );
        for (oid, place) in &report.tablespaces {
            text.push_str(&format!("tablespace {oid}: {}\n", place.display()));
        }
        if report.prepared > 0 {
            text.push_str(&format!("{} prepared transactions wait for their end\n", report.prepared));
        }
        if !report.changes.is_empty() {
            text.push_str("configuration:\n");
        }
        for change in &report.changes {
            text.push_str(&format!("  {change}\n"));
        }
        if let Some((name, id)) = &self.timeline {
            text.push_str(&format!("it archives to its own timeline \"{name}\" ({id})\n"));
        }
        if let Some(pin) = report.pin {
            let pin = pin.simple();
            text.push_str(&format!("pin {pin} keeps its history: once it is gone, zenith pin end {pin}\n"));
        }
        text.push_str(&format!("start it: pg_ctl start -D {}\n", self.directory.display()));
        text
    }
}

/// What `--replay` did, for people.
pub(super) fn replayed(directory: &Path, report: &ReplayReport) -> String {
    let mut text = format!(
        "{} holds base image {}: {} in {} forks; recovery begins at {} on TLI {} and is consistent at {}\n",
        directory.display(),
        report.base,
        units::size(report.bytes),
        report.forks,
        report.redo,
        report.tli,
        report.end,
    );
    for (name, value) in &report.recovery {
        text.push_str(&format!("  {name} = {value}\n"));
    }
    for change in &report.changes {
        text.push_str(&format!("  {change}\n"));
    }
    text.push_str(&format!(
        "start it, and PostgreSQL recovers it: pg_ctl start -D {}\n",
        directory.display()
    ));
    text
}
