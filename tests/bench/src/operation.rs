//! What one operation inside this process takes, measured thousands of times, as a table for people.

use crate::measure::now;
use anyhow::Context;
use std::fmt::Write as _;
use std::time::Duration;

/// One line: an operation in one state of the caches.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// What was done.
    pub(crate) what: String,
    /// What it took.
    pub(crate) times: Times,
    /// At most how many microseconds the median is to take.
    pub(crate) target: Option<u32>,
    /// Whatever else is to be known.
    pub(crate) note: String,
}

/// Many runs of one operation, in rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    /// Of each round, microseconds that one took, ascending.
    rounds: Vec<Vec<f64>>,
    wall: Duration,
    cpu: Duration,
    done: u64,
}

/// A round that is being measured.
pub(crate) struct Round {
    micros: Vec<f64>,
    done: u64,
    begun: std::time::Instant,
    cpu: Duration,
}

impl Round {
    /// From here on. `cpu`: of everybody who takes part.
    pub(crate) fn begin(cpu: Duration) -> Round {
        Round { micros: Vec::new(), done: 0, begun: now(), cpu }
    }

    /// So many were done at once in this time.
    pub(crate) fn took(&mut self, time: Duration, done: usize) {
        self.micros.push(time.as_secs_f64() * 1e6 / done.max(1) as f64);
        self.done += done as u64;
    }
}

impl Times {
    /// Takes a round that has ended. `cpu`: now, of those who were asked at its beginning.
    pub(crate) fn end(&mut self, round: Round, cpu: Duration) {
        let Round { mut micros, done, begun, cpu: before } = round;
        self.wall += begun.elapsed();
        self.cpu += cpu.saturating_sub(before);
        self.done += done;
        micros.sort_by(f64::total_cmp);
        self.rounds.push(micros);
    }

    /// Below which this part of all runs stayed.
    fn quantile(&self, part: f64) -> f64 {
        let mut all: Vec<f64> = self.rounds.iter().flatten().copied().collect();
        all.sort_by(f64::total_cmp);
        at(&all, part)
    }

    /// The smallest and the largest median of a round.
    fn spread(&self) -> (f64, f64) {
        let mut medians: Vec<f64> = self.rounds.iter().map(|round| at(round, 0.5)).collect();
        medians.sort_by(f64::total_cmp);
        (at(&medians, 0.0), at(&medians, 1.0))
    }

    fn per_second(&self) -> f64 {
        self.done as f64 / self.wall.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / (self.done as f64).max(1.0)
    }
}

fn at(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1) as f64;
    sorted.get((last * part).round() as usize).copied().unwrap_or_default()
}

/// CPU that this process has used, all threads.
pub(crate) fn own_cpu() -> anyhow::Result<Duration> {
    cpu_of("self")
}

/// CPU that this process and these others have used.
pub(crate) fn cpu_with(others: &[u32]) -> anyhow::Result<Duration> {
    others.iter().try_fold(own_cpu()?, |sum, process| Ok(sum + cpu_of(&process.to_string())?))
}

/// The scheduler's own count: nanoseconds, where `times` counts in hundredths of a second.
fn cpu_of(process: &str) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task")).context("threads of a process")? {
        let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanos += text.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// Peak resident memory of this process, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

/// All operations.
pub(crate) fn markdown(operations: &[Operation]) -> String {
    let mut text = String::from(
        "| what, in process | µs, median (medians of rounds) | 99 of 100 below | a second | CPU µs | target µs | |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for Operation { what, times, target, note } in operations {
        let (least, most) = times.spread();
        let target = target.map_or(String::new(), |target| target.to_string());
        let _ = writeln!(
            text,
            "| {what} | {:.2} ({least:.2}–{most:.2}) | {:.2} | {:.0} | {:.2} | {target} | {note} |",
            times.quantile(0.5),
            times.quantile(0.99),
            times.per_second(),
            times.cpu_micros(),
        );
    }
    let _ = writeln!(text, "\nPeak memory of the process, caches included: {} MB.", peak_memory() >> 20);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_the_ninety_ninth_part_are_those_of_all_runs() {
        let mut times = Times::default();
        for offset in [0u64, 100] {
            let mut round = Round::begin(Duration::ZERO);
            (1..=101).for_each(|micros| round.took(Duration::from_micros((offset + micros) * 2), 2));
            times.end(round, Duration::from_micros(404));
        }
        assert_eq!(times.spread(), (51.0, 151.0));
        assert_eq!((times.quantile(0.0), times.quantile(1.0)), (1.0, 201.0));
        assert!((times.cpu_micros() - 2.0).abs() < 1e-9, "{}", times.cpu_micros());
    }
}
