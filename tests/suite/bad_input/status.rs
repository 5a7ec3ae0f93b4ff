//! What `zenith status` says of a store that something is wrong with, to people, to scripts and to Prometheus.

use super::world::{World, run};
use crate::harness::TestStore;
use zenith_testkit::on_each_store;
use zenith_testkit::store::Kind;

on_each_store!(max_age_exits_1_by_what_is_wrong_and_prometheus_gets_it_in_numbers);

/// The value of a metric of the timeline `main`.
fn metric(text: &str, name: &str) -> f64 {
    let line = format!("{name}{{cluster=\"main\",timeline=\"main\"}} ");
    let value = text.lines().find_map(|text| text.strip_prefix(&line));
    value.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().expect("a number")
}

fn lsn_of(text: &str) -> f64 {
    let (high, low) = text.split_once('/').expect("an LSN");
    let part = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
    (part(high) << 32 | part(low)) as f64
}

fn max_age_exits_1_by_what_is_wrong_and_prometheus_gets_it_in_numbers(kind: Kind) {
    let world = World::shared();
    let store = world.store(kind);
    let status =
        |store: &TestStore, arguments: &[&str]| run(store, "zenith", &[&["status"], arguments].concat());
    status(&store, &["--max-age", "1d"]).succeeds();
    let text = status(&store, &["--prometheus", "--max-age", "1d"]).succeeds().text();
    assert!(text.ends_with("zenith_problems 0\n"), "{text}");
    assert_eq!(metric(&text, "zenith_sliced_lsn_bytes"), lsn_of(&world.sliced));
    assert_eq!(metric(&text, "zenith_archived_lsn_bytes"), lsn_of(&world.end));
    assert_eq!(metric(&text, "zenith_waiting_for_wal"), 0.0);
    assert_eq!(metric(&text, "zenith_base_images"), 1.0);

    // An old archive and a stopped slicer.
    let old =
        status(&store, &["--max-age", "0ms"]).fails(&["main/main", "archive_command", "zenith_slicedice"]);
    assert!(old.text().contains("can be restored"), "the status is printed all the same");
    let json = status(&store, &["--json", "--max-age", "0ms"]).fails(&[]).text();
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["problems"].as_array().map(Vec::len), Some(2), "{json}");
    let text = status(&store, &["--prometheus", "--max-age", "0ms"]).fails(&[]).text();
    assert!(text.ends_with("zenith_problems 2\n"), "{text}");
    assert!(metric(&text, "zenith_unsliced_age_seconds") > 0.0);
    // Everything is sliced: the archive alone is old.
    run(&store, "zenith_slicedice", &[]).succeeds();
    let sliced = status(&store, &["--max-age", "0ms"]).fails(&["archive_command"]);
    assert!(!sliced.said.contains("zenith_slicedice"), "{}", sliced.said);

    // A gap.
    let missing = &world.segments[world.sliced_segments].name;
    let object = world.segment(missing);
    let gap = world.store_without(kind, |name| name == object);
    status(&gap, &["--max-age", "0ms"]).fails(&[missing, "is missing"]);
    let text = status(&gap, &["--prometheus"]).succeeds().text();
    assert_eq!(metric(&text, "zenith_waiting_for_wal"), 1.0);
    assert_eq!(metric(&text, "zenith_archived_lsn_bytes"), lsn_of(&world.sliced));

    // Nothing to restore, and nothing at all.
    let without = world
        .store_without(kind, |name| ["/manifest", "/layers/", "/base/"].iter().any(|of| name.contains(of)));
    status(&without, &["--max-age", "1d"]).fails(&["no base image", "zenith_push base"]);
    let empty = world.store_without(kind, |name| name.starts_with("main/"));
    empty.put("elsewhere", b"so that there is a store");
    status(&empty, &[]).succeeds();
    status(&empty, &["--max-age", "1d"]).fails(&["nothing was ever pushed"]);
}
