//! Timelines and failover with real servers: who goes on with the history, who is left behind, and who is refused
//! (PROTOCOLS.md §3, §4).

use crate::harness::{Chain, TestStore, archive, zenith_bin};
use crate::oracle::{Backup, compare};
use crate::verify::{dump, same_dump};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use zenith_testkit::pg::{self, Pg, PgOptions, StopMode};
use zenith_testkit::store::Kind;
use zenith_testkit::{on_each_store, outcome};

on_each_store!(
    of_two_servers_promoted_from_one_base_the_second_is_refused_and_gets_a_timeline_of_its_own,
    a_clone_that_goes_on_under_the_same_tli_can_spoil_neither_wal_nor_base_images,
    a_second_base_image_is_the_remedy_for_a_gap_whose_lsns_are_refused,
    stock_recovery_of_the_parents_base_follows_zenith_restore_wal_across_forks_to_their_end,
);

/// A primary with small segments, of which nothing but the test writes WAL, and its first base image.
fn primary(kind: Kind) -> Chain {
    let options = PgOptions::default()
        .initdb("--data-checksums")
        .initdb("--wal-segsize=1")
        .conf("autovacuum = off")
        .conf("wal_keep_size = 512MB");
    let chain = Chain::start(TestStore::new(kind), options);
    chain.primary.sql("CREATE TABLE t AS SELECT i, 'base' AS v FROM generate_series(1, 1000) i");
    chain.run("zenith_push", &["base", "--checkpoint=fast"]);
    chain
}

fn insert(server: &Pg, value: &str) {
    server.sql(&format!("INSERT INTO t SELECT i, '{value}' FROM generate_series(1, 100) i"));
}

/// How often each value is there.
fn rows(server: &Pg) -> String {
    server.sql("SELECT string_agg(v || ' ' || n, ', ' ORDER BY v) FROM (SELECT v, count(*) AS n FROM t GROUP BY v) x")
}

fn restore_point(server: &Pg, name: &str) {
    server.sql(&format!("SELECT pg_create_restore_point('{name}')"));
}

fn connection(to: &Pg) -> String {
    format!("host={} user=postgres dbname=postgres", to.socket().display())
}

/// `pg_basebackup` of the running primary into a directory of its own.
fn copy_of_the_primary(chain: &Chain) -> Pg {
    let home = pg::server_dir();
    let data = home.path().join("data");
    let options = ["-X", "fetch", "--checkpoint=fast", "--no-sync", "--no-manifest", "-D"];
    pg::run(chain.primary.client("pg_basebackup").args(options).arg(&data));
    Pg::adopt(home, data).with_env(chain.store.credentials())
}

/// Streams from `primary` and archives what it gets as well.
fn follow(standby: &Pg, primary: &Pg) {
    let from = format!("primary_conninfo = '{}'", connection(primary));
    standby.configure(&[&from, "archive_mode = always"]);
    pg::run(pg::command("touch").arg(standby.data().join("standby.signal")));
    standby.start();
}

/// Waits until a standby has everything that the server has written.
fn has_caught_up(standby: &Pg, primary: &Pg) {
    let at = primary.sql("SELECT pg_current_wal_flush_lsn()");
    standby.wait_for(&format!("pg_last_wal_replay_lsn() >= '{at}'"));
}

fn promote(standby: &Pg) {
    pg::run(pg::command(pg::bin_dir().join("pg_ctl")).args(["-w", "-D"]).arg(standby.data()).arg("promote"));
    standby.wait_for("NOT pg_is_in_recovery()");
}

/// Where TLI `tli` left the one before it, by the server's own history file.
fn switch_point(server: &Pg, tli: u32) -> String {
    let file = server.data().join(format!("pg_wal/{tli:08X}.history"));
    let text = std::fs::read_to_string(&file).expect("a history file");
    let last = text.lines().rfind(|line| !line.is_empty()).expect("a line");
    last.split('\t').nth(1).expect("an LSN").to_owned()
}

/// All that a server asked its archive_command for was done at the first try.
#[track_caller]
fn never_failed_to_archive(server: &Pg) {
    assert_eq!(server.sql("SELECT failed_count FROM pg_stat_archiver"), "0", "{}", server.log());
}

/// Waits until a server's `archive_command` has failed, and gives its log.
fn fails_to_archive(server: &Pg, file: &str) -> String {
    server.wait_for(&format!("(SELECT last_failed_wal = '{file}' FROM pg_stat_archiver)"));
    server.log()
}

/// The names of the archived WAL files of the timeline `main` that have this ending.
fn archived(chain: &Chain, ending: &str) -> Vec<String> {
    let objects = chain.store.list("main/timelines/").into_iter();
    let wal = objects.filter(|object| object.contains("/wal/"));
    let files = wal.filter_map(|object| Some(object.rsplit_once('/')?.1.strip_suffix(".zst")?.to_owned()));
    files.filter(|file| file.ends_with(ending)).collect()
}

/// What `zenith status` says of a timeline.
fn status(chain: &Chain, timeline: &str) -> Value {
    let output = pg::run(&mut chain.zenith("zenith", &["status", "--timeline", timeline, "--json"]));
    let status: Value = serde_json::from_str(&output).expect("JSON");
    status["clusters"][0]["timelines"][0].clone()
}

/// The file of the segment that holds the byte at `lsn`.
fn segment_of(tli: u32, lsn: &str) -> String {
    let (high, low) = lsn.split_once('/').expect("X/X");
    let low = u64::from_str_radix(low, 16).expect("hexadecimal");
    format!("{tli:08X}{:08X}{:08X}", u64::from_str_radix(high, 16).expect("hexadecimal"), low >> 20)
}

fn fails(command: &mut Command, words: &[&str]) {
    outcome::fails(&outcome::ended(command), words);
}

/// A server restored from the newest of a timeline has the rows that `server` has.
#[track_caller]
fn the_newest_is(chain: &Chain, timeline: &str, server: &Pg) {
    let restored = chain.restore(&["--timeline", timeline]);
    restored.start();
    assert_eq!(rows(&restored), rows(server), "{timeline}");
}

#[test]
fn a_failover_in_the_middle_of_a_segment_is_followed_and_what_the_old_primary_wrote_is_kept_apart() {
    let chain = primary(Kind::Folder);
    let old = &chain.primary;
    let backup = Backup::take(&chain, &[]);
    let new = copy_of_the_primary(&chain);
    follow(&new, old);

    // Both archive the same segments.
    insert(old, "together");
    let both = old.sql("SELECT pg_walfile_name(pg_switch_wal())");
    insert(old, "replicated");
    for server in [old, &new] {
        server.wait_for(&format!("(SELECT last_archived_wal >= '{both}' FROM pg_stat_archiver)"));
        never_failed_to_archive(server);
    }

    // The old primary does not know that it was left.
    has_caught_up(&new, old);
    promote(&new);
    let switch = switch_point(&new, 2);
    insert(old, "lost");
    chain.archive();
    insert(old, "lost");
    chain.archive();
    insert(&new, "after the failover");
    restore_point(&new, "after the failover");
    archive(&new);
    never_failed_to_archive(&new);
    never_failed_to_archive(old);

    // The same segment four times: cut, whole, whole on the new TLI, and only that one is read.
    let shared = segment_of(1, &switch);
    assert_eq!(archived(&chain, ".partial"), [format!("{shared}.partial")]);
    let whole = archived(&chain, &shared[8..]);
    assert_eq!(whole, [shared.clone(), segment_of(2, &switch)]);
    let kept = |status: &Value| {
        let off = status["off_history"].as_array().expect("a list").clone();
        let told = |off: &Value| (off["tli"].clone(), off["switch"].clone(), off["first"].clone());
        let told: Vec<_> = off.iter().map(told).collect();
        assert_eq!(told, [(1.into(), switch.as_str().into(), shared.as_str().into())], "{status}");
        assert!(off[0]["segments"].as_u64() >= Some(2), "{status}");
    };
    kept(&status(&chain, "main"));
    chain.run("zenith_slicedice", &[]);
    let sliced = status(&chain, "main");
    kept(&sliced);
    assert_eq!((&sliced["sliced"]["tli"], &sliced["archived"]["tli"]), (&2.into(), &2.into()));
    assert_eq!(sliced["missing"], Value::Null);
    let text = chain.run("zenith", &["status"]);
    assert!(text.contains("kept, never read:") && text.contains(&shared), "{text}");

    // At the switch, and past it beside PostgreSQL's own recovery.
    let at_switch = chain.restore(&["--lsn", &switch]);
    at_switch.start();
    assert_eq!(rows(&at_switch), "base 1000, replicated 100, together 100");
    drop(at_switch);
    let name = "after the failover";
    let restored = chain.restore(&["--name", name]);
    let oracle = backup.recover(&chain, &[&format!("recovery_target_name = '{name}'")]);
    oracle.stop(StopMode::Fast);
    assert!(compare(&restored, &oracle).pages > 500);
    restored.start();
    oracle.start();
    same_dump(&dump(&restored), &dump(&oracle));
    assert_eq!(rows(&restored), "after the failover 100, base 1000, replicated 100, together 100");
    drop((restored, oracle));

    the_old_primary_comes_back(&chain, old, &new);
    kept(&status(&chain, "main"));
}

/// The old primary is rewound, follows, and takes over again.
fn the_old_primary_comes_back(chain: &Chain, old: &Pg, new: &Pg) {
    old.stop(StopMode::Fast);
    // Until then the new one's control file says TLI 1.
    new.sql("CHECKPOINT");
    let mut rewind = pg::command(pg::bin_dir().join("pg_rewind"));
    rewind.arg("--target-pgdata").arg(old.data()).args(["--source-server", &connection(new), "--no-sync"]);
    pg::run(&mut rewind);
    follow(old, new);
    insert(new, "before the second failover");
    archive(new);
    has_caught_up(old, new);
    new.stop(StopMode::Fast);
    promote(old);
    insert(old, "rewound");
    archive(old);
    never_failed_to_archive(old);
    chain.run("zenith_slicedice", &[]);
    assert_eq!(status(chain, "main")["sliced"]["tli"], 3);
    the_newest_is(chain, "main", old);
    assert_eq!(
        rows(old),
        "after the failover 100, base 1000, before the second failover 100, replicated 100, rewound 100, together 100"
    );
}

/// Recovery with PostgreSQL's own tools to a restore point, without knowing of any other server's history; then it
/// archives to the store as the primary does.
fn promoted_at(chain: &Chain, backup: &Backup, name: &str) -> Pg {
    let restore = format!(
        "restore_command = 'case %f in *.history) exit 1;; esac; cp {}/%f %p'",
        chain.plain().display()
    );
    let target = format!("recovery_target_name = '{name}'");
    backup.recover(chain, &[&restore, &target, "archive_mode = on"])
}

fn of_two_servers_promoted_from_one_base_the_second_is_refused_and_gets_a_timeline_of_its_own(kind: Kind) {
    let chain = primary(kind);
    let backup = Backup::take(&chain, &[]);
    insert(&chain.primary, "early");
    restore_point(&chain.primary, "early");
    insert(&chain.primary, "late");
    restore_point(&chain.primary, "late");
    chain.archive();
    chain.primary.stop(StopMode::Fast);

    let first = promoted_at(&chain, &backup, "early");
    insert(&first, "first");
    archive(&first);
    never_failed_to_archive(&first);
    chain.run("zenith_slicedice", &[]);

    // Another history of TLI 2: it is refused at once.
    let second = promoted_at(&chain, &backup, "late");
    insert(&second, "second");
    let log = fails_to_archive(&second, "00000002.history");
    for words in ["00000002.history was archived before with other content", "give one of them its own"] {
        assert!(log.contains(words), "{log}");
    }
    // The same history of TLI 2: its segments are.
    let third = promoted_at(&chain, &backup, "early");
    insert(&third, "third");
    third.sql("SELECT pg_switch_wal()");
    let file = segment_of(2, &switch_point(&third, 2));
    assert_eq!(switch_point(&first, 2), switch_point(&third, 2));
    let log = fails_to_archive(&third, &file);
    assert!(log.contains(&format!("{file} was archived before with other content")), "{log}");
    drop(third);

    // What the refusal says helps.
    let mut base =
        chain.zenith("zenith_push", &["base", "--timeline", "second", "--create", "--checkpoint=fast"]);
    pg::run(base.env("PGHOST", second.socket()));
    let command = format!(
        "{} wal --store {} --timeline second %p",
        zenith_bin("zenith_push").display(),
        chain.store.url()
    );
    second.sql(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
    second.sql("SELECT pg_reload_conf()");
    archive(&second);
    chain.run("zenith_slicedice", &["--timeline", "second"]);
    the_newest_is(&chain, "second", &second);
    chain.run("zenith_slicedice", &[]);
    the_newest_is(&chain, "main", &first);
    assert_eq!(rows(&first), "base 1000, early 100, first 100");
    assert_eq!(rows(&second), "base 1000, early 100, late 100, second 100");
}

#[test]
fn a_promotion_below_what_is_sliced_stops_slicing_with_the_switch_point_and_changes_nothing() {
    let chain = primary(Kind::Folder);
    let primary = &chain.primary;
    let backup = Backup::take(&chain, &[]);
    insert(primary, "early");
    restore_point(primary, "early");
    insert(primary, "late");
    let late = primary.sql("SELECT pg_current_wal_insert_lsn()");
    chain.archive();
    chain.run("zenith_slicedice", &[]);
    let layers = || status(&chain, "main")["layers"].clone();
    let (before, objects) = (layers(), chain.store.list("main/timelines/"));

    let promoted = promoted_at(&chain, &backup, "early");
    insert(&promoted, "promoted");
    archive(&promoted);
    never_failed_to_archive(&promoted);
    let switch = switch_point(&promoted, 2);
    fails(
        &mut chain.zenith("zenith_slicedice", &[]),
        &["timeline 2", &switch, "never rewritten", "--timeline NEW --create"],
    );
    assert_eq!(layers(), before);
    let kept = chain.store.list("main/timelines/");
    assert!(objects.iter().all(|object| kept.contains(object)), "{objects:?} {kept:?}");
    assert_eq!(objects.iter().filter(|object| object.contains("/layers/")).count(), 3, "{objects:?}");
    let restored = chain.restore(&["--lsn", &late]);
    restored.start();
    assert_eq!(rows(&restored), "base 1000, early 100, late 100");
    drop(restored);
    // The branch at the switch point.
    let branch = chain.restore(&["--lsn", &switch, "--as", "branch"]);
    branch.start();
    assert_eq!(rows(&branch), "base 1000, early 100");
}

fn a_clone_that_goes_on_under_the_same_tli_can_spoil_neither_wal_nor_base_images(kind: Kind) {
    let chain = primary(kind);
    let primary = &chain.primary;
    let clone = copy_of_the_primary(&chain);
    insert(primary, "primary");
    chain.archive();
    insert(primary, "primary");
    clone.start();
    let identity = "SELECT system_identifier, timeline_id FROM pg_control_system(), pg_control_checkpoint()";
    assert_eq!(clone.sql(identity), primary.sql(identity));
    insert(&clone, "clone");
    let file = clone.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    clone.sql("SELECT pg_switch_wal()");
    chain.archive();
    let log = fails_to_archive(&clone, &file);
    assert!(log.contains("was archived before with other content"), "{log}");
    assert!(log.contains("give one of them its own"), "{log}");

    // Nobody can tell its base image from the primary's but by the WAL.
    for _ in 0..3 {
        clone.sql("SELECT pg_switch_wal()");
        insert(&clone, "clone");
    }
    let mut base = chain.zenith("zenith_push", &["base", "--checkpoint=fast"]);
    pg::run(base.env("PGHOST", clone.socket()));
    let behind = format!("pg_current_wal_lsn() > '{}'", clone.sql("SELECT pg_current_wal_lsn()"));
    while primary.sql(&format!("SELECT {behind}")) == "f" {
        // No segment is cut short: where the clone's image begins is the middle of whatever the primary wrote.
        primary.sql("INSERT INTO t SELECT i, 'much of the primary' FROM generate_series(1, 10000) i");
    }
    chain.archive();
    chain.run("zenith_slicedice", &[]);
    let images = status(&chain, "main")["base_images"].clone();
    let confirmed: Vec<_> =
        images.as_array().expect("a list").iter().map(|image| &image["confirmed"]).collect();
    assert_eq!(confirmed, [true, false]);
    the_newest_is(&chain, "main", primary);
    assert!(!rows(primary).contains("clone"));
}

#[test]
fn a_promotion_in_the_middle_of_a_record_goes_on_where_the_record_began() {
    let chain = primary(Kind::Folder);
    let primary = &chain.primary;
    let backup = Backup::take(&chain, &[]);
    insert(primary, "before");
    chain.archive();
    insert(primary, "before");
    let begins = primary.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    // Over three segments.
    primary.sql("SELECT pg_logical_emit_message(false, 'long', repeat('x', 2500000))");
    insert(primary, "behind the record");
    chain.archive();

    // The last segment that the standby ever saw is the one in which the record begins.
    let restore = format!(
        "restore_command = 'case %f in *.history) exit 1;; esac; test ! %f \\\\> {begins} && cp {}/%f %p'",
        chain.plain().display()
    );
    let promoted = backup.recover(&chain, &[&restore, "archive_mode = on"]);
    let switch = switch_point(&promoted, 2);
    assert_eq!(segment_of(1, &switch), begins);
    insert(&promoted, "promoted");
    archive(&promoted);
    never_failed_to_archive(&promoted);

    chain.run("zenith_slicedice", &[]);
    let sliced = status(&chain, "main");
    assert_eq!(sliced["sliced"]["tli"], 2, "{sliced}");
    assert_eq!(sliced["off_history"][0]["first"], begins, "{sliced}");
    assert!(sliced["off_history"][0]["segments"].as_u64() >= Some(3), "{sliced}");
    the_newest_is(&chain, "main", &promoted);
    assert_eq!(rows(&promoted), "base 1000, before 200, promoted 100");
}

fn a_second_base_image_is_the_remedy_for_a_gap_whose_lsns_are_refused(kind: Kind) {
    let chain = primary(kind);
    let primary = &chain.primary;
    insert(primary, "before");
    restore_point(primary, "before");
    let last_good = primary.sql("SELECT pg_current_wal_insert_lsn()");
    chain.archive();
    // Archiving that only pretends.
    let archiving = primary.sql("SHOW archive_command");
    let archive_by = |command: &str| {
        primary.stop(StopMode::Fast);
        primary.configure(&[&format!("archive_command = '{command}'")]);
        primary.start();
    };
    archive_by("true");
    insert(primary, "in the gap");
    let in_gap = primary.sql("SELECT pg_current_wal_insert_lsn()");
    chain.archive();
    archive_by(&archiving);
    insert(primary, "after");
    chain.archive();
    let missing = segment_of(1, &in_gap);
    assert!(!archived(&chain, "").contains(&missing));
    chain.run("zenith_slicedice", &[]);
    assert_ne!(status(&chain, "main")["missing"], Value::Null);

    chain.run("zenith_push", &["base", "--checkpoint=fast"]);
    chain.archive();
    insert(primary, "after the second image");
    chain.archive();
    chain.run("zenith_slicedice", &[]);
    chain.run("zenith_slicedice", &[]);
    let status = status(&chain, "main");
    let count = |what: &str| status[what].as_array().map(Vec::len);
    assert_eq!(
        (count("ranges"), count("lost"), count("base_images")),
        (Some(2), Some(1), Some(2)),
        "{status}"
    );
    assert_eq!((&status["missing"], &status["base_images"][1]["confirmed"]), (&Value::Null, &true.into()));
    the_newest_is(&chain, "main", primary);

    let home = pg::server_dir();
    let data = home.path().join("data").display().to_string();
    let refused = ["--lsn", &in_gap, "-D", &data];
    fails(&mut chain.zenith("zenith_restore", &refused), &[&in_gap, "gap"]);
    assert!(!Path::new(&data).exists());
    for target in [["--lsn", &last_good], ["--name", "before"]] {
        let restored = chain.restore(&target);
        restored.start();
        assert_eq!(rows(&restored), "base 1000, before 100");
    }
}

fn stock_recovery_of_the_parents_base_follows_zenith_restore_wal_across_forks_to_their_end(kind: Kind) {
    let chain = primary(kind);
    let primary = &chain.primary;
    let backup = Backup::take(&chain, &[]);
    insert(primary, "before the fork");
    let fork = primary.sql("SELECT pg_current_wal_insert_lsn()");
    insert(primary, "parent");
    chain.archive();
    // The parent has a TLI 2 of its own, which is none of its child's business.
    let later = backup.recover(&chain, &["archive_mode = on"]);
    insert(&later, "promoted parent");
    archive(&later);
    chain.run("zenith_slicedice", &[]);

    let child = chain.restore(&["--lsn", &fork, "--as", "child"]);
    child.start();
    insert(&child, "child");
    let second_fork = child.sql("SELECT pg_current_wal_insert_lsn()");
    insert(&child, "child");
    archive(&child);
    let grandchild = chain.restore(&["--timeline", "child", "--lsn", &second_fork, "--as", "grandchild"]);
    grandchild.start();
    insert(&grandchild, "grandchild");
    archive(&grandchild);

    let expected = [
        ("main", "base 1000, before the fork 100, parent 100, promoted parent 100"),
        ("child", "base 1000, before the fork 100, child 200"),
        ("grandchild", "base 1000, before the fork 100, child 100, grandchild 100"),
    ];
    for (timeline, content) in expected {
        let restore = format!(
            "restore_command = '{} wal --store {} --timeline {timeline} \"%f\" \"%p\"'",
            zenith_bin("zenith_restore").display(),
            chain.store.url()
        );
        let recovered = backup.recover(&chain, &[&restore]);
        assert_eq!(rows(&recovered), content, "{timeline}");
    }
}
