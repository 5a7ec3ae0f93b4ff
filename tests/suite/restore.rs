//! The main job: what Zenith restores equals what PostgreSQL's own recovery makes of the same WAL.

use crate::harness::{Chain, TestStore, dump, stock_tools_accept};
use crate::workload::{self, DATABASES};
use zenith_testkit::pg::{PgOptions, StopMode};

/// What the primary was at one moment.
struct Moment {
    target: Vec<String>,
    /// `pg_dumpall` of the quiet primary, for the moments where it was taken.
    dump: Option<String>,
    /// The same target in PostgreSQL's words.
    recovery: Vec<String>,
}

/// Restores at moments by LSN, name and time, half of them with the primary quiet.
fn restored_moments_equal(store: TestStore, rounds: u32) {
    let chain =
        Chain::start(store, PgOptions::default().initdb("--data-checksums").initdb("--wal-segsize=1"));
    let primary = &chain.primary;
    workload::create(primary);
    chain.run("zenith_push", &["base", "--checkpoint=fast"]);
    let backup = chain.base_backup();
    let mut moments = Vec::new();
    for step in 0..rounds {
        workload::round(primary, step);
        let moment = match step % 3 {
            0 => {
                let lsn = primary.sql("SELECT pg_current_wal_insert_lsn()");
                Moment {
                    target: vec!["--lsn".to_owned(), lsn.clone()],
                    dump: Some(dump(primary)),
                    recovery: vec![
                        format!("recovery_target_lsn = '{lsn}'"),
                        "recovery_target_inclusive = off".to_owned(),
                    ],
                }
            }
            1 => {
                let name = format!("moment {step}");
                primary.sql(&format!("SELECT pg_create_restore_point('{name}')"));
                Moment {
                    target: vec!["--name".to_owned(), name.clone()],
                    dump: Some(dump(primary)),
                    recovery: vec![format!("recovery_target_name = '{name}'")],
                }
            }
            _ => {
                let time = primary.sql("SELECT clock_timestamp()");
                Moment {
                    target: vec!["--time".to_owned(), time.clone()],
                    dump: None,
                    recovery: vec![format!("recovery_target_time = '{time}'")],
                }
            }
        };
        moments.push(moment);
        if step == rounds / 2 {
            chain.archive();
            chain.run("zenith_slicedice", &[]);
        }
    }
    workload::round(primary, rounds);
    chain.archive();

    for (index, moment) in moments.iter().enumerate() {
        let target: Vec<&str> = moment.target.iter().map(String::as_str).collect();
        let restored = chain.restore(&target);
        let recovery: Vec<&str> = moment.recovery.iter().map(String::as_str).collect();
        let oracle = chain.recover(&backup, &recovery);
        restored.start();
        let ours = dump(&restored);
        assert!(
            ours == dump(&oracle),
            "moment {index} {target:?}: the dump differs from PostgreSQL's own recovery"
        );
        if let Some(before) = &moment.dump {
            assert!(ours == *before, "moment {index} {target:?}: the dump differs from the primary's");
        }
        restored.stop(StopMode::Fast);
        stock_tools_accept(&restored, &DATABASES, true);
        restored.stop(StopMode::Fast);
    }
}

#[test]
fn every_restored_moment_equals_the_primary_and_postgresqls_own_recovery_on_a_folder() {
    restored_moments_equal(TestStore::folder(), 6);
}

#[test]
fn every_restored_moment_equals_the_primary_and_postgresqls_own_recovery_on_minio() {
    restored_moments_equal(TestStore::minio(), 3);
}

#[test]
fn a_base_image_under_load_restores_page_by_page_as_postgresql_recovers() {
    let options = PgOptions::default()
        .initdb("--data-checksums")
        .initdb("--wal-segsize=1")
        .conf("full_page_writes = on");
    let chain = Chain::start(TestStore::folder(), options);
    let primary = &chain.primary;
    zenith_testkit::pg::run(primary.client("pgbench").args(["-i", "-s", "2", "-q"]));
    let mut load = primary.client("pgbench").args(["-n", "-c", "2", "-T", "600"]).spawn().expect("pgbench");
    let backup = chain.base_backup();
    chain.run("zenith_push", &["base", "--checkpoint=fast"]);
    let mut names = Vec::new();
    for index in 0..3 {
        primary.wait_for(&format!("(SELECT count(*) FROM pgbench_history) > {}", (index + 1) * 200));
        let name = format!("under load {index}");
        println!("{name}: {}", primary.sql(&format!("SELECT pg_create_restore_point('{name}')")));
        names.push(name);
    }
    load.kill().expect("pgbench runs");
    load.wait().expect("pgbench ends");
    chain.archive();
    chain.run("zenith_slicedice", &[]);
    for name in names {
        let restored = chain.restore(&["--name", &name]);
        let target = format!("recovery_target_name = '{name}'");
        let oracle = chain.recover(&backup, &[&target]);
        oracle.stop(StopMode::Fast);
        let compared = Chain::compare(&restored, &oracle);
        assert!(compared.pages > 3000, "{compared:?}");
        restored.start();
        oracle.start();
        assert!(dump(&restored) == dump(&oracle), "{name}: the dumps differ");
    }
}
