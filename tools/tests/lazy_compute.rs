//! Servers whose pages come from the store when they are touched: `zenith_restore --lazy`, the extension, and the page service
//! that it starts.

#[path = "lazy_compute/recorded.rs"]
mod recorded;

use recorded::{Recorded, checksums_of, zenith};
use zenith_compute_dir::limits::Limits;
use zenith_testkit::on_each_store;
use zenith_testkit::oracle::dump;
use zenith_testkit::outcome::{fails, said, succeeds};
use zenith_testkit::pg::{Pg, StopMode, bin_dir, command, run, server_dir};
use zenith_testkit::store::{Kind, TestStore};

on_each_store!(a_lazy_server_holds_what_its_primary_held_whatever_stops_it,);

/// A lazy copy of what was recorded, which fetches only what is asked for; not started.
fn lazy(recorded: &Recorded) -> Pg {
    let pg = recorded.lazy();
    pg.configure(&["zenith.fill = off"]);
    pg
}

fn started(recorded: &Recorded) -> Pg {
    let pg = lazy(recorded);
    pg.start();
    pg
}

/// Has the server read everything that connections and simple queries need.
fn read_catalogs(pg: &Pg) {
    pg.sql("CREATE EXTENSION pg_prewarm");
    pg.sql("SELECT sum(pg_prewarm(oid)) FROM pg_class WHERE relkind IN ('r', 'i', 't') AND oid < 16384");
}

/// A query's error.
fn error_of(pg: &Pg, sql: &str) -> String {
    let output = pg.client("psql").args(["-XAtq", "-v", "VERBOSITY=verbose", "-c", sql]).output();
    let output = output.expect("started");
    assert!(!output.status.success(), "it succeeded: {sql}");
    said(&output)
}

/// Forks that still have pages to be fetched.
fn unfilled(pg: &Pg) -> usize {
    let bytes = std::fs::read(pg.data().join("zenith/limits")).expect("there");
    let words = bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")));
    let words: Vec<_> = words.map(Into::into).collect();
    Limits::check(&words).expect("whole").iter().filter(|slot| slot.get() > 0).count()
}

fn a_lazy_server_holds_what_its_primary_held_whatever_stops_it(kind: Kind) {
    let recorded = Recorded::new(TestStore::new(kind));
    let pg = lazy(&recorded);
    let written = run(command("du").arg("-sk").arg(pg.data()));
    let kilobytes: u64 =
        written.split_whitespace().next().and_then(|size| size.parse().ok()).expect("a number");
    assert!(kilobytes < 40 << 10, "{kilobytes} kB were written");
    let pins =
        zenith(&recorded.store, env!("CARGO_BIN_EXE_zenith"), &["pin", "list"]).output().expect("started");
    succeeds(&pins);
    let pin = std::fs::read_to_string(pg.data().join("zenith/pin")).expect("a pin");
    assert!(String::from_utf8_lossy(&pins.stdout).starts_with(pin.trim()), "{pins:?}");

    pg.start();
    let held = dump(&pg, &[]);
    let different = held.lines().zip(recorded.dump.lines()).find(|(ours, theirs)| ours != theirs);
    assert_eq!((different, held.len()), (None, recorded.dump.len()));
    run(pg.client("pg_amcheck").args(["--all", "--heapallindexed", "--install-missing"]));
    let refused = pg.client("pg_basebackup").args(["-X", "none", "-D"]).arg(pg.home().join("copy")).output();
    assert!(said(&refused.expect("started")).contains("zenith.half_filled"));
    pg.stop(StopMode::Fast);

    // Without the extension it never starts, and nothing changes.
    let before = checksums_of(pg.data());
    let without = ["-c", "shared_preload_libraries="];
    let server = || command(bin_dir().join("postgres"));
    let label = "invalid data in file \"backup_label\"";
    let output = server().arg("-D").arg(pg.data()).args(without).output().expect("started");
    assert!(said(&output).contains(label), "{output:?}");
    let output = server().arg("--single").arg("-D").arg(pg.data()).args(without).arg("postgres").output();
    assert!(said(&output.expect("started")).contains(label));
    assert_eq!(checksums_of(pg.data()), before);

    pg.start();
    pg.sql("INSERT INTO t SELECT g, 'new' FROM generate_series(100001, 100100) g; UPDATE t SET md5 = 'x' WHERE g = 7");
    pg.stop(StopMode::Immediate);
    pg.start();
    assert_eq!(
        pg.sql("SELECT count(*) FILTER (WHERE md5 = 'new'), count(*) FILTER (WHERE md5 = 'x') FROM t"),
        "100|1"
    );
    // A backend that is killed makes the postmaster start recovery again, without loading the library anew.
    pg.sql("UPDATE t SET md5 = 'y' WHERE g = 8");
    let pid = pg.sql("SELECT pg_backend_pid()");
    let mut session = pg.session("postgres");
    let victim = session.sql("SELECT pg_backend_pid()");
    assert_ne!(pid, victim);
    run(command("kill").args(["-KILL", victim.trim()]));
    pg.wait_until_it_answers();
    assert_eq!(pg.sql("SELECT count(*) FROM t WHERE md5 = 'y'"), "1");
    pg.sql("DELETE FROM t WHERE md5 = 'new'; UPDATE t SET md5 = md5(g::text) WHERE g IN (7, 8)");
    pg.stop(StopMode::Immediate);
    pg.start();
    assert_eq!(pg.sql("SELECT count(*), sum(hashtext(md5)::bigint) FROM t"), recorded.sum);
    run(pg.client("pg_amcheck").args(["--all", "--heapallindexed", "--install-missing"]));

    let end = zenith(&recorded.store, env!("CARGO_BIN_EXE_zenith"), &["pin", "end", pin.trim()]).output();
    succeeds(&end.expect("started"));
    let end = zenith(&recorded.store, env!("CARGO_BIN_EXE_zenith"), &["pin", "end", pin.trim()]).output();
    fails(&end.expect("started"), &["no pin"]);
}

#[test]
fn what_was_cut_off_or_dropped_stays_gone_after_a_crash() {
    let recorded = Recorded::new(TestStore::folder());
    let pg = started(&recorded);
    let all = unfilled(&pg);
    // One transaction truncates in place only what it has made itself; VACUUM truncates what is old.
    pg.sql("DELETE FROM t WHERE g > 100 OR g % 7 = 0");
    pg.script("postgres", "SET vacuum_freeze_min_age = 0; VACUUM (TRUNCATE) t; DROP TABLE dropped;");
    let (file, blocks) =
        (pg.sql("SELECT pg_relation_filepath('t')"), pg.sql("SELECT pg_relation_size('t') / 8192"));
    assert!(blocks.parse::<u32>().expect("a number") < 10, "{blocks}");
    pg.stop(StopMode::Immediate);
    assert!(unfilled(&pg) < all);
    pg.start();
    assert_eq!(pg.sql("SELECT pg_relation_filepath('t')"), file);
    // The blocks that are made again are new: nothing of the old ones comes back.
    pg.sql(
        "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 20000) g WHERE g > 100 OR g % 7 = 0",
    );
    pg.stop(StopMode::Immediate);
    pg.start();
    assert_eq!(pg.sql("SELECT count(*), count(DISTINCT g), max(g) FROM t"), "20000|20000|20000");
    run(pg.client("pg_amcheck").args(["--all", "--heapallindexed", "--install-missing"]));
}

#[test]
fn a_database_that_takes_a_dropped_ones_number_is_its_own() {
    let recorded = Recorded::new(TestStore::folder());
    let pg = started(&recorded);
    let number = pg.sql("SELECT oid FROM pg_database WHERE datname = 'second'");
    let refused = error_of(&pg, "DROP DATABASE nobody");
    assert!(refused.contains("does not exist"), "{refused}");
    let mut session = pg.session("second");
    // It is connected.
    session.sql("SELECT 1");
    let refused = error_of(&pg, "DROP DATABASE second");
    assert!(refused.contains("is being accessed"), "{refused}");
    drop(session);
    pg.wait_for("NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 'second')");
    assert_eq!(
        pg.sql_in("second", "SELECT count(*) FROM s"),
        "1000",
        "a drop that was refused keeps its pages"
    );

    let refused = error_of(&pg, "CREATE DATABASE copy TEMPLATE second STRATEGY file_copy");
    assert!(refused.contains("not all of its pages are here") && refused.contains("wal_log"), "{refused}");
    let place = pg.home().join("space");
    std::fs::create_dir(&place).expect("made");
    zenith_testkit::pg::give_to_server(&place);
    pg.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display()));
    let refused = error_of(&pg, "ALTER DATABASE second SET TABLESPACE space");
    assert!(refused.contains("not all of its pages are here"), "{refused}");
    pg.sql("CREATE DATABASE copy TEMPLATE second");
    assert_eq!(pg.sql_in("copy", "SELECT count(*), sum(x) FROM s"), "1000|500500");

    pg.sql("DROP DATABASE second");
    pg.sql(&format!("CREATE DATABASE third OID {number}"));
    pg.stop(StopMode::Immediate);
    pg.start();
    assert_eq!(pg.sql_in("third", "SELECT count(*) FROM pg_class WHERE relname = 's'"), "0");
    pg.sql_in("third", "CREATE TABLE s AS SELECT 1 AS x");
    assert_eq!(pg.sql_in("third", "SELECT sum(x) FROM s"), "1");
    // Files may be copied that have no holes.
    pg.sql("CREATE DATABASE fourth TEMPLATE third STRATEGY file_copy");
    assert_eq!(pg.sql_in("fourth", "SELECT sum(x) FROM s"), "1");
    run(pg.client("pg_amcheck").args(["--all", "--heapallindexed", "--install-missing"]));
}

#[test]
fn a_reader_that_is_lost_comes_back_and_a_store_that_is_lost_is_waited_for() {
    let recorded = Recorded::new(TestStore::folder());
    let pg = started(&recorded);
    assert_eq!(pg.sql("SELECT count(*) FROM dropped"), "5000");
    // Nobody's child: the server goes on without it.
    let kill =
        || run(command("pkill").args(["-KILL", "-f", &format!("zenith_reader.*{}", recorded.store.url())]));
    kill();
    assert_eq!(pg.sql("SELECT min(g) FROM t"), "1");
    assert_eq!(pg.log().matches("waiting for block").count(), 1, "{}", pg.log());

    let is_waiting =
        "EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%FROM waits' AND wait_event = 'Extension')";
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%FROM waits' AND pid <> pg_backend_pid()";
    read_catalogs(&pg);
    let folder = recorded.folder();
    let away = folder.with_extension("away");
    std::fs::rename(&folder, &away).expect("moved");
    kill();
    let wanted = "SELECT count(*) FROM waits";
    let error = error_of(&pg, &format!("SET statement_timeout = '300ms'; {wanted}"));
    assert!(error.contains("statement timeout"), "{error}");
    let error = error_of(&pg, &format!("SET zenith.reader_timeout = '1s'; {wanted}"));
    for word in ["could not fetch block 0 in file \"base/", "zenith.reader_timeout", "zenith/reader.log"] {
        assert!(error.contains(word), "{error}");
    }
    let mut waiting = pg.client("psql").args(["-XAtqc", wanted]).spawn().expect("started");
    pg.wait_for(is_waiting);
    pg.sql(cancel);
    assert!(!waiting.wait().expect("ended").success());

    let waiting = pg.client("psql").args(["-XAtqc", wanted]).stdout(std::process::Stdio::piped()).spawn();
    let waiting = waiting.expect("started");
    pg.wait_for(is_waiting);
    std::fs::rename(&away, &folder).expect("moved back");
    let answer = waiting.wait_with_output().expect("ended");
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "3000");
}

#[test]
fn a_damaged_layer_fails_the_queries_that_need_it_by_name() {
    let recorded = Recorded::new(TestStore::folder());
    let pg = started(&recorded);
    read_catalogs(&pg);
    run(command("pkill").args(["-KILL", "-f", &format!("zenith_reader.*{}", recorded.store.url())]));
    let layers = recorded.store.list("").into_iter().filter(|name| name.contains("/layers/"));
    for name in layers {
        let mut content = recorded.store.get(&name).to_vec();
        // Behind the first bytes, before the footer: pages' contents.
        let (from, to) = (content.len() / 4, content.len() / 2);
        content[from..to].iter_mut().for_each(|byte| *byte ^= 0xFF);
        recorded.store.put(&name, &content);
    }
    let error = error_of(&pg, "SELECT sum(hashtext(md5)) FROM t");
    for word in ["XX001", "could not fetch block", "base/", "damaged", "layers/"] {
        assert!(error.contains(word), "no {word}: {error}");
    }
    assert_eq!(pg.sql("SELECT 1 + 1"), "2");
}

#[test]
fn a_directory_is_refused_by_a_server_that_it_is_not_for() {
    let recorded = Recorded::new(TestStore::folder());
    let pg = lazy(&recorded);
    let refuses = |words: &[&str]| {
        let log = pg.try_start().expect_err("refused");
        for word in words {
            assert!(log.contains(word), "no {word}: {log}");
        }
    };
    let changed = |path: &str, change: &dyn Fn(&mut Vec<u8>), words: &[&str]| {
        let path = pg.data().join(path);
        let before = std::fs::read(&path).expect("there");
        let mut content = before.clone();
        change(&mut content);
        std::fs::write(&path, content).expect("written");
        refuses(words);
        std::fs::write(&path, before).expect("written");
    };
    let replaced = |from: &'static str, to: &'static str| {
        move |content: &mut Vec<u8>| {
            *content = String::from_utf8_lossy(content).replace(from, to).into_bytes();
        }
    };
    let compute = "zenith/compute.json";
    changed(
        compute,
        &replaced("\"server_version_num\": 15", "\"server_version_num\": 1"),
        &["FATAL", "restored for server"],
    );
    changed(
        compute,
        &replaced("\"system_identifier\": \"", "\"system_identifier\": \"1"),
        &["system identifier"],
    );
    changed(compute, &replaced("\"format\": 1", "\"format\": 9"), &["newer release"]);
    changed("zenith/limits", &|content| content[30] ^= 1, &["limits is damaged"]);
    changed("zenith/limits", &|content| content.truncate(100), &["limits is damaged"]);
    changed(
        "postgresql.auto.conf",
        &|content| content.extend(b"full_page_writes = off\n"),
        &["full_page_writes must be on"],
    );
    changed(
        "postgresql.auto.conf",
        &|content| content.extend(b"wal_log_hints = off\n"),
        &["wal_log_hints must be on"],
    );
    pg.start();
    assert_eq!(pg.sql("SELECT count(*) FROM dropped"), "5000");
    pg.configure(&["full_page_writes = off"]);
    pg.sql("SELECT pg_reload_conf()");
    pg.wait_for("EXISTS (SELECT FROM pg_file_settings WHERE name = 'full_page_writes' AND setting = 'off')");
    assert_eq!(pg.sql("SHOW full_page_writes"), "on");
    // Errors of commands keep what they say about where and what.
    let error = error_of(&pg, "INSERT INTO dropped (g) VALUES (1)");
    assert!(error.contains("CONSTRAINT NAME:  dropped_pkey"), "{error}");
    let error = error_of(&pg, "ALTER TABLE dropped ALTER nothing SET NOT NULL; SELECT 1");
    assert!(error.contains("dropped"), "{error}");
    let error = error_of(&pg, "CREATE TABLE wrong (x nonsense)");
    assert!(error.contains("LINE 1") && error.contains("^"), "{error}");
}

#[test]
fn a_lazy_restore_that_fails_leaves_no_pin_and_one_past_what_is_sliced_says_how() {
    let recorded = Recorded::unsliced(TestStore::folder());
    let home = server_dir();
    let output = recorded.restore(&home.path().join("data"), &[]);
    fails(&output, &["sliced", "run zenith_slicedice"]);
    recorded.slice();
    let pins = || recorded.store.list("").into_iter().filter(|name| name.contains("/pins/")).count();
    assert_eq!(pins(), 0);
    // Files of more than 64 KB cannot be written: neither WAL segments nor sparse relations.
    let data = home.path().join("data");
    let limited = "ulimit -f 128; exec \"$@\"";
    let program = env!("CARGO_BIN_EXE_zenith_restore");
    let mut restoring = zenith(&recorded.store, "sh", &["-c", limited, "sh", program, "--lazy", "-D"]);
    let output = restoring.arg(&data).output().expect("started");
    fails(&output, &["too large"]);
    assert!(!data.exists());
    assert_eq!(pins(), 0);
    succeeds(&recorded.restore(&data, &["--no-pin"]));
    assert_eq!(pins(), 0);
    assert!(!data.join("zenith/pin").exists());
}
