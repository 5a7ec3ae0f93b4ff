//! What a restored directory must stand: the dump is right, and stock tools accept it, stopped, running and after a
//! crash.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use zenith_store::Env;
use zenith_testkit::oracle::{self, without_locations};
use zenith_testkit::pg::{self, Pg, StopMode};

/// How far ahead of a sequence its WAL is (`SEQ_LOG_VALS`, commands/sequence.c): recovered, it goes on from there.
const SEQUENCE_AHEAD: u64 = 32;

/// `pg_dumpall` of a running server, without what is another at each call and what lies elsewhere in each copy.
pub(crate) fn dump(server: &Pg) -> String {
    without_locations(&oracle::dump(server, &[]))
}

/// Panics unless two recoveries of the same WAL are the same.
#[track_caller]
pub(crate) fn same_dump(ours: &str, theirs: &str) {
    let difference = first_difference(ours, theirs, |ours, theirs| ours == theirs);
    assert_eq!(difference, None, "the dump differs from PostgreSQL's own recovery");
}

/// Panics unless a recovered server is what the primary was. Only its sequences may be ahead.
#[track_caller]
pub(crate) fn same_dump_as_of_the_primary(ours: &str, primary: &str) {
    let difference = first_difference(ours, primary, is_of_the_primary);
    assert_eq!(difference, None, "the dump differs from the primary's");
}

/// The first line that differs, in both.
fn first_difference(
    ours: &str,
    theirs: &str,
    same: impl Fn(&str, &str) -> bool,
) -> Option<(usize, Option<String>, Option<String>)> {
    let (mut ours, mut theirs) = (ours.lines(), theirs.lines());
    for number in 1.. {
        match (ours.next(), theirs.next()) {
            (None, None) => break,
            (Some(our), Some(their)) if same(our, their) => {}
            (our, their) => return Some((number, our.map(shortened), their.map(shortened))),
        }
    }
    None
}

fn shortened(line: &str) -> String {
    line.chars().take(400).collect()
}

/// `SELECT pg_catalog.setval('public.tickets', 65, true);`
fn sequence_value(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.strip_prefix("SELECT pg_catalog.setval(")?.split_once(", ")?;
    Some((name, value.split_once(',')?.0.parse().ok()?))
}

fn is_of_the_primary(ours: &str, primary: &str) -> bool {
    if ours == primary {
        return true;
    }
    match (sequence_value(ours), sequence_value(primary)) {
        (Some((our_name, ours)), Some((name, value))) => {
            our_name == name && (value..=value + SEQUENCE_AHEAD).contains(&ours)
        }
        _ => false,
    }
}

/// Stock tools accept a directory that no server has touched yet.
pub(crate) fn tools_accept(restored: &Pg) {
    let control = pg::run(pg::command(pg::bin_dir().join("pg_controldata")).arg(restored.data()));
    assert!(!control.contains("WARNING"), "{control}");
    assert!(
        control
            .lines()
            .any(|line| line.starts_with("Database cluster state:") && line.ends_with("shut down"))
    );
    let checked =
        pg::run(pg::command(pg::bin_dir().join("pg_checksums")).args(["--check", "-D"]).arg(restored.data()));
    assert!(checked.lines().any(|line| line.split_whitespace().eq(["Bad", "checksums:", "0"])), "{checked}");
}

/// `pg_amcheck` of every table and index of every database that takes connections; each has amcheck.
pub(crate) fn indexes_agree_with_tables(restored: &Pg) {
    let mut amcheck = restored.client("pg_amcheck");
    let output = amcheck.args(["--all", "--heapallindexed"]).output().expect("pg_amcheck exists");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// A running server ends what was prepared, takes a write, crashes, recovers, and has all of it.
pub(crate) fn goes_on_after_a_crash(restored: &Pg) {
    for prepared in restored.sql("SELECT gid FROM pg_prepared_xacts WHERE database = 'postgres'").lines() {
        restored.sql(&format!("COMMIT PREPARED '{prepared}'"));
    }
    restored.sql("CREATE TABLE after_restore AS SELECT generate_series(1, 1000) AS i");
    let before = restored.sql("SELECT count(*), sum(step) FROM markers");
    restored.stop(StopMode::Immediate);
    restored.start();
    assert_eq!(restored.sql("SELECT count(*) FROM after_restore"), "1000");
    assert_eq!(restored.sql("SELECT count(*), sum(step) FROM markers"), before);
    restored.sql("INSERT INTO after_restore VALUES (0)");
}

/// Where the time goes.
pub(crate) struct Stages {
    env: Env,
    spent: Mutex<BTreeMap<&'static str, (u32, Duration)>>,
}

impl Stages {
    /// Nothing yet.
    pub(crate) fn new() -> Stages {
        Stages { env: Env::system(), spent: Mutex::default() }
    }

    /// Does one piece of work and notes how long it took.
    pub(crate) fn time<T>(&self, stage: &'static str, work: impl FnOnce() -> T) -> T {
        let begun = self.env.clock.elapsed();
        let done = work();
        let took = self.env.clock.elapsed().saturating_sub(begun);
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let (times, total) = spent.entry(stage).or_default();
        *times += 1;
        *total += took;
        done
    }
}

impl std::fmt::Display for Stages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (stage, (times, total)) in &*self.spent.lock().unwrap_or_else(PoisonError::into_inner) {
            writeln!(f, "{stage}: {times} times, {:.2} s each", total.as_secs_f64() / f64::from(*times))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sequence_may_be_ahead_of_the_primary() {
        let line = |value: u64| format!("a\nSELECT pg_catalog.setval('public.tickets', {value}, true);\nb");
        let differ = |ours: &str, primary: &str| first_difference(ours, primary, is_of_the_primary).is_some();
        assert!(!differ(&line(50), &line(50)) && !differ(&line(82), &line(50)));
        assert!(differ(&line(49), &line(50)) && differ(&line(83), &line(50)));
        assert!(differ(&line(50), "a") && differ("a", &line(50)) && differ("b", "a"));
    }
}
