//! LSNs, times, names and places that are not there: refused by name, nothing written.

use super::world::{Ran, World, command, is_empty, restore, run, wal_file};
use zenith_testkit::on_each_store;
use zenith_testkit::pg;
use zenith_testkit::store::Kind;

on_each_store!(
    a_target_that_the_store_does_not_hold_is_refused_by_name,
    a_name_that_does_not_exist_is_told_by_every_command_and_not_made,
    a_directory_that_is_not_empty_is_refused_and_stays_as_it_is,
    the_same_store_with_nothing_wrong_is_restored
);

fn a_target_that_the_store_does_not_hold_is_refused_by_name(kind: Kind) {
    let world = World::shared();
    let store = world.store(kind);
    let before = store.list("");
    for (target, words) in [
        (["--lsn", "0/100100"], ["0/100100", "base image"]),
        (["--lsn", &world.base_redo], [&world.base_redo, "base image"]),
        (["--lsn", "FF/0"], ["FF/0", &world.end]),
        (["--time", "2001-01-01 00:00:00+00"], ["2001-01-01", "oldest"]),
        (["--time", "2100-01-01 00:00:00+00"], ["2100-01-01", "newest"]),
        (["--name", "nobody made it"], ["nobody made it", "kept"]),
        (["--xid", "4000000000"], ["4000000000", "archived"]),
        (["--timeline", "mian"], ["mian", "main"]),
        (["--cluster", "another"], ["another", "none yet"]),
        (["--timeline-id", "0193b5a4c3f07d5e8a2b1c4d5e6f7a8b"], ["0193b5a4", "identity"]),
    ] {
        restore(&store, &target).1.fails(&words);
        restore(&store, &[&target[..], &["--replay"]].concat()).1.fails(&words);
        assert_eq!(store.list(""), before, "{target:?}");
    }
    restore(&store, &["--as", "main"]).1.fails(&["main", "already"]);
    restore(&store, &["--as", "no/name"]).1.fails(&["no/name"]);
    restore(&store, &["-T", "/no/such=/new"]).1.fails(&["/no/such"]);
    assert_eq!(store.list(""), before);
    for lsn in ["0/100100", "FF/0"] {
        world.page(&store, lsn).fails(&[lsn]);
    }
}

fn a_name_that_does_not_exist_is_told_by_every_command_and_not_made(kind: Kind) {
    let world = World::shared();
    let store = world.store(kind);
    let before = store.list("");
    let (_home, segment) = wal_file(&world.next.name, &world.next.content);
    let (_other, absent) = ("", "/no/such/000000010000000000000042");
    for (program, arguments, code) in [
        ("zenith", &["status"][..], 1),
        ("zenith", &["layers"], 1),
        ("zenith", &["page", "--rel", "1/1262", "--block", "0", "--lsn", "FF/0"], 1),
        ("zenith_slicedice", &[], 1),
        ("zenith_slicedice", &["--follow"], 1),
        ("zenith_push", &["wal", &segment], 1),
        ("zenith_restore", &["wal", &world.segments[0].name, "/dev/null"], 255),
    ] {
        let arguments = [arguments, &["--timeline", "mian"]].concat();
        run(&store, program, &arguments).ends(code, &["mian", "main"]);
        assert_eq!(store.list(""), before, "{program} {arguments:?}");
    }
    run(&store, "zenith_push", &["wal", absent]).fails(&[absent, "cannot read"]);
    run(&store, "zenith", &["layers", "--version", "99"]).fails(&["00000000000000000099.manifest"]);
    run(&store, "zenith", &["layers", "--version", "0"]).fails(&["begin with 1"]);
    let page = |rel: &str, block: &str| {
        run(&store, "zenith", &["page", "--rel", rel, "--block", block, "--lsn", &world.sliced])
    };
    page("base/5/4000000000", "0").fails(&["4000000000", &world.sliced]);
    page("base/4000000000/1259", "0").fails(&["4000000000", &world.sliced]);
    page(&world.relation, "4000000000").fails(&["4000000000", "blocks"]);
    assert_eq!(store.list(""), before);
}

fn a_directory_that_is_not_empty_is_refused_and_stays_as_it_is(kind: Kind) {
    let world = World::shared();
    let store = world.store(kind);
    let home = pg::server_dir();
    let (data, spot) = (home.path().join("data"), home.path().join("file"));
    std::fs::create_dir(&data).expect("made");
    std::fs::write(data.join("precious"), "x").expect("written");
    std::fs::write(&spot, "x").expect("written");
    for more in [&[][..], &["--replay"], &["--as", "copy"]] {
        for target in [&data, &spot] {
            let target = target.display().to_string();
            let arguments = [&["-D", &target], more].concat();
            Ran::of(&mut command(&store, "zenith_restore", &arguments)).fails(&[&target]);
        }
    }
    assert_eq!(std::fs::read(data.join("precious")).expect("kept"), b"x");
    assert_eq!(std::fs::read_dir(&data).expect("kept").count(), 1);
    assert_eq!(std::fs::read(&spot).expect("kept"), b"x");
    assert!(!store.list("").iter().any(|name| name.contains("names/copy")), "the name was made");
    // A place that may not be written to.
    let locked = home.path().join("locked");
    std::fs::create_dir(&locked).expect("made");
    std::fs::set_permissions(&locked, std::os::unix::fs::PermissionsExt::from_mode(0o555)).expect("locked");
    let target = locked.join("data").display().to_string();
    run(&store, "zenith_restore", &["-D", &target]).fails(&[&target, "denied"]);
    assert!(is_empty(&locked));
}

/// What a restore gives from these stores while nothing is wrong.
fn the_same_store_with_nothing_wrong_is_restored(kind: Kind) {
    let world = World::shared();
    let store = world.store(kind);
    let (home, ran) = restore(&store, &["--name", "kept"]);
    ran.succeeds();
    let data = home.path().join("data");
    let restored = pg::Pg::adopt(home, data);
    restored.start();
    assert_eq!(restored.sql("SELECT count(*) FROM t"), world.rows.to_string());
}
