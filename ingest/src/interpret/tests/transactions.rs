//! Ends of transactions, the commit log, commit times, multixacts.

use super::*;

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

/// As many relations as a large aborted transaction created, beside as many missing pages as a window may remember: were
/// each relation to look at all of them, this would take minutes.
#[test]
fn dropping_thousands_of_relations_takes_time_in_proportion() {
    const DROPPED: u32 = 20_000;
    let mut state = state();
    let node = |rel| RelNode { rel, ..NODE };
    let dropped: Vec<RelNode> = (100_000..100_000 + DROPPED).map(node).collect();
    for node in &dropped {
        for fork in Fork::ALL {
            let size = (fork == Fork::Main).then(|| RelSize::new(Lsn(1)));
            state.load_rel_size(*node, fork, size);
        }
    }
    for number in 0..200_000 {
        let page = Key::rel_block(node(100_000 + number / 5), Fork::Main, number % 5);
        state.memory.invalid_pages.insert(page, Lsn(1));
    }
    let rows = step(&end_of_transaction(0x20, &[], &dropped), &mut state);
    let gone = rows.iter().filter(|row| row.value == Value::Tombstone).count();
    assert_eq!(gone, DROPPED as usize);
    assert_eq!(state.memory.invalid_pages.len(), 100_000, "those of the other relations are still missing");
}

#[test]
fn a_prepared_transaction_that_drops_ends_with_its_file_and_the_dropped_forks() {
    for (info, status) in [(0x30, XactStatus::Committed), (0x40, XactStatus::Aborted)] {
        let mut state = state();
        state.two_phase.insert(950);
        with_size(&mut state, Fork::Main, 3);
        without(&mut state, &[Fork::Vm, Fork::Fsm, Fork::Init]);
        let mut main = 77i64.to_le_bytes().to_vec();
        // XACT_XINFO_HAS_RELFILENODES and XACT_XINFO_HAS_TWOPHASE.
        main.extend(words(&[0b1_0100, 1, NODE.spc, NODE.db, NODE.rel, 950]));
        let end = record(RmgrId::XACT, info | 0x80, &main, vec![]);
        let rows = step(&end, &mut state);
        assert_eq!(value(&rows, Key::two_phase(950)), Some(&Value::Tombstone));
        assert_eq!(value(&rows, Key::rel_size(NODE, Fork::Main)), Some(&Value::Tombstone));
        let page = edit(&rows, Key::slru_page(Slru::Xact, 0, 0));
        assert_eq!(page, Some(Edit::XactStatus { status, slots: vec![950] }));
        assert!(state.two_phase.is_empty() && state.rel_size(NODE, Fork::Main).unwrap().is_none());
        // The same once more, as after a base image whose files are newer: nothing is left to end.
        let rows = step(&end, &mut state);
        assert_eq!(value(&rows, Key::two_phase(950)), None);
    }
}

/// PREPARE of transaction 950 (`xl_xact_prepare`), without subtransactions.
fn prepare(gid: &str) -> Record {
    const HEADER_BYTES: usize = 72;
    let mut main = vec![0; HEADER_BYTES];
    main[..4].copy_from_slice(&0x57F9_4534u32.to_le_bytes());
    main[8..12].copy_from_slice(&950u32.to_le_bytes());
    main[54..56].copy_from_slice(&(gid.len() as u16 + 1).to_le_bytes());
    main.extend(gid.bytes().chain([0]));
    // Aligned, and the record that ends the list.
    main.resize(main.len().next_multiple_of(8) + 8, 0);
    let file_length = main.len() as u32 + 4;
    main[4..8].copy_from_slice(&file_length.to_le_bytes());
    record(RmgrId::XACT, 0x10, &main, vec![])
}

/// WAL is sliced from the redo LSN of a base image, whose files are newer.
#[test]
fn a_prepared_transaction_that_the_base_image_holds_already_may_be_prepared_again() {
    let mut state = state();
    let rows = step(&prepare("later"), &mut state);
    let file = value(&rows, Key::two_phase(950)).cloned();
    assert!(matches!(&file, Some(Value::State(_))), "{file:?}");
    assert_eq!(value(&step(&prepare("later"), &mut state), Key::two_phase(950)).cloned(), file);
    assert_eq!(state.two_phase.len(), 1);
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
    assert_eq!(keys(&rows), [Key::CHECKPOINT, Key::slru_size(Slru::Xact, 0)]);
    assert_eq!(rows[1].value, Value::Tombstone);
    assert_eq!(state.checkpoint.oldest_xid, 5000, "the status of no older one is kept");
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
