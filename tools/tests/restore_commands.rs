//! `zenith_restore` as a process, with a server that archives, a base image taken under load, and servers that start on
//! what was restored.

use serde_json::Value;
use std::collections::HashMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;
use zenith_testkit::on_each_store;
use zenith_testkit::outcome::{fails, said, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, StopMode, give_to_server, run, server_dir};
use zenith_testkit::store::{Kind, TestStore};

on_each_store!(
    a_recovering_server_stops_when_the_store_is_gone_and_goes_on_when_it_is_back,
    a_restored_server_archives_to_its_own_timeline_and_can_be_restored_from_it,
    branches_are_made_without_a_copy_listed_restored_renamed_and_deleted,
);

/// A store with the history of one server, which is stopped.
struct History {
    store: TestStore,
    folder: TempDir,
    /// Just before the table was dropped.
    before_drop: String,
    /// The balances at the end.
    end: String,
}

const BALANCES: &str = "SELECT sum(abalance), (SELECT count(*) FROM pgbench_history) FROM pgbench_accounts";

impl History {
    fn record(kind: Kind) -> History {
        let (store, folder) = (TestStore::new(kind), server_dir());
        let mut history = History { store, folder, before_drop: String::new(), end: String::new() };
        let archive = format!(
            "archive_command = '{} wal --store {} \"%p\"'",
            env!("CARGO_BIN_EXE_zenith_push"),
            history.store.url()
        );
        let mut options =
            PgOptions::default().initdb("--data-checksums").conf("archive_mode = on").conf(&archive);
        for (name, value) in history.store.credentials() {
            options = options.env(&name, &value);
        }
        let pg = Pg::start_new(&options);
        run(pg.client("pgbench").args(["-i", "-q", "-s", "1"]));
        let mut load = pg.client("pgbench");
        let load = load
            .args(["-n", "-c", "2", "--rate=200", "-T", "600"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut load = load.spawn().expect("pgbench");
        pg.wait_for("(SELECT count(*) > 100 FROM pgbench_history)");
        let spot = history.spot();
        std::fs::create_dir(&spot).expect("made");
        give_to_server(&spot);
        pg.sql(&format!("CREATE TABLESPACE spot LOCATION '{}'", spot.display()));
        pg.sql("CREATE TABLE elsewhere TABLESPACE spot AS SELECT generate_series(1, 1000) g");
        let mut base =
            history.command(env!("CARGO_BIN_EXE_zenith_push"), &["base", "--checkpoint=fast", "-w"]);
        succeeds(&base.env("PGHOST", pg.socket()).env("PGUSER", "postgres").output().expect("started"));
        pg.sql("INSERT INTO elsewhere SELECT generate_series(1001, 2000)");
        pg.sql("CREATE TABLE precious AS SELECT g, md5(g::text) FROM generate_series(1, 1000) g");
        history.before_drop = pg.sql("SELECT now()");
        pg.sql("DROP TABLE precious");
        load.kill().expect("killed");
        load.wait().expect("ended");
        pg.wait_for("NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'pgbench')");
        pg.sql("SELECT pg_create_restore_point('the end')");
        history.end = pg.sql(BALANCES);
        let last = pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
        pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
        pg.stop(StopMode::Immediate);
        history
    }

    /// Where its tablespace lies.
    fn spot(&self) -> PathBuf {
        self.folder.path().join("spot")
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = zenith_testkit::pg::command(program);
        for name in ["ZENITH_STORE", "ZENITH_CLUSTER", "ZENITH_TIMELINE", "ZENITH_CONFIG"] {
            command.env_remove(name);
        }
        command.args(["--store", &self.store.url()]).args(arguments).envs(self.store.credentials());
        command
    }

    fn branch(&self, arguments: &[&str]) -> Output {
        let mut branch = self.command(env!("CARGO_BIN_EXE_zenith"), &["branch"]);
        branch.args(arguments).output().expect("started")
    }

    fn restore_to(&self, directory: &Path, arguments: &[&str]) -> Output {
        let mut restore = self.command(env!("CARGO_BIN_EXE_zenith_restore"), &["-D"]);
        restore.arg(directory).args(arguments).output().expect("started")
    }

    /// A directory that was restored; its server is not started.
    fn restored(&self, arguments: &[&str]) -> Pg {
        let home = server_dir();
        let data = home.path().join("data");
        let mapping = format!("{}={}", self.spot().display(), home.path().join("spot").display());
        let restored = self.restore_to(&data, &[&["-T", &mapping], arguments].concat());
        succeeds(&restored);
        let said = said(&restored);
        assert!(said.contains("target: LSN ") && said.contains("; last transaction in it: "), "{said}");
        Pg::adopt(home, data).with_env(self.store.credentials())
    }

    /// The server while the store is away, by what its commands find there.
    fn try_start_without_store(&self, pg: Pg) -> (Pg, Result<(), String>) {
        match &self.store {
            TestStore::Folder(folder) => {
                let (here, away) = (folder.path().join("store"), folder.path().join("away"));
                std::fs::rename(&here, &away).expect("renamed");
                let started = pg.try_start();
                std::fs::rename(&away, &here).expect("renamed");
                (pg, started)
            }
            TestStore::Minio(_) => {
                let free = TcpListener::bind("127.0.0.1:0").expect("bound");
                let nowhere = format!("http://{}", free.local_addr().expect("an address"));
                drop(free);
                let mut credentials = self.store.credentials();
                credentials.retain(|(name, _)| name != "AWS_ENDPOINT_URL");
                credentials.push(("AWS_ENDPOINT_URL".to_owned(), nowhere));
                let pg = pg.with_env(credentials);
                let started = pg.try_start();
                (pg.with_env(self.store.credentials()), started)
            }
        }
    }
}

fn recovered(pg: &Pg) {
    pg.start();
    pg.wait_for("NOT pg_is_in_recovery()");
    assert_eq!(pg.sql("SELECT count(*), count(DISTINCT g) FROM elsewhere"), "2000|2000");
}

#[test]
fn a_dropped_table_is_back_and_every_way_to_the_end_gives_the_same() {
    let history = History::record(Kind::Folder);

    let before = history.restored(&["--time", &history.before_drop]);
    before.start();
    assert_eq!(before.sql("SELECT count(*), count(DISTINCT md5) FROM precious"), "1000|1000");
    drop(before);

    let replayed = history.restored(&["--replay", "--time", &history.before_drop]);
    recovered(&replayed);
    assert_eq!(replayed.sql("SELECT count(*), count(DISTINCT md5) FROM precious"), "1000|1000");
    drop(replayed);

    for arguments in [&[][..], &["--name", "the end"], &["--replay"], &["--replay", "--name", "the end"]] {
        let pg = history.restored(arguments);
        recovered(&pg);
        assert_eq!(pg.sql(BALANCES), history.end, "{arguments:?}");
        assert_eq!(pg.sql("SELECT to_regclass('precious')"), "", "{arguments:?}");
    }
}

#[test]
fn targets_that_cannot_be_are_refused_and_leave_nothing_behind() {
    let history = History::record(Kind::Folder);
    let place = server_dir();
    let target = place.path().join("data");
    fails(&history.restore_to(&target, &["--lsn", "0/100100"]), &["0/100100", "base image"]);
    fails(&history.restore_to(&target, &["--lsn", "7F/0"]), &["7F/0"]);
    fails(&history.restore_to(&target, &["--time", "2099-01-01 00:00:00+00"]), &["2099-01-01", "newest"]);
    fails(&history.restore_to(&target, &["--time", "2001-01-01 00:00:00+00"]), &["2001-01-01"]);
    fails(&history.restore_to(&target, &["--name", "nowhere"]), &["nowhere", "the end"]);
    fails(&history.restore_to(&target, &["--timeline", "mian"]), &["mian", "main"]);
    fails(&history.restore_to(&target, &["-T", "/no/such=/new"]), &["/no/such"]);
    assert!(!target.exists());
    std::fs::create_dir(&target).expect("made");
    std::fs::write(target.join("precious"), "x").expect("written");
    fails(&history.restore_to(&target, &[]), &["not empty"]);
    fails(&history.restore_to(&target, &["--replay"]), &["not empty"]);
    assert_eq!(std::fs::read(target.join("precious")).expect("kept"), b"x");
}

fn a_recovering_server_stops_when_the_store_is_gone_and_goes_on_when_it_is_back(kind: Kind) {
    let history = History::record(kind);
    let (pg, started) = history.try_start_without_store(history.restored(&["--replay"]));
    let log = started.expect_err("recovery must not end early");
    assert!(log.contains("FATAL") && log.contains("zenith_restore: error"), "{log}");
    let histories = std::fs::read_dir(pg.data().join("pg_wal")).expect("pg_wal");
    let promoted = histories.map(|entry| entry.expect("entry").file_name());
    assert_eq!(promoted.filter(|name| name.to_string_lossy().ends_with(".history")).count(), 0);
    assert!(pg.data().join("recovery.signal").exists());

    recovered(&pg);
    assert_eq!(pg.sql(BALANCES), history.end);
}

fn a_restored_server_archives_to_its_own_timeline_and_can_be_restored_from_it(kind: Kind) {
    let history = History::record(kind);
    let pg = history.restored(&["--time", &history.before_drop, "--as", "copy"]);
    pg.start();
    pg.sql("DELETE FROM precious WHERE g > 10");
    let last = pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
    pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
    // A store on a network may ask for one more try.
    if kind == Kind::Folder {
        assert_eq!(pg.sql("SELECT failed_count FROM pg_stat_archiver"), "0", "{}", pg.log());
    }
    drop(pg);
    let slicer = env!("CARGO_BIN_EXE_zenith_slicedice");
    succeeds(&history.command(slicer, &["--timeline", "copy"]).output().expect("started"));

    let copy = history.restored(&["--timeline", "copy"]);
    copy.start();
    assert_eq!(copy.sql("SELECT count(*) FROM precious"), "10");
    drop(copy);
    // The parent does not see it, and the name is taken.
    let parent = history.restored(&[]);
    parent.start();
    assert_eq!(parent.sql(BALANCES), history.end);
    let again = server_dir();
    fails(&history.restore_to(&again.path().join("data"), &["--as", "copy"]), &["copy", "already"]);
}

fn branches_are_made_without_a_copy_listed_restored_renamed_and_deleted(kind: Kind) {
    let history = History::record(kind);
    succeeds(&history.branch(&["create", "before", "--at", &history.before_drop]));
    succeeds(&history.branch(&["create", "end", "--at", "the end"]));
    succeeds(&history.branch(&["create", "nested", "--from", "before"]));
    fails(&history.branch(&["create", "end"]), &["\"end\"", "already"]);
    fails(&history.branch(&["create", "no/name"]), &["no/name"]);
    fails(&history.branch(&["create", "x", "--at", "nowhere"]), &["nowhere", "the end", "no time"]);
    fails(&history.branch(&["create", "x", "--at", "7F/0"]), &["7F/0"]);
    fails(&history.branch(&["create", "x", "--from", "mian"]), &["mian", "main"]);

    let (text, lsns) = tree(&history);
    let [before, end, nested] = ["before", "end", "nested"].map(|name| lsns[name].clone());
    assert_eq!(
        before, nested,
        "a branch without WAL of its own ends where it begins, in the history of its parent"
    );
    let expected = format!("main\n┣━ @{before}: before\n┣━ @{nested}: nested\n┗━ @{end}: end\n");
    assert_eq!(text, expected);

    let pg = history.restored(&["--timeline", "nested", "--as", "server"]);
    pg.start();
    assert_eq!(pg.sql("SELECT count(*) FROM precious"), "1000");
    pg.sql("DELETE FROM precious WHERE g > 10");
    let last = pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
    pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
    drop(pg);
    let slicer = env!("CARGO_BIN_EXE_zenith_slicedice");
    // Its parent is not sliced up to there yet.
    for timeline in ["server", "main", "server"] {
        succeeds(&history.command(slicer, &["--timeline", timeline]).output().expect("started"));
    }
    succeeds(&history.branch(&["create", "later", "--from", "server"]));
    let (text, lsns) = tree(&history);
    assert!(text.contains(&format!("server\n┃  ┗━ @{}: later", lsns["later"])), "{text}");
    for (timeline, rows) in [("before", "1000"), ("later", "10")] {
        let pg = history.restored(&["--timeline", timeline]);
        pg.start();
        assert_eq!(pg.sql("SELECT count(*) FROM precious"), rows, "{timeline}");
    }

    fails(&history.branch(&["delete", "server"]), &["later"]);
    fails(&history.branch(&["delete", "main"]), &["main", "no branch"]);
    fails(&history.branch(&["rename", "later", "end"]), &["end", "already"]);
    succeeds(&history.branch(&["rename", "end", "prod"]));
    for name in ["later", "server", "nested", "before"] {
        succeeds(&history.branch(&["delete", name]));
    }
    fails(&history.branch(&["delete", "before"]), &["before", "prod"]);
    assert_eq!(tree(&history).0, format!("main\n┗━ @{end}: prod\n"));
    let pg = history.restored(&["--timeline", "prod"]);
    pg.start();
    assert_eq!(pg.sql(BALANCES), history.end);
}

/// What `zenith branch` prints, and where each branch begins, by its JSON.
fn tree(history: &History) -> (String, HashMap<String, String>) {
    let printed = history.branch(&[]);
    succeeds(&printed);
    let listed = history.branch(&["list", "--json"]);
    succeeds(&listed);
    let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).expect("JSON");
    let lsn = |one: &Value| {
        Some((one["names"][0].as_str()?.to_owned(), one["lsn"].as_str().unwrap_or_default().to_owned()))
    };
    let text = String::from_utf8(printed.stdout).expect("text");
    (text, listed.iter().filter_map(lsn).collect())
}
