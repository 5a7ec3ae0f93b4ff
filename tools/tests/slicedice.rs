//! `zenith_slicedice` as a process.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use zenith_testkit::outcome::{ended, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, StopMode, run, server_dir};

/// A store with a base image, and behind it a backlog of about twenty segments that nobody has sliced.
fn backlog() -> (TempDir, String) {
    let folder = server_dir();
    let store = format!("file://{}", folder.path().join("store").display());
    let push = env!("CARGO_BIN_EXE_zenith_push");
    let options = PgOptions::default()
        .initdb("--wal-segsize=1")
        .conf("archive_mode = on")
        .conf(&format!("archive_command = '{push} wal --store {store} \"%p\"'"));
    let pg = Pg::create(&options);
    let base = zenith(push, &store, &["base", "--from-dir"]);
    succeeds(&ended({ base }.arg(pg.data())));
    // The store belongs to the server's user, as it does where one user runs both.
    run(Command::new("chown")
        .arg("-R")
        .arg(format!("--reference={}", pg.data().display()))
        .arg(folder.path()));
    pg.start();
    pg.sql("CREATE TABLE t AS SELECT g, repeat('x', 400) FROM generate_series(1, 40000) g");
    let last = pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
    pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
    pg.stop(StopMode::Immediate);
    (folder, store)
}

fn zenith(program: &str, store: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ZENITH_")) {
        command.env_remove(name);
    }
    command.args(["--store", store]).args(arguments);
    command
}

#[test]
fn a_follower_that_is_terminated_in_a_backlog_commits_what_it_has_and_ends_with_0() {
    let (_folder, store) = backlog();
    let slicedice = env!("CARGO_BIN_EXE_zenith_slicedice");
    let mut follower = zenith(slicedice, &store, &["--follow", "--batch", "1", "--json"]);
    let mut follower = follower.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let mut lines = BufReader::new(follower.stdout.take().expect("piped")).lines();
    // It has committed and goes on with the backlog.
    let first = lines.next().expect("a report").expect("text");
    assert!(first.contains("\"commits\":1"), "{first}");
    run(Command::new("kill").args(["-TERM", &follower.id().to_string()]));
    let rest: Vec<String> = lines.map(|line| line.expect("text")).collect();
    let mut said = String::new();
    follower.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    let status = follower.wait().expect("ended");
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("committing what is sliced"), "{said}");
    let last = rest.last().expect("a last report");
    assert!(last.contains("asked to stop"), "{last}");

    // The next run goes on, and nothing is missing.
    let output = ended(&mut zenith(slicedice, &store, &["--json"]));
    succeeds(&output);
    let status = ended(&mut zenith(env!("CARGO_BIN_EXE_zenith"), &store, &["status", "--max-age", "1h"]));
    succeeds(&status);
}
