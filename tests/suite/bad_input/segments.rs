//! WAL segments in the archive that are missing, damaged, cut, another cluster's or another segment's: slicing and
//! restoring name them, what came before them can be read, and once they are put right everything goes on.

use super::world::{World, restore, restore_wal, run, wal_file};
use crate::harness::TestStore;
use zenith_testkit::on_each_store;
use zenith_testkit::store::Kind;

on_each_store!(
    a_segment_that_is_not_what_it_should_be_stops_slicing_and_restoring,
    a_segment_that_is_missing_is_waited_for_and_named,
    a_sliced_segment_is_missed_only_where_its_wal_is_needed,
    a_push_takes_this_clusters_whole_segments_only
);

/// What lies where the first segment that is not sliced should lie: everything that needs it fails and names it.
fn stops_at(world: &World, store: &TestStore, words: &[&str]) {
    let segment = &world.segments[world.sliced_segments];
    let object = world.segment(&segment.name);
    let before = world.page(store, &world.sliced).succeeds().stdout;
    let reading = store.list("");
    restore(store, &["--lsn", &world.end]).1.fails(words);
    restore(store, &[]).1.fails(words);
    world.page(store, &world.end).fails(words);
    let (ran, written) = restore_wal(store, &segment.name);
    ran.ends(255, &[&segment.name]);
    assert_eq!(written, None, "it was handed out");
    assert_eq!(store.list(""), reading, "reading changed the store");
    run(store, "zenith_slicedice", &[]).fails(words);
    world.lost_nothing(store, &object);
    // It neither comes in the way of what was sliced before, nor of a push, which never replaces it.
    assert!(world.page(store, &world.sliced).succeeds().stdout == before, "another page");
    let (_home, path) = wal_file(&segment.name, &segment.content);
    run(store, "zenith_push", &["wal", &path]).fails(&[&segment.name]);
    world.reset(store);
}

fn a_segment_that_is_not_what_it_should_be_stops_slicing_and_restoring(kind: Kind) {
    let world = World::shared();
    let store = world.store(kind);
    let segment = &world.segments[world.sliced_segments];
    let object = world.segment(&segment.name);
    let whole = store.get(&object);

    let mut flipped = whole.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    store.put(&object, &flipped);
    stops_at(world, &store, &[&segment.name, "damaged"]);

    store.put(&object, &whole[..whole.len() / 2]);
    stops_at(world, &store, &[&segment.name, "damaged"]);

    // Sound objects, but not of this place: they come from a cluster where they were accepted.
    let mut foreign = segment.content.clone();
    foreign[24..32].copy_from_slice(&7_000_000_000_000_000_001u64.to_le_bytes());
    store.put(&object, &accepted_elsewhere(&store, &segment.name, &foreign, "foreign"));
    stops_at(world, &store, &["system identifier", "7000000000000000001"]);

    let later = &world.segments[world.sliced_segments + 1];
    store.put(&object, &store.get(&world.segment(&later.name)));
    stops_at(world, &store, &[&world.sliced]);

    run(&store, "zenith_slicedice", &[]).succeeds();
    world.is_whole(&store);
}

/// The object that `zenith_push wal` makes of a segment in a cluster of its own, which goes again.
fn accepted_elsewhere(store: &TestStore, name: &str, content: &[u8], cluster: &str) -> Vec<u8> {
    let (_home, path) = wal_file(name, content);
    run(store, "zenith_push", &["--cluster", cluster, "wal", &path]).succeeds();
    let object = store.only(&format!("{cluster}/"), &format!("{name}.zst"));
    let frame = store.get(&object).to_vec();
    store.list(&format!("{cluster}/")).iter().for_each(|name| store.delete(name));
    frame
}

fn a_segment_that_is_missing_is_waited_for_and_named(kind: Kind) {
    let world = World::shared();
    let segment = &world.segments[world.sliced_segments];
    let object = world.segment(&segment.name);
    let store = world.store_without(kind, |name| name == object);
    let sliced = run(&store, "zenith_slicedice", &[]).succeeds().text();
    assert!(sliced.contains(&segment.name) && sliced.contains("zenith_push base"), "{sliced}");
    let status = run(&store, "zenith", &["status"]).succeeds().text();
    assert!(status.contains(&segment.name), "{status}");
    run(&store, "zenith", &["status", "--max-age", "0ms"]).fails(&[&segment.name, "is missing"]);
    restore(&store, &["--lsn", &world.end]).1.fails(&[&world.end, &segment.name]);
    restore(&store, &["--name", "kept"]).1.fails(&["kept", &segment.name]);
    world.page(&store, &world.end).fails(&[&world.end, &segment.name]);
    let (ran, written) = restore_wal(&store, &segment.name);
    assert_eq!((ran.code, written), (Some(1), None), "{}", ran.said);

    let (_home, path) = wal_file(&segment.name, &segment.content);
    run(&store, "zenith_push", &["wal", &path]).succeeds();
    run(&store, "zenith_slicedice", &[]).succeeds();
    world.is_whole(&store);
    run(&store, "zenith", &["status", "--max-age", "1d"]).succeeds();
}

/// The last WAL before the target begins the new server's own.
fn a_sliced_segment_is_missed_only_where_its_wal_is_needed(kind: Kind) {
    let world = World::shared();
    let store = world.store(kind);
    let last = &world.segments[world.sliced_segments - 1];
    let object = world.segment(&last.name);
    let whole = store.get(&object);
    let page = world.page(&store, &world.sliced).succeeds().stdout;
    store.delete(&object);
    restore(&store, &["--lsn", &world.sliced]).1.fails(&[&last.name, "zenith_push wal"]);
    assert!(world.page(&store, &world.sliced).succeeds().stdout == page, "another page");
    store.put(&object, &whole[..whole.len() / 2]);
    restore(&store, &["--lsn", &world.sliced]).1.fails(&[&last.name, "damaged"]);
    assert!(world.page(&store, &world.sliced).succeeds().stdout == page, "another page");
    let (ran, written) = restore_wal(&store, &last.name);
    ran.ends(255, &[&last.name, "damaged"]);
    assert_eq!(written, None);
    run(&store, "zenith_slicedice", &[]).succeeds();
}

fn a_push_takes_this_clusters_whole_segments_only(kind: Kind) {
    let world = World::shared();
    let store = world.store(kind);
    let before = store.list("");
    let next = &world.next;
    let refused = |name: &str, content: &[u8], words: &[&str]| {
        let (_home, path) = wal_file(name, content);
        run(&store, "zenith_push", &["wal", &path]).fails(&[&[name], words].concat());
        assert_eq!(store.list(""), before, "{name}: {words:?}");
    };
    let altered = |at: usize, bytes: &[u8]| {
        let mut content = next.content.clone();
        content[at..at + bytes.len()].copy_from_slice(bytes);
        content
    };
    refused(&next.name, &altered(24, &7u64.to_le_bytes()), &["system identifier 7"]);
    refused(&next.name, &next.content[..1 << 19], &["524288 bytes"]);
    refused(&next.name, &[], &["0 bytes"]);
    refused(&next.name, &altered(0, &[0; 2]), &["magic number"]);
    refused(&next.name, &altered(36, &16384u32.to_le_bytes()), &["16384"]);
    refused(&next.name, &altered(32, &(16u32 << 20).to_le_bytes()), &["16777216"]);
    refused(&next.name, &world.segments[0].content, &["stands at"]);
    let mut other = world.segments[0].clone();
    other.content[5000] ^= 1;
    refused(&other.name, &other.content, &["other content"]);
    refused("00000002.history", b"this is no history", &[]);
    let (_home, path) = wal_file(&next.name, &next.content);
    run(&store, "zenith_push", &["wal", &path]).succeeds();
    run(&store, "zenith_push", &["wal", &path]).succeeds();
}
