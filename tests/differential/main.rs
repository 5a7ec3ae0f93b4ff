//! The differential harness: any workload on a primary that archives with Zenith, and at chosen LSNs every page, every
//! small file and the dump of what Zenith restores beside what PostgreSQL's own recovery makes of a plain base backup.
//!
//! The long runs are ignored by `cargo test`; `make differential` runs them and prints figures for each, and
//! docs/differential.md has those of the last time.

mod edges;
mod files;
mod oracle;
mod primary;
mod restarts;
mod run;
mod suites;
mod wal;

use primary::Primary;
use run::{Run, differential};
use suites::{Ran, Suites};
use zenith_pgformat::wal::RmgrId;
use zenith_testkit::pg::PgOptions;

/// As a cluster is made, but for page checksums.
mod plain {
    use super::*;

    #[test]
    #[ignore = "minutes: make differential"]
    fn the_regression_suite_restores_page_by_page_as_postgresql_recovers() {
        let options = PgOptions::default().initdb("--data-checksums").conf("wal_level = replica");
        let suites = Suites::fetch();
        differential(Run::new("regression", options, 12), |primary| suites.regression(primary));
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn the_isolation_suite_restores_page_by_page_as_postgresql_recovers() {
        let suites = Suites::fetch();
        let run = Run::new("isolation", PgOptions::default(), 12);
        differential(run, |primary| suites.isolation(primary));
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn the_contrib_suites_restore_page_by_page_as_postgresql_recovers() {
        let suites = Suites::fetch();
        let run = Run::new("contrib", PgOptions::default(), 12);
        let figures = differential(run, |primary| suites.contrib(primary));
        assert!(figures.records_of(RmgrId::GENERIC) > 0, "bloom writes generic records");
    }
}

#[test]
#[ignore = "minutes: make differential"]
fn without_full_page_images_and_hint_bits_the_regression_suite_restores_the_same() {
    let options = PgOptions::default()
        .initdb("--wal-segsize=1")
        .conf("full_page_writes = off")
        .conf("wal_compression = pglz");
    let suites = Suites::fetch();
    let run = Run::new("regression without full-page images", options, 10);
    differential(run, |primary| suites.regression(primary));
}

/// Everything that can be logged is, in large segments.
mod everything_logged {
    use super::*;

    fn run(name: &'static str, workload: fn(&Suites, &Primary) -> Ran) {
        let options = PgOptions::default()
            .initdb("--wal-segsize=64")
            .conf("wal_level = logical")
            .conf("wal_log_hints = on")
            .conf("track_commit_timestamp = on")
            .conf("wal_compression = zstd");
        let suites = Suites::fetch();
        let figures = differential(Run::new(name, options, 10), |primary| workload(&suites, primary));
        assert!(figures.records_of(RmgrId::COMMIT_TS) > 0);
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn the_regression_suite_restores_the_same() {
        run("regression, everything logged", Suites::regression);
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn the_isolation_suite_restores_the_same() {
        run("isolation, everything logged", Suites::isolation);
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn the_contrib_suites_restore_the_same() {
        run("contrib, everything logged", Suites::contrib);
    }
}

/// PostgreSQL's own recovery checks every page after every record here, and `zenith check --wal` does the same; what
/// is restored must see through the images that are only for that.
mod consistency {
    use super::*;

    fn run(name: &'static str, options: PgOptions, workload: fn(&Suites, &Primary) -> Ran) {
        let options = options
            .conf("wal_consistency_checking = all")
            .conf("wal_compression = lz4")
            .conf("max_wal_size = 4GB");
        let suites = Suites::fetch();
        differential(Run::new(name, options, 10).checked(), |primary| workload(&suites, primary));
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn every_page_of_the_regression_suite_is_redone_as_postgresql_logged_it() {
        run("regression, consistency checking", PgOptions::default(), Suites::regression);
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn every_page_of_the_isolation_suite_is_redone_as_postgresql_logged_it() {
        run("isolation, consistency checking", PgOptions::default(), Suites::isolation);
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn with_page_checksums_every_page_of_the_contrib_suites_is_redone_as_postgresql_logged_it() {
        let options = PgOptions::default().initdb("--data-checksums");
        run("contrib, consistency checking, checksums", options, Suites::contrib);
    }
}

/// What the suites do not reach.
mod edge_cases {
    use super::*;

    fn no_cases(workload: fn(&Primary)) -> impl FnOnce(&Primary) -> Ran {
        move |primary| {
            workload(primary);
            Ran::default()
        }
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn databases_and_tablespaces_copied_moved_and_dropped_restore_the_same() {
        let options = PgOptions::default().initdb("--data-checksums");
        let run = Run::new("databases and tablespaces", options, 12).checked();
        let run = run.before_base(edges::a_database_in_a_tablespace);
        differential(run, no_cases(edges::databases_and_tablespaces));
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn settings_that_change_at_restarts_and_crashes_restore_the_same() {
        let run = Run::new("restarts with other settings", PgOptions::default(), 12).checked();
        differential(run, no_cases(edges::restarts_with_other_settings));
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn records_that_a_crash_cut_and_the_server_overwrote_restore_the_same() {
        // A checkpoint behind what a crash loses could not be recovered from.
        let options = PgOptions::default()
            .initdb("--wal-segsize=1")
            .conf("checkpoint_timeout = 1h")
            .conf("autovacuum = off");
        let run = Run::new("crashes in a record", options, 10).checked();
        let figures = differential(run, no_cases(edges::crashes_in_a_record));
        let overwritten = figures.records_of_type(RmgrId::XLOG, "OVERWRITE_CONTRECORD");
        assert_eq!(overwritten, edges::CRASHES_IN_A_RECORD, "the archived WAL has as many");
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn counters_that_wrap_around_restore_the_same() {
        let options = PgOptions::default().conf("track_commit_timestamp = on").conf("autovacuum = off");
        let run = Run::new("wraparound", options, 12).checked();
        let run = run.before_start(edges::near_wraparound).before_base(edges::freeze_everything);
        differential(run, no_cases(edges::wraparound));
    }

    #[test]
    #[ignore = "minutes: make differential"]
    fn a_relation_past_a_segment_file_restores_the_same() {
        let run = Run::new("past a segment file", PgOptions::default(), 6);
        differential(run, no_cases(edges::past_a_segment_file));
    }
}
