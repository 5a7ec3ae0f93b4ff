//! What the layers say beside what a stopped server's own files say.

use super::{edited_page, files, fork_sizes, newest, state};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use zenith_ingest::model::{Database, NextXid, Parameters, RelSize, SlruSize};
use zenith_layers::{Key, KeyClass, LayerSet, Slru, Value};
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::rel::{DEFAULT_TABLESPACE, TABLESPACE_VERSION_DIRECTORY};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, slru};

/// Everything that can be compared without redo.
pub async fn compare(data: &Path, end: &ControlFile, layers: &LayerSet, lsn: Lsn) {
    let databases = compare_databases(data, layers, lsn).await;
    compare_sizes(data, layers, lsn, &databases).await;
    compare_slrus(data, layers, lsn).await;
    compare_counters(end, layers, lsn).await;
    compare_small_files(data, layers, lsn).await;
}

/// Databases and their directories; answers those that are copies.
async fn compare_databases(data: &Path, layers: &LayerSet, lsn: Lsn) -> Vec<(Key, Database)> {
    let ours = newest(layers, KeyClass::Database, lsn).await;
    let mut theirs = BTreeSet::new();
    let mut directories = vec![(DEFAULT_TABLESPACE, data.join("base"))];
    for space in std::fs::read_dir(data.join("pg_tblspc")).expect("pg_tblspc") {
        let space = space.expect("entry");
        let spc = space.file_name().to_string_lossy().parse().expect("an oid");
        directories.push((spc, space.path().join(TABLESPACE_VERSION_DIRECTORY)));
    }
    for (spc, directory) in directories {
        for database in std::fs::read_dir(directory).expect("directory") {
            let name = database.expect("entry").file_name();
            if let Ok(db) = name.to_string_lossy().parse() {
                theirs.insert(Key::database(spc, db));
            }
        }
    }
    assert_eq!(ours.keys().copied().collect::<BTreeSet<_>>(), theirs);
    ours.into_iter().map(|(key, value)| (key, Database::decode(value.payload()).expect("database"))).collect()
}

/// Sizes: what the server extended without a word in the WAL is zeros (a heap) or has no bit set (a visibility map).
async fn compare_sizes(data: &Path, layers: &LayerSet, lsn: Lsn, databases: &[(Key, Database)]) {
    let ours = newest(layers, KeyClass::RelSize, lsn).await;
    let theirs = fork_sizes(data);
    let unlogged: BTreeSet<_> =
        theirs.keys().filter(|key| key.fork == Fork::Init as u8).map(|key| key.node()).collect();
    let mut compared = 0;
    for (key, (blocks, paths)) in &theirs {
        let fork = Fork::from_number(key.fork).expect("fork");
        if fork == Fork::Fsm || (fork != Fork::Init && unlogged.contains(&key.node())) {
            continue;
        }
        let our_blocks = match effective_size(layers, &ours, databases, *key, lsn).await {
            Some(size) => size.blocks,
            None => {
                assert_eq!(fork, Fork::Vm, "{key} is missing");
                0
            }
        };
        assert!(our_blocks <= *blocks, "{key}: ours {our_blocks}, theirs {blocks}");
        let content: Vec<u8> = paths.iter().flat_map(|path| std::fs::read(path).expect("file")).collect();
        for (number, content) in content.chunks(BLCKSZ).enumerate().skip(our_blocks as usize) {
            let silent = if fork == Fork::Vm { &content[24..] } else { content };
            assert!(silent.iter().all(|byte| *byte == 0), "{key}: block {number} is missing");
        }
        compared += 1;
    }
    for (key, value) in &ours {
        let size = RelSize::decode(value.payload()).expect("size");
        let exists = databases
            .iter()
            .any(|(db, database)| (db.spc, db.db) == (key.spc, key.db) && (size.created >= database.created));
        // A drop that commits just before an online base's redo point may leave its emptied file in the base until the
        // checkpoint after it (`mdunlink`, `SyncPreCheckpoint`); no record of the window tells of it.
        let emptied = size.blocks == 0 && size.created == Lsn::INVALID;
        if (exists || key.db == 0) && key.fork != Fork::Fsm as u8 && !emptied {
            assert!(theirs.contains_key(key), "{key} exists only here");
        }
    }
    assert!(compared > 500, "{compared} forks");
}

/// As a reader sees it: the fork's own row, or that of the database it was copied from.
async fn effective_size(
    layers: &LayerSet,
    ours: &BTreeMap<Key, Value>,
    databases: &[(Key, Database)],
    key: Key,
    lsn: Lsn,
) -> Option<RelSize> {
    if let Some(value) = ours.get(&key) {
        return Some(RelSize::decode(value.payload()).expect("size"));
    }
    let (mut key, mut upto) = (key, lsn);
    loop {
        let database = databases.iter().find(|(db, _)| (db.spc, db.db) == (key.spc, key.db))?.1;
        let alias = database.alias?;
        assert!(alias.lsn <= upto);
        (key.spc, key.db, upto) = (alias.spc, alias.db, alias.lsn);
        if let Some(bytes) = state(layers, key, upto).await {
            return Some(RelSize::decode(&bytes).expect("size"));
        }
    }
}

async fn compare_slrus(data: &Path, layers: &LayerSet, lsn: Lsn) {
    let ours = newest(layers, KeyClass::SlruSize, lsn).await;
    let mut theirs = BTreeSet::new();
    for slru in Slru::ALL {
        for entry in std::fs::read_dir(data.join(slru.directory())).expect("directory") {
            let entry = entry.expect("entry");
            let segment = slru::parse_segment_name(&entry.file_name().to_string_lossy()).expect("segment");
            let content = std::fs::read(entry.path()).expect("segment");
            let key = Key::slru_size(slru, segment);
            theirs.insert(key);
            let size = SlruSize::decode(ours.get(&key).expect("segment").payload()).expect("size");
            assert_eq!(size.pages as usize * BLCKSZ, content.len(), "{key}");
            for (number, content) in content.chunks(BLCKSZ).enumerate() {
                let key = Key::slru_page(slru, segment, number as u32);
                let page = edited_page(layers, key, lsn).await;
                let differs = page.iter().zip(content).position(|(ours, theirs)| ours != theirs);
                assert_eq!(differs, None, "{} {key}", slru.directory());
            }
        }
    }
    assert_eq!(ours.keys().copied().collect::<BTreeSet<_>>(), theirs);
}

async fn compare_counters(end: &ControlFile, layers: &LayerSet, lsn: Lsn) {
    let bytes = state(layers, Key::CHECKPOINT, lsn).await.expect("checkpoint");
    let ours = CheckPoint::decode(&bytes).expect("checkpoint");
    // Redo takes the database of the oldest multixact over only with a later multixact (`MultiXactAdvanceOldest`), while
    // a running server may find another database that has the same one.
    assert_eq!(ours, CheckPoint { oldest_multi_db: ours.oldest_multi_db, ..end.checkpoint_copy });
    let next = state(layers, Key::NEXT_XID, lsn).await.expect("next xid");
    assert_eq!(NextXid::decode(&next), Ok(NextXid(end.checkpoint_copy.next_xid)));
    let parameters = state(layers, Key::PARAMETERS, lsn).await.expect("parameters");
    let expected = Parameters {
        max_connections: end.max_connections,
        max_worker_processes: end.max_worker_processes,
        max_wal_senders: end.max_wal_senders,
        max_prepared_transactions: end.max_prepared_xacts,
        max_locks_per_transaction: end.max_locks_per_xact,
        wal_level: end.wal_level as i32,
        wal_log_hints: end.wal_log_hints,
        track_commit_timestamp: end.track_commit_timestamp,
    };
    assert_eq!(Parameters::decode(&parameters), Ok(expected));
}

async fn compare_small_files(data: &Path, layers: &LayerSet, lsn: Lsn) {
    let maps = newest(layers, KeyClass::RelMap, lsn).await;
    let mut compared = 0;
    for (name, path) in files(data) {
        let parts: Vec<&str> = name.split('/').collect();
        let key = match parts.as_slice() {
            ["global", "pg_filenode.map"] => Key::rel_map(1664, 0),
            ["base", db, "pg_filenode.map"] => Key::rel_map(1663, db.parse().expect("oid")),
            ["pg_tblspc", spc, _, db, "pg_filenode.map"] => {
                Key::rel_map(spc.parse().expect("oid"), db.parse().expect("oid"))
            }
            _ => continue,
        };
        let content = std::fs::read(path).expect("map");
        assert_eq!(maps.get(&key).map(Value::payload), Some(content.as_slice()), "{name}");
        compared += 1;
    }
    assert!(compared >= 4, "{compared} maps");
    assert_eq!(maps.len(), compared, "no map without its file: {maps:?}");

    let prepared = newest(layers, KeyClass::TwoPhase, lsn).await;
    let directory: Vec<_> = std::fs::read_dir(data.join("pg_twophase")).expect("directory").collect();
    assert_eq!(prepared.len(), directory.len());
    for entry in directory {
        let path = entry.expect("entry").path();
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        let xid = zenith_pgformat::two_phase::parse_file_name(&name).expect("a transaction");
        let file = std::fs::read(&path).expect("state file");
        assert_eq!(prepared.get(&Key::two_phase(xid)).map(Value::payload), Some(file.as_slice()));
    }
    let spaces = newest(layers, KeyClass::Tablespace, lsn).await;
    let theirs = std::fs::read_dir(data.join("pg_tblspc")).expect("pg_tblspc").count();
    assert_eq!(spaces.len(), theirs);
}
