//! The main job: what Zenith restores is what the primary was, and what PostgreSQL's own recovery makes of the same WAL.

use crate::harness::{Chain, TestStore};
use crate::moments::Moment;
use crate::oracle::{Backup, compare, moved};
use crate::verify::{
    Stages, dump, goes_on_after_a_crash, indexes_agree_with_tables, same_dump, same_dump_as_of_the_primary,
    tools_accept,
};
use crate::workload::{self, Load, Open, Workload};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use zenith_testkit::pg::{self, Pg, PgOptions, StopMode};

/// Moments that are restored.
const MOMENTS: u32 = 50;
/// So many follow each other with the primary quiet, then as many with it busy.
const IN_A_ROW: u32 = 5;
/// WAL is sliced after so many; what follows the last time is sliced by each restore for itself.
const SLICED_EVERY: u32 = 12;
/// Moments that are restored at the same time.
const WORKERS: usize = 2;

/// A primary whose history two stores hold, and moments of it.
struct History {
    chain: Chain,
    workload: Workload,
    backup: Backup,
    moments: Vec<Moment>,
    stages: Stages,
}

impl History {
    fn make() -> History {
        let options = PgOptions::default().initdb("--data-checksums").initdb("--wal-segsize=1");
        let chain = Chain::start_with_mirror(TestStore::folder(), Some(TestStore::minio()), options);
        let primary = &chain.primary;
        let workload = workload::create(primary);
        chain.run_on_all("zenith_push", &["base", "--checkpoint=fast"]);
        let backup = Backup::take(&chain, &[&workload.tablespace]);
        let stages = Stages::new();
        let mut moments = Vec::new();
        let mut load = None;
        for step in 0..MOMENTS {
            let quiet = (step / IN_A_ROW).is_multiple_of(2);
            match (quiet, load.take()) {
                (true, Some(running)) => Load::stop(running),
                (true, None) => {}
                (false, running) => load = Some(running.unwrap_or_else(|| Load::start(primary))),
            }
            stages.time("workload: a round", || workload::round(primary, step));
            moments.push(stages.time("workload: a moment", || match &load {
                None => Moment::now(primary, step, true),
                Some(load) => busy_moment(primary, load, step),
            }));
            if step % SLICED_EVERY == SLICED_EVERY - 1 {
                stages.time("workload: archiving", || chain.archive());
                stages.time("workload: slicing", || chain.run_on_all("zenith_slicedice", &[]));
            }
        }
        drop(load);
        // Something after the last moment: a time is a target only if something was archived that is later.
        workload::round(primary, MOMENTS);
        chain.archive();
        History { chain, workload, backup, moments, stages }
    }

    /// Restores one moment from every store and checks each.
    fn check(&self, moment: &Moment) {
        println!("{}", moment.label);
        let recovered = moment.dump.is_none().then(|| {
            let target: Vec<&str> = moment.recovery.iter().map(String::as_str).collect();
            let oracle =
                self.stages.time("PostgreSQL: recovery", || self.backup.recover(&self.chain, &target));
            self.stages.time("PostgreSQL: dump", || dump(&oracle))
        });
        for store in self.chain.stores() {
            let home = pg::server_dir();
            let mapping = moved(&self.workload.tablespace, home.path());
            let arguments = [&moment.target[0], &moment.target[1], "-T", &mapping];
            let restored = self.stages.time("restore", || self.chain.restore_from(store, home, &arguments));
            self.stages.time("tools", || tools_accept(&restored));
            self.stages.time("start", || restored.start());
            let ours = self.stages.time("dump", || dump(&restored));
            if let Some(theirs) = &recovered {
                same_dump(&ours, theirs);
            }
            if let Some(primary) = &moment.dump {
                same_dump_as_of_the_primary(&ours, primary);
            }
            self.stages.time("amcheck", || indexes_agree_with_tables(&restored));
            self.stages.time("crash", || goes_on_after_a_crash(&restored));
        }
    }
}

/// A moment at which clients write and transactions are open.
fn busy_moment(primary: &Pg, load: &Load<'_>, step: u32) -> Moment {
    let open = Open::begin(primary, step);
    load.wait_until_it_writes();
    let moment = Moment::now(primary, step, false);
    load.wait_until_it_writes();
    open.end(step);
    moment
}

#[test]
fn fifty_moments_restored_from_a_folder_and_from_minio_are_what_the_primary_was() {
    let history = History::make();
    let quiet: Vec<&String> = history.moments.iter().filter_map(|moment| moment.dump.as_ref()).collect();
    assert_eq!((history.moments.len(), quiet.len()), (50, 25));
    assert!(quiet.windows(2).all(|dumps| dumps[0] != dumps[1]), "moments differ");
    let waiting = Mutex::new(history.moments.iter());
    let failed = Mutex::new(Vec::new());
    let next = || waiting.lock().expect("no moment is checked under the lock").next();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(moment) = next() {
                    let check = || history.stages.time("a moment in all", || history.check(moment));
                    if catch_unwind(AssertUnwindSafe(check)).is_err() {
                        failed.lock().expect("pushing does not fail").push(&moment.label);
                    }
                }
            });
        }
    });
    println!("{}", history.stages);
    let failed = failed.into_inner().expect("pushing does not fail");
    assert!(failed.is_empty(), "these failed, for the reasons above: {failed:#?}");
}

/// A base image taken while pgbench writes, and restore points under that load.
fn a_base_image_under_load_restores_page_by_page(store: TestStore) {
    let options = PgOptions::default()
        .initdb("--data-checksums")
        .initdb("--wal-segsize=1")
        .conf("full_page_writes = on");
    let chain = Chain::start(store, options);
    let primary = &chain.primary;
    pg::run(primary.client("pgbench").args(["-i", "-s", "2", "-q"]));
    let mut load = primary
        .client("pgbench")
        .args(["-n", "-c", "2", "--rate=200", "-T", "3600"])
        .spawn()
        .expect("pgbench");
    let backup = Backup::take(&chain, &[]);
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
        let oracle = backup.recover(&chain, &[&target]);
        oracle.stop(StopMode::Fast);
        let compared = compare(&restored, &oracle);
        assert!(compared.pages > 3000, "{compared:?}");
        restored.start();
        oracle.start();
        same_dump(&dump(&restored), &dump(&oracle));
    }
}

#[test]
fn a_base_image_under_load_restores_page_by_page_as_postgresql_recovers_on_a_folder() {
    a_base_image_under_load_restores_page_by_page(TestStore::folder());
}

#[test]
fn a_base_image_under_load_restores_page_by_page_as_postgresql_recovers_on_minio() {
    a_base_image_under_load_restores_page_by_page(TestStore::minio());
}
