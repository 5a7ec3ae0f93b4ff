//! A disk that is full: the store's, the target's, that of temporary files, and standard output. What could not be
//! written whole is not there, the message says where room is needed, and with room the same command succeeds.
//!
//! Where this process may mount a file system, one in memory is the full disk; a limit on the size of files does
//! everywhere, and is reported like it.

use super::world::{Ran, WalSegment, World, command, is_empty, restore, run, wal_file};
use crate::harness::TestStore;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;
use zenith_testkit::disk::SmallDisk;
use zenith_testkit::on_each_store;
use zenith_testkit::pg::{self, Pg, PgOptions};
use zenith_testkit::store::Kind;

on_each_store!(a_full_target_is_told_and_left_as_it_was);

/// How a command is kept from writing.
enum Full {
    /// To this disk.
    Disk(SmallDisk),
    /// More than so many bytes to any file.
    Limit(u64),
}

impl Full {
    /// Every way that there is here: a disk of `disk` bytes, and files of at most `limit` bytes.
    fn ways(disk: u64, limit: u64) -> Vec<Full> {
        let mounted = SmallDisk::mounted(disk);
        if mounted.is_none() {
            println!("no file system can be mounted here");
        }
        mounted.map(Full::Disk).into_iter().chain([Full::Limit(limit)]).collect()
    }

    /// A directory on it, or any directory.
    fn directory(&self) -> TempDir {
        match self {
            Full::Disk(disk) => disk.directory(),
            Full::Limit(_) => pg::server_dir(),
        }
    }

    fn fill(&self, left: u64) {
        if let Full::Disk(disk) = self {
            disk.fill(left);
        }
    }

    fn make_room(&self) {
        if let Full::Disk(disk) = self {
            disk.make_room();
        }
    }

    /// What a message says, where a limit on files is met in another place than a full disk.
    fn says<'a>(&self, full: &[&'a str], limited: &[&'a str]) -> Vec<&'a str> {
        match self {
            Full::Disk(_) => full.to_vec(),
            Full::Limit(_) => limited.to_vec(),
        }
    }

    /// The command while there is no room.
    fn run(&self, command: &Command) -> Ran {
        match self {
            Full::Disk(_) => Ran::of(&mut clone(command, pg::command(command.get_program()))),
            Full::Limit(bytes) => {
                let mut limited = pg::command("prlimit");
                limited.arg(format!("--fsize={bytes}")).arg(command.get_program());
                Ran::of(&mut clone(command, limited))
            }
        }
    }
}

/// Arguments and environment of one command for another.
fn clone(command: &Command, mut to: Command) -> Command {
    to.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
    to
}

/// A store on that disk, without the last of the archived segments, and that segment.
fn store_on(world: &World, full: &Full) -> (TestStore, WalSegment) {
    let last = world.segments.last().expect("segments");
    let object = world.segment(&last.name);
    let store = TestStore::folder_in(full.directory());
    store.fill(&world.objects_without(|name| name == object));
    (store, last.clone())
}

const NO_ROOM: [&str; 2] = ["no room for main/timelines/", "make room"];
const TEMPORARY: [&str; 2] = ["temporary file in", "TMPDIR"];

#[test]
fn a_full_store_takes_nothing_half_and_goes_on_when_there_is_room() {
    let world = World::shared();
    let server = Pg::create(&PgOptions::default().initdb("--wal-segsize=1"));
    for full in Full::ways(16 << 20, 48 << 10) {
        let (store, last) = store_on(world, &full);
        let before = store.list("");
        full.fill(48 << 10);
        let (_home, path) = wal_file(&last.name, &last.content);
        let archive = command(&store, "zenith_push", &["wal", &path]);
        full.run(&archive).fails(&[&NO_ROOM[..], &[&last.name]].concat());
        assert_eq!(store.list(""), before);

        full.run(&command(&store, "zenith_slicedice", &[])).fails(&NO_ROOM);
        world.lost_nothing(&store, &world.segment(&last.name));
        assert_eq!(store.list(&format!("{}layers/", world.timeline)), world.layers(), "half a layer");

        let directory = server.data().display().to_string();
        let base = command(&store, "zenith_push", &["--cluster", "new", "base", "--from-dir", &directory]);
        full.run(&base).fails(&full.says(&["no room for new/timelines/", "make room"], &TEMPORARY));
        assert!(
            !store.list("new/").iter().any(|name| name.contains("manifest")),
            "a base image was registered"
        );
        let status = run(&store, "zenith", &["status"]).succeeds().text();
        assert!(status.contains("can be restored"), "{status}");

        full.make_room();
        Ran::of(&mut clone(&archive, pg::command(archive.get_program()))).succeeds();
        run(&store, "zenith_slicedice", &[]).succeeds();
        Ran::of(&mut clone(&base, pg::command(base.get_program()))).succeeds();
        world.is_whole(&store);
    }
}

#[test]
fn a_base_image_of_a_running_server_is_not_registered_where_the_store_is_full() {
    let server = Pg::start_new(&PgOptions::default().initdb("--wal-segsize=1"));
    for full in Full::ways(8 << 20, 48 << 10) {
        let store = TestStore::folder_in(full.directory());
        full.fill(48 << 10);
        let mut base = command(&store, "zenith_push", &["base", "-w", "--checkpoint=fast"]);
        base.env("PGHOST", server.socket()).env("PGUSER", "postgres");
        full.run(&base).fails(&full.says(&NO_ROOM, &TEMPORARY));
        assert!(!store.list("").iter().any(|name| name.contains("manifest")), "it was registered");
        // Its replication slot and its backup went with it.
        server.wait_for("NOT EXISTS (SELECT FROM pg_replication_slots)");
        full.make_room();
        Ran::of(&mut clone(&base, pg::command(base.get_program()))).succeeds();
    }
}

fn a_full_target_is_told_and_left_as_it_was(kind: Kind) {
    let world = World::shared();
    let store = world.store(kind);
    let before = store.list("");
    // Redo's shared memory, 8 MB, counts as a file.
    for full in Full::ways(4 << 20, 9 << 20) {
        let home = full.directory();
        let data = home.path().join("a/data");
        let target = data.display().to_string();
        for more in [&["--lsn", &world.sliced][..], &["--replay"], &["--as", "copy"]] {
            let arguments = [&["-D", &target], more].concat();
            full.run(&command(&store, "zenith_restore", &arguments)).fails(&[&target, "make room"]);
            assert!(is_empty(home.path()), "{more:?}: left behind");
        }
        // The name was made, and given up: it may be taken again.
        run(&store, "zenith", &["layers", "--timeline", "copy"]).fails(&["copy"]);
        // A directory that was there stays, empty.
        std::fs::create_dir_all(&data).expect("room for a directory");
        give(&data);
        full.run(&command(&store, "zenith_restore", &["-D", &target])).fails(&[&target]);
        assert!(is_empty(&data));
    }
    for full in Full::ways(1 << 20, 4096) {
        let home = full.directory();
        full.fill(4096);
        let file = |name: &str| home.path().join(name).display().to_string();
        let segment = &world.segments[0].name;
        let wal = command(&store, "zenith_restore", &["wal", segment, &file("RECOVERYXLOG")]);
        full.run(&wal).ends(255, &[segment, "RECOVERYXLOG"]);
        assert!(is_empty(home.path()));
        std::fs::write(home.path().join("old"), "x").expect("room for a byte");
        give(&home.path().join("old"));
        // A page of the base image, for which redo is not needed.
        for name in ["new", "old"] {
            let file = file(name);
            let page = ["page", "--rel", "global/1262", "--block", "0", "--lsn", &world.sliced, "-o", &file];
            full.run(&command(&store, "zenith", &page)).fails(&[&file]);
        }
        assert_eq!(std::fs::read(home.path().join("old")).expect("kept"), b"x");
        assert_eq!(std::fs::read_dir(home.path()).expect("there").count(), 1);
    }
    let lasting = |names: Vec<String>| {
        names
            .into_iter()
            .filter(|name| !name.contains("copy") && name.starts_with(&world.timeline))
            .collect::<Vec<_>>()
    };
    assert_eq!(lasting(store.list("")), lasting(before));
}

fn give(path: &Path) {
    pg::give_to_server(path);
    let parent = path.parent().expect("it has one");
    pg::give_to_server(parent);
}

#[test]
fn a_full_folder_for_temporary_files_is_named_with_the_remedy() {
    let world = World::shared();
    let server = Pg::create(&PgOptions::default().initdb("--wal-segsize=1"));
    let store = world.store(Kind::Folder);
    let before = store.list("");
    for full in Full::ways(1 << 20, 48 << 10) {
        let temporary = full.directory();
        full.fill(48 << 10);
        let folder = temporary.path().display().to_string();
        let home = pg::server_dir();
        let target = home.path().join("data").display().to_string();
        let directory = server.data().display().to_string();
        for (program, arguments) in [
            ("zenith_restore", &["-D", &target][..]),
            ("zenith_restore", &["-D", &target, "--replay"]),
            ("zenith", &["page", "--rel", &world.relation, "--block", "0", "--lsn", &world.end]),
            ("zenith_push", &["--cluster", "new", "base", "--from-dir", &directory]),
        ] {
            let mut command = command(&store, program, arguments);
            command.env("TMPDIR", &folder);
            full.run(&command).fails(&[&folder, "TMPDIR"]);
            assert!(
                is_empty(home.path()) && is_empty(temporary.path()),
                "{program} {arguments:?}: left behind"
            );
            assert_eq!(store.list("main/"), before, "{program} {arguments:?}");
        }
        assert!(!store.list("new/").iter().any(|name| name.contains("manifest")), "it was registered");
    }
    // Nothing is sliced, but redo needs a place for its processes.
    if let Some(disk) = SmallDisk::mounted(1 << 20) {
        let temporary = disk.directory();
        disk.fill(0);
        let folder = temporary.path().display().to_string();
        let mut page = command(
            &store,
            "zenith",
            &["page", "--rel", &world.relation, "--block", "0", "--lsn", &world.sliced],
        );
        Ran::of(page.env("TMPDIR", &folder)).fails(&[&folder, "TMPDIR"]);
    }
    restore(&store, &["--lsn", &world.sliced]).1.succeeds();
}

#[test]
fn a_standard_output_that_takes_nothing_is_a_failure() {
    let world = World::shared();
    let store = world.store(Kind::Folder);
    let page = ["page", "--rel", &world.relation, "--block", "0", "--lsn", &world.sliced];
    for arguments in [&["status"][..], &["status", "--json"], &["status", "--prometheus"], &["layers"], &page]
    {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        Ran::of(command(&store, "zenith", arguments).stdout(full))
            .fails(&["standard output", "No space left"]);
    }
}
