//! Objects of the store, but for layers: manifests, names, the archive, a base image's small files. Their checksums are
//! made right, so that what lies behind them is met too.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;
use uuid::Uuid;
use zenith_ingest::archive::WalArchive;
use zenith_ingest::base::{decode_small_files, encode_small_files};
use zenith_manifest::codec::{decode_root, encode_root};
use zenith_manifest::{
    Change, IndexPageRef, ManifestStore, NameError, Names, Role, Root, apply, raise_horizon,
};
use zenith_pgformat::Lsn;
use zenith_pgformat::wal_name::WalFile;
use zenith_store::{ClusterPaths, Store, TimelineId, TimelinePaths};
use zenith_testkit::env::test_env;

/// Runs on a thread's own runtime; no input waits for anything.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

pub(crate) fn timeline() -> TimelineId {
    TimelineId(Uuid::from_u128(7))
}

pub(crate) fn cluster() -> ClusterPaths {
    ClusterPaths::new(&Path::default(), "main")
}

pub(crate) fn paths() -> TimelinePaths {
    cluster().timeline(timeline())
}

/// A store in memory that holds this object.
pub(crate) async fn holding(path: &Path, object: Bytes) -> Arc<dyn ObjectStore> {
    let objects = Store::memory().objects;
    objects.put(path, object.into()).await.unwrap();
    objects
}

/// The frame of small manifest objects (docs/formats.md).
pub(crate) fn sealed(magic: &[u8; 8], body: &[u8]) -> Bytes {
    let mut bytes = magic.to_vec();
    bytes.extend([1, 0, 0, 0]);
    bytes.extend((body.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), body);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(body);
    bytes.into()
}

/// The body of a manifest version.
pub(crate) fn manifest_root(input: &[u8]) -> bool {
    let path = paths().manifest(1);
    drop(decode_root(&path, input));
    let Ok(root) = decode_root(&path, &sealed(b"ZENMANIF", input)) else { return false };
    let bytes = encode_root(&path, &root).unwrap();
    assert_eq!(decode_root(&path, &bytes).unwrap(), root);
    let ends = root.ranges.iter().flat_map(|range| [root.run_start(range), root.run_end(range)]);
    for lsn in ends.chain([Lsn(0), Lsn(1), Lsn(u64::MAX)]) {
        drop((root.readable(lsn).map(drop), root.tli_starting_at(lsn), root.tli_ending_at(lsn)));
    }
    drop(apply(&root, &[Change::TakeEpoch(Role::Slicer)], Uuid::from_u128(1)));
    true
}

/// Which kind (one byte), then the body.
pub(crate) fn manifest_small(input: &[u8]) -> bool {
    let Some((kind, body)) = input.split_first() else { return false };
    let (magic, path) = match kind % 5 {
        0 => (b"ZENNAME\0", cluster().name_version("main", 1)),
        1 => (b"ZENIDENT", paths().identity()),
        2 => (b"ZENBOUND", paths().manifest_boundary(1)),
        3 => (b"ZENHORIZ", paths().horizon(1)),
        _ => (b"ZENPIN\0\0", cluster().pin(timeline(), timeline().0)),
    };
    block_on(async {
        let objects = holding(&path, sealed(magic, body)).await;
        let names = Names::new(Arc::clone(&objects), test_env(1), cluster());
        match kind % 5 {
            // A name that was given up was read too.
            0 => matches!(names.resolve("main").await, Ok(_) | Err(NameError::NotFound { .. })),
            1 => names.identity(timeline()).await.is_ok(),
            2 => ManifestStore::new(objects, test_env(1), paths(), None).latest().await.is_ok(),
            3 => raise_horizon(&*objects, &test_env(1), &paths(), Lsn(1)).await.is_ok(),
            _ => names.pins().await.is_ok(),
        }
    })
}

/// How many entries the root promises (four bytes), then the index page.
pub(crate) fn manifest_index(input: &[u8]) -> bool {
    let Some((entries, page)) = input.split_first_chunk::<4>() else { return false };
    let id = Uuid::from_u128(9);
    let reference = IndexPageRef {
        id,
        entries: u64::from(u32::from_le_bytes(*entries)),
        bytes: page.len() as u64,
        crc: crc32c::crc32c(page),
    };
    let root = Root { pages: vec![reference.clone()], ..Root::empty(timeline(), None) };
    block_on(async {
        let objects = holding(&paths().index_page(id), Bytes::copy_from_slice(page)).await;
        let manifest = ManifestStore::new(objects, test_env(1), paths(), None);
        let Ok(layers) = manifest.layers(&root).await else { return false };
        assert_eq!(layers.len() as u64, reference.entries);
        true
    })
}

fn wal_files() -> [WalFile; 4] {
    [
        WalFile::Segment { tli: 2, segment: 2 },
        WalFile::Partial { tli: 2, segment: 2 },
        WalFile::Backup { tli: 2, segment: 2, offset: 40 },
        WalFile::History { tli: 2 },
    ]
}

/// An archived file as it lies in the store, and one that is to be archived.
pub(crate) fn archive(input: &[u8]) -> bool {
    let size = crate::wal::segment_size();
    block_on(async {
        let mut read = false;
        for file in wal_files() {
            let path = paths().wal_file(file.tli(), &file.name(size));
            let objects = holding(&path, Bytes::copy_from_slice(input)).await;
            let archive = WalArchive::new(objects, paths(), size, crate::wal::SYSTEM_IDENTIFIER);
            if let Ok(Some(content)) = archive.get(file).await {
                assert!(content.len() as u64 <= size.bytes());
                read = true;
            }
            drop(archive.histories(0).await);
            let empty = Store::memory().objects;
            let archive = WalArchive::new(empty, paths(), size, crate::wal::SYSTEM_IDENTIFIER);
            read |= archive.put(&test_env(1), file, input).await.is_ok();
        }
        read
    })
}

/// The object of a base image's small files, and its content before compression.
pub(crate) fn small_files(input: &[u8]) -> bool {
    let framed = zstd::bulk::compress(input, 1).unwrap();
    let decoded = [input, &framed].map(|object| {
        let Ok(files) = decode_small_files(object) else { return false };
        assert_eq!(decode_small_files(&encode_small_files(&files).unwrap()), Ok(files));
        true
    });
    decoded.contains(&true)
}
