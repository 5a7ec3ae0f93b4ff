//! Commands that are ended by a signal in the middle of their long stretches leave nothing behind. The moment is made: a
//! gate before the store answers everything up to one request, and that one never.

use std::fs::read_to_string;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tempfile::TempDir;
use zenith_testkit::outcome::{fails, said, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, StopMode, command, run, server_dir};
use zenith_testkit::store::TestStore;

const ENDPOINT: &str = "AWS_ENDPOINT_URL";

/// Which request is held, by its first line.
type Held = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Stands before a store and passes everything on, but for the requests that it holds: they get no answer.
struct Gate {
    endpoint: String,
    held: Receiver<()>,
}

impl Gate {
    fn before(endpoint: &str, hold: Held) -> Gate {
        let server = endpoint.strip_prefix("http://").expect("plain http").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let (tell, held) = channel();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a client");
                let upstream = TcpStream::connect(&server).expect("the store answers");
                let answers = (upstream.try_clone().expect("cloned"), client.try_clone().expect("cloned"));
                std::thread::spawn(move || pass_on(answers.0, answers.1, |_| false));
                let (hold, tell): (Held, Sender<()>) = (Arc::clone(&hold), tell.clone());
                std::thread::spawn(move || {
                    pass_on(client, upstream, |bytes| {
                        let line = String::from_utf8_lossy(
                            bytes.split(|byte| *byte == b'\r').next().unwrap_or(bytes),
                        );
                        let held = hold(&line);
                        if held {
                            // Nobody listens any more once the test has seen the first one.
                            let _ = tell.send(());
                        }
                        held
                    });
                });
            }
        });
        Gate { endpoint, held }
    }
}

/// Passes on what comes until either side has gone. After bytes that are held, nothing.
fn pass_on(mut from: TcpStream, mut to: TcpStream, hold: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    let mut holding = false;
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        holding = holding || hold(&buffer[..read]);
        if !holding && to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // The other direction ends, too.
    drop(to.shutdown(Shutdown::Both));
    drop(from.shutdown(Shutdown::Both));
}

/// A store with a base image and WAL behind it that nobody has sliced.
struct Archived {
    store: TestStore,
    /// Near the end of the WAL.
    lsn: String,
    /// The path of a relation that no restore reads at once: 32 MB, which hardly compress.
    large: String,
}

fn archived() -> Archived {
    let store = TestStore::minio();
    let push = env!("CARGO_BIN_EXE_zenith_push");
    let archive = format!("archive_command = '{push} wal --store {} \"%p\"'", store.url());
    let mut options = PgOptions::default()
        .initdb("--wal-segsize=1")
        .conf("archive_mode = on")
        .conf(&archive)
        .conf("autovacuum = off");
    for (name, value) in store.credentials() {
        options = options.env(&name, &value);
    }
    let pg = Pg::start_new(&options);
    pg.sql("CREATE TABLE large AS SELECT sha512(g::text::bytea) FROM generate_series(1, 300000) g");
    let large = pg.sql("SELECT pg_relation_filepath('large')");
    let mut base = zenith(&store, push, &["base", "--checkpoint=fast", "-w"]);
    run(base.env("PGHOST", pg.socket()).env("PGUSER", "postgres"));
    pg.sql("CREATE TABLE t AS SELECT g, repeat(md5(g::text), 10) FROM generate_series(1, 10000) g");
    pg.sql("UPDATE t SET g = -g WHERE g % 7 = 0");
    let lsn = pg.sql("SELECT pg_current_wal_insert_lsn()");
    let last = pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
    pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
    pg.stop(StopMode::Immediate);
    Archived { store, lsn, large }
}

fn zenith(store: &TestStore, program: &str, arguments: &[&str]) -> Command {
    let mut zenith = command(program);
    for name in ["ZENITH_CLUSTER", "ZENITH_TIMELINE", "ZENITH_CONFIG"] {
        zenith.env_remove(name);
    }
    zenith.args(arguments).envs(store.env());
    zenith
}

/// Where a command writes, and its folder for temporary files.
#[derive(Clone)]
struct Places {
    new: PathBuf,
    temporary: PathBuf,
}

impl Places {
    fn data(&self) -> PathBuf {
        self.new.join("new/data")
    }

    /// Whether WAL is being sliced into a temporary folder.
    fn has_tail(&self) -> bool {
        let below = entries(&self.temporary).into_iter().flat_map(|folder| entries(&folder));
        below.into_iter().any(|path| path.to_string_lossy().contains("zenith-tail-"))
    }
}

/// Runs a command until it asks for something of which `hold` says that it never gets it, sends the signal, and looks at what
/// the command says and leaves behind.
#[track_caller]
fn ended_by(
    signal: &str,
    store: &TestStore,
    program: &str,
    arguments: &[&str],
    hold: impl Fn(&Places, &str) -> bool + Send + Sync + 'static,
) {
    let (new, temporary): (TempDir, TempDir) = (server_dir(), server_dir());
    let places = Places { new: new.path().to_path_buf(), temporary: temporary.path().to_path_buf() };
    let seen = places.clone();
    let credentials = store.credentials();
    let server = credentials.iter().find(|(name, _)| name == ENDPOINT).expect("an endpoint");
    let gate =
        Gate::before(&server.1, Arc::new(move |line: &str| line.starts_with("GET ") && hold(&seen, line)));

    let mut process = zenith(store, program, arguments);
    process.env(ENDPOINT, &gate.endpoint).env("TMPDIR", &places.temporary);
    if program.ends_with("zenith_restore") {
        process.arg("-D").arg(places.data());
    }
    let mut process =
        process.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    wait_for(&gate.held, &mut process);
    let (group, wrote) = (process.id(), places.data().exists());
    run(Command::new("kill").args(["-s", signal, &group.to_string()]));
    let output = process.wait_with_output().expect("ended");
    fails(&output, &[&format!("error: ended by SIG{signal}: nothing is left behind")]);
    // What was chosen is said before anything is written.
    assert!(!wrote || said(&output).contains("target: LSN "), "{}", said(&output));
    assert_eq!(entries(&places.new), Vec::<PathBuf>::new(), "{arguments:?}");
    // What redo processes are started from is kept for the next command.
    let mut left = entries(&places.temporary);
    left.retain(|path| !path.to_string_lossy().contains("/zenith-redo-"));
    assert_eq!(left, Vec::<PathBuf>::new(), "{arguments:?}");
    while group_lives(group) {
        std::thread::yield_now();
    }
}

/// Waits until the gate holds a request.
fn wait_for(held: &Receiver<()>, process: &mut Child) {
    loop {
        match held.recv_timeout(Duration::from_millis(100)) {
            Ok(()) => return,
            Err(RecvTimeoutError::Timeout) => {
                if let Some(status) = process.try_wait().expect("a child") {
                    let mut said = String::new();
                    let stderr = process.stderr.as_mut().expect("piped");
                    stderr.read_to_string(&mut said).expect("text");
                    panic!("it ended before anything was held: {status}: {said}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => panic!("the gate has fallen"),
        }
    }
}

/// Whether a process of the group is there that has not ended.
fn group_lives(group: u32) -> bool {
    entries(Path::new("/proc")).iter().any(|process| {
        // proc(5): the name in parentheses, state, parent, group.
        let stat = read_to_string(process.join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (state, of) = (fields.next(), fields.nth(1));
        of == Some(&group.to_string()) && !matches!(state, Some("Z" | "X"))
    })
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    match std::fs::read_dir(directory) {
        // One that is removed meanwhile has none.
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::NotADirectory => {
            Vec::new()
        }
        Err(error) => panic!("{}: {error}", directory.display()),
    }
}

#[test]
fn a_signal_while_wal_is_sliced_or_pages_are_written_leaves_nothing_behind() {
    let Archived { store, lsn, large } = archived();
    let restore = env!("CARGO_BIN_EXE_zenith_restore");
    let admin = env!("CARGO_BIN_EXE_zenith");
    let slicing = |places: &Places, line: &str| line.contains("/wal/") && places.has_tail();

    ended_by("TERM", &store, restore, &[], slicing);
    ended_by("INT", &store, restore, &["--replay"], slicing);
    ended_by("TERM", &store, admin, &["page", "--rel", "5/1259", "--block", "0", "--lsn", &lsn], slicing);
    ended_by("INT", &store, admin, &["check", "--wal", "--to", &lsn], slicing);

    let claimed = |places: &Places, line: &str| line.contains("/layers/") && places.data().exists();
    ended_by("INT", &store, restore, &["--replay"], claimed);
    // With redo processes at work; what is read ahead is far from the end of the relation.
    let writing =
        move |places: &Places, line: &str| line.contains("/layers/") && places.data().join(&large).exists();
    ended_by("TERM", &store, restore, &[], writing.clone());

    // The name is made before the pages are written, and is free again.
    ended_by("INT", &store, restore, &["--as", "copy"], writing);
    assert_eq!(store.list("main/names/copy/").len(), 2, "it was made and given up");
    let place = server_dir();
    let data = place.path().join("data").display().to_string();
    let of_copy = restored(&store, &["--timeline", "copy", "-D", &data]);
    fails(&of_copy, &["\"copy\"", "main"]);
    succeeds(&restored(&store, &["--as", "copy", "-D", &data]));
}

fn restored(store: &TestStore, arguments: &[&str]) -> Output {
    zenith(store, env!("CARGO_BIN_EXE_zenith_restore"), arguments).output().expect("started")
}
