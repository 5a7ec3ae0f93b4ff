//! Storing layers: one put, an outcome that stays unknown, and the same on a folder.

use crate::error::LayerError;
use crate::key::{Key, KeyRange};
use crate::map::ReadMode;
use crate::reader::{CacheOptions, LayerCaches};
use crate::row::{Row, Source, Value};
use crate::set::LayerSet;
use crate::test_env::{Place, written};
use crate::writer::WriterOptions;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use zenith_pgformat::Lsn;
use zenith_store::StoreError;

/// A store whose first puts fail: the bytes arrive or not, the answer is lost, and so is every attempt to look.
#[derive(Debug)]
struct Flaky {
    inner: InMemory,
    failing: AtomicUsize,
    applied: bool,
    blind: bool,
}

impl fmt::Display for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that fails")
    }
}

fn lost() -> Error {
    Error::Generic { store: "flaky", source: "the connection was reset".into() }
}

#[async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let left = self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_err() {
            return self.inner.put_opts(path, payload, options).await;
        }
        if self.applied {
            self.inner.put_opts(path, payload, options).await?;
        }
        Err(lost())
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if self.blind && self.failing.load(Ordering::SeqCst) > 0 {
            Err(lost())
        } else {
            self.inner.get_opts(path, options).await
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

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

fn flaky(failing: usize, applied: bool, blind: bool) -> Place {
    let store = Flaky { inner: InMemory::new(), failing: AtomicUsize::new(failing), applied, blind };
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
