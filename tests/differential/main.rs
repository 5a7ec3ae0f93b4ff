//! The differential harness: any workload on a primary that archives with Zenith, and at chosen LSNs every page, every
//! small file and the dump of what Zenith restores beside what PostgreSQL's own recovery makes of a plain base backup.
//!
//! The long runs are ignored by `cargo test`; `make differential` runs them and prints a line of figures for each.

mod files;
mod oracle;
mod primary;
mod run;
mod suites;
mod wal;

use run::{Points, differential};
use suites::Suites;
use zenith_pgformat::wal::RmgrId;
use zenith_testkit::pg::PgOptions;

/// LSNs at which each of the three main runs is compared; together more than a hundred.
const MANY: Points = Points(34);
const SOME: Points = Points(10);

#[test]
#[ignore = "minutes: make differential"]
fn the_regression_suite_restores_page_by_page_as_postgresql_recovers() {
    let options = PgOptions::default().initdb("--data-checksums").conf("wal_level = replica");
    let suites = Suites::fetch();
    differential("regression", options, MANY, |primary| suites.regression(primary));
}

#[test]
#[ignore = "minutes: make differential"]
fn the_isolation_suite_restores_page_by_page_as_postgresql_recovers() {
    let suites = Suites::fetch();
    differential("isolation", PgOptions::default(), MANY, |primary| suites.isolation(primary));
}

#[test]
#[ignore = "minutes: make differential"]
fn the_contrib_suites_restore_page_by_page_as_postgresql_recovers() {
    let suites = Suites::fetch();
    let figures = differential("contrib", PgOptions::default(), MANY, |primary| suites.contrib(primary));
    assert!(figures.records_of(RmgrId::GENERIC) > 0, "bloom writes generic records");
}

#[test]
#[ignore = "minutes: make differential"]
fn without_full_page_images_and_hint_bits_the_regression_suite_restores_the_same() {
    let options = PgOptions::default()
        .initdb("--wal-segsize=1")
        .conf("full_page_writes = off")
        .conf("wal_compression = pglz");
    let suites = Suites::fetch();
    differential("regression without full-page images", options, SOME, |primary| suites.regression(primary));
}

#[test]
#[ignore = "minutes: make differential"]
fn with_everything_logged_that_can_be_the_suites_restore_the_same() {
    let options = PgOptions::default()
        .initdb("--wal-segsize=64")
        .conf("wal_level = logical")
        .conf("wal_log_hints = on")
        .conf("track_commit_timestamp = on")
        .conf("wal_compression = zstd");
    let suites = Suites::fetch();
    let figures = differential("all suites, everything logged", options, SOME, |primary| {
        suites.regression(primary) + suites.isolation(primary) + suites.contrib(primary)
    });
    assert!(figures.records_of(RmgrId::COMMIT_TS) > 0);
}

/// PostgreSQL's own recovery checks every page after every record here; Zenith must see through the images that are
/// only for that.
#[test]
#[ignore = "minutes: make differential"]
fn under_wal_consistency_checking_all_suites_restore_the_same() {
    let options = PgOptions::default()
        .initdb("--data-checksums")
        .conf("wal_consistency_checking = all")
        .conf("wal_compression = lz4")
        .conf("max_wal_size = 4GB");
    let suites = Suites::fetch();
    differential("all suites, consistency checking", options, SOME, |primary| {
        suites.regression(primary) + suites.isolation(primary) + suites.contrib(primary)
    });
}
