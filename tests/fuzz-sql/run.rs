//! One seed from its plan to its comparison, and many seeds.

use crate::compare::{Compared, Oracle, Target};
use crate::plan::{Plan, Step};
use crate::primary::{Archiving, Primary};
use crate::wal::Archived;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use tempfile::TempDir;
use zenith_pgformat::Lsn;
use zenith_store::Env;
use zenith_testkit::oracle::{insert_lsn, wal_segment_size};
use zenith_testkit::outcome::{ended, panicked, said};
use zenith_testkit::pg::{self, Pg, StopMode};

/// So many differences are shown.
const SHOWN: usize = 6;

/// What differs at a target, as text.
pub(crate) fn differences(target: &Target, mut different: Vec<String>) -> String {
    let count = different.len();
    different.truncate(SHOWN);
    format!("{count} differences at {}:\n{}", target.label(), different.join("\n"))
}

/// Runs a seed's plan, slices and compares; a line of figures, or what is wrong.
///
/// With `ZENITH_FUZZ_KEEP` set, what differs is left in place.
pub(crate) fn seed(seed: u64) -> Result<String, String> {
    let plan = Plan::of(seed);
    let mut settings = plan.settings.clone();
    if plan.checked {
        settings.lines.push("wal_consistency_checking = all".to_owned());
    }
    let mut primary = Primary::start(&settings, Archiving::Zenith);
    primary.set_up(&plan);
    pg::run(&mut primary.zenith("zenith_push", &["base", "--checkpoint=fast"]));
    let base = primary.plain_base();
    let from = insert_lsn(&primary.server);
    for step in &plan.steps {
        primary.step(step);
    }
    let to = insert_lsn(&primary.server);
    primary.archive();
    if plan.slice_at_the_end {
        pg::run(&mut primary.zenith("zenith_slicedice", &[]));
    }

    let refused = primary.refused_to_archive();
    if !refused.is_empty() {
        return Err(format!("archiving failed:\n{refused}"));
    }
    let archived = Archived::read(primary.plain(), wal_segment_size(&primary.server), from, to);
    let oracle = Oracle { primary: &primary, plan: &plan, base: &base, archived: &archived };
    let mut compared = Compared::default();
    let checked = if plan.checked { check(&primary, to)? } else { 0 };
    for (index, moment) in plan.moments.iter().enumerate() {
        let target = Target::of(*moment, &archived, &primary.names);
        let (theirs, ours) = (oracle.recover(&target), oracle.restore(&target));
        let mut different = oracle.compare(&ours, &theirs, &mut compared);
        if different.is_empty() && index + 1 == plan.moments.len() {
            different = oracle.compare_dumps(&ours, &theirs);
        }
        if !different.is_empty() {
            if std::env::var_os("ZENITH_FUZZ_KEEP").is_some() {
                keep(primary, base, [ours, theirs]);
            }
            return Err(differences(&target, different));
        }
    }
    let count = |what: fn(&Step) -> bool| plan.steps.iter().filter(|step| what(step)).count();
    Ok(format!(
        "{:?}, {} statements, {} refused, {} crashes, {} base images, {} records; {} moments, {} pages, {} leftovers, {checked} pages checked",
        plan.settings.store,
        primary.said,
        primary.errors().0,
        count(|step| matches!(step, Step::Crash(..))),
        1 + count(|step| matches!(step, Step::Base(_))),
        archived.records(),
        compared.moments,
        compared.pages,
        compared.leftovers,
    ))
}

/// Has `zenith check --wal` redo everything up to `to`, whole and as it is stored, beside the pages that the primary
/// logged; how many of them there were.
fn check(primary: &Primary, to: Lsn) -> Result<u64, String> {
    let output = ended(&mut primary.zenith("zenith", &["--json", "check", "--wal", "--to", &to.to_string()]));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("zenith check --wal: {error}\n{}", said(&output)))?;
    match (found["differences"].as_u64(), found["images"].as_u64()) {
        (Some(0), Some(images @ 1..)) => Ok(images),
        _ => Err(format!("zenith check --wal: {found:#}")),
    }
}

/// Leaves everything where it is and says where.
fn keep(primary: Primary, base: TempDir, compared: [Pg; 2]) {
    let [ours, theirs] = compared.each_ref().map(|server| server.data().display());
    eprintln!("ours {ours}, theirs {theirs}, plain base {}", base.path().display());
    eprintln!("archive {}, store {}", primary.plain().display(), primary.store.url());
    eprintln!("errors:\n{}", primary.errors().1);
    primary.server.stop(StopMode::Immediate);
    std::mem::forget((primary, base, compared));
}

/// Runs many seeds, two at a time, each to its end whatever becomes of the others. Panics with the list of those that failed, and with how to run one of them again.
pub(crate) fn many(
    target: &str,
    seeds: impl Iterator<Item = u64> + Send,
    job: impl Fn(u64) -> Result<String, String> + Sync,
) {
    let clock = Env::system().clock;
    let waiting = Mutex::new(seeds);
    let done = Mutex::new((0, Vec::new()));
    let next = || waiting.lock().expect("nothing fails under the lock").next();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    let begun = clock.elapsed();
                    let ended = catch_unwind(AssertUnwindSafe(|| job(seed)))
                        .unwrap_or_else(|panic| Err(panicked(&*panic).to_owned()));
                    let took = (clock.elapsed() - begun).as_secs_f64();
                    let mut done = done.lock().expect("nothing fails under the lock");
                    done.0 += 1;
                    match ended {
                        Ok(figures) => println!("seed {seed}: {took:.1} s, {figures}"),
                        Err(why) => {
                            println!("seed {seed}: {took:.1} s, FAILED: {why}");
                            done.1.push(seed);
                        }
                    }
                }
            });
        }
    });
    let (ran, failed) = done.into_inner().expect("nothing fails under the lock");
    println!("{ran} seeds, {} failed {failed:?}", failed.len());
    assert!(failed.is_empty(), "again: make {target} FIRST={}", failed[0]);
}
