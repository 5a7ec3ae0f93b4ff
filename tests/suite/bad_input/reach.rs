//! Stores that cannot be reached or do not let in: every command says so within a minute, in time and with its own exit
//! code, and leaves nothing behind.

use super::world::{Ran, World, command, is_empty, run, wal_file};
use crate::harness::TestStore;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use tempfile::TempDir;
use zenith_testkit::pg::{self, Pg, PgOptions};
use zenith_testkit::store::Kind;

/// A server that runs, and a directory of the same cluster that is stopped.
struct Servers {
    running: Pg,
    stopped: String,
    _home: TempDir,
}

impl Servers {
    fn start() -> Servers {
        let running = Pg::create(&PgOptions::default().initdb("--wal-segsize=1"));
        let home = pg::server_dir();
        let stopped = home.path().join("stopped").display().to_string();
        pg::run(pg::command("cp").arg("-a").arg(running.data()).arg(&stopped));
        running.start();
        Servers { running, stopped, _home: home }
    }
}

/// Every command, each with a place of its own, and the exit code of its failure.
fn every_command(
    world: &World,
    servers: &Servers,
    place: &TempDir,
    segment: &str,
) -> Vec<(&'static str, Vec<String>, i32)> {
    let target = |name: &str| place.path().join(name).display().to_string();
    let arguments = |text: &[&str]| text.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let socket = servers.running.socket().display().to_string();
    vec![
        ("zenith_push", arguments(&["wal", segment]), 1),
        ("zenith_push", arguments(&["base", "-w", "-U", "postgres", "-c", "fast", "-h", &socket]), 1),
        ("zenith_push", arguments(&["base", "--from-dir", &servers.stopped]), 1),
        ("zenith_slicedice", arguments(&[]), 1),
        ("zenith_restore", arguments(&["-D", &target("restored")]), 1),
        ("zenith_restore", arguments(&["-D", &target("as"), "--as", "copy"]), 1),
        ("zenith_restore", arguments(&["-D", &target("replayed"), "--replay"]), 1),
        ("zenith_restore", arguments(&["wal", &world.segments[0].name, &target("RECOVERYXLOG")]), 255),
        ("zenith", arguments(&["status"]), 1),
        ("zenith", arguments(&["layers"]), 1),
        (
            "zenith",
            arguments(&[
                "page",
                "--rel",
                &world.relation,
                "--block",
                "0",
                "--lsn",
                &world.sliced,
                "-o",
                &target("page"),
            ]),
            1,
        ),
    ]
}

/// The same command, ended by force with exit code 124 when it takes longer than a minute.
fn within_a_minute(command: &Command) -> Command {
    let mut bounded = pg::command("timeout");
    bounded.args(["60"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    bounded
}

/// All commands at once, in an environment that makes them fail with these words.
fn all_fail(
    world: &World,
    servers: &Servers,
    store: &TestStore,
    environment: &[(&str, &str)],
    words: &[&str],
) {
    let place = pg::server_dir();
    let (_home, segment) = wal_file(&world.next.name, &world.next.content);
    let started: Vec<_> = every_command(world, servers, &place, &segment)
        .into_iter()
        .map(|(program, arguments, code)| {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let mut command = within_a_minute(&command(store, program, &arguments));
            command.envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
            (format!("{program} {arguments:?} with {environment:?}"), command.spawn().expect("started"), code)
        })
        .collect();
    for (line, child, code) in started {
        let ran = Ran::ended(line, child.wait_with_output().expect("ended")).ends(code, words);
        assert!(!ran.said.contains(SECRET), "the secret is repeated: {}", ran.said);
    }
    assert!(
        is_empty(place.path()),
        "left behind: {:?}",
        std::fs::read_dir(place.path()).expect("there").collect::<Vec<_>>()
    );
}

const SECRET: &str = "hunter2hunter2";

#[test]
fn wrong_credentials_are_told_by_every_command_on_minio() {
    let world = World::shared();
    let servers = Servers::start();
    let store = world.store(Kind::Minio);
    let before = store.list("");
    all_fail(
        world,
        &servers,
        &store,
        &[("AWS_SECRET_ACCESS_KEY", SECRET)],
        &["no rights", "SignatureDoesNotMatch", "credentials"],
    );
    all_fail(
        world,
        &servers,
        &store,
        &[("AWS_ACCESS_KEY_ID", "nobody")],
        &["no rights", "InvalidAccessKeyId"],
    );
    assert_eq!(store.list(""), before);
    let nowhere = [("ZENITH_STORE", "s3://no-such-bucket/a/prefix")];
    all_fail(world, &servers, &store, &nowhere, &["NoSuchBucket"]);
}

#[test]
fn missing_rights_are_told_by_every_command_on_a_folder() {
    let world = World::shared();
    let servers = Servers::start();
    let store = world.store(Kind::Folder);
    let before = store.list("");
    let TestStore::Folder(directory) = &store else { unreachable!("it is a folder") };
    let folder = directory.path().join("store");
    let mode = |mode: u32| {
        std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("mode");
    };
    mode(0o000);
    all_fail(world, &servers, &store, &[], &["ermission denied", "owner and mode"]);
    mode(0o755);
    assert_eq!(store.list(""), before);
    // Something else in its place.
    let file = directory.path().join("file");
    std::fs::write(&file, "x").expect("written");
    let url = format!("file://{}", file.display());
    all_fail(world, &servers, &store, &[("ZENITH_STORE", &url)], &["not a directory"]);
    assert_eq!(std::fs::read(&file).expect("kept"), b"x");
}

/// A folder that is not there is made by a push and by nothing else.
#[test]
fn a_folder_that_is_not_there_is_told_by_every_reader() {
    let world = World::shared();
    let store = TestStore::folder();
    for (program, arguments, code) in [
        ("zenith", &["status"][..], 1),
        ("zenith", &["layers"], 1),
        ("zenith_slicedice", &[], 1),
        ("zenith_restore", &["-D", "/no/such/directory"], 1),
        ("zenith_restore", &["wal", &world.segments[0].name, "/no/such/file"], 255),
    ] {
        run(&store, program, arguments).ends(code, &["no such directory", "store"]);
        let TestStore::Folder(directory) = &store else { unreachable!("it is a folder") };
        assert!(is_empty(directory.path()));
    }
}

#[test]
fn a_closed_port_is_told_by_every_command_within_a_minute() {
    let world = World::shared();
    let servers = Servers::start();
    // It was free a moment ago, and is not given out again so soon.
    let free = TcpListener::bind("127.0.0.1:0").expect("bound");
    let endpoint = format!("http://{}", free.local_addr().expect("an address"));
    drop(free);
    let store = world.store(Kind::Minio);
    let before = store.list("");
    all_fail(world, &servers, &store, &[("AWS_ENDPOINT_URL", &endpoint)], &["does not answer", "endpoint"]);
    assert_eq!(store.list(""), before);
}

#[test]
fn a_server_that_accepts_and_never_answers_is_told_by_every_command_within_a_minute() {
    let world = World::shared();
    let servers = Servers::start();
    // The system accepts for it; nobody reads.
    let silent = TcpListener::bind("127.0.0.1:0").expect("bound");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    let store = TestStore::minio();
    all_fail(world, &servers, &store, &[("AWS_ENDPOINT_URL", &endpoint)], &["no answer within"]);
}

#[test]
fn a_server_that_is_overloaded_for_long_is_told_by_every_command_within_a_minute() {
    let world = World::shared();
    let servers = Servers::start();
    let busy = TcpListener::bind("127.0.0.1:0").expect("bound");
    let endpoint = format!("http://{}", busy.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for socket in busy.incoming() {
            let Ok(mut socket) = socket else { return };
            std::thread::spawn(move || {
                let mut request = [0; 16 << 10];
                while socket.read(&mut request).is_ok_and(|read| read > 0) {
                    let answer = "HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    if socket.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let store = TestStore::minio();
    all_fail(world, &servers, &store, &[("AWS_ENDPOINT_URL", &endpoint)], &["does not answer", "503"]);
}
