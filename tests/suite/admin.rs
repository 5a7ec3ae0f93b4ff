//! `zenith`: which objects a manifest version names, one page and what it took, and how far a store is.

use crate::harness::{Chain, TestStore};
use serde_json::Value;
use std::collections::BTreeSet;
use zenith_testkit::mask::first_difference;
use zenith_testkit::outcome;
use zenith_testkit::pg::{self, PgOptions};

/// A moment of a quiet primary: where it was, one page as it was there, and which objects the manifest named then.
struct Known {
    lsn: String,
    page: Vec<u8>,
    listing: Value,
}

/// A table that grows and changes, sliced twice.
struct Story {
    chain: Chain,
    relation: String,
    known: Vec<Known>,
}

impl Story {
    fn tell(store: TestStore) -> Story {
        // Nobody but this test writes to the table between a look at its page and a look at the LSN.
        let options = PgOptions::default()
            .initdb("--data-checksums")
            .initdb("--wal-segsize=1")
            .conf("autovacuum = off");
        let chain = Chain::start(store, options);
        let primary = &chain.primary;
        primary.sql("CREATE EXTENSION pageinspect");
        chain.run("zenith_push", &["base", "--checkpoint=fast"]);
        primary.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS v FROM generate_series(1, 5000) i");
        let relation = primary.sql("SELECT pg_relation_filepath('t')");
        let mut known = Vec::new();
        for round in 0..2 {
            for i in 1..=5 {
                primary.sql(&format!("UPDATE t SET v = 'round {round}' WHERE i = {i}"));
            }
            // Reading it prunes it and sets hint bits, which may write WAL.
            primary.sql("SELECT count(*) FROM t");
            let page = primary.sql("SELECT get_raw_page('t', 0)");
            let lsn = primary.sql("SELECT pg_current_wal_insert_lsn()");
            chain.archive();
            chain.run("zenith_slicedice", &[]);
            let listing = json(&chain, &["layers"]);
            known.push(Known { lsn, page: bytes(&page), listing });
        }
        Story { chain, relation, known }
    }
}

fn json(chain: &Chain, arguments: &[&str]) -> Value {
    let output = pg::run(chain.zenith("zenith", arguments).arg("--json"));
    serde_json::from_str(&output).expect("JSON")
}

/// A `bytea` as psql prints it.
fn bytes(text: &str) -> Vec<u8> {
    let digits = text.strip_prefix("\\x").expect("hexadecimal digits");
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("a byte");
    pairs.map(byte).collect()
}

/// The objects of a list in a document, as the store names them: below its prefix.
fn objects(list: &Value) -> BTreeSet<String> {
    let object = |entry: &Value| {
        let path = entry["object"].as_str().expect("a path");
        path[path.find("main/").expect("the cluster's folder")..].to_owned()
    };
    list.as_array().expect("a list").iter().map(object).collect()
}

fn lsn(value: &Value) -> u64 {
    let text = value.as_str().expect("an LSN");
    let (high, low) = text.split_once('/').expect("X/X");
    u64::from_str_radix(high, 16).expect("X") << 32 | u64::from_str_radix(low, 16).expect("X")
}

fn a_version_is_listed_as_it_was(story: &Story) {
    let Story { chain, known, .. } = story;
    for Known { listing, .. } in known {
        let version = listing["version"].as_u64().expect("a number").to_string();
        assert_eq!(json(chain, &["layers", "--version", &version]), *listing);
        let text = chain.run("zenith", &["layers", "--version", &version]);
        for object in objects(&listing["layers"]) {
            assert!(text.contains(&object), "{object} is not in {text}");
        }
    }
    let [older, newest] = [&known[0].listing, &known[1].listing].map(|listing| objects(&listing["layers"]));
    assert!(older.len() < newest.len() && older.is_subset(&newest), "{older:?} {newest:?}");
    // Nothing failed and nothing was collected: every object that is there is named.
    let timeline = known[1].listing["timeline"].as_str().expect("an id");
    let stored = chain.store.list(&format!("main/timelines/{timeline}/layers/"));
    assert_eq!(newest, stored.into_iter().collect());
    let unknown = chain.zenith("zenith", &["layers", "--version", "4711"]).output().expect("it starts");
    outcome::fails(&unknown, &["4711"]);
}

fn a_page_is_what_the_primary_had_and_is_explained(story: &Story) {
    let Story { chain, relation, known } = story;
    for (index, Known { lsn: at, page, .. }) in known.iter().enumerate() {
        let file = chain.primary.home().join(format!("page-{index}"));
        let arguments = ["page", "--rel", relation, "--block", "0", "--lsn", at];
        let output = ["-o", file.to_str().expect("text")];
        let told = json(chain, &[&arguments[..], &["--explain"], &output].concat());
        let given = std::fs::read(&file).expect("the page");
        assert_eq!(first_difference(&given, page, 0), None, "{told}");

        let explained = &told["explanation"];
        let rows = explained["rows"].as_array().expect("rows");
        let ends: Vec<u64> = rows.iter().map(|row| lsn(&row["lsn"])).collect();
        assert!(!ends.is_empty() && ends.is_sorted(), "{told}");
        assert!(ends.last() <= Some(&lsn(&told["lsn"])), "{told}");
        assert_eq!(lsn(&told["pd_lsn"]), *ends.last().expect("a row"), "{told}");
        let named = objects(&known[1].listing["layers"]);
        let needed = objects(&explained["layers"]);
        assert!(!needed.is_empty() && needed.is_subset(&named), "{told}");
        assert!(explained["requests"].as_u64() > Some(0) && explained["bytes"].as_u64() > Some(0), "{told}");

        let text = chain.run("zenith", &[&arguments[..], &["--explain"]].concat());
        for word in needed.iter().map(String::as_str).chain(["requests", "Heap"]) {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }
}

fn status_tells_how_far_the_store_is(story: &Story) {
    let Story { chain, known, .. } = story;
    let status = json(chain, &["status"]);
    assert_eq!(status["store"], chain.store.url());
    assert_eq!(status["problems"], Value::Array(Vec::new()));
    let clusters = status["clusters"].as_array().expect("clusters");
    let timelines = clusters[0]["timelines"].as_array().expect("timelines");
    assert_eq!((clusters.len(), timelines.len()), (1, 1), "{status}");
    let main = &timelines[0];
    let identifier = chain.primary.sql("SELECT system_identifier FROM pg_control_system()");
    assert_eq!((&clusters[0]["cluster"], &main["names"][0]), (&"main".into(), &"main".into()));
    assert_eq!(main["system_identifier"], identifier);
    assert_eq!(main["manifest_version"], known[1].listing["version"]);
    assert_eq!(main["base_images"][0]["confirmed"], true);
    assert_eq!(main["base_images"][0]["id"], known[1].listing["base_images"][0]);
    assert_eq!((&main["lost"], &main["missing"]), (&Value::Array(Vec::new()), &Value::Null));
    let reached = lsn(&Value::String(known[1].lsn.clone()));
    for position in ["sliced", "archived"] {
        assert!(lsn(&main[position]["lsn"]) >= reached, "{position}: {status}");
    }
    let count = |kind: &str| main["layers"][kind]["objects"].as_u64().expect("a number");
    let listed = objects(&known[1].listing["layers"]).len() as u64;
    assert_eq!(count("image") + count("delta") + count("events"), listed, "{status}");
    let everything = [chain.run("zenith", &["status"]), status.to_string()].concat();
    for (name, value) in chain.store.credentials() {
        assert!(!name.contains("SECRET") || !everything.contains(&value), "a secret is printed");
    }
}

fn what_zenith_tells(store: TestStore) {
    let story = Story::tell(store);
    a_version_is_listed_as_it_was(&story);
    a_page_is_what_the_primary_had_and_is_explained(&story);
    status_tells_how_far_the_store_is(&story);
}

#[test]
fn layers_page_and_status_tell_what_is_in_a_folder() {
    what_zenith_tells(TestStore::folder());
}

#[test]
fn layers_page_and_status_tell_what_is_in_minio() {
    what_zenith_tells(TestStore::minio());
}
