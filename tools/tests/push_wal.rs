//! `zenith_push wal` and `zenith_restore wal` as processes, on segments made by hand (1 MB, PostgreSQL's smallest) and
//! from a server itself.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use zenith_ingest::archive::WalArchive;
use zenith_manifest::Names;
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_store::{Clock, ClusterPaths, Env, Store, StoreSettings};
use zenith_testkit::control::control_file;
use zenith_testkit::on_each_store;
use zenith_testkit::outcome::{fails, said, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, give_to_server, server_dir};
use zenith_testkit::segment::filled_segment;
use zenith_testkit::store::{Kind, TestStore};
use zenith_tools::cli::{StoreOptions, exit};
use zenith_tools::{push, restore_wal};

on_each_store!(
    the_same_file_again_succeeds_and_other_bytes_fail_and_change_nothing,
    history_backup_and_partial_files_are_protected_too,
    a_history_or_backup_file_of_another_cluster_is_refused_at_every_push,
    a_history_file_of_which_nothing_says_whose_it_is_succeeds_only_where_it_is_archived_already,
    what_is_not_this_clusters_whole_segment_is_refused,
    a_file_that_would_be_refused_does_not_make_a_timeline,
    many_at_once_make_one_timeline_and_all_succeed,
    a_mistyped_timeline_is_an_error_and_is_not_created,
    restore_command_tells_an_absence_from_a_failure,
    a_damaged_object_is_named_and_is_no_absence,
    a_server_archives_by_archive_command,
    the_first_file_of_a_promoted_server_may_be_its_history,
);

const SYSTEM_IDENTIFIER: u64 = 7_000_000_000_000_000_001;
const SEGMENT: u64 = 1 << 20;

fn size() -> WalSegSize {
    WalSegSize::new(SEGMENT).expect("valid")
}

/// A store and a data directory.
struct Place {
    store: TestStore,
    folder: TempDir,
}

impl Place {
    fn new(kind: Kind) -> Place {
        let place = Place { store: TestStore::new(kind), folder: server_dir() };
        place.data_directory("data", SYSTEM_IDENTIFIER);
        place
    }

    /// As much of a data directory as says whose it is.
    fn data_directory(&self, name: &str, system_identifier: u64) -> PathBuf {
        let data = self.folder.path().join(name);
        for below in ["global", "pg_wal"] {
            std::fs::create_dir_all(data.join(below)).expect("made");
        }
        let control = ControlFile { system_identifier, wal_segment_size: size(), ..control_file() };
        std::fs::write(data.join("global/pg_control"), control.encode()).expect("written");
        data
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = command(program, &self.store.url(), arguments);
        command.envs(self.store.credentials());
        command
    }

    fn push(&self, file: &Path) -> Output {
        self.command(env!("CARGO_BIN_EXE_zenith_push"), &["wal"]).arg(file).output().expect("started")
    }

    /// A file of WAL in the data directory.
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join("data/pg_wal").join(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    /// A file of WAL in no data directory.
    fn stray(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    fn restore(&self, name: &str, target: &Path) -> Output {
        let program = env!("CARGO_BIN_EXE_zenith_restore");
        self.command(program, &["wal", name]).arg(target).output().expect("started")
    }

    /// The archived content, through the library.
    fn archived(&self, file: WalFile) -> Option<Vec<u8>> {
        exit::runtime(0).expect("a runtime").block_on(self.read_archived(file))
    }

    async fn read_archived(&self, file: WalFile) -> Option<Vec<u8>> {
        let settings = StoreSettings::from_variables(self.store.credentials());
        let store = Store::open(&self.store.url(), &settings).expect("store");
        let cluster = ClusterPaths::new(&store.prefix, "main");
        let names = Names::new(Arc::clone(&store.objects), Env::system(), cluster.clone());
        let id = names.resolve("main").await.expect("main");
        let identity = names.identity(id).await.expect("identity");
        let size = WalSegSize::new(u64::from(identity.wal_segment_size)).expect("size");
        let archive = WalArchive::new(store.objects, cluster.timeline(id), size, identity.system_identifier);
        archive.get(file).await.expect("read").map(|bytes| bytes.to_vec())
    }
}

fn command(program: &str, store: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    let ours = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("ZENITH_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command.args(["--store", store]).args(arguments);
    command
}

fn segment(number: u64, system_identifier: u64, fill: u8) -> Vec<u8> {
    filled_segment(size(), number, system_identifier, fill)
}

fn name(number: u64) -> String {
    WalFile::Segment { tli: 1, segment: number }.name(size())
}

fn the_same_file_again_succeeds_and_other_bytes_fail_and_change_nothing(kind: Kind) {
    let place = Place::new(kind);
    let file = place.file(&name(1), &segment(1, SYSTEM_IDENTIFIER, 0));
    succeeds(&place.push(&file));
    succeeds(&place.push(&file));
    place.file(&name(1), &segment(1, SYSTEM_IDENTIFIER, 9));
    fails(&place.push(&file), &[&name(1), "other content", "CRC-32C"]);

    let target = place.folder.path().join("fetched");
    succeeds(&place.restore(&name(1), &target));
    assert_eq!(std::fs::read(&target).expect("fetched"), segment(1, SYSTEM_IDENTIFIER, 0));
}

fn history_backup_and_partial_files_are_protected_too(kind: Kind) {
    let place = Place::new(kind);
    succeeds(&place.push(&place.file(&name(1), &segment(1, SYSTEM_IDENTIFIER, 0))));
    let backup = WalFile::Backup { tli: 1, segment: 1, offset: 0x28 }.name(size());
    let partial = WalFile::Partial { tli: 1, segment: 2 }.name(size());
    for (name, content, other) in [
        ("00000002.history", &b"1\t0/180000\tno reason\n"[..], &b"1\t0/190000\tno reason\n"[..]),
        (backup.as_str(), b"START WAL LOCATION: 0/100028\n", b"START WAL LOCATION: 0/100030\n"),
        (partial.as_str(), &segment(2, SYSTEM_IDENTIFIER, 0), &segment(2, SYSTEM_IDENTIFIER, 1)),
    ] {
        let file = place.file(name, content);
        succeeds(&place.push(&file));
        succeeds(&place.push(&file));
        place.file(name, other);
        fails(&place.push(&file), &[name, "other content"]);
    }
}

fn a_history_or_backup_file_of_another_cluster_is_refused_at_every_push(kind: Kind) {
    let place = Place::new(kind);
    succeeds(&place.push(&place.file(&name(1), &segment(1, SYSTEM_IDENTIFIER, 0))));
    let theirs = place.data_directory("theirs", SYSTEM_IDENTIFIER + 1);
    let backup = WalFile::Backup { tli: 1, segment: 1, offset: 0x28 }.name(size());
    let (ours, other) = (SYSTEM_IDENTIFIER.to_string(), (SYSTEM_IDENTIFIER + 1).to_string());
    for (name, content) in [
        ("00000002.history", &b"1\t0/180000\tno reason\n"[..]),
        (backup.as_str(), b"START WAL LOCATION: 0/100028\n"),
    ] {
        let path = theirs.join("pg_wal").join(name);
        std::fs::write(&path, content).expect("written");
        fails(&place.push(&path), &[name, "system identifier", &ours, &other]);
        // As PostgreSQL names it: relative to the data directory, which is the current one.
        let mut push = place.command(env!("CARGO_BIN_EXE_zenith_push"), &["wal"]);
        let push = push.arg(format!("pg_wal/{name}")).current_dir(&theirs);
        fails(&push.output().expect("started"), &[name, "system identifier", &ours, &other]);
        let target = place.folder.path().join("fetched");
        assert_eq!(place.restore(name, &target).status.code(), Some(1), "it is not there");
        // The name is still free for the file that belongs here.
        succeeds(&place.push(&place.file(name, content)));
        fails(&place.push(&path), &[name, "system identifier"]);
    }
}

fn a_history_file_of_which_nothing_says_whose_it_is_succeeds_only_where_it_is_archived_already(kind: Kind) {
    let place = Place::new(kind);
    succeeds(&place.push(&place.file(&name(1), &segment(1, SYSTEM_IDENTIFIER, 0))));
    let content = b"1\t0/180000\tno reason\n";
    let stray = place.stray("00000002.history", content);
    fails(&place.push(&stray), &["00000002.history", "global/pg_control", "data directory"]);
    assert_eq!(place.restore("00000002.history", &place.folder.path().join("x")).status.code(), Some(1));

    // The current directory may say it, for whoever archives files from elsewhere.
    let mut push = place.command(env!("CARGO_BIN_EXE_zenith_push"), &["wal"]);
    succeeds(&push.arg(&stray).current_dir(place.folder.path().join("data")).output().expect("started"));
    succeeds(&place.push(&stray));
    place.stray("00000002.history", b"1\t0/190000\tother\n");
    fails(&place.push(&stray), &["00000002.history", "other content"]);
}

fn what_is_not_this_clusters_whole_segment_is_refused(kind: Kind) {
    let place = Place::new(kind);
    succeeds(&place.push(&place.file(&name(1), &segment(1, SYSTEM_IDENTIFIER, 0))));
    let foreign = place.file(&name(2), &segment(2, SYSTEM_IDENTIFIER + 1, 0));
    fails(&place.push(&foreign), &[&name(2), "system identifier"]);
    let cut = place.file(&name(3), &segment(3, SYSTEM_IDENTIFIER, 0)[..8192]);
    fails(&place.push(&cut), &[&name(3), "8192 bytes"]);
    let misplaced = place.file(&name(4), &segment(5, SYSTEM_IDENTIFIER, 0));
    fails(&place.push(&misplaced), &[&name(4), "stands at"]);
    let garbage = place.file(&name(6), &vec![7; SEGMENT as usize]);
    fails(&place.push(&garbage), &[&name(6), "magic number"]);
    let history = place.file("00000003.history", b"this is no history");
    fails(&place.push(&history), &["00000003.history"]);
    fails(&place.push(&place.folder.path().join("data/pg_wal").join(name(7))), &[&name(7), "cannot read"]);
    fails(&place.push(&place.file("postgresql.conf", b"")), &["postgresql.conf", "no WAL file"]);
    for number in [2, 3, 4, 6, 7] {
        assert_eq!(place.restore(&name(number), &place.folder.path().join("x")).status.code(), Some(1));
    }
}

fn a_file_that_would_be_refused_does_not_make_a_timeline(kind: Kind) {
    let place = Place::new(kind);
    fails(&place.push(&place.file(&name(3), &segment(3, SYSTEM_IDENTIFIER, 0)[..8192])), &[&name(3)]);
    fails(&place.push(&place.file(&name(4), b"")), &[&name(4)]);
    fails(&place.push(&place.stray("00000002.history", b"")), &["00000002.history", "zenith_push base"]);
    fails(&place.push(&place.file("00000002.history", b"no history")), &["00000002.history"]);
    assert_eq!(place.store.list("main/names/"), Vec::<String>::new());
}

fn many_at_once_make_one_timeline_and_all_succeed(kind: Kind) {
    let place = Place::new(kind);
    let files: Vec<PathBuf> =
        (1..=8).map(|number| place.file(&name(number), &segment(number, SYSTEM_IDENTIFIER, 0))).collect();
    // Each file twice: a promoted standby pushes what its primary pushes.
    let children: Vec<_> = files
        .iter()
        .chain(&files)
        .map(|file| {
            let mut push = place.command(env!("CARGO_BIN_EXE_zenith_push"), &["wal"]);
            push.arg(file).stderr(std::process::Stdio::piped()).spawn().expect("started")
        })
        .collect();
    for child in children {
        succeeds(&child.wait_with_output().expect("ended"));
    }
    assert_eq!(place.store.list("main/names/").len(), 1);
    for number in 1..=8 {
        succeeds(&place.restore(&name(number), &place.folder.path().join("fetched")));
    }
}

fn a_mistyped_timeline_is_an_error_and_is_not_created(kind: Kind) {
    let place = Place::new(kind);
    let file = place.file(&name(1), &segment(1, SYSTEM_IDENTIFIER, 0));
    succeeds(&place.push(&file));
    let program = env!("CARGO_BIN_EXE_zenith_push");
    let mistyped = place.command(program, &["--timeline", "mian", "wal"]).arg(&file).output();
    fails(&mistyped.expect("started"), &["\"mian\"", "main"]);
    assert_eq!(place.store.list("main/names/mian"), Vec::<String>::new());
}

#[test]
fn wrong_usage_exits_with_2_and_for_restore_command_with_255() {
    let place = Place::new(Kind::Folder);
    let push = env!("CARGO_BIN_EXE_zenith_push");
    let restore = env!("CARGO_BIN_EXE_zenith_restore");
    let code = |mut command: Command| command.output().expect("started").status.code();
    assert_eq!(code(place.command(push, &["wal"])), Some(2));
    assert_eq!(code(place.command(push, &["what"])), Some(2));
    assert_eq!(code(Command::new(push)), Some(2));
    assert_eq!(code(place.command(restore, &["--lsn", "nonsense", "-D", "d"])), Some(2));
    assert_eq!(code(place.command(restore, &["wal", "--nonsense", "f", "p"])), Some(255));
    assert_eq!(code(place.command(restore, &["wal", "f"])), Some(255));
    for program in [push, restore, env!("CARGO_BIN_EXE_zenith"), env!("CARGO_BIN_EXE_zenith_slicedice")] {
        let help = Command::new(program).arg("--help").output().expect("started");
        succeeds(&help);
        let text = String::from_utf8_lossy(&help.stdout).into_owned();
        assert!(text.contains("ZENITH_STORE") && text.contains("Exit status"), "{text}");
    }
}

fn restore_command_tells_an_absence_from_a_failure(kind: Kind) {
    let place = Place::new(kind);
    let target = place.folder.path().join("RECOVERYXLOG");
    // No store at all, then a store without the timeline: neither proves an absence.
    assert_eq!(place.restore(&name(1), &target).status.code(), Some(255));
    place.store.put("elsewhere", b"so that there is a store");
    assert_eq!(place.restore(&name(1), &target).status.code(), Some(255));
    succeeds(&place.push(&place.file(&name(1), &segment(1, SYSTEM_IDENTIFIER, 0))));
    succeeds(&place.restore(&name(1), &target));
    assert_eq!(place.restore(&name(2), &target).status.code(), Some(1));
    assert_eq!(place.restore("00000002.history", &target).status.code(), Some(1));
    assert_eq!(place.restore("nonsense", &target).status.code(), Some(255));
    let unwritable = place.restore(&name(1), Path::new("/no/such/directory/RECOVERYXLOG"));
    assert_eq!(unwritable.status.code(), Some(255), "{}", said(&unwritable));
    assert!(said(&unwritable).contains("RECOVERYXLOG"));
}

fn a_damaged_object_is_named_and_is_no_absence(kind: Kind) {
    let place = Place::new(kind);
    succeeds(&place.push(&place.file(&name(1), &segment(1, SYSTEM_IDENTIFIER, 5))));
    let object = place.store.only("main/", &format!("{}.zst", name(1)));
    let mut bytes = place.store.get(&object).to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xFF;
    place.store.put(&object, &bytes);
    let output = place.restore(&name(1), &place.folder.path().join("RECOVERYXLOG"));
    assert_eq!(output.status.code(), Some(255));
    assert!(said(&output).contains(&name(1)), "{}", said(&output));
    assert!(!place.folder.path().join("RECOVERYXLOG").exists());
}

/// A file that hangs whoever reads it, for as long as anybody knows this, and a clock whose limits are over as soon as
/// somebody hangs there.
#[derive(Debug)]
struct HungFile {
    path: PathBuf,
    /// Keeps the reader waiting for what never comes.
    writers: Mutex<Vec<File>>,
}

impl HungFile {
    fn new(path: PathBuf) -> Arc<HungFile> {
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        Arc::new(HungFile { path, writers: Mutex::default() })
    }
}

#[async_trait::async_trait]
impl Clock for HungFile {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    async fn sleep(&self, _: Duration) {
        loop {
            // Opening it for writing without waiting succeeds once there is a reader.
            let mut opening = OpenOptions::new();
            match opening.write(true).custom_flags(libc::O_NONBLOCK).open(&self.path) {
                Ok(writer) => return self.writers.lock().expect("lock").push(writer),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }
}

/// Where a file of the file system hangs.
#[derive(Clone, Copy, Debug)]
enum Hangs {
    Configuration,
    /// A file that opening the store reads.
    Credentials,
}

impl Place {
    /// Options with such a file, and an environment whose limits are over as soon as somebody hangs there.
    fn hung(&self, hangs: Hangs, number: u32) -> (StoreOptions, Env) {
        let pipe = HungFile::new(self.folder.path().join(format!("hung-{number}")));
        let env = Env { clock: pipe.clone(), ..Env::system() };
        let (store, config) = match hangs {
            Hangs::Configuration => (self.store.url(), pipe.path.clone()),
            Hangs::Credentials => {
                let config = self.folder.path().join(format!("{number}.toml"));
                let text = format!("[credentials]\ngoogle_service_account = {:?}\n", pipe.path);
                std::fs::write(&config, text).expect("written");
                ("gs://zenith/x".to_owned(), config)
            }
        };
        (StoreOptions { store: Some(store), config: Some(config), ..StoreOptions::default() }, env)
    }
}

#[test]
fn a_file_system_that_hangs_is_told_within_the_limit_with_what_was_being_done() {
    let place = Place::new(Kind::Folder);
    let file = place.file(&name(1), &segment(1, SYSTEM_IDENTIFIER, 0));
    let target = place.folder.path().join("RECOVERYXLOG");
    let limit = Duration::from_secs(42);
    for (number, (hangs, step)) in
        [(Hangs::Configuration, "reading the configuration"), (Hangs::Credentials, "opening the store")]
            .into_iter()
            .enumerate()
    {
        let number = number as u32 * 10;
        let (store, env) = place.hung(hangs, number);
        let error = push::wal::push_within(&env, limit, &store, &file, 0).expect_err("hung");
        let said = exit::message_of(&error);
        assert_eq!(exit::status_of(&error), exit::FAILED);
        assert!(said.contains(&name(1)) && said.contains("42 s") && said.contains(step), "{said}");

        let (store, env) = place.hung(hangs, number + 1);
        let error = restore_wal::fetch_within(&env, limit, &store, &name(1), &target).expect_err("hung");
        let said = exit::message_of(&error);
        assert!(said.contains(&name(1)) && said.contains("42 s") && said.contains(step), "{said}");

        let (store, env) = place.hung(hangs, number + 2);
        assert_eq!(restore_wal::run("test", &env, &store, &name(1), &target), exit::UNKNOWN);
    }
}

#[test]
fn a_store_that_does_not_answer_is_told_within_a_minute() {
    // A port that nothing listens on: it was free a moment ago, and is not given out again so soon.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.local_addr().expect("address").port()
    };
    let place = Place::new(Kind::Folder);
    let file = place.file(&name(1), &segment(1, SYSTEM_IDENTIFIER, 0));
    let endpoint = format!("http://127.0.0.1:{port}");
    let start = |program: &str, arguments: &[&str]| {
        command(program, "s3://zenith/x", arguments)
            .env("AWS_ENDPOINT", &endpoint)
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_ACCESS_KEY_ID", "a")
            .env("AWS_SECRET_ACCESS_KEY", "b")
            .env("AWS_REGION", "us-east-1")
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("started")
    };
    let env = Env::system();
    let began = env.clock.elapsed();
    let push = start(env!("CARGO_BIN_EXE_zenith_push"), &["wal", &file.display().to_string()]);
    let target = place.folder.path().join("RECOVERYXLOG").display().to_string();
    let restore = start(env!("CARGO_BIN_EXE_zenith_restore"), &["wal", &name(1), &target]);
    fails(&push.wait_with_output().expect("ended"), &[&name(1), "does not answer"]);
    let restore = restore.wait_with_output().expect("ended");
    assert_eq!(restore.status.code(), Some(255), "{}", said(&restore));
    assert!(env.clock.elapsed().saturating_sub(began).as_secs() < 60);
}

fn a_server_archives_by_archive_command(kind: Kind) {
    let place = Place::new(kind);
    let archive = format!(
        "archive_command = '{} wal --store {} \"%p\"'",
        env!("CARGO_BIN_EXE_zenith_push"),
        place.store.url()
    );
    let options = PgOptions::default()
        .initdb("--wal-segsize=1")
        .conf("archive_mode = on")
        .conf(&archive)
        .conf("wal_keep_size = '64MB'");
    let credentials = place.store.credentials().into_iter();
    let pg = Pg::start_new(&credentials.fold(options, |options, (name, value)| options.env(&name, &value)));
    pg.sql("CREATE TABLE t AS SELECT g, repeat('x', 100) FROM generate_series(1, 30000) g");
    let last = pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
    pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
    // A store on a network may ask for one more try.
    if kind == Kind::Folder {
        assert_eq!(pg.sql("SELECT failed_count FROM pg_stat_archiver"), "0", "{}", pg.log());
    }

    let mut checked = 0;
    for entry in std::fs::read_dir(pg.data().join("pg_wal/archive_status")).expect("status") {
        let marked = entry.expect("entry").file_name().into_string().expect("text");
        let Some(name) = marked.strip_suffix(".done") else { continue };
        let file = WalFile::parse(name, size()).expect("a WAL file");
        let wanted = std::fs::read(pg.data().join("pg_wal").join(name)).expect("kept by wal_keep_size");
        assert!(place.archived(file).as_ref() == Some(&wanted), "{name}");
        checked += 1;
    }
    assert!(checked >= 3, "{checked} files");
}

fn the_first_file_of_a_promoted_server_may_be_its_history(kind: Kind) {
    let place = Place::new(kind);
    let pg = Pg::create(&PgOptions::default().initdb("--wal-segsize=1"));
    let history = pg.data().join("pg_wal/00000002.history");
    std::fs::write(&history, b"1\t0/180000\tno reason\n").expect("written");
    give_to_server(&history);
    succeeds(&place.push(&history));
    let archived = place.archived(WalFile::History { tli: 2 });
    assert_eq!(archived.as_deref(), Some(&b"1\t0/180000\tno reason\n"[..]));
    // The server's own segments belong to the timeline that its control file made.
    let files = std::fs::read_dir(pg.data().join("pg_wal")).expect("pg_wal");
    let segments = files.map(|entry| entry.expect("entry").path());
    let first = segments.filter(|path| path.file_name().is_some_and(|name| name.len() == 24)).min();
    succeeds(&place.push(&first.expect("initdb leaves a segment")));
}
