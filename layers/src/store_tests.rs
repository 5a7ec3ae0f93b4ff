//! Storing layers: one put, an outcome that stays unknown, and the same on a folder.

use crate::error::LayerError;
use crate::key::{Key, KeyRange};
use crate::map::ReadMode;
use crate::reader::{CacheOptions, LayerCaches};
use crate::row::{Row, Source, Value};
use crate::set::LayerSet;
use crate::test_env::{Place, written};
use crate::writer::WriterOptions;
use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{GetOptions, ObjectStore, PutOptions};
use std::sync::Arc;
use zenith_pgformat::Lsn;
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

async fn readable(place: &Place, entry: zenith_manifest::LayerEntry) {
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
