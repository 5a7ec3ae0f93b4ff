//! Random workloads on an archived primary, and random kills of Zenith's commands: whatever happened, what Zenith restores is
//! what PostgreSQL's own recovery makes of the same WAL. README.md says how to run many.

mod client;
mod compare;
mod dice;
#[path = "../differential/files.rs"]
mod files;
mod found;
mod kills;
mod plan;
mod primary;
mod run;
mod settings;
mod sql;
mod wal;

use std::sync::Mutex;

/// A number from the environment, which the Makefile sets.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

#[test]
#[ignore = "minutes: make fuzz-sql SEEDS=10"]
fn many_seeds_restore_as_postgresql_recovers() {
    let first = number("FIRST", 1);
    run::many("fuzz-sql SEEDS=1", first..first + number("SEEDS", 10), run::seed);
}

#[test]
#[ignore = "minutes: make fuzz-kills KILLS=20"]
fn many_kills_lose_nothing() {
    let (first, wanted) = (number("FIRST", 1), number("KILLS", 20) as usize);
    let total = Mutex::new(kills::Counted::default());
    let killed = || total.lock().expect("nothing fails under the lock").killed();
    let seeds = (first..).take(wanted).take_while(|_| killed() < wanted);
    run::many("fuzz-kills KILLS=1", seeds, |seed| {
        let counted = kills::seed(seed)?;
        let mut total = total.lock().expect("nothing fails under the lock");
        total.add(&counted);
        Ok(format!("{} killed; so far {} {total:?}", counted.killed(), total.killed()))
    });
}

/// Few, so that `make test` stays short.
mod a_random_workload_restores_as_postgresql_recovers {
    #[test]
    fn over_a_start_with_other_settings() {
        super::run::seed(7).unwrap();
    }

    #[test]
    fn over_a_killed_postmaster_and_a_second_base_image() {
        super::run::seed(9).unwrap();
    }

    #[test]
    fn on_minio_over_immediate_stops_and_sliced_in_parts() {
        super::run::seed(18).unwrap();
    }
}

#[test]
fn commands_that_are_killed_and_run_again_and_twice_at_once_lose_nothing() {
    kills::seed(1).unwrap();
}
