use super::*;
use crate::change::{Change, apply};
use crate::check::RECENT_MAX;
use crate::codec::encode_root;
use crate::error::CommitError;
use crate::root::Role;
use crate::testing::*;
use bytes::Bytes;
use object_store::ObjectStoreExt;
use zenith_store::{CountingStore, Store, put_if_absent};
use zenith_testkit::conformance::folder_store;
use zenith_testkit::env::test_env;

async fn filled(store: &Store, commits: u64) -> ManifestStore {
    let manifest = manifest(store, test_env(1));
    manifest.commit(&register(&base(1, 1, 100, 120))).await.unwrap();
    let (epoch, _) = manifest.take_epoch(Role::Slicer).await.unwrap();
    for n in 0..commits {
        manifest.commit(&slice_with_layer(epoch, 10 + n, 100 + n, 101 + n)).await.unwrap();
    }
    manifest
}

#[tokio::test]
async fn a_timeline_without_a_manifest_is_empty_and_stays_so() {
    let (store, _directory) = folder_store();
    let root = manifest(&store, test_env(1)).latest().await.unwrap();
    assert_eq!(*root, Root::empty(timeline(), None));
    assert!(zenith_store::list(&*store.objects, &store.prefix, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_newest_version_is_found_whatever_the_hint_says() {
    let store = Store::memory();
    let newest = filled(&store, 20).await.latest().await.unwrap();
    assert_eq!(newest.version, 22);
    for hint in ["22", "21", "1", "7", "0", "-1", "x", ""] {
        put_hint(&*store.objects, &paths(&store).manifest_hint(), hint.into()).await.unwrap();
        let found = manifest(&store, test_env(2)).latest().await.unwrap();
        assert_eq!(found, newest, "hint {hint:?}");
    }
    store.objects.delete(&paths(&store).manifest_hint()).await.unwrap();
    assert_eq!(manifest(&store, test_env(2)).latest().await.unwrap(), newest);
}

#[tokio::test]
async fn a_newest_version_that_was_lost_is_told_and_no_older_one_takes_its_place() {
    let store = Store::memory();
    filled(&store, 20).await;
    store.objects.delete(&paths(&store).manifest(22)).await.unwrap();
    let lost = manifest(&store, test_env(2)).latest().await.unwrap_err();
    assert!(
        matches!(&lost, ManifestError::Lost { object, .. } if *object == paths(&store).manifest(22).to_string()),
        "{lost}"
    );
    let commit = manifest(&store, test_env(2)).take_epoch(Role::Slicer).await.unwrap_err();
    assert!(matches!(commit, CommitError::Manifest(ManifestError::Lost { .. })), "{commit}");
    for hint in ["23", "999999", "18446744073709551615"] {
        put_hint(&*store.objects, &paths(&store).manifest_hint(), hint.into()).await.unwrap();
        let lost = manifest(&store, test_env(2)).latest().await.unwrap_err();
        assert!(lost.to_string().contains(hint) && lost.to_string().contains("manifest-hint"), "{lost}");
    }
    store.objects.delete(&paths(&store).manifest_hint()).await.unwrap();
    assert_eq!(manifest(&store, test_env(2)).latest().await.unwrap().version, 21);
}

#[tokio::test]
async fn a_version_lost_between_others_does_no_harm_unless_the_way_to_the_newest_leads_over_it() {
    let store = Store::memory();
    let newest = filled(&store, 20).await.latest().await.unwrap();
    store.objects.delete(&paths(&store).manifest(21)).await.unwrap();
    assert_eq!(manifest(&store, test_env(2)).latest().await.unwrap(), newest);
    put_hint(&*store.objects, &paths(&store).manifest_hint(), "20".into()).await.unwrap();
    let lost = manifest(&store, test_env(2)).latest().await.unwrap_err();
    let names_both = [21, 22].iter().all(|n| lost.to_string().contains(paths(&store).manifest(*n).as_ref()));
    assert!(matches!(lost, ManifestError::Lost { .. }) && names_both, "{lost}");
}

#[tokio::test]
async fn reading_the_newest_version_takes_few_requests_and_lists_nothing() {
    let store = Store::memory();
    filled(&store, 50).await;
    let counting = Arc::new(CountingStore::new(Arc::clone(&store.objects)));
    let counts = counting.counts();
    let cold = manifest_on(counting, &store, test_env(2));
    cold.latest().await.unwrap();
    let first = counts.snapshot();
    assert_eq!((first.requests(), first.lists), (5, 0), "hint, version, the next two, boundary");
    cold.latest().await.unwrap();
    let again = counts.snapshot().since(&first);
    assert_eq!((again.requests(), again.lists), (2, 0), "next version, boundary");
}

#[tokio::test]
async fn an_old_version_stays_as_it_was() {
    let store = Store::memory();
    let manifest = filled(&store, 5).await;
    let third = manifest.version(3).await.unwrap();
    assert_eq!((third.version, third.sliced.as_ref().unwrap().lsn.0), (3, 101));
    let missing = manifest.version(8).await.unwrap_err();
    assert!(
        matches!(&missing, ManifestError::NoVersion { object } if object.ends_with("08.manifest")),
        "{missing}"
    );
}

#[tokio::test]
async fn a_damaged_root_is_named_whatever_byte_is_wrong() {
    let store = Store::memory();
    let manifest = filled(&store, 1).await;
    let path = paths(&store).manifest(3);
    let bytes = zenith_store::get(&*store.objects, &path, 1 << 20).await.unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 1 << (at % 8);
        let error = decode_root(&path, &damaged).unwrap_err();
        assert!(
            matches!(&error, ManifestError::Damaged { object, .. } if *object == path.to_string()),
            "{at}: {error}"
        );
    }
    for cut in 0..bytes.len() {
        assert!(matches!(decode_root(&path, &bytes[..cut]), Err(ManifestError::Damaged { .. })), "{cut}");
    }
    put_hint(&*store.objects, &path, bytes.slice(1..)).await.unwrap();
    let error = manifest.version(3).await.unwrap_err();
    assert!(error.to_string().contains(path.as_ref()), "{error}");
}

#[tokio::test]
async fn a_newer_or_encrypted_root_is_told_from_a_damaged_one() {
    let path = object_store::path::Path::from("m/1");
    let root = after(&[register(&base(1, 1, 100, 120))]);
    let bytes = encode_root(&path, &root).unwrap();
    let altered = |at: usize| {
        let mut altered = bytes.to_vec();
        altered[at] = 2;
        let (header, body) = altered.split_at_mut(20);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..16]), body);
        header[16..].copy_from_slice(&crc.to_le_bytes());
        decode_root(&path, &altered).unwrap_err()
    };
    assert!(matches!(altered(8), ManifestError::Newer { found: 2, known: 1, .. }));
    assert!(matches!(altered(10), ManifestError::Encrypted { algorithm: 2, .. }));
}

#[tokio::test]
async fn a_root_under_another_number_or_timeline_is_damaged() {
    let store = Store::memory();
    let manifest = filled(&store, 0).await;
    let one = zenith_store::get(&*store.objects, &paths(&store).manifest(1), 1 << 20).await.unwrap();
    put_if_absent(&*store.objects, &paths(&store).manifest(3), one).await.unwrap();
    let error = manifest.version(3).await.unwrap_err();
    assert!(
        matches!(&error, ManifestError::Damaged { reason, .. } if reason.contains("version 1")),
        "{error}"
    );
}

#[tokio::test]
async fn all_layers_are_named_once_and_in_order_however_they_are_spilled() {
    let store = Store::memory();
    let manifest = filled(&store, 3 * RECENT_MAX as u64).await;
    let root = manifest.latest().await.unwrap();
    assert!(root.pages.len() >= 2 && root.recent.len() <= RECENT_MAX);
    let cold = crate::testing::manifest(&store, test_env(2));
    for reader in [&manifest, &cold] {
        let ids: Vec<Uuid> = reader.layers(&root).await.unwrap().iter().map(|layer| layer.id).collect();
        assert_eq!(ids, (0..3 * RECENT_MAX as u64).map(|n| id(10 + n)).collect::<Vec<_>>());
    }
    let entries = cold.layers(&root).await.unwrap();
    assert_eq!(entries[5], delta_layer(15, 1, 105, 106), "every column comes back");
}

#[tokio::test]
async fn a_base_image_of_thousands_of_layers_is_one_commit() {
    let store = Store::memory();
    let manifest = manifest(&store, test_env(1));
    let image = base(1, 1, 100, 120);
    let layers: Vec<LayerEntry> = (0..5000u64)
        .map(|n| {
            let mut key = [0; 18];
            key[..8].copy_from_slice(&n.to_be_bytes());
            let key = crate::entry::KeyBytes(key);
            LayerEntry { key_min: key, key_max: key, ..image_layer(100 + n, &image, 0) }
        })
        .collect();
    let change = Change::RegisterBase { base: image, layers: layers.clone() };
    let committed = manifest.commit(&change).await.unwrap();
    assert_eq!((committed.root.version, committed.root.recent.len()), (1, 0));
    assert_eq!(crate::testing::manifest(&store, test_env(2)).layers(&committed.root).await.unwrap(), layers);
}

#[tokio::test]
async fn a_damaged_or_missing_index_page_is_named() {
    let store = Store::memory();
    filled(&store, RECENT_MAX as u64 + 1).await;
    let reader = || manifest(&store, test_env(2));
    let root = reader().latest().await.unwrap();
    let path = paths(&store).index_page(root.pages[0].id);
    let bytes = zenith_store::get(&*store.objects, &path, 1 << 20).await.unwrap();
    for damaged in [bytes.slice(1..), Bytes::new(), [&bytes[..], b"x"].concat().into(), flipped(&bytes)] {
        put_hint(&*store.objects, &path, damaged).await.unwrap();
        let error = reader().layers(&root).await.unwrap_err();
        assert!(error.to_string().contains(path.as_ref()), "{error}");
    }
    store.objects.delete(&path).await.unwrap();
    let error = reader().layers(&root).await.unwrap_err();
    assert!(
        matches!(&error, ManifestError::Missing { object, .. } if *object == path.to_string()),
        "{error}"
    );
}

fn flipped(bytes: &Bytes) -> Bytes {
    let mut flipped = bytes.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    flipped.into()
}

#[tokio::test]
async fn a_stored_root_that_breaks_a_rule_is_damaged() {
    let path = object_store::path::Path::from("m/1");
    let sound = after(&[register(&base(1, 1, 100, 120))]);
    let broken = [
        Root { sliced: None, ..sound.clone() },
        Root { ranges: Vec::new(), ..sound.clone() },
        Root { bases: Vec::new(), ..sound.clone() },
        Root { history: Vec::new(), ..sound.clone() },
        Root { version: 0, ..sound.clone() },
        Root { recent: vec![delta_layer(1, 1, 1, 2); 2], ..sound.clone() },
    ];
    for root in broken {
        let bytes = encode_root(&path, &root).unwrap();
        assert!(matches!(decode_root(&path, &bytes), Err(ManifestError::Damaged { .. })), "{root:?}");
    }
    assert!(apply(&sound, &[], id(1)).is_ok());
}
