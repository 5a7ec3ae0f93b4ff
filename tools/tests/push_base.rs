//! `zenith_push base` as a process, of real servers and data directories; then `zenith_slicedice`, `zenith status`,
//! `zenith layers` and `zenith page` on what it stored.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use zenith_testkit::on_each_store;
use zenith_testkit::outcome::{ended, fails, said, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, StopMode, give_to_server, run, server_dir};
use zenith_testkit::store::{Kind, TestStore};

on_each_store!(
    a_base_image_under_load_registers_and_is_confirmed_by_its_archived_wal,
    a_killed_run_registers_nothing_and_the_next_one_succeeds,
    a_stopped_directory_is_taken_and_any_other_is_refused_with_the_remedy,
    a_page_that_fails_its_checksum_is_refused_by_relation_and_block,
    a_standby_another_cluster_and_minimal_wal_are_refused,
);

/// A store, and a folder for other things.
struct Place {
    store: TestStore,
    folder: TempDir,
}

impl Place {
    fn new(kind: Kind) -> Place {
        Place { store: TestStore::new(kind), folder: server_dir() }
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        // As the server's user, whose archive_command writes to the same folder.
        let mut command = zenith_testkit::pg::command(program);
        for name in ["ZENITH_STORE", "ZENITH_CLUSTER", "ZENITH_TIMELINE", "ZENITH_CONFIG"] {
            command.env_remove(name);
        }
        command.args(["--store", &self.store.url()]).args(arguments).envs(self.store.credentials());
        command
    }

    /// `zenith_push base` of a running server.
    fn base(&self, pg: &Pg, arguments: &[&str]) -> Command {
        let mut command =
            self.command(env!("CARGO_BIN_EXE_zenith_push"), &["base", "--checkpoint=fast", "-w"]);
        command.args(arguments).env("PGHOST", pg.socket()).env("PGUSER", "postgres");
        command
    }

    fn base_from_dir(&self, directory: &Path) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_zenith_push"), &["--json", "base", "--from-dir"]);
        command.arg(directory);
        command
    }

    fn slice(&self) -> Value {
        json(&mut self.command(env!("CARGO_BIN_EXE_zenith_slicedice"), &["--json"]))
    }

    fn status(&self) -> Value {
        let status = json(&mut self.command(env!("CARGO_BIN_EXE_zenith"), &["status", "--json"]));
        status["clusters"][0]["timelines"][0].clone()
    }

    fn archive_conf(&self) -> String {
        let push = env!("CARGO_BIN_EXE_zenith_push");
        format!("archive_command = '{push} wal --store {} \"%p\"'", self.store.url())
    }
}

#[track_caller]
fn json(command: &mut Command) -> Value {
    let output = ended(command);
    succeeds(&output);
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

/// A server that archives to the place.
fn archiving(place: &Place, more: PgOptions) -> Pg {
    let options = more.conf("archive_mode = on").conf(&place.archive_conf());
    let credentials = place.store.credentials().into_iter();
    Pg::start_new(&credentials.fold(options, |options, (name, value)| options.env(&name, &value)))
}

fn archive_everything(pg: &Pg) {
    let last = pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
    pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
}

fn a_base_image_under_load_registers_and_is_confirmed_by_its_archived_wal(kind: Kind) {
    let place = Place::new(kind);
    let pg = archiving(&place, PgOptions::default().initdb("--data-checksums"));
    run(pg.client("pgbench").args(["-i", "-q", "-s", "3"]));
    let spot = place.folder.path().join("spot");
    std::fs::create_dir(&spot).expect("made");
    give_to_server(&spot);
    pg.sql(&format!("CREATE TABLESPACE spot LOCATION '{}'", spot.display()));
    pg.sql("CREATE TABLE elsewhere TABLESPACE spot AS SELECT generate_series(1, 1000) g");
    let mut load = pg.client("pgbench");
    let mut load = load
        .args(["-n", "-c", "2", "--rate=200", "-T", "600"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pgbench");
    pg.wait_for("(SELECT count(*) > 100 FROM pgbench_history)");

    let summary = json(&mut place.base(&pg, &["--json"]));
    load.kill().expect("killed");
    load.wait().expect("ended");
    assert_eq!(summary["kind"], "online");
    assert_eq!(summary["data_checksums"], true);
    assert!(summary["data_bytes"].as_u64().expect("a number") > 40_000_000, "{summary}");

    let before = place.status();
    assert_eq!(before["base_images"][0]["confirmed"], false);
    archive_everything(&pg);
    let sliced = place.slice();
    assert_eq!(sliced["confirmed"][0], summary["base"], "{sliced}");
    let after = place.status();
    assert_eq!(after["base_images"][0]["confirmed"], true);
    assert_eq!(after["ranges"][0]["from"], summary["end"]);

    let listing = json(&mut place.command(env!("CARGO_BIN_EXE_zenith"), &["--json", "layers"]));
    let named: Vec<&str> = listing["layers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|l| l["object"].as_str().expect("text"))
        .collect();
    assert!(!named.is_empty());
    for object in named {
        assert!(place.store.list("main/").iter().any(|stored| object.ends_with(stored)), "{object}");
    }
    json(&mut place.command(env!("CARGO_BIN_EXE_zenith"), &["status", "--json", "--max-age", "1h"]));
}

fn a_killed_run_registers_nothing_and_the_next_one_succeeds(kind: Kind) {
    let place = Place::new(kind);
    let pg = archiving(&place, PgOptions::default());
    let mut killed = place.base(&pg, &["--max-rate", "1M"]).stderr(Stdio::null()).spawn().expect("started");
    pg.wait_for("EXISTS (SELECT FROM pg_stat_progress_basebackup WHERE backup_streamed > 2000000)");
    killed.kill().expect("killed");
    killed.wait().expect("ended");
    assert_eq!(place.status()["base_images"].as_array().map(Vec::len), Some(0));

    // SIGINT is told, and registers nothing either.
    pg.wait_for("NOT EXISTS (SELECT FROM pg_stat_progress_basebackup)");
    let interrupted = place.base(&pg, &["--max-rate", "1M"]).stderr(Stdio::piped()).spawn().expect("started");
    pg.wait_for("EXISTS (SELECT FROM pg_stat_progress_basebackup WHERE backup_streamed > 2000000)");
    run(Command::new("kill").args(["-INT", &interrupted.id().to_string()]));
    let output = interrupted.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("SIGINT"), "{}", said(&output));
    assert_eq!(place.status()["base_images"].as_array().map(Vec::len), Some(0));
    // Its replication slot went with its connection.
    pg.wait_for("NOT EXISTS (SELECT FROM pg_replication_slots)");

    json(&mut place.base(&pg, &["--json"]));
    assert_eq!(place.status()["base_images"].as_array().map(Vec::len), Some(1));
}

fn a_stopped_directory_is_taken_and_any_other_is_refused_with_the_remedy(kind: Kind) {
    let place = Place::new(kind);
    let pg = Pg::start_new(&PgOptions::default().initdb("--data-checksums"));
    pg.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) g");
    fails(&ended(&mut place.base_from_dir(pg.data())), &["postmaster.pid", "pg_ctl stop"]);
    pg.stop(StopMode::Immediate);
    // What an immediate stop leaves behind, too, when the file is taken away.
    fails(&ended(&mut place.base_from_dir(pg.data())), &["not stopped cleanly", "in production"]);
    pg.start();
    pg.stop(StopMode::Fast);
    let summary = json(&mut place.base_from_dir(pg.data()));
    assert_eq!(summary["kind"], "directory");
    let sliced = place.slice();
    assert_eq!(sliced["confirmed"][0], summary["base"], "{sliced}");
    assert_eq!(place.status()["ranges"][0]["from"], summary["end"]);

    let version = pg.data().join("PG_VERSION");
    std::fs::write(&version, "14\n").expect("altered");
    fails(&ended(&mut place.base_from_dir(pg.data())), &["PostgreSQL 14"]);
    std::fs::write(&version, "15\n").expect("put back");
    let control = std::fs::File::options().write(true).read(true).open(pg.data().join("global/pg_control"));
    let control = control.expect("pg_control");
    let mut field = [0; 4];
    control.read_exact_at(&mut field, 12).expect("read");
    control.write_all_at(&202_107_181u32.to_le_bytes(), 12).expect("altered");
    fails(&ended(&mut place.base_from_dir(pg.data())), &["pg_control", "202107181"]);
    control.write_all_at(&field, 12).expect("put back");
    std::fs::write(pg.data().join("backup_label"), "x").expect("written");
    fails(&ended(&mut place.base_from_dir(pg.data())), &["backup_label"]);
}

fn a_page_that_fails_its_checksum_is_refused_by_relation_and_block(kind: Kind) {
    let place = Place::new(kind);
    let pg = Pg::start_new(&PgOptions::default().initdb("--data-checksums"));
    pg.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) g");
    let path = pg.sql("SELECT pg_relation_filepath('t')");
    pg.stop(StopMode::Fast);
    let file = std::fs::File::options().write(true).open(pg.data().join(&path)).expect("the relation");
    file.write_all_at(b"damage", 3 * 8192 + 4000).expect("damaged");
    fails(&ended(&mut place.base_from_dir(pg.data())), &[&path, "block 3"]);
    pg.start();
    fails(&ended(&mut place.base(&pg, &[])), &[&path, "block 3"]);
    assert_eq!(place.status()["base_images"].as_array().map(Vec::len), Some(0));
}

fn a_standby_another_cluster_and_minimal_wal_are_refused(kind: Kind) {
    let place = Place::new(kind);
    let pg = archiving(&place, PgOptions::default());
    json(&mut place.base(&pg, &["--json"]));

    let home = server_dir();
    let copy = home.path().join("data");
    run(pg.client("pg_basebackup").args(["-R", "-c", "fast", "-X", "stream", "-D"]).arg(&copy));
    let standby = Pg::adopt(home, copy);
    standby.start();
    fails(&ended(&mut place.base(&standby, &[])), &["standby", "primary"]);
    drop(standby);

    let other = Pg::start_new(&PgOptions::default());
    fails(&ended(&mut place.base(&other, &[])), &["system identifier", "another cluster"]);
    // A cluster of its own in the same store, and a timeline of its own in the same cluster, are fine.
    json(&mut place.base(&other, &["--json", "--cluster", "other"]));
    fails(&ended(&mut place.base(&other, &["--timeline", "test2"])), &["test2", "--create"]);
    json(&mut place.base(&other, &["--json", "--timeline", "test2", "--create"]));
    fails(&ended(&mut place.base(&other, &["--timeline", "test2", "--create"])), &["exists already"]);
    other.stop(StopMode::Fast);

    let minimal =
        Pg::start_new(&PgOptions::default().conf("wal_level = minimal").conf("max_wal_senders = 0"));
    fails(
        &ended(&mut place.base(&minimal, &["--cluster", "third"])),
        &["max_wal_senders", "wal_level = replica"],
    );
    minimal.stop(StopMode::Fast);
    fails(&ended(&mut place.base_from_dir(minimal.data())), &["wal_level = minimal"]);
}

#[test]
fn a_server_of_another_version_is_refused_by_its_number() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("address").port();
    let stub = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        let mut length = [0; 4];
        loop {
            socket.read_exact(&mut length).expect("a packet");
            let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
            socket.read_exact(&mut body).expect("a packet");
            let code = u32::from_be_bytes(body[..4].try_into().expect("a code"));
            if code >> 16 == 3 {
                break;
            }
            // SSL and GSS encryption are not to be had.
            socket.write_all(b"N").expect("answered");
        }
        let mut answer = b"R\0\0\0\x08\0\0\0\0".to_vec();
        let parameter = b"server_version\x0014.11\0";
        answer.push(b'S');
        answer.extend((parameter.len() as u32 + 4).to_be_bytes());
        answer.extend(parameter);
        answer.extend(b"Z\0\0\0\x05I");
        socket.write_all(&answer).expect("answered");
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
        rest
    });
    let place = Place::new(Kind::Folder);
    let port = port.to_string();
    let program = env!("CARGO_BIN_EXE_zenith_push");
    let mut push = place.command(program, &["base", "-h", "127.0.0.1", "-p", &port, "-U", "x", "-w"]);
    fails(&ended(&mut push), &["PostgreSQL 14.11", "15"]);
    // Not one command was sent: Terminate alone.
    assert_eq!(stub.join().expect("the stub"), b"X\0\0\0\x04");
    assert_eq!(place.store.list(""), Vec::<String>::new());
}

#[test]
fn a_page_read_back_is_the_servers_page() {
    let place = Place::new(Kind::Folder);
    let options = PgOptions::default().initdb("--data-checksums").conf("autovacuum = off");
    let pg = archiving(&place, options);
    pg.sql("CREATE TABLE t (g int); INSERT INTO t SELECT generate_series(1, 1000)");
    json(&mut place.base(&pg, &["--json"]));
    pg.sql("UPDATE t SET g = g + 1 WHERE g < 10; CHECKPOINT");
    let lsn = pg.sql("SELECT pg_current_wal_insert_lsn()");
    let path = pg.sql("SELECT pg_relation_filepath('t')");
    archive_everything(&pg);
    let target = place.folder.path().join("page");
    let mut page = place.command(env!("CARGO_BIN_EXE_zenith"), &["page", "--rel", &path, "--block", "0"]);
    page.args(["--lsn", &lsn, "-o"]).arg(&target);
    let output = page.output().expect("started");
    succeeds(&output);
    assert!(said(&output).contains("not sliced yet"), "{}", said(&output));
    let mut wanted = vec![0; 8192];
    std::fs::File::open(pg.data().join(&path))
        .expect("the relation")
        .read_exact(&mut wanted)
        .expect("a page");
    let got = std::fs::read(&target).expect("written");
    // Hint bits are no part of the WAL, so that the pages are compared by what pageinspect says of the tuples.
    assert_eq!(got[..8], wanted[..8], "pd_lsn");
    assert_eq!(got[12..20], wanted[12..20], "lower, upper, special, version");

    let mut explain = place.command(env!("CARGO_BIN_EXE_zenith"), &["--json", "page", "--rel", &path]);
    let explained = json(explain.args(["--block", "0", "--lsn", &lsn, "--explain"]));
    let rows = explained["explanation"]["rows"].as_array().map(Vec::len);
    assert!(rows.is_some_and(|rows| rows > 1), "{explained}");
}

#[test]
fn a_slicer_that_follows_keeps_up_and_ends_when_it_is_told_or_fenced() {
    let place = Place::new(Kind::Folder);
    let pg = archiving(&place, PgOptions::default());
    let follow = || {
        let mut slicer = place.command(env!("CARGO_BIN_EXE_zenith_slicedice"), &["--json", "--follow"]);
        slicer.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started")
    };
    pg.sql("SELECT pg_switch_wal()");
    pg.wait_for("(SELECT archived_count > 0 FROM pg_stat_archiver)");
    // It waits for the base image, then for WAL.
    let mut first = follow();
    json(&mut place.base(&pg, &["--json"]));
    pg.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) g");
    archive_everything(&pg);
    let mut lines = BufReader::new(first.stdout.take().expect("piped"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a commit");
    let told: Value = serde_json::from_str(&line).expect("one JSON document a line");
    assert_eq!(told["from"], place.status()["base_images"][0]["redo"]);

    // A second one takes over: the first is fenced and does not take the role back.
    let mut second = follow();
    let printed = second.stdout.take().expect("piped");
    let (told, telling) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        BufReader::new(printed).read_line(&mut line).expect("a commit");
        told.send(line).expect("awaited");
    });
    // What is written before it has taken over is the first one's to commit.
    let line = loop {
        pg.sql("INSERT INTO t SELECT generate_series(1, 1000)");
        archive_everything(&pg);
        if let Ok(line) = telling.recv_timeout(Duration::from_secs(3)) {
            break line;
        }
    };
    assert!(line.contains("records"), "{line}");
    let fenced = first.wait_with_output().expect("ended");
    assert_eq!(fenced.status.code(), Some(1));
    assert!(said(&fenced).contains("taken over"), "{}", said(&fenced));

    run(Command::new("kill").args(["-TERM", &second.id().to_string()]));
    let ended = second.wait_with_output().expect("ended");
    succeeds(&ended);
}

#[test]
fn output_that_nobody_reads_is_no_error() {
    let place = Place::new(Kind::Folder);
    place.store.put("elsewhere", b"so that there is a store");
    let script = format!(
        "set -o pipefail; '{}' --store '{}' status | true",
        env!("CARGO_BIN_EXE_zenith"),
        place.store.url()
    );
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash");
    succeeds(&output);
    assert_eq!(said(&output), "");
}
