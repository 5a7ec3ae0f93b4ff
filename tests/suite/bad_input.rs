//! Damaged and missing objects, gaps and targets outside: an error that names the object or LSN and what to do, nothing
//! lost, nothing half-written. What single commands refuse is in `tools/tests`.

use crate::harness::{Chain, TestStore};
use std::path::{Path, PathBuf};
use zenith_testkit::pg::{PgOptions, StopMode};

/// A sliced chain on a folder, and the folder of its one timeline.
fn sliced_chain() -> (Chain, PathBuf) {
    let chain = Chain::start(TestStore::folder(), PgOptions::default().initdb("--wal-segsize=1"));
    chain.run("zenith_push", &["base", "--checkpoint=fast"]);
    chain.primary.sql("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 20000) i");
    chain.archive();
    chain.run("zenith_slicedice", &[]);
    let TestStore::Folder(folder) = &chain.store else { unreachable!("it was made on a folder") };
    let timelines = folder.path().join("store/main/timelines");
    let timeline = only_entry(&timelines);
    (chain, timeline)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths
}

fn only_entry(folder: &Path) -> PathBuf {
    let entries = entries(folder);
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].clone()
}

fn name_of(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

/// The restore fails, its message has all the words, and it leaves nothing behind.
fn restore_fails(chain: &Chain, target: &[&str], words: &[&str]) {
    let data = chain.primary.home().join("not-restored");
    let argument = data.display().to_string();
    let mut arguments = vec!["-D", &argument];
    arguments.extend_from_slice(target);
    let said = chain.refuse("zenith_restore", &arguments);
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(!data.exists(), "left behind: {said}");
}

#[test]
fn a_damaged_missing_or_foreign_object_is_named_and_nothing_is_written() {
    let (chain, timeline) = sliced_chain();
    for layer in entries(&timeline.join("layers")) {
        let whole = std::fs::read(&layer).expect("a layer");
        for position in [whole.len() / 3, whole.len() - 20] {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x10;
            std::fs::write(&layer, &damaged).expect("damage");
            let data = chain.primary.home().join("not-restored");
            let output = chain
                .zenith("zenith_restore", &["-D", &data.display().to_string()])
                .output()
                .expect("zenith_restore starts");
            // A flip in a part that this restore does not need is harmless; any other is named.
            if output.status.success() {
                std::fs::remove_dir_all(&data).expect("restored");
            } else {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(1), "{said}");
                assert!(said.contains(&name_of(&layer)), "{} is not named: {said}", layer.display());
                assert!(!data.exists(), "left behind: {said}");
            }
        }
        std::fs::remove_file(&layer).expect("remove");
        let is_events = chain.run("zenith", &["layers"]).lines().any(|line| {
            line.contains("events") && line.contains(name_of(&layer).trim_end_matches(".parquet"))
        });
        if !is_events {
            restore_fails(&chain, &[], &[&name_of(&layer)]);
        }
        std::fs::write(&layer, &whole).expect("put it back");
        zenith_testkit::pg::give_to_server(&layer);
    }

    let manifests = entries(&timeline.join("manifest"));
    let newest = manifests.last().expect("a manifest version");
    let whole = std::fs::read(newest).expect("a root");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(newest, &damaged).expect("damage");
    restore_fails(&chain, &[], &[&name_of(newest), "checksum"]);
    std::fs::write(newest, &whole).expect("put it back");

    let identity = timeline.join("identity");
    let whole = std::fs::read(&identity).expect("an identity");
    std::fs::write(&identity, &whole[..10]).expect("damage");
    restore_fails(&chain, &[], &["identity"]);
    std::fs::write(&identity, &whole).expect("put it back");

    let restored = chain.restore(&[]);
    restored.start();
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "20000");
}

#[test]
fn a_lost_segment_ends_what_can_be_restored_and_is_named() {
    let (chain, timeline) = sliced_chain();
    let before = chain.primary.sql("SELECT pg_current_wal_lsn()");
    for _ in 0..3 {
        chain.primary.sql("INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series(1, 4000) i");
        chain.archive();
    }
    let after = chain.primary.sql("SELECT pg_current_wal_lsn()");
    let lost = chain.primary.sql(&format!("SELECT pg_walfile_name('{before}'::pg_lsn + 1)"));
    let object = timeline.join("wal/00000001").join(format!("{lost}.zst"));
    let whole = std::fs::read(&object).expect("an archived segment");
    std::fs::remove_file(&object).expect("lose it");

    let said = chain.run("zenith_slicedice", &[]);
    assert!(said.contains(&lost), "{lost} is not named: {said}");
    restore_fails(&chain, &["--lsn", &after], &[&after]);
    let status = chain.run("zenith", &["status"]);
    assert!(status.contains(&lost), "{lost} is not named: {status}");

    // A damaged segment is no lost one: slicing stops and says which.
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&object, &damaged).expect("damage");
    let said = chain.refuse("zenith_slicedice", &[]);
    assert!(said.contains(&lost), "{lost} is not named: {said}");

    std::fs::write(&object, &whole).expect("put it back");
    chain.run("zenith_slicedice", &[]);
    let restored = chain.restore(&[]);
    restored.start();
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "32000");
    restored.stop(StopMode::Fast);
}

#[test]
fn a_target_outside_of_what_the_store_holds_is_refused_by_name() {
    let (chain, _) = sliced_chain();
    restore_fails(&chain, &["--lsn", "0/100100"], &["0/100100", "base image"]);
    restore_fails(&chain, &["--lsn", "FF/0"], &["FF/0"]);
    restore_fails(&chain, &["--time", "2001-01-01 00:00:00+00"], &["2001"]);
    restore_fails(&chain, &["--time", "2100-01-01 00:00:00+00"], &["2100"]);
    restore_fails(&chain, &["--name", "nobody made it"], &["nobody made it"]);
    restore_fails(&chain, &["--xid", "4000000000"], &["4000000000"]);
    restore_fails(&chain, &["--timeline", "mistyped"], &["mistyped"]);
    restore_fails(&chain, &["--cluster", "another"], &["another"]);
}
