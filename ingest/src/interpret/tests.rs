//! One record at a time, built by hand after the structures of PostgreSQL's headers.

use super::*;
use crate::model::{Alias, Database, NextXid, Parameters, RelEvent, RelSize, ReplOrigin, SlruSize};
use bytes::Bytes;
use zenith_layers::{EventKind, Row, Slru, Value};
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::wal::{BlockImage, BlockRef, WalError};
use zenith_pgformat::{Lsn, Page, page};
use zenith_redo::native::{ALL_FROZEN, Edit, Member, VISIBILITY_BITS, XactStatus};

const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16384 };
const END: Lsn = Lsn(0x2000);
const CLOSED: Context = Context { window_open: false };
const OPEN: Context = Context { window_open: true };

fn state() -> State {
    let checkpoint = CheckPoint {
        next_xid: 1000,
        next_oid: 20_000,
        next_multi: 10,
        next_multi_offset: 30,
        oldest_xid: 700,
        oldest_multi: 1,
        ..CheckPoint::default()
    };
    let parameters = Parameters {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
        wal_level: 1,
        wal_log_hints: false,
        track_commit_timestamp: false,
    };
    let mut state = State::new(checkpoint, NextXid(1000), parameters);
    state.databases.insert((1663, 5), Database { created: Lsn(0), alias: None });
    for slru in Slru::ALL {
        state.slru.insert((slru, 0), 1);
    }
    state
}

fn with_size(state: &mut State, fork: Fork, blocks: u32) {
    state.load_rel_size(NODE, fork, Some(RelSize { blocks, ..RelSize::new(Lsn(0)) }));
}

fn without(state: &mut State, forks: &[Fork]) {
    forks.iter().for_each(|fork| state.load_rel_size(NODE, *fork, None));
}

fn record(rmgr: RmgrId, info: u8, main: &[u8], blocks: Vec<BlockRef>) -> Record {
    Record {
        lsn: Lsn(0x1F00),
        end: END,
        prev: Lsn(0x1E00),
        xid: 0,
        rmgr,
        info,
        origin: None,
        top_xid: None,
        blocks,
        main_data: Bytes::copy_from_slice(main),
        raw: Bytes::from(vec![0; 100]),
    }
}

fn block(id: u8, fork: Fork, block: u32) -> BlockRef {
    BlockRef {
        id,
        node: NODE,
        fork,
        block,
        will_init: false,
        image: None,
        data: Some(Bytes::from_static(b"data")),
    }
}

fn init(id: u8, number: u32) -> BlockRef {
    BlockRef { will_init: true, ..block(id, Fork::Main, number) }
}

fn image(id: u8, fork: Fork, number: u32, content: &Page, apply: bool) -> BlockRef {
    let image = BlockImage {
        bytes: Bytes::copy_from_slice(content),
        hole_offset: 0,
        hole_length: 0,
        info: if apply { 0x02 } else { 0 },
        apply,
    };
    BlockRef { image: Some(image), data: None, ..block(id, fork, number) }
}

fn heap_page() -> Page {
    let mut page = [7; 8192];
    page[..24].fill(0);
    page[14] = 1;
    page
}

/// Little-endian 32-bit numbers, one after the other.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn changes(record: &Record, state: &State, context: Context) -> Changes {
    interpret(record, state, context).unwrap_or_else(|e| panic!("{record:?}: {e}"))
}

/// The changes, applied to the state.
fn step(record: &Record, state: &mut State) -> Vec<Row> {
    let changes = changes(record, state, CLOSED);
    let rows = changes.rows.clone();
    changes.apply(state);
    rows
}

fn keys(rows: &[Row]) -> Vec<Key> {
    rows.iter().map(|row| row.key).collect()
}

fn value(rows: &[Row], key: Key) -> Option<&Value> {
    rows.iter().find(|row| row.key == key).map(|row| &row.value)
}

fn edit(rows: &[Row], key: Key) -> Option<Edit> {
    match value(rows, key)? {
        Value::Edit(bytes) => Some(Edit::decode(bytes).unwrap()),
        _ => None,
    }
}

fn size(rows: &[Row], fork: Fork) -> Option<RelSize> {
    match value(rows, Key::rel_size(NODE, fork))? {
        Value::State(bytes) => Some(RelSize::decode(bytes).unwrap()),
        _ => None,
    }
}

fn rel_event(rows: &[Row], fork: Fork) -> Option<RelEvent> {
    match value(rows, Key::rel_event(NODE, fork))? {
        Value::State(bytes) => Some(RelEvent::decode(bytes).unwrap()),
        _ => None,
    }
}

fn smgr_create(fork: Fork) -> Record {
    record(RmgrId::SMGR, 0x11, &words(&[NODE.spc, NODE.db, NODE.rel, fork as u32]), vec![])
}

fn smgr_truncate(blocks: u32, flags: u32) -> Record {
    record(RmgrId::SMGR, 0x21, &words(&[blocks, NODE.spc, NODE.db, NODE.rel, flags]), vec![])
}

#[test]
fn a_fork_is_created_once_and_a_second_creation_changes_nothing() {
    let mut state = state();
    without(&mut state, &[Fork::Main]);
    let rows = step(&smgr_create(Fork::Main), &mut state);
    assert_eq!(size(&rows, Fork::Main), Some(RelSize::new(END)));
    assert_eq!(rows[0].lsn, END);
    assert!(step(&smgr_create(Fork::Main), &mut state).is_empty());
}

#[test]
fn a_relation_in_a_new_tablespace_creates_the_databases_directory_there() {
    let mut state = state();
    let node = RelNode { spc: 16400, ..NODE };
    let create = record(RmgrId::SMGR, 0x10, &words(&[node.spc, node.db, node.rel, 0]), vec![]);
    assert_eq!(
        needs(&create).unwrap().missing(&state).count(),
        0,
        "nothing to load: the database is not there"
    );
    let rows = step(&create, &mut state);
    assert_eq!(keys(&rows), [Key::database(16400, 5), Key::rel_size(node, Fork::Main)]);
    assert_eq!(state.databases[&(16400, 5)], Database { created: END, alias: None });
}

#[test]
fn blocks_past_the_end_extend_and_skipped_ones_begin_as_zeros() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 5);
    let rows = step(&record(RmgrId::BTREE, 0x00, &[], vec![init(0, 5)]), &mut state);
    assert_eq!(size(&rows, Fork::Main).unwrap().blocks, 6);
    assert_eq!(rel_event(&rows, Fork::Main), None);
    assert!(matches!(value(&rows, Key::rel_block(NODE, Fork::Main, 5)), Some(Value::InitRecord(_))));

    let rows = step(&record(RmgrId::BTREE, 0x00, &[], vec![init(0, 12), init(1, 9)]), &mut state);
    let grown = size(&rows, Fork::Main).unwrap();
    assert_eq!((grown.blocks, grown.last_gap), (13, END));
    assert_eq!(rel_event(&rows, Fork::Main), Some(RelEvent::Gap { from: 6, to: 12 }));
    assert_eq!(rows.len(), 4);
}

#[test]
fn a_change_of_a_block_below_the_end_is_a_record_of_that_block() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 5);
    let rows = step(&record(RmgrId::BTREE, 0x00, &[1, 0], vec![block(0, Fork::Main, 4)]), &mut state);
    assert_eq!(keys(&rows), [Key::rel_block(NODE, Fork::Main, 4)]);
    assert!(matches!(rows[0].value, Value::Record(_)));
    assert_eq!(rows[0].source.rmgr, RmgrId::BTREE);
}

#[test]
fn a_page_that_does_not_exist_is_refused_outside_the_window_and_remembered_inside() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 5);
    let change = record(RmgrId::BTREE, 0x00, &[], vec![block(0, Fork::Main, 5)]);
    let refused = interpret(&change, &state, CLOSED).unwrap_err();
    assert!(matches!(refused, IngestError::MissingPage { .. }), "{refused}");
    assert!(refused.to_string().contains("1663/5/16384 main block 5"), "{refused}");

    let remembered = changes(&change, &state, OPEN);
    assert!(remembered.rows.is_empty());
    remembered.apply(&mut state);
    let key = Key::rel_block(NODE, Fork::Main, 5);
    assert_eq!(state.memory.invalid_pages.get(&key), Some(&Lsn(0x1F00)));
    step(&smgr_truncate(6, 1), &mut state);
    assert_eq!(state.memory.invalid_pages.len(), 1, "block 5 is not cut off");
    step(&smgr_truncate(5, 1), &mut state);
    assert!(state.memory.invalid_pages.is_empty());
}

#[test]
fn an_applied_image_is_the_page_stamped_with_the_records_end() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 1);
    let rows = step(
        &record(RmgrId::BTREE, 0x00, &[], vec![image(0, Fork::Main, 0, &heap_page(), true)]),
        &mut state,
    );
    let mut expected = heap_page();
    page::set_lsn(&mut expected, END);
    assert_eq!(rows[0].value, Value::Page(Bytes::copy_from_slice(&expected)));
}

#[test]
fn an_image_for_consistency_checks_is_no_image() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 1);
    let mut checked = image(0, Fork::Main, 0, &heap_page(), false);
    checked.data = Some(Bytes::from_static(b"x"));
    let rows = step(&record(RmgrId::BTREE, 0x00, &[], vec![checked]), &mut state);
    assert!(matches!(rows[0].value, Value::Record(_)));
}

#[test]
fn an_image_of_zeros_stays_zeros() {
    let mut state = state();
    without(&mut state, &[Fork::Init]);
    let rows =
        step(&record(RmgrId::XLOG, 0xB0, &[], vec![image(0, Fork::Init, 0, &[0; 8192], true)]), &mut state);
    assert_eq!(value(&rows, Key::rel_block(NODE, Fork::Init, 0)), Some(&Value::Page(Bytes::new())));
    assert_eq!(size(&rows, Fork::Init), Some(RelSize { blocks: 1, ..RelSize::new(END) }));
}

#[test]
fn a_hint_without_an_image_is_nothing_and_an_image_record_without_one_is_an_error() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 1);
    let hint = record(RmgrId::XLOG, 0xA0, &[], vec![block(0, Fork::Main, 0)]);
    assert!(step(&hint, &mut state).is_empty());
    let image = record(RmgrId::XLOG, 0xB0, &[], vec![block(0, Fork::Main, 0)]);
    assert!(matches!(interpret(&image, &state, CLOSED), Err(IngestError::Record { .. })));
}

#[test]
fn the_map_page_of_a_visible_record_is_brought_into_being_as_zeros() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 1);
    without(&mut state, &[Fork::Vm]);
    let visible = record(RmgrId::HEAP2, 0x40, &[0; 5], vec![block(0, Fork::Vm, 0), block(1, Fork::Main, 0)]);
    let rows = step(&visible, &mut state);
    assert_eq!(size(&rows, Fork::Vm).unwrap().blocks, 1);
    assert_eq!(rel_event(&rows, Fork::Vm), Some(RelEvent::Gap { from: 0, to: 1 }));
    assert!(matches!(value(&rows, Key::rel_block(NODE, Fork::Vm, 0)), Some(Value::Record(_))));
}

/// The heap records that clear bits of the map, with their flags set: name, record, bits.
fn clearing_records() -> Vec<(&'static str, Record, u8)> {
    let heap = |info, main: &[u8]| record(RmgrId::HEAP, info, main, vec![block(0, Fork::Main, 40_000)]);
    let heap2 = |info, main: &[u8]| record(RmgrId::HEAP2, info, main, vec![block(0, Fork::Main, 40_000)]);
    vec![
        ("insert", heap(0x00, &[1, 0, 1]), VISIBILITY_BITS),
        ("delete", heap(0x10, &[0, 0, 0, 0, 1, 0, 0, 1]), VISIBILITY_BITS),
        ("update", heap(0x20, &[0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0]), VISIBILITY_BITS),
        ("hot update", heap(0x40, &[0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0]), VISIBILITY_BITS),
        ("lock", heap(0x60, &[0, 0, 0, 0, 1, 0, 0, 1]), ALL_FROZEN),
        ("multi-insert", heap2(0x50, &[1, 0, 1, 0, 1, 0]), VISIBILITY_BITS),
        ("lock updated", heap2(0x60, &[0, 0, 0, 0, 1, 0, 0, 1]), ALL_FROZEN),
    ]
}

#[test]
fn every_heap_record_that_clears_visibility_does_so_on_the_right_map_page() {
    for (name, record, bits) in clearing_records() {
        let mut state = state();
        with_size(&mut state, Fork::Main, 40_001);
        with_size(&mut state, Fork::Vm, 2);
        let missing: Vec<Key> = needs(&record).unwrap().keys;
        assert!(missing.contains(&Key::rel_size(NODE, Fork::Vm)), "{name} asks for the map's size");
        let rows = step(&record, &mut state);
        let edit = edit(&rows, Key::rel_block(NODE, Fork::Vm, 1));
        assert_eq!(edit, Some(Edit::ClearVisibility { blocks: vec![(40_000 - 32_672, bits)] }), "{name}");
        assert_eq!(rows.len(), 2, "{name}");
    }
}

#[test]
fn a_map_that_does_not_reach_so_far_is_left_alone() {
    for (name, record, _) in clearing_records() {
        let mut state = state();
        with_size(&mut state, Fork::Main, 40_001);
        with_size(&mut state, Fork::Vm, 1);
        assert_eq!(step(&record, &mut state).len(), 1, "{name}");
        without(&mut state, &[Fork::Vm]);
        assert_eq!(step(&record, &mut state).len(), 1, "{name}");
    }
}

#[test]
fn an_update_across_pages_clears_both_blocks_in_one_value() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 10);
    with_size(&mut state, Fork::Vm, 1);
    let update = record(
        RmgrId::HEAP,
        0x20,
        &[0, 0, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0, 1, 0],
        vec![block(0, Fork::Main, 7), block(1, Fork::Main, 2)],
    );
    let rows = step(&update, &mut state);
    let Some(Edit::ClearVisibility { mut blocks }) = edit(&rows, Key::rel_block(NODE, Fork::Vm, 0)) else {
        panic!("{rows:?}");
    };
    blocks.sort_unstable();
    assert_eq!(blocks, [(2, VISIBILITY_BITS), (7, VISIBILITY_BITS)]);
    assert_eq!(rows.len(), 3);
}

#[test]
fn the_child_of_a_gin_split_is_a_native_edit() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 10);
    let full = |id, number| image(id, Fork::Main, number, &heap_page(), true);
    let split = record(RmgrId::GIN, 0x30, &[], vec![full(0, 1), full(1, 2), block(3, Fork::Main, 4)]);
    let rows = step(&split, &mut state);
    assert_eq!(edit(&rows, Key::rel_block(NODE, Fork::Main, 4)), Some(Edit::GinFinishSplit));
}

#[test]
fn a_truncation_cuts_every_fork_that_its_flags_name() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 70_000);
    with_size(&mut state, Fork::Fsm, 20);
    with_size(&mut state, Fork::Vm, 3);
    let rows = step(&smgr_truncate(40_000, 7), &mut state);
    let cut = |fork| (size(&rows, fork).map(|size| size.blocks), rel_event(&rows, fork));
    assert_eq!(cut(Fork::Main), (Some(40_000), Some(RelEvent::Truncated { to: 40_000 })));
    assert_eq!(cut(Fork::Fsm), (Some(0), Some(RelEvent::Truncated { to: 0 })));
    assert_eq!(cut(Fork::Vm), (Some(2), Some(RelEvent::Truncated { to: 2 })));
    let tail = edit(&rows, Key::rel_block(NODE, Fork::Vm, 1));
    assert_eq!(tail, Some(Edit::TruncateVisibility { first_removed: 40_000 - 32_672 }));
    assert_eq!(size(&rows, Fork::Main).unwrap().last_truncation, END);

    let rows = step(&smgr_truncate(32_672, 4 | 2), &mut state);
    assert_eq!(size(&rows, Fork::Vm).unwrap().blocks, 1, "a whole map page goes without an edit");
    assert!(value(&rows, Key::rel_block(NODE, Fork::Vm, 0)).is_none());
    assert_eq!(size(&rows, Fork::Main), None, "the heap was not named");
}

#[test]
fn a_truncation_to_more_than_there_is_changes_nothing() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 3);
    without(&mut state, &[Fork::Fsm, Fork::Vm]);
    assert!(step(&smgr_truncate(9, 7), &mut state).is_empty());
}

/// A commit or abort: time 77, subtransactions, dropped relations.
fn end_of_transaction(info: u8, subxacts: &[u32], dropped: &[RelNode]) -> Record {
    let mut main = 77i64.to_le_bytes().to_vec();
    main.extend(words(&[0b110, subxacts.len() as u32]));
    main.extend(words(subxacts));
    main.extend(words(&[dropped.len() as u32]));
    for node in dropped {
        main.extend(words(&[node.spc, node.db, node.rel]));
    }
    Record { xid: 32_760, ..record(RmgrId::XACT, info | 0x80, &main, vec![]) }
}

#[test]
fn a_commit_sets_status_page_by_page_and_drops_all_forks() {
    let mut state = state();
    state.slru.insert((Slru::Xact, 0), 2);
    with_size(&mut state, Fork::Main, 3);
    with_size(&mut state, Fork::Vm, 1);
    without(&mut state, &[Fork::Fsm, Fork::Init]);
    let commit = end_of_transaction(0x00, &[32_767, 32_768, 32_770], &[NODE]);
    assert_eq!(needs(&commit).unwrap().keys.len(), 4);
    let result = changes(&commit, &state, CLOSED);
    let rows = &result.rows;
    let page = |page| edit(rows, Key::slru_page(Slru::Xact, 0, page));
    let status = XactStatus::Committed;
    assert_eq!(page(0), Some(Edit::XactStatus { status, slots: vec![32_760, 32_767] }));
    assert_eq!(page(1), Some(Edit::XactStatus { status, slots: vec![0, 2] }));
    assert_eq!(value(rows, Key::rel_size(NODE, Fork::Main)), Some(&Value::Tombstone));
    assert_eq!(value(rows, Key::rel_size(NODE, Fork::Vm)), Some(&Value::Tombstone));
    assert_eq!(value(rows, Key::rel_size(NODE, Fork::Fsm)), None, "there was none");
    assert_eq!(value(rows, Key::NEXT_XID), Some(&Value::State(NextXid(32_771).encode())));
    let event = &result.events[0];
    assert_eq!((event.kind, event.xid, event.time, event.subxacts), (EventKind::Commit, 32_760, 77, 3));
    assert_eq!((event.start, event.lsn), (Lsn(0x1F00), END));
}

#[test]
fn an_abort_sets_the_other_status_and_drops_what_it_created() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 3);
    without(&mut state, &[Fork::Vm, Fork::Fsm, Fork::Init]);
    let rows = step(&end_of_transaction(0x20, &[], &[NODE]), &mut state);
    let page = edit(&rows, Key::slru_page(Slru::Xact, 0, 0));
    assert_eq!(page, Some(Edit::XactStatus { status: XactStatus::Aborted, slots: vec![32_760] }));
    assert_eq!(state.rel_size(NODE, Fork::Main).unwrap(), None);
}

#[test]
fn a_status_on_a_page_that_is_gone_begins_it_anew_whole() {
    let mut state = state();
    state.slru.remove(&(Slru::Xact, 0));
    let commit = Record { xid: 70_000, ..end_of_transaction(0x00, &[], &[]) };
    let rows = step(&commit, &mut state);
    let Some(Value::Page(page)) = value(&rows, Key::slru_page(Slru::Xact, 0, 2)) else { panic!("{rows:?}") };
    let slot = 70_000 - 65_536;
    assert_eq!(page[slot / 4], 1 << (slot % 4 * 2));
    for skipped in [0, 1] {
        let key = Key::slru_page(Slru::Xact, 0, skipped);
        assert_eq!(value(&rows, key), Some(&Value::Page(Bytes::new())));
    }
    let size = value(&rows, Key::slru_size(Slru::Xact, 0));
    assert_eq!(size, Some(&Value::State(SlruSize { pages: 3 }.encode())));
}

#[test]
fn commit_times_are_kept_while_the_cluster_keeps_them() {
    let mut state = state();
    state.parameters.track_commit_timestamp = true;
    state.slru.insert((Slru::CommitTs, 1), 9);
    let mut commit = end_of_transaction(0x00, &[], &[]);
    commit.origin = Some(4);
    let rows = step(&commit, &mut state);
    let (page, slot) = (32_760 / 819, 32_760 % 819);
    let found = edit(&rows, Key::slru_page(Slru::CommitTs, page / 32, page % 32));
    assert_eq!(found, Some(Edit::CommitTs { time: 77, origin: 4, slots: vec![slot as u16] }));
    assert_eq!(state.checkpoint.newest_commit_ts_xid, 32_760);
    state.parameters.track_commit_timestamp = false;
    let rows = step(&Record { xid: 32_761, ..commit }, &mut state);
    assert!(rows.iter().all(|row| row.key.class != KeyClass::SlruPage || row.key.spc == Slru::Xact as u32));
}

fn parameter_change(track: bool) -> Record {
    let mut main = words(&[50, 4, 3, 2, 32, 2]);
    main.extend([1, u8::from(track), 0, 0]);
    record(RmgrId::XLOG, 0x60, &main, vec![])
}

#[test]
fn a_parameter_change_switches_commit_times_on_and_off() {
    let mut state = state();
    state.slru.remove(&(Slru::CommitTs, 0));
    let rows = step(&parameter_change(true), &mut state);
    assert!(state.parameters.track_commit_timestamp && state.parameters.wal_log_hints);
    assert_eq!((state.parameters.max_connections, state.parameters.wal_level), (50, 2));
    let page = Key::slru_page(Slru::CommitTs, 0, 1);
    assert_eq!(value(&rows, page), Some(&Value::Page(Bytes::new())), "the page of transaction 1000");
    let limits =
        |state: &State| (state.checkpoint.oldest_commit_ts_xid, state.checkpoint.newest_commit_ts_xid);
    assert_eq!(limits(&state), (1000, 1000));
    let rows = step(&parameter_change(false), &mut state);
    assert_eq!(value(&rows, Key::slru_size(Slru::CommitTs, 0)), Some(&Value::Tombstone));
    assert_eq!(limits(&state), (0, 0));
    assert!(step(&parameter_change(false), &mut state).is_empty(), "nothing changed");
}

#[test]
fn commit_log_pages_begin_as_zeros_and_old_segments_go() {
    let mut state = state();
    let rows = step(&record(RmgrId::CLOG, 0x00, &words(&[33]), vec![]), &mut state);
    assert_eq!(value(&rows, Key::slru_page(Slru::Xact, 1, 1)), Some(&Value::Page(Bytes::new())));
    assert_eq!(value(&rows, Key::slru_page(Slru::Xact, 1, 0)), Some(&Value::Page(Bytes::new())), "skipped");
    assert_eq!(state.slru[&(Slru::Xact, 1)], 2);
    let truncate = |page| record(RmgrId::CLOG, 0x10, &words(&[page, 5000, 1]), vec![]);
    assert!(step(&truncate(33), &mut state).is_empty(), "the page in use precedes the cutoff: wraparound");
    state.next_xid = NextXid(40 * 32_768);
    let rows = step(&truncate(33), &mut state);
    assert_eq!(keys(&rows), [Key::slru_size(Slru::Xact, 0)]);
    assert_eq!(rows[0].value, Value::Tombstone);
    assert_eq!(state.checkpoint.oldest_xid, 700, "only checkpoints move it");
}

fn multixact_create(multi: u32, offset: u32, members: &[(u32, u32)]) -> Record {
    let mut main = words(&[multi, offset, members.len() as u32]);
    members.iter().for_each(|(xid, status)| main.extend(words(&[*xid, *status])));
    record(RmgrId::MULTIXACT, 0x20, &main, vec![])
}

#[test]
fn a_multixact_sets_its_own_offset_and_the_next_ones() {
    let mut state = state();
    let rows = step(&multixact_create(10, 30, &[(1001, 1), (1005, 4)]), &mut state);
    let offsets = edit(&rows, Key::slru_page(Slru::MultiXactOffsets, 0, 0));
    assert_eq!(offsets, Some(Edit::MultiXactOffsets { entries: vec![(10, 30), (11, 32)] }));
    let members = edit(&rows, Key::slru_page(Slru::MultiXactMembers, 0, 0));
    let expected = [Member { slot: 30, xid: 1001, status: 1 }, Member { slot: 31, xid: 1005, status: 4 }];
    assert_eq!(members, Some(Edit::MultiXactMembers { members: expected.to_vec() }));
    assert_eq!((state.checkpoint.next_multi, state.checkpoint.next_multi_offset), (11, 32));
    assert_eq!(state.next_xid, NextXid(1006));
}

#[test]
fn the_last_multixact_of_a_page_begins_the_next_page_in_wal_of_older_releases() {
    let mut state = state();
    state.checkpoint.next_multi = 2047;
    let rows = step(&multixact_create(2047, 30, &[(1001, 1)]), &mut state);
    let Some(Value::Page(next)) = value(&rows, Key::slru_page(Slru::MultiXactOffsets, 0, 1)) else {
        panic!("{rows:?}");
    };
    assert_eq!(next[..4], 31u32.to_le_bytes());
    let zero = |page| record(RmgrId::MULTIXACT, 0x00, &words(&[page]), vec![]);
    assert_eq!(state.memory.pre_initialized_offsets_page, Some(1));
    assert!(step(&zero(1), &mut state).is_empty(), "that page is not zeroed a second time");
    assert_eq!(state.memory.pre_initialized_offsets_page, None);
    // Newer releases zero the page first.
    assert_eq!(step(&zero(2), &mut state).len(), 2);
    let rows = step(&multixact_create(4095, 31, &[(1001, 1)]), &mut state);
    assert_eq!(
        edit(&rows, Key::slru_page(Slru::MultiXactOffsets, 0, 2)),
        Some(Edit::MultiXactOffsets { entries: vec![(0, 32)] })
    );
    assert_eq!(state.memory.pre_initialized_offsets_page, None);
}

#[test]
fn multixact_offsets_step_over_zero_and_members_cross_pages_and_wrap() {
    let mut state = state();
    let last_page = u32::MAX / 1636;
    state.slru.insert((Slru::MultiXactMembers, last_page / 32), last_page % 32 + 1);
    state.checkpoint.next_multi_offset = u32::MAX - 1;
    let rows = step(&multixact_create(10, u32::MAX - 1, &[(7, 1), (8, 1)]), &mut state);
    let offsets = edit(&rows, Key::slru_page(Slru::MultiXactOffsets, 0, 0));
    assert_eq!(offsets, Some(Edit::MultiXactOffsets { entries: vec![(10, u32::MAX - 1), (11, 1)] }));
    let rows = step(&multixact_create(11, u32::MAX, &[(7, 1), (8, 1)]), &mut state);
    let on = |segment, page| edit(&rows, Key::slru_page(Slru::MultiXactMembers, segment, page)).is_some();
    assert!(on(last_page / 32, last_page % 32) && on(0, 0));
}

#[test]
fn a_multixact_truncation_moves_the_oldest_and_removes_both_kinds_of_segments() {
    let mut state = state();
    for segment in 0..4 {
        state.slru.insert((Slru::MultiXactOffsets, segment), 32);
        state.slru.insert((Slru::MultiXactMembers, segment), 32);
    }
    let (offsets, members) = (32 * 2048, 32 * 1636);
    let main = words(&[5, 1, 2 * offsets + 1, 0, 3 * members]);
    let rows = step(&record(RmgrId::MULTIXACT, 0x30, &main, vec![]), &mut state);
    assert_eq!((state.checkpoint.oldest_multi, state.checkpoint.oldest_multi_db), (2 * offsets + 1, 5));
    let gone: Vec<Key> = rows.iter().filter(|row| row.value == Value::Tombstone).map(|row| row.key).collect();
    let segment = Key::slru_size;
    assert_eq!(
        gone,
        [
            segment(Slru::MultiXactOffsets, 0),
            segment(Slru::MultiXactOffsets, 1),
            segment(Slru::MultiXactMembers, 0),
            segment(Slru::MultiXactMembers, 1),
            segment(Slru::MultiXactMembers, 2),
        ]
    );
}

#[test]
fn a_database_copied_by_files_is_an_alias_with_its_sources_map() {
    let mut state = state();
    let copy = record(RmgrId::DBASE, 0x00, &words(&[16_500, 1663, 5, 1663]), vec![]);
    assert_eq!(needs(&copy).unwrap().keys, [Key::rel_map(1663, 5)]);
    state.load_rel_map(1663, 5, Some(Bytes::from_static(b"map")));
    let rows = step(&copy, &mut state);
    let alias = Some(Alias { spc: 1663, db: 5, lsn: END });
    assert_eq!(state.databases[&(1663, 16_500)], Database { created: END, alias });
    assert_eq!(value(&rows, Key::rel_map(1663, 16_500)), Some(&Value::State(Bytes::from_static(b"map"))));
    let node = RelNode { db: 16_500, ..NODE };
    assert!(!state.knows_rel_size(node, Fork::Main), "sizes of the copy are the source's: to be loaded");
}

#[test]
fn a_dropped_database_is_a_tombstone_in_each_tablespace_and_its_relations_are_gone() {
    let mut state = state();
    state.databases.insert((16_400, 5), Database { created: Lsn(7), alias: None });
    with_size(&mut state, Fork::Main, 3);
    let page = Key::rel_block(NODE, Fork::Main, 9);
    state.memory.invalid_pages.insert(page, Lsn(1));
    let drop = record(RmgrId::DBASE, 0x20, &words(&[5, 3, 1663, 16_400, 16_401]), vec![]);
    let rows = step(&drop, &mut state);
    assert!(rows.iter().all(|row| row.value == Value::Tombstone));
    assert_eq!(
        keys(&rows),
        [Key::database(1663, 5), Key::database(16_400, 5), Key::rel_map(1663, 5), Key::rel_map(16_400, 5)]
    );
    assert_eq!(state.rel_size(NODE, Fork::Main).unwrap(), None);
    assert!(state.memory.invalid_pages.is_empty());
    let create = record(RmgrId::DBASE, 0x10, &words(&[5, 1663]), vec![]);
    assert_eq!(keys(&step(&create, &mut state)), [Key::database(1663, 5)]);
    assert!(step(&create, &mut state).is_empty(), "a directory that is there is taken over");
}

#[test]
fn relation_maps_and_tablespaces_are_kept_whole() {
    let mut state = state();
    let map = zenith_pgformat::relmap::RelMap::new(vec![(1259, 16_777)]).unwrap().encode();
    let mut main = words(&[0, 1664, 512]);
    main.extend(&map);
    let rows = step(&record(RmgrId::RELMAP, 0x00, &main, vec![]), &mut state);
    assert_eq!(value(&rows, Key::rel_map(1664, 0)), Some(&Value::State(Bytes::from(map.clone()))));
    main[20] ^= 1;
    let damaged = record(RmgrId::RELMAP, 0x00, &main, vec![]);
    assert!(interpret(&damaged, &state, CLOSED).is_err(), "its own checksum is wrong");

    let mut main = words(&[16_400]);
    main.extend(b"/mnt/fast\0");
    step(&record(RmgrId::TBLSPC, 0x00, &main, vec![]), &mut state);
    assert!(state.tablespaces.contains(&16_400));
    state.databases.insert((16_400, 5), Database { created: END, alias: None });
    let rows = step(&record(RmgrId::TBLSPC, 0x10, &words(&[16_400]), vec![]), &mut state);
    assert_eq!(keys(&rows), [Key::tablespace(16_400), Key::database(16_400, 5)]);
}

fn checkpoint_record(info: u8) -> Record {
    let checkpoint = CheckPoint {
        next_xid: 900,
        next_oid: 30_000,
        next_multi: 5,
        next_multi_offset: 50,
        oldest_xid: 800,
        oldest_xid_db: 4,
        oldest_multi: 3,
        oldest_multi_db: 6,
        time: 946_684_801,
        oldest_active_xid: 899,
        newest_commit_ts_xid: 12,
        ..CheckPoint::default()
    };
    record(RmgrId::XLOG, info, &checkpoint.encode(), vec![])
}

#[test]
fn an_online_checkpoint_gives_minima_and_no_oid() {
    let mut state = state();
    let result = changes(&checkpoint_record(0x10), &state, CLOSED);
    assert_eq!((result.events[0].kind, result.events[0].time), (EventKind::Checkpoint, 1_000_000));
    result.apply(&mut state);
    let found = state.checkpoint;
    assert_eq!(state.next_xid, NextXid(1000));
    assert_eq!((found.next_oid, found.next_multi, found.next_multi_offset), (20_000, 10, 50));
    assert_eq!((found.oldest_xid, found.oldest_xid_db, found.oldest_multi), (800, 4, 3));
    assert_eq!((found.oldest_active_xid, found.newest_commit_ts_xid), (899, 0));
}

#[test]
fn a_shutdown_checkpoint_is_believed_exactly() {
    let mut state = state();
    let result = changes(&checkpoint_record(0x00), &state, CLOSED);
    assert!(result.shutdown_checkpoint);
    result.apply(&mut state);
    assert_eq!(state.next_xid, NextXid(900));
    let found = state.checkpoint;
    assert_eq!((found.next_oid, found.next_multi, found.next_multi_offset), (30_000, 5, 50));
}

#[test]
fn the_other_records_of_the_wal_itself_change_what_they_say() {
    let mut state = state();
    step(&record(RmgrId::XLOG, 0x30, &words(&[29_000]), vec![]), &mut state);
    assert_eq!(state.checkpoint.next_oid, 29_000);
    step(&record(RmgrId::XLOG, 0x80, &[1], vec![]), &mut state);
    assert!(state.checkpoint.full_page_writes);
    let end = changes(&record(RmgrId::XLOG, 0x50, &0x1234u64.to_le_bytes(), vec![]), &state, CLOSED);
    assert_eq!((end.backup_end, end.rows.len()), (Some(Lsn(0x1234)), 0));
    let mut main = 99i64.to_le_bytes().to_vec();
    main.extend(b"before the drop");
    main.resize(8 + 64, 0);
    let point = changes(&record(RmgrId::XLOG, 0x70, &main, vec![]), &state, CLOSED);
    let event = &point.events[0];
    assert_eq!(
        (event.kind, event.time, event.name.as_str()),
        (EventKind::RestorePoint, 99, "before the drop")
    );
    for (info, main) in [(0x20, vec![1, 2, 3]), (0x40, vec![]), (0x90, vec![0; 16]), (0xD0, vec![0; 16])] {
        let nothing = changes(&record(RmgrId::XLOG, info, &main, vec![]), &state, CLOSED);
        assert_eq!(nothing.rows, [], "info {info:02X}");
    }
}

#[test]
fn running_transactions_move_the_next_one_and_the_oldest() {
    let mut state = state();
    let main = words(&[1, 0, 0, 1010, 1005, 1009, 1005]);
    step(&record(RmgrId::STANDBY, 0x10, &main, vec![]), &mut state);
    assert_eq!((state.next_xid, state.checkpoint.oldest_active_xid), (NextXid(1010), 1005));
}

#[test]
fn replication_origins_go_forwards_unless_forced() {
    let mut state = state();
    let set = |remote: u64, force: u8| {
        let mut main = remote.to_le_bytes().to_vec();
        main.extend([3, 0, force, 0, 0, 0, 0, 0]);
        record(RmgrId::REPLORIGIN, 0x00, &main, vec![])
    };
    step(&set(100, 0), &mut state);
    assert_eq!(state.origins[&3], ReplOrigin { remote_lsn: Lsn(100), local_lsn: END });
    assert!(step(&set(50, 0), &mut state).is_empty());
    step(&set(50, 1), &mut state);
    assert_eq!(state.origins[&3].remote_lsn, Lsn(50));
    let rows = step(&record(RmgrId::REPLORIGIN, 0x10, &[3, 0], vec![]), &mut state);
    assert_eq!(rows[0].value, Value::Tombstone);
    assert!(state.origins.is_empty());
}

#[test]
fn the_next_xid_is_a_value_only_when_it_changes() {
    let mut state = state();
    with_size(&mut state, Fork::Main, 5);
    let change = |xid| Record { xid, ..record(RmgrId::BTREE, 0, &[], vec![block(0, Fork::Main, 1)]) };
    assert!(!keys(&step(&change(999), &mut state)).contains(&Key::NEXT_XID));
    assert!(keys(&step(&change(1000), &mut state)).contains(&Key::NEXT_XID));
    let sub = Record { top_xid: Some(1003), ..change(1001) };
    step(&sub, &mut state);
    assert_eq!(state.next_xid, NextXid(1004));
}

#[test]
fn every_record_kind_is_either_known_or_stops_with_its_name() {
    let state = state();
    let mut known = 0;
    for rmgr in 0..=255u8 {
        for info in (0..=255u8).step_by(16) {
            let unnamed = describe::type_name(RmgrId(rmgr), info).is_none();
            let result = interpret(&record(RmgrId(rmgr), info, &[], vec![]), &state, CLOSED);
            if unnamed {
                assert!(
                    matches!(result, Err(IngestError::Wal(WalError::UnknownRecord { .. }))),
                    "rmgr {rmgr} info {info:02X}: {result:?}"
                );
            } else {
                known += 1;
                // It has no data here: what needs some says so, and nothing panics.
                if let Err(error) = result {
                    assert!(!matches!(error, IngestError::Wal(WalError::UnknownRecord { .. })), "{error}");
                }
            }
        }
    }
    assert!(known > 100, "{known}");
}
