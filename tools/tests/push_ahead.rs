//! `zenith_push wal --ahead`: a backlog, its records, and what makes one of them count for nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_testkit::control::control_file;
use zenith_testkit::on_each_store;
use zenith_testkit::outcome::{ended, fails, said, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, server_dir};
use zenith_testkit::segment::filled_segment;
use zenith_testkit::store::{Kind, TestStore};

on_each_store!(
    a_push_archives_what_waits_and_then_nothing_is_left_to_do_at_its_turn,
    a_record_counts_only_for_the_same_file_untouched_and_the_same_settings,
    what_cannot_be_archived_ahead_fails_at_its_own_turn_only,
    a_server_works_off_a_backlog,
);

const SYSTEM_IDENTIFIER: u64 = 7_000_000_000_000_000_001;

fn size() -> WalSegSize {
    WalSegSize::new(1 << 20).expect("valid")
}

fn name(number: u64) -> String {
    WalFile::Segment { tli: 1, segment: number }.name(size())
}

fn segment(number: u64, system_identifier: u64, fill: u8) -> Vec<u8> {
    filled_segment(size(), number, system_identifier, fill)
}

/// A store, and a data directory in which segments wait.
struct Place {
    store: TestStore,
    folder: TempDir,
}

impl Place {
    fn new(kind: Kind, segments: impl IntoIterator<Item = u64>) -> Place {
        let place = Place { store: TestStore::new(kind), folder: server_dir() };
        for below in ["global", "pg_wal/archive_status"] {
            std::fs::create_dir_all(place.folder.path().join(below)).expect("made");
        }
        let control =
            ControlFile { system_identifier: SYSTEM_IDENTIFIER, wal_segment_size: size(), ..control_file() };
        std::fs::write(place.folder.path().join("global/pg_control"), control.encode()).expect("written");
        for number in segments {
            place.write(number, &segment(number, SYSTEM_IDENTIFIER, number as u8));
        }
        place
    }

    fn write(&self, number: u64, content: &[u8]) {
        std::fs::write(self.file(number), content).expect("written");
        std::fs::write(self.status(number, "ready"), b"").expect("written");
    }

    fn file(&self, number: u64) -> PathBuf {
        self.folder.path().join("pg_wal").join(name(number))
    }

    fn status(&self, number: u64, kind: &str) -> PathBuf {
        self.folder.path().join("pg_wal/archive_status").join(format!("{}.{kind}", name(number)))
    }

    fn has_record(&self, number: u64) -> bool {
        self.status(number, "zenith").exists()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let ours = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("ZENITH_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
            command.env_remove(name);
        }
        command.args(["--store", &self.store.url()]).args(arguments).envs(self.store.credentials());
        command
    }

    fn push(&self, number: u64, options: &[&str]) -> Output {
        let mut push = self.command(env!("CARGO_BIN_EXE_zenith_push"), &["--json", "wal", "--ahead", "3"]);
        ended(push.args(options).arg(self.file(number)))
    }

    fn pushed(&self, number: u64) -> serde_json::Value {
        let output = self.push(number, &[]);
        succeeds(&output);
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The archived segment, if there is one.
    fn archived(&self, number: u64) -> Option<Vec<u8>> {
        let target = self.folder.path().join("fetched");
        let mut restore = self.command(env!("CARGO_BIN_EXE_zenith_restore"), &["wal", &name(number)]);
        let output = ended(restore.arg(&target));
        match output.status.code() {
            Some(0) => Some(std::fs::read(&target).expect("fetched")),
            Some(1) => None,
            _ => panic!("{}", said(&output)),
        }
    }

    /// Makes the store unreachable, without a word to those who do not ask it.
    fn without_the_store(&self, act: impl FnOnce()) {
        match &self.store {
            TestStore::Folder(_) => {
                let folder = self.store.url().replace("file://", "");
                let away = format!("{folder}.away");
                std::fs::rename(&folder, &away).expect("moved");
                std::fs::write(&folder, b"no directory").expect("written");
                act();
                std::fs::remove_file(&folder).expect("removed");
                std::fs::rename(&away, &folder).expect("moved back");
            }
            TestStore::Minio(_) => {
                let names = "main/names/main/00000000000000000001";
                let content = self.store.get(names);
                self.store.put(names, b"damaged");
                act();
                self.store.put(names, &content);
            }
        }
    }
}

fn a_push_archives_what_waits_and_then_nothing_is_left_to_do_at_its_turn(kind: Kind) {
    let place = Place::new(kind, 1..=6);
    let first = place.pushed(1);
    assert_eq!((&first["stored"], &first["ahead"]), (&true.into(), &3.into()));
    for number in 1..=4 {
        let wanted = segment(number, SYSTEM_IDENTIFIER, number as u8);
        assert!(place.archived(number).as_ref() == Some(&wanted), "{number}");
    }
    assert!(place.archived(5).is_none() && !place.has_record(1) && !place.has_record(5));
    place.without_the_store(|| {
        for number in 2..=4 {
            assert!(place.has_record(number));
            let pushed = place.pushed(number);
            assert_eq!(pushed["timeline"], first["timeline"]);
            assert_eq!((&pushed["stored"], &pushed["ahead"]), (&false.into(), &0.into()));
            assert!(!place.has_record(number), "used up");
            assert_eq!(place.push(number, &[]).status.code(), Some(1), "the store is asked without one");
        }
    });
    // What has had its turn by other means leaves nothing behind.
    std::fs::write(place.status(2, "zenith"), b"{}").expect("written");
    std::fs::remove_file(place.status(2, "ready")).expect("removed");
    assert_eq!(place.pushed(5)["ahead"], 1);
    assert!(!place.has_record(2) && place.has_record(6));
}

fn a_record_counts_only_for_the_same_file_untouched_and_the_same_settings(kind: Kind) {
    let place = Place::new(kind, 1..=4);
    assert_eq!(place.pushed(1)["ahead"], 3);
    place.write(2, &segment(2, SYSTEM_IDENTIFIER, 99));
    fails(&place.push(2, &[]), &[&name(2), "other content"]);
    fails(&place.push(3, &["--timeline", "other"]), &["other"]);
    // A copy of it is another file, and as good: the store says so.
    std::fs::copy(place.file(4), place.folder.path().join("copy")).expect("copied");
    std::fs::rename(place.folder.path().join("copy"), place.file(4)).expect("renamed");
    assert_eq!(place.pushed(4)["stored"], false);
    for damaged in [&b""[..], b"{", b"{\"settings\":1}", &[0xFF; 5000]] {
        std::fs::write(place.status(3, "zenith"), damaged).expect("written");
        assert_eq!(place.pushed(3)["stored"], false);
        assert!(!place.has_record(3));
    }
}

fn what_cannot_be_archived_ahead_fails_at_its_own_turn_only(kind: Kind) {
    let place = Place::new(kind, 1..=2);
    place.write(3, &segment(3, SYSTEM_IDENTIFIER + 1, 3));
    place.write(4, b"cut");
    assert_eq!(place.pushed(1)["stored"], true);
    place.pushed(2);
    assert!(!place.has_record(3) && !place.has_record(4));
    fails(&place.push(3, &[]), &[&name(3), "system identifier"]);
    fails(&place.push(4, &[]), &[&name(4), "bytes"]);
    assert!(place.archived(3).is_none() && place.archived(4).is_none());
}

fn a_server_works_off_a_backlog(kind: Kind) {
    let place = Place::new(kind, []);
    let options = PgOptions::default()
        .initdb("--wal-segsize=1")
        .conf("archive_mode = on")
        .conf("archive_command = 'false'")
        .conf("wal_keep_size = '64MB'");
    let credentials = place.store.credentials().into_iter();
    let pg = Pg::start_new(&credentials.fold(options, |options, (name, value)| options.env(&name, &value)));
    pg.sql("CREATE TABLE t AS SELECT g, repeat('x', 100) FROM generate_series(1, 60000) g");
    let last = pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
    pg.configure(&[&format!(
        "archive_command = '{} wal --ahead 4 --store {} \"%p\"'",
        env!("CARGO_BIN_EXE_zenith_push"),
        place.store.url()
    )]);
    pg.sql("SELECT pg_reload_conf()");
    pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
    let mut checked = 0;
    for entry in std::fs::read_dir(pg.data().join("pg_wal/archive_status")).expect("status") {
        let marked = entry.expect("entry").file_name().into_string().expect("text");
        let Some(done) = marked.strip_suffix(".done") else { continue };
        let Some(WalFile::Segment { segment, .. }) = WalFile::parse(done, size()) else { continue };
        let wanted = std::fs::read(pg.data().join("pg_wal").join(done)).expect("kept by wal_keep_size");
        assert!(place.archived(segment).as_ref() == Some(&wanted), "{done}");
        assert!(
            !Path::new(&format!("{}.zenith", pg.data().join("pg_wal/archive_status").join(done).display()))
                .exists()
        );
        checked += 1;
    }
    assert!(checked >= 6, "{checked} files");
}
