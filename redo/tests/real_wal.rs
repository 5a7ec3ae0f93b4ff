//! Every page of a real server, built from its WAL, is the page that the server has.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod common;

use common::{Recording, WORKLOAD, name, pool, record};
use std::collections::{BTreeMap, BTreeSet};
use zenith_pgformat::wal::{RmgrId, image};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, Page};
use zenith_redo::{PageRequest, RedoPool, page};
use zenith_testkit::mask::first_difference;
use zenith_testkit::pg::PgOptions;

/// References that redo treats in a way of their own, by resource manager, type and number: the workload must make them.
const REQUIRED: [(RmgrId, u8, u8); 22] = [
    (RmgrId::HEAP, 0x50, 0),   // CONFIRM
    (RmgrId::HEAP, 0xA0, 1),   // UPDATE to a new page, the old one's reference
    (RmgrId::HEAP2, 0x40, 0),  // VISIBLE, the map's
    (RmgrId::HEAP2, 0x40, 1),  // VISIBLE, the heap's
    (RmgrId::HEAP2, 0x60, 0),  // LOCK_UPDATED
    (RmgrId::HASH, 0x40, 0),   // SPLIT_ALLOCATE_PAGE, the old bucket's
    (RmgrId::HASH, 0x60, 1),   // SPLIT_COMPLETE
    (RmgrId::HASH, 0x70, 0),   // MOVE_PAGE_CONTENTS, a bucket only locked
    (RmgrId::HASH, 0x80, 0),   // SQUEEZE_PAGE, likewise
    (RmgrId::HASH, 0x90, 0),   // DELETE, likewise
    (RmgrId::HASH, 0xC0, 0),   // VACUUM_ONE_PAGE
    (RmgrId::GIST, 0x00, 1),   // PAGE_UPDATE, the left child's
    (RmgrId::GIST, 0x10, 0),   // DELETE
    (RmgrId::GIST, 0x30, 0),   // PAGE_SPLIT, the left child's
    (RmgrId::GIST, 0x60, 1),   // PAGE_DELETE
    (RmgrId::GIN, 0x30, 3),    // SPLIT, the child's
    (RmgrId::GIN, 0x50, 2),    // DELETE_PAGE
    (RmgrId::BTREE, 0x20, 0),  // INSERT_META
    (RmgrId::BTREE, 0x90, 2),  // UNLINK_PAGE_META
    (RmgrId::SPGIST, 0x30, 2), // ADD_NODE that moves the tuple to another page
    (RmgrId::SPGIST, 0x40, 0), // SPLIT_TUPLE
    (RmgrId::GENERIC, 0x00, 0),
];

/// The references of a recording that need an older page.
fn kinds(recording: &Recording) -> BTreeSet<(RmgrId, u8, u8)> {
    let mut kinds = BTreeSet::new();
    for record in &recording.records {
        let old = record.blocks.iter().filter(|block| !block.starts_history() && block.fork != Fork::Fsm);
        kinds.extend(old.map(|block| (record.rmgr, record.info & 0xF0, block.id)));
    }
    kinds
}

/// Builds every block that the server has at the end, from its first base page, in one request each.
fn build(recording: &Recording, pool: &RedoPool, trimmed: bool) -> BTreeMap<String, Box<Page>> {
    let mut names = Vec::new();
    let mut requests: Vec<PageRequest> = Vec::new();
    for key in recording.pages().into_keys() {
        let Some(history) = recording.histories.get(&key) else { continue };
        let changes = history.steps.iter().map(|step| if trimmed { &step.trimmed } else { &step.whole });
        requests.push(recording.request(key, history.base.clone(), changes.cloned().collect()));
        names.push(name(key).to_string());
    }
    let pages = pool.redo_blocking(requests);
    let errors: Vec<String> =
        pages.iter().filter_map(|page| page.as_ref().err()).map(ToString::to_string).collect();
    assert!(errors.is_empty(), "{} errors: {:#?}", errors.len(), &errors[..errors.len().min(20)]);
    names.into_iter().zip(pages.into_iter().flatten()).collect()
}

/// Pages on which a server keeps state that it does not log: a sequence's last value (up to 32 ahead in the WAL) and the
/// last used pages that an SP-GiST metapage remembers.
fn keeps_unlogged_state(page: &Page, block: u32) -> bool {
    let special = usize::from(page::special(page));
    let spgist = special == BLCKSZ - 8 && page[BLCKSZ - 2..] == [0x82, 0xFF];
    let sequence = special == BLCKSZ - 8 && page[special..] == [0x17, 0x17, 0, 0, 0, 0, 0, 0];
    block == 0 && (spgist && page[special] & 1 != 0 || sequence)
}

fn check_against_files(recording: &Recording, pool: &RedoPool) -> BTreeMap<String, Box<Page>> {
    let built = build(recording, pool, true);
    let mut wrong = Vec::new();
    let mut changed = 0;
    for (key, theirs) in recording.pages() {
        let name = name(key).to_string();
        let mut ours = built.get(&name).cloned().unwrap_or(Box::new([0; BLCKSZ]));
        if key.1 == Fork::Vm && page::is_new(&ours) {
            // A map grows unlogged, by pages that are initialised but empty (`vm_extend`).
            page::init(&mut ours);
        }
        changed +=
            usize::from(recording.histories.get(&key).is_some_and(|history| !history.steps.is_empty()));
        let theirs: &Page = theirs.as_ref().try_into().unwrap();
        if keeps_unlogged_state(theirs, key.2) {
            continue;
        }
        if let Some(at) = first_difference(ours.as_slice(), theirs, key.2) {
            wrong.push(format!("{name}: byte {at}"));
        } else if key.1 != Fork::Init && page::lsn(&ours) != page::lsn(theirs) {
            // (An init fork is written before its image is logged and so never gets the LSN.)
            wrong.push(format!("{name}: LSN {} instead of {}", page::lsn(&ours), page::lsn(theirs)));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} pages: {:#?}",
        wrong.len(),
        built.len(),
        &wrong[..wrong.len().min(40)]
    );
    assert!(changed > 800, "only {changed} pages were changed: the workload has become too small");
    built
}

/// Every record of the recording, one at a time, against the page that the server logged after it.
fn check_every_step(recording: &Recording, pool: &RedoPool) -> usize {
    let mut pages: BTreeMap<_, Box<Page>> = BTreeMap::new();
    let mut checked = 0;
    let mut wrong = Vec::new();
    let rounds = recording.histories.values().map(|history| history.steps.len()).max().unwrap_or(0);
    for round in 0..rounds {
        let mut keys = Vec::new();
        let mut requests = Vec::new();
        for (key, history) in &recording.histories {
            let Some(step) = history.steps.get(round) else { continue };
            let base = match pages.get(key) {
                Some(page) => Some(bytes::Bytes::copy_from_slice(page.as_slice())),
                None => history.base.clone(),
            };
            requests.push(recording.request(*key, base, vec![step.trimmed.clone()]));
            keys.push((*key, step));
        }
        for ((key, step), page) in keys.into_iter().zip(pool.redo_blocking(requests)) {
            let page = page.unwrap_or_else(|error| panic!("{}: {error}", step.what));
            if let Some(check) = &step.check {
                let theirs = image::restore(check).unwrap();
                checked += 1;
                if let Some(at) = first_difference(page.as_slice(), theirs.as_slice(), key.2) {
                    wrong.push(format!("{}: byte {at} after {}", name(key), step.what));
                }
            }
            pages.insert(key, page);
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}: {:#?}", wrong.len(), &wrong[..wrong.len().min(40)]);
    checked
}

#[test]
fn every_page_of_every_access_method_equals_the_servers_own() {
    let recording = record(&PgOptions::default(), false, |pg| drop(pg.script("postgres", WORKLOAD)));
    let seen = kinds(&recording);
    let missing: Vec<_> = REQUIRED.iter().filter(|kind| !seen.contains(*kind)).collect();
    assert!(missing.is_empty(), "the workload does not make {missing:x?}");
    let (pool, _directory) = pool(2);
    check_against_files(&recording, &pool);
}

#[test]
fn with_checksums_page_lsns_follow_hint_bit_logging() {
    let options = PgOptions::default().initdb("--data-checksums").conf("wal_compression = lz4");
    let recording = record(&options, true, |pg| drop(pg.script("postgres", WORKLOAD)));
    let (pool, _directory) = pool(2);
    check_against_files(&recording, &pool);
}

#[test]
fn after_every_record_the_page_is_the_one_that_the_server_logged() {
    let options = PgOptions::default().conf("wal_consistency_checking = all").conf("wal_log_hints = on");
    let recording = record(&options, true, |pg| drop(pg.script("postgres", WORKLOAD)));
    let (pool, _directory) = pool(2);
    let checked = check_every_step(&recording, &pool);
    assert!(checked > 20_000, "only {checked} pages were checked");
}

#[test]
fn trimmed_and_whole_records_build_the_same_pages() {
    let options = PgOptions::default().conf("full_page_writes = off");
    let recording = record(&options, false, |pg| drop(pg.script("postgres", WORKLOAD)));
    let (pool, _directory) = pool(2);
    let trimmed = check_against_files(&recording, &pool);
    let whole = build(&recording, &pool, false);
    assert_eq!(trimmed.len(), whole.len());
    for (name, page) in &trimmed {
        assert_eq!(whole[name].iter().zip(page.iter()).position(|(a, b)| a != b), None, "{name}");
    }
    assert!(trimmed.values().any(|page| page::lsn(page) > Lsn(0)));
}
