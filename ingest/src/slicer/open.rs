//! A slicer for a timeline of the store.

use super::{ManifestSink, Slicer, SlicerOptions, SlicerStart, slicer_layers};
use crate::archive::WalArchive;
use crate::error::IngestError;
use object_store::ObjectStore;
use std::sync::Arc;
use zenith_layers::{LayerCaches, LayerSet, LayerStore};
use zenith_manifest::{Identity, ManifestStore};
use zenith_pgformat::Lsn;
use zenith_pgformat::wal_name::WalSegSize;
use zenith_store::Env;

/// A slicer that goes on where the newest manifest version says and commits under `epoch`
/// ([`ManifestStore::take_epoch`]). `parent`: the layers of the timeline that this one was branched off, and the
/// branch point.
#[allow(clippy::too_many_arguments, reason = "each is a thing of its own, handed over once")]
pub async fn open_slicer(
    options: SlicerOptions,
    env: Env,
    objects: Arc<dyn ObjectStore>,
    manifest: Arc<ManifestStore>,
    identity: &Identity,
    parent: Option<(Arc<LayerSet>, Lsn)>,
    caches: LayerCaches,
    epoch: u64,
) -> Result<Slicer<ManifestSink>, IngestError> {
    let root = manifest.latest().await?;
    let layers = manifest.layers(&root).await?;
    let size = WalSegSize::new(u64::from(identity.wal_segment_size)).ok_or_else(|| {
        IngestError::Internal(format!("the timeline's WAL segment size is {}", identity.wal_segment_size))
    })?;
    let paths = manifest.paths().clone();
    let archive = WalArchive::new(objects.clone(), paths.clone(), size, identity.system_identifier);
    let store = LayerStore::new(objects.clone(), paths, caches);
    let set = LayerSet::new(store.clone(), slicer_layers(&root, layers), parent)?;
    let sink = ManifestSink::new(manifest, objects, epoch);
    Ok(Slicer::new(options, env, archive, SlicerStart::from_root(&root)?, set, store, sink))
}
