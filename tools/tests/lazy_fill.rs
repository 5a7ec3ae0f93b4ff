//! The filler of a lazy server: it ends with a plain directory, whatever happens on the way.

#[path = "lazy_compute/recorded.rs"]
mod recorded;

use recorded::{Recorded, zenith};
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use zenith_compute_dir::journal::{self, Entry, JOURNAL};
use zenith_pgformat::{BLCKSZ, Fork, RelNode};
use zenith_testkit::on_each_store;
use zenith_testkit::oracle::dump;
use zenith_testkit::outcome::succeeds;
use zenith_testkit::pg::{Pg, StopMode, bin_dir, command, give_to_server, run};
use zenith_testkit::store::{Kind, TestStore};

on_each_store!(a_filled_server_needs_neither_the_extension_nor_the_store,);

/// Every transaction adds to one row of each table what it notes in the history.
const CONSISTENT: &str =
    "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
    AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history)
    AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)";

fn wait_until_filled(pg: &Pg) {
    pg.wait_for("(pg_stat_file('backup_label', true)).size IS NULL");
    pg.wait_for("(pg_stat_file('zenith/limits', true)).size IS NULL");
}

/// Starts it as a stock server.
fn start_plain(pg: &Pg) {
    let conf = pg.data().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&conf).expect("there");
    let lines: Vec<&str> =
        text.lines().filter(|line| !line.starts_with("shared_preload_libraries")).collect();
    std::fs::write(&conf, lines.join("\n") + "\n").expect("written");
    pg.start();
    assert_eq!(pg.sql("SHOW shared_preload_libraries"), "");
}

fn load(pg: &Pg, seconds: u32) -> Child {
    let mut pgbench = pg.client("pgbench");
    pgbench.args(["-n", "-c", "3", "-T", &seconds.to_string()]);
    pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started")
}

fn a_filled_server_needs_neither_the_extension_nor_the_store(kind: Kind) {
    let recorded = Recorded::with_checksums(TestStore::new(kind));
    let pg = recorded.lazy();
    pg.configure(&["zenith.fill_rate = 0"]);
    pg.start();
    let held = dump(&pg, &[]);
    let different = held.lines().zip(recorded.dump.lines()).find(|(ours, theirs)| ours != theirs);
    assert_eq!((different, held.len()), (None, recorded.dump.len()));
    wait_until_filled(&pg);
    assert!(pg.log().contains("take the library out") && pg.log().contains("zenith pin end"), "{}", pg.log());
    for gone in ["backup_label", "zenith.half_filled", "zenith/compute.json", "zenith/limits", JOURNAL] {
        assert!(!pg.data().join(gone).exists(), "{gone}");
    }
    pg.stop(StopMode::Fast);
    drop(recorded.store);
    start_plain(&pg);
    let held = dump(&pg, &[]);
    let different = held.lines().zip(recorded.dump.lines()).find(|(ours, theirs)| ours != theirs);
    assert_eq!((different, held.len()), (None, recorded.dump.len()));
    run(pg.client("pg_amcheck").args(["--all", "--heapallindexed", "--install-missing"]));
    pg.sql("UPDATE t SET md5 = md5 || 'x'; CHECKPOINT; UPDATE t SET md5 = md5 || 'y'");
    pg.stop(StopMode::Immediate);
    pg.start();
    assert_eq!(pg.sql("SELECT count(*) FROM t WHERE md5 LIKE '%xy'"), "20000");
    pg.stop(StopMode::Fast);
    run(command(bin_dir().join("pg_checksums")).args(["--check", "-D"]).arg(pg.data()));
}

/// The filler, the page service, a backend, and the whole server.
#[test]
fn what_is_killed_while_it_fills_loses_nothing() {
    let recorded = Recorded::with_checksums(TestStore::folder());
    let pg = recorded.lazy();
    pg.configure(&["zenith.fill_rate = 1", "checkpoint_timeout = '30s'", "max_wal_size = '32MB'"]);
    pg.start();
    let seed = 20_261_124;
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..24 {
        let mut load = load(&pg, 60);
        pg.sql(&format!("SELECT pg_sleep({})", 0.02 * f64::from(random.u32(0..30))));
        let killed = |kind: &str| {
            let which = format!(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = '{kind}' AND pid <> pg_backend_pid() LIMIT 1"
            );
            let pid = pg.sql(&which);
            // It may have ended since.
            pid.lines().for_each(|pid| drop(command("kill").args(["-KILL", pid]).status()));
        };
        match round % 4 {
            0 => killed("zenith filler"),
            1 => drop(
                command("pkill")
                    .args(["-KILL", "-f", &format!("zenith_reader.*{}", recorded.store.url())])
                    .status(),
            ),
            2 => killed("client backend"),
            _ => {
                pg.stop(StopMode::Immediate);
                pg.start();
            }
        }
        let _ = load.kill();
        load.wait().expect("ended");
        pg.wait_until_it_answers();
        assert_eq!(pg.sql(CONSISTENT), "t", "round {round} of seed {seed}");
    }
    assert!(pg.data().join("zenith/limits").exists(), "it was filled before everything was killed");
    pg.configure(&["zenith.fill_rate = 0"]);
    pg.sql("SELECT pg_reload_conf()");
    wait_until_filled(&pg);
    assert_eq!(pg.sql(CONSISTENT), "t");
    pg.stop(StopMode::Immediate);
    start_plain(&pg);
    assert_eq!(pg.sql(CONSISTENT), "t");
    assert_eq!(pg.sql("SELECT count(*), sum(hashtext(md5)::bigint) FROM t"), recorded.sum);
    run(pg.client("pg_amcheck").args(["--all", "--heapallindexed", "--install-missing"]));
    pg.stop(StopMode::Fast);
    run(command(bin_dir().join("pg_checksums")).args(["--check", "-D"]).arg(pg.data()));
}

/// As a crash leaves it between journal and file: some of the page is there, and the rest is a hole.
#[test]
fn a_page_that_was_torn_while_it_was_filled_is_made_whole_before_recovery() {
    let recorded = Recorded::with_checksums(TestStore::folder());
    let pg = recorded.lazy();
    pg.configure(&["zenith.fill = off"]);
    pg.start();
    let file = pg.sql("SELECT pg_relation_filepath('t')");
    pg.stop(StopMode::Fast);
    let numbers: Vec<u32> = file.split('/').filter_map(|part| part.parse().ok()).collect();
    let node = RelNode { spc: 1663, db: numbers[0], rel: numbers[1] };
    let compute = std::fs::read(pg.data().join("zenith/compute.json")).expect("there");
    let lsn = zenith_compute_dir::Compute::decode(&compute).expect("whole").lsn.to_string();
    let page_of = |block: u32| {
        let out = pg.home().join(format!("page{block}"));
        let (rel, block) = (file.clone(), block.to_string());
        let arguments = ["page", "--rel", &rel, "--block", &block, "--lsn", &lsn, "-o"];
        let mut page = zenith(&recorded.store, env!("CARGO_BIN_EXE_zenith"), &arguments);
        succeeds(&page.arg(&out).output().expect("started"));
        let bytes: [u8; BLCKSZ] = std::fs::read(&out).expect("there").try_into().expect("a page");
        Box::new(bytes)
    };
    let relation = std::fs::File::options().write(true).open(pg.data().join(&file)).expect("there");
    let torn = |block: u32| {
        relation.write_all_at(&page_of(block)[..4096], u64::from(block) * BLCKSZ as u64).expect("written");
    };
    [3, 4].into_iter().for_each(torn);
    let entry = |block| Entry { node, fork: Fork::Main, block, page: page_of(block) };
    let written = pg.data().join(JOURNAL);
    std::fs::write(&written, journal::encode(&[entry(3), entry(4), entry(5)])).expect("written");
    give_to_server(&written);
    pg.start();
    assert_eq!(pg.sql("SELECT count(*), sum(hashtext(md5)::bigint) FROM t"), recorded.sum);
    pg.stop(StopMode::Fast);
    assert_eq!(journal::decode(&std::fs::read(&written).expect("there")), []);
    // Without the journal it would have been noticed: the page is neither a hole nor whole.
    torn(9);
    pg.start();
    let output =
        pg.client("psql").args(["-XAtqc", "SELECT sum(hashtext(md5)) FROM t"]).output().expect("started");
    assert!(String::from_utf8_lossy(&output.stderr).contains("invalid page in block 9"), "{output:?}");
}
