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
use suites::{CONTRIB, Suites};
use zenith_testkit::pg::PgOptions;

#[test]
#[ignore = "minutes: make differential"]
fn the_regression_suite_restores_page_by_page_as_postgresql_recovers() {
    let suites = Suites::fetch();
    differential("regression", PgOptions::default().initdb("--data-checksums"), Points(10), |primary| {
        suites.regression(primary);
    });
}

#[test]
#[ignore = "minutes: make differential"]
fn the_isolation_suite_restores_page_by_page_as_postgresql_recovers() {
    let suites = Suites::fetch();
    differential("isolation", PgOptions::default(), Points(10), |primary| {
        suites.isolation(primary);
    });
}

#[test]
#[ignore = "minutes: make differential"]
fn the_contrib_suites_restore_page_by_page_as_postgresql_recovers() {
    let suites = Suites::fetch();
    differential("contrib", PgOptions::default(), Points(10), |primary| {
        for name in CONTRIB {
            suites.contrib(primary, name);
        }
    });
}
