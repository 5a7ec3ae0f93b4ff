//! What was measured, as a table for people.

use crate::measure::Runs;
use std::fmt::Write as _;

/// One line: a tool doing one thing at one place.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// What was done, and where.
    pub(crate) what: String,
    /// Who did it.
    pub(crate) tool: String,
    /// What it took.
    pub(crate) runs: Runs,
    /// How many of what a run did: segments, megabytes.
    pub(crate) work: Option<(f64, &'static str)>,
    /// Whatever else is to be known.
    pub(crate) note: String,
}

/// All lines, each with its ratio to Zenith's of the same kind.
pub(crate) fn markdown(lines: &[Line]) -> String {
    let mut text = String::from(
        "| what | tool | s, median (min–max) | a second | CPU s | memory MB | time beside Zenith's | |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for line in lines {
        let seconds = line.runs.seconds();
        let (least, most) = line.runs.spread();
        let rate = line.work.map_or(String::new(), |(work, unit)| format!("{:.1} {unit}", work / seconds));
        let ours = lines.iter().find(|ours| ours.what == line.what && ours.tool.starts_with("zenith"));
        let ratio = ours.map_or(String::new(), |ours| format!("{:.2}", seconds / ours.runs.seconds()));
        let cpu = match line.runs.cpu() {
            0.0 => String::new(),
            cpu => format!("{cpu:.2}"),
        };
        let memory = match line.runs.memory() {
            0 => String::new(),
            bytes => format!("{}", bytes >> 20),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {seconds:.2} ({least:.2}–{most:.2}) | {rate} | {cpu} | {memory} | {ratio} | {} |",
            line.what, line.tool, line.note
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Took;
    use std::time::Duration;

    #[test]
    fn every_line_is_set_beside_zeniths_of_the_same_kind() {
        let line = |tool: &str, seconds| {
            let mut runs = Runs::default();
            runs.push(Took { wall: Duration::from_secs(seconds), ..Took::default() });
            let (what, tool, work) = ("push".to_owned(), tool.to_owned(), Some((64.0, "segments")));
            Line { what, tool, runs, work, note: String::new() }
        };
        let table = markdown(&[line("zenith_push", 2), line("other", 8)]);
        assert!(
            table.contains("| push | other | 8.00 (8.00–8.00) | 8.0 segments |  |  | 4.00 |  |"),
            "{table}"
        );
    }
}
