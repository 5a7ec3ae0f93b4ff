//! Made-up base images, layers and slices for the tests of this crate.

use crate::change::{Change, Slice, apply};
use crate::entry::{BaseId, KeyBytes, LayerEntry, LayerKind};
use crate::identity::Identity;
use crate::names::Names;
use crate::root::{Ancestor, BaseImage, BaseKind, Root, SlicedPosition};
use crate::store::ManifestStore;
use object_store::ObjectStore;
use std::sync::Arc;
use uuid::Uuid;
use zenith_pgformat::{Lsn, Tli};
use zenith_store::{ClusterPaths, Env, Store, TimelineId, TimelinePaths};
use zenith_testkit::env::test_env;

pub(crate) fn id(n: u64) -> Uuid {
    Uuid::from_u64_pair(0xFEED, n)
}

pub(crate) fn timeline() -> TimelineId {
    TimelineId(id(0))
}

pub(crate) fn numbered(n: u64) -> TimelineId {
    TimelineId(id(n))
}

pub(crate) fn names_on(store: &Store, seed: u64) -> Names {
    let cluster = ClusterPaths::new(&store.prefix, "main");
    Names::new(Arc::clone(&store.objects), test_env(seed), cluster)
}

pub(crate) fn identity(n: u64) -> Identity {
    Identity {
        format: Identity::FORMAT,
        timeline: numbered(n),
        system_identifier: u64::MAX - 5,
        pg_major: 15,
        wal_segment_size: 16 << 20,
        block_size: 8192,
        ancestor: None,
        encryption: None,
    }
}

pub(crate) fn paths(store: &Store) -> TimelinePaths {
    ClusterPaths::new(&store.prefix, "main").timeline(timeline())
}

pub(crate) fn manifest(store: &Store, env: Env) -> ManifestStore {
    manifest_on(Arc::clone(&store.objects), store, env)
}

pub(crate) fn manifest_on(objects: Arc<dyn ObjectStore>, store: &Store, env: Env) -> ManifestStore {
    ManifestStore::new(objects, env, paths(store), None)
}

pub(crate) fn key(n: u8) -> KeyBytes {
    KeyBytes([n; 18])
}

pub(crate) fn base(n: u64, tli: Tli, redo: u64, end: u64) -> BaseImage {
    BaseImage {
        id: BaseId(id(n)),
        kind: BaseKind::Online,
        tli,
        redo: Lsn(redo),
        checkpoint: Lsn(redo),
        end: Lsn(end),
        confirmed: false,
        taken_at: "2026-01-01T00:00:00Z".to_owned(),
        data_bytes: 1,
        stored_bytes: 1,
        data_checksums: true,
    }
}

pub(crate) fn image_layer(n: u64, base: &BaseImage, keys: u8) -> LayerEntry {
    LayerEntry {
        id: id(n),
        kind: LayerKind::Image,
        tli: base.tli,
        key_min: key(keys),
        key_max: key(keys),
        lsn_from: base.redo,
        lsn_to: base.redo,
        serves_from: base.end,
        base: Some(base.id),
        rows: 1,
        bytes: 1000,
        meta_offset: 900,
        meta_crc: 7,
        max_time: None,
    }
}

pub(crate) fn delta_layer(n: u64, tli: Tli, from: u64, to: u64) -> LayerEntry {
    LayerEntry {
        id: id(n),
        kind: LayerKind::Delta,
        tli,
        key_min: key(0),
        key_max: key(255),
        lsn_from: Lsn(from),
        lsn_to: Lsn(to),
        serves_from: Lsn(from),
        base: None,
        rows: 10,
        bytes: 1000,
        meta_offset: 900,
        meta_crc: 7,
        max_time: Some(-5),
    }
}

pub(crate) fn register(base: &BaseImage) -> Change {
    Change::RegisterBase { base: base.clone(), layers: Vec::new() }
}

pub(crate) fn slice(epoch: u64, from: u64, to: u64) -> Slice {
    Slice {
        epoch,
        from: Lsn(from),
        to: Lsn(to),
        prev: Lsn(to.saturating_sub(1)),
        layers: Vec::new(),
        confirmed: Vec::new(),
        switches: Vec::new(),
        state: serde_json::json!({ "sliced": to }),
    }
}

/// With one delta layer of that number.
pub(crate) fn slice_with_layer(epoch: u64, n: u64, from: u64, to: u64) -> Change {
    Change::Slice(Slice { layers: vec![delta_layer(n, 1, from, to)], ..slice(epoch, from, to) })
}

pub(crate) fn position(tli: Tli, lsn: u64) -> SlicedPosition {
    SlicedPosition { tli, lsn: Lsn(lsn), prev: Lsn::INVALID, state: serde_json::Value::Null }
}

pub(crate) fn ancestor(lsn: u64, tli: Tli) -> Ancestor {
    Ancestor { timeline: TimelineId(id(99)), lsn: Lsn(lsn), tli }
}

/// The root after these changes, one version each.
pub(crate) fn after(changes: &[Change]) -> Root {
    let empty = Root::empty(timeline(), None);
    changes.iter().fold(empty, |root, change| {
        apply(&root, std::slice::from_ref(change), id(1000 + root.version)).unwrap()
    })
}
