//! Commands that root runs: a folder store stays the server's user's, so that `archive_command` goes on writing there, and
//! a restored directory is theirs with all that leads to it.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};
use zenith_testkit::outcome::{ended, fails, said, succeeds};
use zenith_testkit::pg::{Pg, PgOptions, StopMode, bin_dir, command, server_dir, server_user};

const PUSH: &str = env!("CARGO_BIN_EXE_zenith_push");
const RESTORE: &str = env!("CARGO_BIN_EXE_zenith_restore");
const SLICE: &str = env!("CARGO_BIN_EXE_zenith_slicedice");

fn run(mut ours: Command, folder: &Path, arguments: &[&str]) -> Output {
    for name in ["ZENITH_STORE", "ZENITH_CLUSTER", "ZENITH_TIMELINE", "ZENITH_CONFIG"] {
        ours.env_remove(name);
    }
    ours.args(arguments).arg("--store").arg(format!("file://{}", folder.display()));
    ours.output().expect("started")
}

/// As whoever runs the tests, root perhaps, with a umask that keeps everybody else out.
fn strictly(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 077; exec \"$0\" \"$@\"", program]);
    run(shell, folder, arguments)
}

/// Every path in the folder, which the server's user must own.
fn all_are_the_servers(path: &Path) -> usize {
    let found = path.symlink_metadata().expect("there");
    if let Some((uid, gid)) = server_user() {
        assert_eq!((found.uid(), found.gid()), (uid, gid), "{}", path.display());
    }
    if !found.is_dir() {
        return 1;
    }
    let entries = std::fs::read_dir(path).expect("a directory");
    entries.map(|entry| all_are_the_servers(&entry.expect("an entry").path())).sum()
}

#[test]
fn a_folder_that_root_made_and_wrote_to_is_written_by_the_servers_user_too() {
    let (place, pg) = (server_dir(), Pg::create(&PgOptions::default().initdb("--wal-segsize=1")));
    let control = ended(command(bin_dir().join("pg_controldata")).arg(pg.data()));
    let control = String::from_utf8(control.stdout).expect("text");
    let segment = control.lines().find_map(|line| line.strip_prefix("Latest checkpoint's REDO WAL file:"));
    let segment = pg.data().join("pg_wal").join(segment.expect("it says so").trim()).display().to_string();
    // Nothing on the way there exists.
    let home = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(home.path(), Permissions::from_mode(0o755)).expect("opened");
    for folder in [place.path().join("store"), home.path().join("new/store")] {
        let directory = pg.data().display().to_string();
        let pushed = strictly(PUSH, &folder, &["base", "--from-dir", &directory]);
        succeeds(&pushed);
        assert!(!said(&pushed).contains("warning"), "{}", said(&pushed));
        let objects = all_are_the_servers(&folder);
        assert!(objects > 3, "{objects}");

        succeeds(&run(command(PUSH), &folder, &["wal", &segment]));
        succeeds(&run(command(SLICE), &folder, &[]));
        succeeds(&strictly(SLICE, &folder, &[]));
        succeeds(&run(command(SLICE), &folder, &[]));
        assert!(all_are_the_servers(&folder) > objects);
    }
}

#[test]
fn a_directory_that_root_restores_is_the_owners_with_all_that_leads_to_it() {
    let pg = Pg::create(&PgOptions::default().initdb("--wal-segsize=1"));
    let (place, folder) = (server_dir(), pg.home().join("store"));
    succeeds(&strictly(PUSH, &folder, &["base", "--from-dir", &pg.data().display().to_string()]));
    let data = place.path().join("new/place/data");
    let directory = data.display().to_string();
    let restore = |owner: &str| strictly(RESTORE, &folder, &["-D", &directory, "--owner", owner]);
    if server_user().is_some() {
        fails(&restore("root"), &["does not run as root", "--owner"]);
        fails(&restore("nobody-of-that-name"), &["nobody-of-that-name", "--owner"]);
        assert!(!place.path().join("new").exists());
    }
    succeeds(&restore("postgres"));
    let files = all_are_the_servers(&place.path().join("new"));
    assert!(files > 500, "{files}");
    let restored = Pg::adopt(place, data);
    restored.start();
    assert_eq!(restored.sql("SELECT count(*) FROM pg_database"), "3");
    restored.stop(StopMode::Fast);
}

#[test]
fn a_folder_of_roots_is_told_with_the_remedy_and_an_owner_who_is_nobody_is_refused() {
    let is_root = server_user().is_some();
    let (home, pg) = (tempfile::tempdir().expect("a directory"), Pg::create(&PgOptions::default()));
    let directory = pg.data().display().to_string();
    let base = ["base", "--from-dir", &directory];

    let new = home.path().join("new");
    let nobody = strictly(PUSH, &new, &[&base[..], &["--owner", "nobody-of-that-name"]].concat());
    if is_root {
        fails(&nobody, &["nobody-of-that-name", "--owner"]);
        assert!(!new.exists());
    } else {
        // Whoever is not root gives nothing away.
        succeeds(&nobody);
    }

    let old = home.path().join("old");
    std::fs::create_dir(&old).expect("made");
    let pushed = strictly(PUSH, &old, &base);
    succeeds(&pushed);
    let warned = ["belongs to root alone", "archive_command", "chown -R postgres: "]
        .map(|word| said(&pushed).contains(word));
    assert_eq!(warned, [is_root; 3], "{}", said(&pushed));
}
