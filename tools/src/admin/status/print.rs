//! A status as text, as JSON and as Prometheus' metrics.

use super::gather::{Position, Status, TimelineStatus};
use crate::cli::units;
use serde::Serialize;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// The JSON document.
#[derive(Serialize)]
pub struct Document<'a> {
    /// What was found.
    #[serde(flatten)]
    pub status: &'a Status,
    /// What is wrong, by `--max-age`.
    pub problems: &'a [String],
}

/// For people.
pub fn text(status: &Status, now: SystemTime) -> String {
    let mut text = format!("store {}\n", status.store);
    if status.clusters.is_empty() {
        text.push_str("it is empty: zenith_push fills it\n");
    }
    for cluster in &status.clusters {
        for timeline in &cluster.timelines {
            // Writing to a string cannot fail.
            let _ = timeline_text(&mut text, &cluster.cluster, timeline, now);
        }
    }
    text
}

fn timeline_text(
    text: &mut String,
    cluster: &str,
    timeline: &TimelineStatus,
    now: SystemTime,
) -> std::fmt::Result {
    writeln!(text, "\n{cluster}/{}  (timeline {})", timeline.names.join(", "), timeline.id)?;
    writeln!(text, "  system identifier {}, PostgreSQL {}", timeline.system_identifier, timeline.pg_major)?;
    if let Some(ancestor) = &timeline.ancestor {
        writeln!(text, "  branched off {} at {}", ancestor.timeline, ancestor.lsn)?;
    }
    for base in &timeline.base_images {
        let confirmed = if base.confirmed { "" } else { ", its end is not met in the sliced WAL yet" };
        writeln!(
            text,
            "  base image {}: from {} on, {} of data, {} stored, taken {}{confirmed}",
            base.id,
            base.end,
            units::size(base.data_bytes),
            units::size(base.stored_bytes),
            base.taken_at
        )?;
    }
    if timeline.base_images.is_empty() && timeline.ancestor.is_none() {
        writeln!(text, "  no base image: nothing can be restored; run zenith_push base")?;
    }
    for range in &timeline.ranges {
        writeln!(text, "  can be restored: {} to {}", range.from, range.to)?;
    }
    for range in &timeline.lost {
        writeln!(text, "  cannot be restored: past {}, before {} (WAL is missing)", range.from, range.to)?;
    }
    let age = match timeline.times.last_archived.map(|then| now.duration_since(then)) {
        Some(Ok(age)) => format!(", last WAL file {} ago", units::duration(age)),
        Some(Err(ahead)) if ahead.duration() >= Duration::from_secs(1) => {
            format!(", last WAL file {} ahead of this machine's clock", units::duration(ahead.duration()))
        }
        _ => String::new(),
    };
    writeln!(text, "  archived: {}{age}", position(timeline.archived.as_ref()))?;
    writeln!(text, "  sliced:   {}", position(timeline.sliced.as_ref()))?;
    if let Some(missing) = &timeline.missing {
        writeln!(text, "  waiting for WAL segment {}: {} is there already", missing.segment, missing.next)?;
    }
    for off in &timeline.off_history {
        let why = match off.switch {
            Some(switch) => format!("past {switch}, where the history left it"),
            None => "which the history does not hold".to_owned(),
        };
        writeln!(
            text,
            "  kept, never read: {} WAL segments of TLI {}, {why} ({} to {})",
            off.segments, off.tli, off.first, off.last
        )?;
    }
    let layers: Vec<String> = timeline
        .layers
        .iter()
        .map(|(kind, count)| format!("{} {kind} layers ({})", count.objects, units::size(count.bytes)))
        .collect();
    let wal = format!("{} WAL files ({})", timeline.wal.objects, units::size(timeline.wal.bytes));
    writeln!(
        text,
        "  manifest version {}: {}",
        timeline.manifest_version,
        [layers, vec![wal]].concat().join(", ")
    )
}

fn position(position: Option<&Position>) -> String {
    match position {
        None => "nothing".to_owned(),
        Some(Position { tli, lsn, time: Some(time) }) => format!("up to {lsn} on TLI {tli}, {time}"),
        Some(Position { tli, lsn, time: None }) => format!("up to {lsn} on TLI {tli}"),
    }
}

/// One metric: its name, its help, and its value for a timeline.
type Metric = (&'static str, &'static str, fn(&TimelineStatus, SystemTime) -> Option<f64>);

const METRICS: [Metric; 10] = [
    ("zenith_base_images", "Base images.", |t, _| Some(t.base_images.len() as f64)),
    ("zenith_archived_lsn_bytes", "End of the archived WAL, without gaps.", |t, _| {
        t.archived.as_ref().map(|position| position.lsn.0 as f64)
    }),
    ("zenith_sliced_lsn_bytes", "End of the sliced WAL.", |t, _| {
        t.sliced.as_ref().map(|position| position.lsn.0 as f64)
    }),
    (
        "zenith_archive_age_seconds",
        "Time since the last WAL file of the TLI that is followed, or of a later one, was archived; below 0 if this \
         machine's clock is behind the store's.",
        |t, now| t.times.last_archived.map(|then| seconds(then, now)),
    ),
    (
        "zenith_unsliced_age_seconds",
        "Time since the oldest WAL was archived that is not sliced.",
        |t, now| Some(t.times.unsliced_since.map_or(0.0, |then| seconds(then, now))),
    ),
    ("zenith_waiting_for_wal", "1 if a WAL segment is missing while later ones are there.", |t, _| {
        Some(if t.missing.is_some() { 1.0 } else { 0.0 })
    }),
    ("zenith_lost_ranges", "Ranges of LSNs that cannot be restored.", |t, _| Some(t.lost.len() as f64)),
    ("zenith_manifest_version", "The newest manifest version.", |t, _| Some(t.manifest_version as f64)),
    ("zenith_wal_files", "Archived WAL files.", |t, _| Some(t.wal.objects as f64)),
    ("zenith_wal_bytes", "Bytes of archived WAL files.", |t, _| Some(t.wal.bytes as f64)),
];

/// Below 0 where the store's clock is ahead of this machine's.
fn seconds(then: SystemTime, now: SystemTime) -> f64 {
    match now.duration_since(then) {
        Ok(age) => age.as_secs_f64(),
        Err(ahead) => -ahead.duration().as_secs_f64(),
    }
}

/// In Prometheus' text format; with problems counted where they were looked for.
pub fn prometheus(status: &Status, now: SystemTime, problems: Option<&[String]>) -> String {
    let mut text = String::new();
    let timelines = || status.clusters.iter().flat_map(|c| c.timelines.iter().map(move |t| (&c.cluster, t)));
    for (name, help, value) in METRICS {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (cluster, timeline) in timelines() {
            if let Some(value) = value(timeline, now) {
                let _ = writeln!(text, "{name}{{{}}} {value}", labels(cluster, timeline));
            }
        }
    }
    for (name, help, bytes) in [
        ("zenith_layers", "Layer objects by kind.", false),
        ("zenith_layer_bytes", "Bytes of layer objects by kind.", true),
    ] {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (cluster, timeline) in timelines() {
            for (kind, count) in &timeline.layers {
                let value = if bytes { count.bytes } else { count.objects };
                let _ = writeln!(text, "{name}{{{},kind=\"{kind}\"}} {value}", labels(cluster, timeline));
            }
        }
    }
    if let Some(problems) = problems {
        let _ = writeln!(
            text,
            "# HELP zenith_problems What --max-age complains of.\n# TYPE zenith_problems gauge"
        );
        let _ = writeln!(text, "zenith_problems {}", problems.len());
    }
    text
}

fn labels(cluster: &str, timeline: &TimelineStatus) -> String {
    let name = timeline.names.first().unwrap_or(&timeline.id);
    format!("cluster=\"{}\",timeline=\"{}\"", escape(cluster), escape(name))
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_break_out_of_their_quotes() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }

    #[test]
    fn an_empty_store_still_prints_every_metric_once() {
        let status = Status { store: "file:///x".to_owned(), clusters: Vec::new() };
        let text = prometheus(&status, SystemTime::UNIX_EPOCH, Some(&[]));
        assert_eq!(text.matches("# TYPE zenith_archive_age_seconds gauge").count(), 1);
        assert!(text.ends_with("zenith_problems 0\n"), "{text}");
    }
}
