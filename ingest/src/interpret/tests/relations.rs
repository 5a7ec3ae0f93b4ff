//! Blocks, growth, visibility maps, creation and truncation of forks.

use super::*;

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
fn a_change_of_a_free_space_map_that_does_not_reach_so_far_is_left_out_and_never_an_error() {
    let mut state = state();
    with_size(&mut state, Fork::Fsm, 2);
    let change = record(RmgrId::GENERIC, 0x00, &[], vec![block(0, Fork::Fsm, 5)]);
    assert_eq!(step(&change, &mut state), []);
    without(&mut state, &[Fork::Fsm]);
    assert_eq!(step(&change, &mut state), []);
    assert!(changes(&change, &state, OPEN).rows.is_empty() && state.memory.invalid_pages.is_empty());
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
fn an_image_that_redo_still_changes_is_kept_as_a_record() {
    let mut state = state();
    let images =
        vec![image(0, Fork::Main, 0, &heap_page(), true), image(1, Fork::Main, 1, &heap_page(), true)];
    // XLOG_GIST_PAGE_UPDATE: redo clears the follow-right flag of block 1 after it restored its image.
    without(&mut state, &[Fork::Main]);
    let rows = step(&record(RmgrId::GIST, 0x00, &[], images), &mut state);
    let kind = |number| value(&rows, Key::rel_block(NODE, Fork::Main, number)).map(Value::kind);
    assert_eq!((kind(0), kind(1)), (Some(1), Some(3)));
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

/// As redo does (`smgr_redo`): its file may have gone with a later drop.
#[test]
fn a_truncation_of_a_relation_that_does_not_exist_creates_it_empty() {
    let mut state = state();
    without(&mut state, &[Fork::Main, Fork::Fsm, Fork::Vm]);
    let rows = step(&smgr_truncate(9, 7), &mut state);
    assert_eq!(keys(&rows), [Key::rel_size(NODE, Fork::Main)]);
    assert_eq!(size(&rows, Fork::Main), Some(RelSize::new(END)));
}

#[test]
fn no_value_keeps_the_segment_that_its_record_was_read_from() {
    use zenith_pgformat::wal::encode::{Parts, encode_with_blocks};
    let parts = |rmgr, info, main_data| Parts {
        rmgr,
        info,
        xid: 0,
        prev: Lsn(0x1E00),
        origin: None,
        top_xid: None,
        main_data,
    };
    let main_of = |rmgr| if rmgr == RmgrId::XLOG { &[][..] } else { &[0; 16] };
    // The end of a hash split, whose redo changes the image: kept as a record; an image; an initialisation; a plain record.
    for (rmgr, info, blocks) in [
        (RmgrId::HASH, 0x60, vec![image(0, Fork::Main, 3, &heap_page(), true)]),
        (RmgrId::XLOG, 0xB0, vec![image(0, Fork::Main, 3, &heap_page(), true)]),
        (RmgrId::BTREE, 0x00, vec![init(0, 5)]),
        (RmgrId::BTREE, 0x00, vec![block(0, Fork::Main, 4)]),
    ] {
        let raw = encode_with_blocks(&parts(rmgr, info, main_of(rmgr)), blocks.iter());
        let mut segment = vec![0; 100_000];
        segment[5_000..5_000 + raw.len()].copy_from_slice(&raw);
        let segment = Bytes::from(segment);
        let record = Record::decode(segment.slice(5_000..5_000 + raw.len()), Lsn(0x1F00), END).unwrap();
        let mut state = state();
        with_size(&mut state, Fork::Main, 5);
        let rows = step(&record, &mut state);
        let read_from = segment.as_ptr_range();
        assert!(rows.iter().any(|row| row.key.class == KeyClass::RelBlock), "{rmgr}");
        for row in rows {
            let payload = row.value.payload();
            assert!(!read_from.contains(&payload.as_ptr()), "{rmgr} {info:02X}: {}", row.key);
        }
    }
}
