//! Storing layers: one put, an outcome that stays unknown, and the same on a folder.

use crate::error::LayerError;
use crate::key::{Key, KeyRange};
use crate::map::ReadMode;
use crate::reader::{CacheOptions, LayerCaches, LayerStore};
use crate::row::{Row, Source, Value};
use crate::set::LayerSet;
use crate::test_env::{Place, written};
use crate::writer::WriterOptions;
use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutOptions};
use std::sync::Arc;
use zenith_manifest::LayerEntry;
use zenith_pgformat::{Fork, Lsn, RelNode};
use zenith_store::StoreError;
use zenith_testkit::env::JumpingClock;
use zenith_testkit::faults::{Fault, FaultStore, Operation, Rule};

fn rows() -> Vec<Row> {
    let row = |n: u8| Row {
        key: Key::two_phase(u32::from(n)),
        lsn: Lsn(8),
        value: Value::State(Bytes::from(vec![n; usize::from(n)])),
        source: Source::NONE,
    };
    (1..200).map(row).collect()
}

fn options() -> WriterOptions {
    WriterOptions::delta(1, Lsn(1), Lsn(8))
}

/// A store whose first puts fail, done or not; with `blind`, so does every attempt to look meanwhile.
fn flaky(failing: u64, applied: bool, blind: bool) -> Place {
    let store = FaultStore::new(Arc::new(InMemory::new()), Arc::new(JumpingClock::default()), 1);
    let fault = if applied { Fault::AppliedButLost } else { Fault::Reset };
    store.faults().add(Rule::new(fault).on(Operation::Put).times(failing));
    if blind {
        store.faults().add(Rule::new(Fault::Reset).on(Operation::Get).times(failing));
    }
    Place::over(Arc::new(store), 1, LayerCaches::new(CacheOptions::default()))
}

async fn readable(place: &Place, entry: LayerEntry) {
    let all = KeyRange { first: Key::MIN, last: Key::MAX };
    let set = LayerSet::new(Arc::clone(&place.store), [entry], None).unwrap();
    let histories = set.history(&[all], Lsn(8), ReadMode::Serve).await.unwrap();
    let found: Vec<Row> = histories.into_iter().flat_map(|history| history.rows).collect();
    assert_eq!(found, rows());
}

#[tokio::test]
async fn a_layer_whose_put_was_lost_or_unanswered_is_stored_all_the_same() {
    let layer = written(options(), &rows());
    for (failing, applied, blind) in
        [(0, false, false), (1, true, false), (1, false, false), (6, false, true)]
    {
        let place = flaky(failing, applied, blind);
        let entry = place.store(&layer).await.unwrap();
        readable(&place, entry).await;
    }
}

#[tokio::test]
async fn a_layer_that_cannot_be_stored_is_an_unknown_outcome_that_names_the_object() {
    let place = flaky(1000, true, true);
    let error = place.store(&written(options(), &rows())).await.unwrap_err();
    let LayerError::Store { source: StoreError::Unknown { object, .. }, .. } = &error else {
        panic!("{error}")
    };
    assert!(object.contains("layers/"), "{object}");
    assert!(error.may_retry());
}

#[tokio::test]
async fn a_taken_id_is_left_alone_and_another_is_used() {
    let first = Place::new();
    let id = place_id(&first).await;
    let place = Place::new();
    let path = place.store.paths().layer(id);
    let other = Bytes::from_static(b"another object");
    place.objects.put_opts(&path, other.clone().into(), PutOptions::default()).await.unwrap();
    let entry = place.store(&written(options(), &rows())).await.unwrap();
    assert_ne!(entry.id, id);
    readable(&place, entry).await;
    assert_eq!(
        place.objects.get_opts(&path, GetOptions::default()).await.unwrap().bytes().await.unwrap(),
        other
    );
}

/// The id that a fresh place gives first.
async fn place_id(place: &Place) -> uuid::Uuid {
    place.store(&written(options(), &rows())).await.unwrap().id
}

#[tokio::test]
async fn layers_of_a_folder_are_read_and_their_loss_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let objects = LocalFileSystem::new_with_prefix(folder.path()).unwrap().with_fsync(true);
    for whole_bytes in [0, 1 << 20] {
        let caches = LayerCaches::new(CacheOptions { whole_bytes, ..CacheOptions::default() });
        let place = Place::over(Arc::new(objects.clone()), 1 + u128::from(whole_bytes), caches);
        let entry = place.store(&written(options(), &rows())).await.unwrap();
        readable(&place, entry.clone()).await;
        std::fs::remove_file(folder.path().join(place.store.paths().layer(entry.id).as_ref())).unwrap();
        let error = place.cold(whole_bytes).open(&Arc::new(entry)).await.unwrap_err();
        assert!(matches!(error, LayerError::Missing { .. }), "{error}");
    }
}

/// Pages that do not compress, some megabytes of them.
fn large() -> Vec<Row> {
    let page = |n: u32| {
        let mut page = vec![0; 8192];
        let mut state = u64::from(n) + 1;
        page.chunks_exact_mut(8).for_each(|word| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&(state ^ (state >> 31)).to_le_bytes());
        });
        let node = RelNode { spc: 1663, db: 5, rel: 16384 };
        let value = Value::Page(Bytes::from(page));
        Row { key: Key::rel_block(node, Fork::Main, n), lsn: Lsn(8), value, source: Source::NONE }
    };
    (0..400).map(page).collect()
}

async fn by_blocks(store: &Arc<LayerStore>, entry: &Arc<LayerEntry>) -> Result<Vec<Row>, LayerError> {
    let set = LayerSet::new(Arc::clone(store), [Arc::clone(entry)], None)?.without_sources();
    let mut found = Vec::new();
    for row in large() {
        let histories = set.history(&[KeyRange::one(row.key)], Lsn(8), ReadMode::Serve).await?;
        found.extend(histories.into_iter().flat_map(|history| history.rows));
    }
    Ok(found)
}

/// The same objects, which are read ahead into this much room and nothing else is kept of them.
fn ahead(place: &Place, ahead_bytes: u64) -> Arc<LayerStore> {
    let options = CacheOptions { block_bytes: 0, ahead_bytes, ..CacheOptions::default() };
    let (objects, paths) = (Arc::clone(place.store.object_store()), place.store.paths().clone());
    LayerStore::reading_ahead(objects, paths, LayerCaches::new(options), 1)
}

#[tokio::test]
async fn whoever_reads_ahead_reads_the_same_by_fewer_requests() {
    let place = Place::new();
    let entry = place.layer(options(), &large()).await;
    let pieces = entry.bytes.div_ceil(128 << 10);
    assert!(pieces > 20, "{pieces}");
    let mut gets = Vec::new();
    for ahead_bytes in [0, 512 << 10] {
        let before = place.gets();
        assert_eq!(by_blocks(&ahead(&place, ahead_bytes), &entry).await.unwrap(), large());
        gets.push(place.gets() - before);
    }
    // One for the footer; the first piece that is asked for lies in the middle.
    assert!(gets[0] > 400 && gets[1] <= pieces + 3, "{gets:?} for {pieces} pieces");
}

#[tokio::test]
async fn what_is_missing_or_damaged_is_named_where_it_was_read_ahead() {
    let place = Place::new();
    let entry = place.layer(options(), &large()).await;
    let path = place.store.paths().layer(entry.id);
    let whole = place.objects.get_opts(&path, GetOptions::default()).await.unwrap().bytes().await.unwrap();
    let middle = whole.len() / 2;
    let mut other = whole.to_vec();
    other[middle] ^= 1;
    let shorter = whole[..middle].to_vec();
    for damaged in [other, shorter] {
        let store = ahead(&place, 1 << 20);
        // Its footer is read before.
        store.open(&entry).await.unwrap();
        place.objects.put_opts(&path, damaged.into(), PutOptions::default()).await.unwrap();
        let error = by_blocks(&store, &entry).await.unwrap_err();
        assert!(error.to_string().contains(path.as_ref()), "{error}");
        place.objects.put_opts(&path, whole.clone().into(), PutOptions::default()).await.unwrap();
    }
    let store = ahead(&place, 1 << 20);
    store.open(&entry).await.unwrap();
    place.objects.delete(&path).await.unwrap();
    let error = by_blocks(&store, &entry).await.unwrap_err();
    assert!(matches!(error, LayerError::Missing { .. }), "{error}");
}
