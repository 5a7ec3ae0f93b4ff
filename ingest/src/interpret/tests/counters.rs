//! Databases, maps, tablespaces, the WAL's own records, origins, and what is not known.

use super::*;

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
fn after_a_crash_the_oldest_transaction_is_no_older_than_what_pg_xact_was_cut_to() {
    let mut state = state();
    (state.checkpoint.oldest_xid, state.checkpoint.oldest_xid_db) = (850, 9);
    for info in [0x00, 0x10] {
        step(&checkpoint_record(info), &mut state);
        assert_eq!(
            (state.checkpoint.oldest_xid, state.checkpoint.oldest_xid_db),
            (850, 9),
            "info {info:02X}"
        );
    }
    for known in [750, 800] {
        state.checkpoint.oldest_xid = known;
        step(&checkpoint_record(0x00), &mut state);
        let found = (state.checkpoint.oldest_xid, state.checkpoint.oldest_xid_db);
        assert_eq!(found, (800, 4), "a server may find another database with the same one: {known}");
    }
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
