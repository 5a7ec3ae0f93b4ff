//! What one bad page costs: one page.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod common;

use bytes::Bytes;
use common::{options, pool, record};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zenith_pgformat::wal::Record;
use zenith_pgformat::{Fork, Lsn, Page};
use zenith_redo::native::Edit;
use zenith_redo::selftest::{Vector, vectors};
use zenith_redo::{Change, LIBRARY_NAME, PageRequest, RedoError, RedoOptions, RedoPool, StartError};
use zenith_testkit::pg::PgOptions;

/// The built-in test of this access method.
fn vector(name: &str) -> Vector {
    vectors().unwrap().into_iter().find(|vector| vector.name.contains(name)).unwrap()
}

fn request(vector: &Vector, changes: Vec<Change>) -> PageRequest {
    let (node, block) = (vector.node, vector.block);
    PageRequest { node, fork: Fork::Main, block, base: None, changes, hint_bits_logged: true }
}

fn changes(vector: &Vector) -> Vec<Change> {
    vector.records.iter().map(|(end, raw)| Change::record(*end, raw.clone())).collect()
}

fn good(vector: &Vector) -> PageRequest {
    request(vector, changes(vector))
}

/// A record turned into one of another type.
fn altered(change: &Change, rmgr: u8, info: u8) -> Change {
    let mut raw = change.bytes().to_vec();
    (raw[16], raw[17]) = (info, rmgr);
    Change::record(change.end, Bytes::from(raw))
}

/// A page whose last record is of another type.
fn poisoned(vector: &Vector, rmgr: u8, info: u8) -> PageRequest {
    let mut changes = changes(vector);
    let last = changes.pop().unwrap();
    changes.push(altered(&last, rmgr, info));
    request(vector, changes)
}

/// Many times the records of a page that begin with its initialisation: a long computation with a known end.
fn long(vector: &Vector, times: usize) -> PageRequest {
    let changes = (0..times).flat_map(|_| changes(vector)).collect();
    request(vector, changes)
}

fn status(pid: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split(':').nth(1).unwrap().trim().to_owned()
}

/// A condition that another process brings about.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..20_000_000 {
        if holds() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("{what}: never");
}

fn kill(pid: u32, signal: i32) {
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

/// Whether a process is gone or waits to be reaped.
fn is_dead(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.trim().is_empty() || rest.trim().starts_with(['Z', 'X']))
}

fn assert_page(page: &Result<Box<Page>, RedoError>, vector: &Vector) {
    let page = page.as_ref().unwrap();
    assert_eq!(vector.difference(page), None);
}

#[test]
fn a_process_is_in_its_sandbox_and_has_nothing_but_stderr() {
    let (pool, directory) = pool(1);
    let pid = pool.idle_process_ids()[0];
    assert_eq!(status(pid, "Seccomp:"), "2");
    assert_eq!(status(pid, "NoNewPrivs:"), "1");
    assert_eq!(status(pid, "Threads:"), "1");
    assert!(status(pid, "Uid:").split_whitespace().all(|uid| uid != "0"));
    let open: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(open, ["2"]);
    let left: Vec<PathBuf> = std::fs::read_dir(directory.path().join("work"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(left.len(), 1, "only the template is left: {left:?}");
}

#[test]
fn a_record_that_ends_its_process_costs_one_page() {
    let (pool, _directory) = pool(1);
    let vector = vector("heap");
    let before = pool.idle_process_ids();
    // No such type: PANIC.
    let batch = vec![good(&vector), poisoned(&vector, 11, 0xF0), good(&vector), good(&vector)];
    let pages = pool.redo_blocking(batch);
    for index in [0, 2, 3] {
        assert_page(&pages[index], &vector);
    }
    match &pages[1] {
        Err(RedoError::Crashed { key, lsn, message }) => {
            assert_eq!((key.block, *lsn), (vector.block, vector.records.last().unwrap().0));
            assert!(message.contains("signal 6") && message.contains("unknown op code"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_ne!(pool.idle_process_ids(), before, "the process was replaced");
}

#[test]
fn a_record_that_raises_an_error_costs_one_page_and_not_the_process() {
    let (pool, _directory) = pool(1);
    let vector = vector("heap");
    let before = pool.idle_process_ids();
    for _ in 0..50 {
        // GIN's VACUUM_PAGE insists on an image: ERROR, with the page's buffer pinned and locked.
        let pages = pool.redo_blocking(vec![poisoned(&vector, 13, 0x40), good(&vector)]);
        match &pages[0] {
            Err(RedoError::Failed { message, .. }) => {
                assert!(message.contains("did not restore"), "{message}")
            }
            other => panic!("{other:?}"),
        }
        assert_page(&pages[1], &vector);
    }
    assert_eq!(pool.idle_process_ids(), before);
}

#[test]
fn a_lost_base_is_an_error_that_names_page_and_lsn() {
    let (pool, _directory) = pool(1);
    let mut lost = 0;
    for vector in vectors().unwrap() {
        let mut without_first = changes(&vector);
        without_first.remove(0);
        let (end, raw) = (without_first[0].end, without_first[0].bytes().clone());
        let record = Record::decode(raw, Lsn(8), end).unwrap();
        let block = record.blocks.iter().find(|block| block.block == vector.block).unwrap();
        if block.starts_history() {
            continue;
        }
        match pool.redo_blocking(vec![request(&vector, without_first)]).remove(0) {
            Err(RedoError::LostBase { key, lsn }) => {
                assert_eq!((key.node, key.block, lsn), (vector.node, vector.block, end));
            }
            other => panic!("{}: {other:?}", vector.name),
        }
        lost += 1;
    }
    assert!(lost >= 5, "{lost}");
}

#[test]
fn a_record_that_is_not_this_pages_is_refused() {
    let (pool, _directory) = pool(1);
    let vector = vector("heap");
    let mut elsewhere = good(&vector);
    elsewhere.block += 1;
    let mut cut = changes(&vector);
    cut[0] = Change::record(cut[0].end, cut[0].bytes().slice(..20));
    let mut base = good(&vector);
    base.base = Some(Bytes::from_static(b"short"));
    let requests = vec![
        elsewhere,
        poisoned(&vector, 1, 0x00),
        poisoned(&vector, 200, 0x00),
        request(&vector, cut),
        base,
    ];
    let refused: Vec<String> =
        pool.redo_blocking(requests).into_iter().map(|page| page.unwrap_err().to_string()).collect();
    for (error, part) in
        refused.iter().zip(["refer to this block", "Transaction", "extension", "length", "5 bytes"])
    {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_process_killed_between_batches_costs_nothing() {
    let (pool, _directory) = pool(1);
    let vector = vector("btree");
    let pid = pool.idle_process_ids()[0];
    kill(pid, libc::SIGKILL);
    until("the process is dead", || is_dead(pid));
    let pages = pool.redo_blocking(vec![good(&vector), good(&vector)]);
    pages.iter().for_each(|page| assert_page(page, &vector));
}

#[test]
fn a_process_killed_at_work_costs_the_page_it_was_working_on() {
    let (pool, _directory) = pool(1);
    let vector = vector("heap");
    let pid = pool.idle_process_ids()[0];
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(11)?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let idle_ticks = ticks();
    let worker = {
        let (pool, batch) = (pool.clone(), vec![good(&vector), long(&vector, 300_000), good(&vector)]);
        std::thread::spawn(move || pool.redo_blocking(batch))
    };
    until("the process works", || ticks() > idle_ticks + 2);
    kill(pid, libc::SIGKILL);
    let pages = worker.join().unwrap();
    assert_page(&pages[0], &vector);
    assert!(matches!(&pages[1], Err(RedoError::Crashed { .. })), "{:?}", pages[1].as_ref().map(|_| ()));
    assert_page(&pages[2], &vector);
}

#[test]
fn a_process_that_does_not_answer_costs_one_page() {
    let (options, _directory) = options(1);
    // Long enough for the process that takes over: its start and its own work are bound by it, too.
    let limit = Duration::from_secs(15);
    let pool = RedoPool::start(&RedoOptions { timeout: limit, ..options }).unwrap();
    let vector = vector("heap");
    kill(pool.idle_process_ids()[0], libc::SIGSTOP);
    let pages = pool.redo_blocking(vec![good(&vector), good(&vector)]);
    match &pages[0] {
        Err(RedoError::TimedOut { key, lsn, limit: said }) => {
            assert_eq!((key.block, *lsn, *said), (vector.block, vector.records[0].0, limit));
        }
        other => panic!("{other:?}"),
    }
    assert_page(&pages[1], &vector);
}

#[test]
fn processes_end_with_their_pool() {
    let (pool, _directory) = pool(1);
    let pid = pool.idle_process_ids()[0];
    drop(pool);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_page_with_more_records_than_the_region_holds_is_built_in_steps() {
    let script = "CREATE TABLE hot (n int); INSERT INTO hot VALUES (0);
        DO $$ BEGIN FOR i IN 1..16000 LOOP UPDATE hot SET n = i; COMMIT; END LOOP; END $$;";
    let recording = record(&PgOptions::default().conf("full_page_writes = off"), false, |pg| {
        drop(pg.script("postgres", script))
    });
    let (key, history) = recording.histories.iter().max_by_key(|(_, history)| history.steps.len()).unwrap();
    let changes: Vec<Change> = history.steps.iter().map(|step| step.whole.clone()).collect();
    let length: usize = changes.iter().map(|change| change.bytes().len() + 16).sum();
    assert!(length > 1 << 20, "only {length} bytes of records");
    let request = recording.request(*key, history.base.clone(), changes);

    let (options, _directory) = options(1);
    let small = RedoPool::start(&RedoOptions { region_size: 1 << 20, ..options }).unwrap();
    let (large, _other_directory) = pool(1);
    let small = small.redo_blocking(vec![request.clone()]).remove(0).unwrap();
    let large = large.redo_blocking(vec![request.clone()]).remove(0).unwrap();
    assert_eq!(small.iter().zip(large.iter()).position(|(a, b)| a != b), None);
    let theirs = &recording.pages()[key];
    assert_eq!(zenith_testkit::mask::first_difference(small.as_slice(), theirs, key.2), None);
}

#[test]
fn a_record_longer_than_the_region_is_refused_by_its_length() {
    let (options, _directory) = options(1);
    let pool = RedoPool::start(&RedoOptions { region_size: 1 << 20, ..options }).unwrap();
    let vector = vector("heap");
    let giant = request(&vector, vec![Change::record(Lsn(0x100), Bytes::from(vec![0; 1 << 20]))]);
    let error = pool.redo_blocking(vec![giant]).remove(0).unwrap_err();
    assert!(matches!(error, RedoError::RecordTooLong { length, .. } if length == 1 << 20), "{error}");
}

#[test]
fn pools_that_start_at_once_in_one_work_directory_do_not_disturb_each_other() {
    let (options, _directory) = options(1);
    let vector = vector("gist");
    let pools: Vec<RedoPool> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..3).map(|_| scope.spawn(|| RedoPool::start(&options).unwrap())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let ids: HashSet<u32> = pools.iter().flat_map(RedoPool::idle_process_ids).collect();
    assert_eq!(ids.len(), 3);
    for pool in &pools {
        assert_page(&pool.redo_blocking(vec![good(&vector)])[0], &vector);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_batch_is_answered_in_the_order_of_its_requests() {
    let (pool, _directory) = pool(2);
    let all = vectors().unwrap();
    let requests: Vec<PageRequest> = (0..500).map(|index| good(&all[index % all.len()])).collect();
    let pages = pool.redo(requests).await;
    assert_eq!(pages.len(), 500);
    for (index, page) in pages.iter().enumerate() {
        assert_page(page, &all[index % all.len()]);
    }
    assert!(pool.redo(Vec::new()).await.is_empty());
}

#[test]
fn pages_that_only_edits_change_need_no_process() {
    let (pool, _directory) = pool(1);
    let vector = vector("heap");
    kill(pool.idle_process_ids()[0], libc::SIGSTOP);
    let edit = Edit::ClearVisibility { blocks: vec![(0, 3)] };
    let mut map = request(&vector, vec![Change::edit(Lsn(0x100), edit.encode())]);
    map.base = Some(Bytes::from(vec![0xFF; 8192]));
    let mut unknown = map.clone();
    unknown.changes[0] = Change::edit(Lsn(0x100), Bytes::from_static(&[99]));
    let pages = pool.redo_blocking(vec![map, unknown, request(&vector, Vec::new())]);
    assert_eq!(pages[0].as_ref().unwrap()[24], 0xFC);
    assert!(matches!(&pages[1], Err(RedoError::BadEdit { message, .. }) if message.contains("99")));
    assert!(pages[2].as_ref().unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn what_is_missing_is_named() {
    let (options, _directory) = options(1);
    let missing =
        RedoOptions { library: Some(PathBuf::from("/nowhere").join(LIBRARY_NAME)), ..options.clone() };
    let error = RedoPool::start(&missing).err().unwrap();
    assert!(matches!(error, StartError::NoLibrary { .. }), "{error}");
    let nobody = RedoOptions { owner: "no-such-user".to_owned(), ..options.clone() };
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        let error = RedoPool::start(&nobody).err().unwrap();
        assert!(matches!(&error, StartError::Owner { owner, .. } if owner == "no-such-user"), "{error}");
    }
    let foreign = RedoOptions { library: Some(PathBuf::from("/etc/passwd")), ..options };
    let error = RedoPool::start(&foreign).err().unwrap();
    assert!(
        matches!(&error, StartError::NotReady { message, .. } if message.contains("could not load")),
        "{error}"
    );
}
