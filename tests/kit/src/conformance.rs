//! What Zenith needs of a store, as one suite that every kind of store passes: folder, memory, MinIO, and the
//! fault-injecting wrapper over them.

use bytes::Bytes;
use futures::future::join_all;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use std::sync::Arc;
use zenith_store::{
    ClusterPaths, Coalescing, Creation, Env, PutOutcome, Store, StoreError, create, get, get_if_present,
    get_range, get_ranges, head, is_same, last_listed, list, list_after, probe_conditional_writes, put_hint,
    put_if_absent,
};

/// Writers in a race for one name.
const RACERS: usize = 16;
const RACES: usize = 8;

/// Runs the whole suite on fresh stores that `fresh` makes.
pub async fn conformance(env: &Env, fresh: impl AsyncFn() -> Store) {
    names_are_created_once(&fresh().await).await;
    one_of_many_writers_wins(&fresh().await).await;
    what_was_written_is_read(&fresh().await).await;
    what_is_missing_is_told_from_what_is_damaged(&fresh().await).await;
    listings_are_whole_and_sorted(&fresh().await).await;
    hints_are_replaced(&fresh().await).await;
    settled_by_reading_back(env, &fresh().await).await;
    an_object_is_compared_part_by_part(&fresh().await).await;
    conditional_writes_pass_the_probe(env, &fresh().await).await;
    large_objects_arrive_whole(&fresh().await).await;
}

fn at(store: &Store, name: &str) -> Path {
    name.split('/').fold(store.prefix.clone(), Path::join)
}

/// [`put_if_absent`], once more where a network lost the answer: what was put then is there already.
async fn put_answered(store: &Store, path: &Path, bytes: &'static str, if_lost: PutOutcome) -> PutOutcome {
    match put_if_absent(&*store.objects, path, bytes.into()).await.unwrap() {
        PutOutcome::Unknown(_) => match put_if_absent(&*store.objects, path, bytes.into()).await.unwrap() {
            PutOutcome::AlreadyExists => if_lost,
            outcome => outcome,
        },
        outcome => outcome,
    }
}

async fn names_are_created_once(store: &Store) {
    let (objects, path) = (&*store.objects, at(store, "a/once"));
    let (created, exists) = (PutOutcome::Created, PutOutcome::AlreadyExists);
    assert_eq!(put_answered(store, &path, "first", created.clone()).await, created);
    assert_eq!(put_answered(store, &path, "second", exists.clone()).await, exists);
    assert_eq!(put_answered(store, &path, "first", exists.clone()).await, exists);
    assert_eq!(get(objects, &path, 100).await.unwrap(), "first");
}

async fn one_of_many_writers_wins(store: &Store) {
    for race in 0..RACES {
        let path = at(store, &format!("race/{race}"));
        let racers = (0..RACERS).map(|racer| {
            let (objects, path) = (Arc::clone(&store.objects), path.clone());
            tokio::spawn(async move {
                // 409 while another put is under way is "unknown" to this one: it is not the winner.
                let outcome = put_if_absent(&*objects, &path, format!("{racer}").into()).await;
                (racer, outcome.unwrap() == PutOutcome::Created)
            })
        });
        let ended: Vec<(usize, bool)> = join_all(racers).await.into_iter().map(Result::unwrap).collect();
        let winners: Vec<usize> = ended.into_iter().filter(|(_, won)| *won).map(|(racer, _)| racer).collect();
        assert_eq!(winners.len(), 1, "race {race} has winners {winners:?}");
        assert_eq!(get(&*store.objects, &path, 100).await.unwrap(), winners[0].to_string());
    }
}

async fn what_was_written_is_read(store: &Store) {
    let (objects, path) = (&*store.objects, at(store, "b/%20 odd + name=1.zst"));
    let bytes = Bytes::from((0..50_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    put_if_absent(objects, &path, bytes.clone()).await.unwrap();
    assert_eq!(get(objects, &path, 200_000).await.unwrap(), bytes);
    assert_eq!(head(objects, &path).await.unwrap().unwrap().size, 200_000);
    assert_eq!(get_range(objects, &path, 199_990..200_000).await.unwrap(), bytes.slice(199_990..));
    let ranges = [150_000..150_100, 0..1, 7..7, 100..5000, 199_999..200_000];
    let few = Coalescing { gap_bytes_max: 1000, merged_bytes_max: 10_000, parallel_max: 3 };
    let parts = get_ranges(objects, &path, &ranges, few).await.unwrap();
    for (range, part) in ranges.iter().zip(&parts) {
        assert_eq!(*part, bytes.slice(range.start as usize..range.end as usize), "{range:?}");
    }
    let empty = at(store, "b/empty");
    put_if_absent(objects, &empty, Bytes::new()).await.unwrap();
    assert_eq!(get(objects, &empty, 0).await.unwrap(), Bytes::new());
}

async fn what_is_missing_is_told_from_what_is_damaged(store: &Store) {
    let (objects, path) = (&*store.objects, at(store, "c/short"));
    assert_eq!(get_if_present(objects, &path, 10).await, Ok(None));
    assert!(head(objects, &path).await.unwrap().is_none());
    assert!(get_range(objects, &path, 0..1).await.unwrap_err().is_not_found());
    put_if_absent(objects, &path, "0123456789".into()).await.unwrap();
    for range in [5..11, 10..11, 100..200] {
        let error = get_range(objects, &path, range.clone()).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{range:?}: {error}");
        assert!(error.to_string().contains("c/short"), "{error}");
    }
    let error = get(objects, &path, 9).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    objects.delete(&path).await.unwrap();
    assert_eq!(get_if_present(objects, &path, 10).await, Ok(None));
}

async fn listings_are_whole_and_sorted(store: &Store) {
    let objects = &*store.objects;
    let below = at(store, "d/list");
    assert!(list(objects, &below, 10).await.unwrap().is_empty());
    assert_eq!(last_listed(objects, &below).await.unwrap(), None);
    let names: Vec<Path> = (0..25).map(|n| below.clone().join(format!("{:03}", n * 7 % 25))).collect();
    join_all(names.iter().map(|name| put_if_absent(objects, name, "x".into()))).await;
    put_if_absent(objects, &at(store, "d/list-sibling"), "x".into()).await.unwrap();
    let listed = list(objects, &below, 25).await.unwrap();
    let expected: Vec<Path> = (0..25).map(|n| below.clone().join(format!("{n:03}"))).collect();
    assert_eq!(listed.iter().map(|meta| meta.location.clone()).collect::<Vec<_>>(), expected);
    assert_eq!(last_listed(objects, &below).await.unwrap().as_ref(), expected.last());
    let tail = list_after(objects, &below, &expected[20], 10).await.unwrap();
    assert_eq!(
        tail.iter().map(|meta| &meta.location).collect::<Vec<_>>(),
        expected[21..].iter().collect::<Vec<_>>()
    );
    assert!(list(objects, &below, 24).await.is_err());
}

async fn hints_are_replaced(store: &Store) {
    let path = at(store, "e/hint");
    for text in ["1", "22", "3"] {
        put_hint(&*store.objects, &path, text.into()).await.unwrap();
        assert_eq!(get(&*store.objects, &path, 10).await.unwrap(), text);
    }
}

async fn settled_by_reading_back(env: &Env, store: &Store) {
    let (objects, path) = (&*store.objects, at(store, "f/settled"));
    assert_eq!(create(objects, env, &path, "mine".into()).await, Ok(Creation::Created));
    assert_eq!(create(objects, env, &path, "mine".into()).await, Ok(Creation::Same));
    assert_eq!(create(objects, env, &path, "theirs".into()).await, Ok(Creation::Other));
    assert_eq!(get(objects, &path, 9).await.unwrap(), "mine");
}

async fn an_object_is_compared_part_by_part(store: &Store) {
    let (objects, path, empty) = (&*store.objects, at(store, "f/compared"), at(store, "f/nothing"));
    objects.put(&path, "0123456789".into()).await.unwrap();
    objects.put(&empty, Bytes::new().into()).await.unwrap();
    for part in [1, 4, 5, 10, 11] {
        let same = async |path: &Path, bytes: &'static str| {
            is_same(objects, path, &Bytes::from_static(bytes.as_bytes()), part).await.unwrap()
        };
        assert_eq!(same(&path, "0123456789").await, Some(true), "{part}");
        for other in ["", "01234", "012345678", "x123456789", "012345678x", "0123456789x", "0123456789012345"]
        {
            assert_eq!(same(&path, other).await, Some(false), "{part} {other}");
        }
        assert_eq!((same(&empty, "").await, same(&empty, "x").await), (Some(true), Some(false)));
        assert_eq!(same(&at(store, "f/missing"), "x").await, None);
    }
}

async fn conditional_writes_pass_the_probe(env: &Env, store: &Store) {
    let cluster = ClusterPaths::new(&store.prefix, "main");
    probe_conditional_writes(&*store.objects, env, &cluster).await.unwrap();
}

async fn large_objects_arrive_whole(store: &Store) {
    let (objects, path) = (&*store.objects, at(store, "g/large"));
    let bytes = Bytes::from((0..9_000_000u32).map(|n| (n >> 3) as u8).collect::<Vec<u8>>());
    assert_eq!(put_if_absent(objects, &path, bytes.clone()).await, Ok(PutOutcome::Created));
    assert!(get(objects, &path, 9_000_000).await.unwrap() == bytes);
}

/// A folder store in a directory that lives as long as what is returned with it.
pub fn folder_store() -> (Store, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let url = url::Url::from_directory_path(directory.path()).expect("an absolute path");
    let store = Store::open(url.as_str(), &zenith_store::StoreSettings::default()).expect("a folder store");
    (store, directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{JumpingClock, test_env};
    use crate::faults::FaultStore;
    use std::sync::Mutex;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_store_in_memory_conforms() {
        conformance(&test_env(1), async || Store::memory()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_folder_conforms() {
        let kept = Mutex::new(Vec::new());
        conformance(&test_env(2), async || {
            let (store, directory) = folder_store();
            kept.lock().unwrap().push(directory);
            store
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn the_wrappers_conform() {
        conformance(&test_env(3), async || {
            let clock = Arc::new(JumpingClock::default());
            Store::memory()
                .wrapped(|inner| FaultStore::new(inner, clock, 1))
                .wrapped(zenith_store::CountingStore::new)
        })
        .await;
    }
}
