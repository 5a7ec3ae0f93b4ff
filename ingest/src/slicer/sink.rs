//! Where sliced layers go.

use crate::error::IngestError;
use object_store::ObjectStore;
use std::sync::Arc;
use zenith_layers::{FinishedLayer, store_layer};
use zenith_manifest::change::Slice;
use zenith_manifest::{BaseId, BaseImage, Change, CommitError, LayerEntry, ManifestStore};
use zenith_pgformat::Lsn;
use zenith_store::{Env, TimelinePaths};

/// Stores layers and makes them count.
#[async_trait::async_trait]
pub trait Sink: Send + Sync {
    /// Stores a layer; it counts once a slice that names it is committed.
    async fn store_layer(&self, env: &Env, layer: &FinishedLayer) -> Result<LayerEntry, IngestError>;

    /// Makes a slice count.
    async fn commit(&mut self, slice: Slice) -> Result<(), IngestError>;

    /// Base images whose end lies in WAL that was sliced before they were registered are whole.
    async fn confirm(&mut self, bases: Vec<BaseId>) -> Result<(), IngestError>;

    /// WAL is missing after `at`; slicing goes on at this base image.
    async fn begin_range(&mut self, at: Lsn, base: BaseId) -> Result<(), IngestError>;

    /// The base images as they are registered now; `None` if nobody registers any while this slicer runs.
    async fn bases(&self) -> Result<Option<Vec<BaseImage>>, IngestError>;

    /// The slicer's epoch.
    fn epoch(&self) -> u64;

    /// The timeline's own store, where base images keep the WAL that was never archived.
    fn base_objects(&self) -> Option<(Arc<dyn ObjectStore>, TimelinePaths)>;
}

/// The manifest, under the slicer's epoch (I6).
#[derive(Debug)]
pub struct ManifestSink {
    manifest: Arc<ManifestStore>,
    objects: Arc<dyn ObjectStore>,
    epoch: u64,
}

impl ManifestSink {
    /// Commits to `manifest` under an epoch that was taken before.
    pub fn new(manifest: Arc<ManifestStore>, objects: Arc<dyn ObjectStore>, epoch: u64) -> ManifestSink {
        ManifestSink { manifest, objects, epoch }
    }

    async fn change(&self, change: Change) -> Result<(), IngestError> {
        self.manifest.commit(&change).await.map(|_| ()).map_err(|e| match e {
            CommitError::Fenced(fenced) => IngestError::Fenced(fenced.to_string()),
            other => IngestError::Commit(other),
        })
    }
}

#[async_trait::async_trait]
impl Sink for ManifestSink {
    async fn store_layer(&self, env: &Env, layer: &FinishedLayer) -> Result<LayerEntry, IngestError> {
        Ok(store_layer(&self.objects, self.manifest.paths(), env, layer).await?)
    }

    async fn commit(&mut self, slice: Slice) -> Result<(), IngestError> {
        self.change(Change::Slice(slice)).await
    }

    async fn confirm(&mut self, bases: Vec<BaseId>) -> Result<(), IngestError> {
        self.change(Change::ConfirmBases { epoch: self.epoch, bases }).await
    }

    async fn begin_range(&mut self, at: Lsn, base: BaseId) -> Result<(), IngestError> {
        self.change(Change::BeginRange { epoch: self.epoch, at, base }).await
    }

    async fn bases(&self) -> Result<Option<Vec<BaseImage>>, IngestError> {
        Ok(Some(self.manifest.latest().await?.bases.clone()))
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn base_objects(&self) -> Option<(Arc<dyn ObjectStore>, TimelinePaths)> {
        Some((self.objects.clone(), self.manifest.paths().clone()))
    }
}

/// A folder (or any other store) of a reader's own: nothing is committed, the slices are handed back.
#[derive(Debug)]
pub struct LocalSink {
    objects: Arc<dyn ObjectStore>,
    paths: TimelinePaths,
    base_objects: Option<(Arc<dyn ObjectStore>, TimelinePaths)>,
    slices: Vec<Slice>,
    begun: Vec<(Lsn, BaseId)>,
    confirmed: Vec<BaseId>,
}

impl LocalSink {
    /// Layers go to `objects` at `paths`; `base_objects` is the timeline's own store, to read only.
    pub fn new(
        objects: Arc<dyn ObjectStore>,
        paths: TimelinePaths,
        base_objects: Option<(Arc<dyn ObjectStore>, TimelinePaths)>,
    ) -> LocalSink {
        LocalSink {
            objects,
            paths,
            base_objects,
            slices: Vec::new(),
            begun: Vec::new(),
            confirmed: Vec::new(),
        }
    }

    /// The slices, in order: their layers, confirmed base images and switches are what a commit would have made count.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// All layers.
    pub fn layers(&self) -> Vec<LayerEntry> {
        self.slices.iter().flat_map(|slice| slice.layers.iter().cloned()).collect()
    }

    /// Base images that are whole beyond those that the slices confirm.
    pub fn confirmed(&self) -> &[BaseId] {
        &self.confirmed
    }

    /// Ranges that were begun after a gap: where slicing stood, and the base image.
    pub fn begun(&self) -> &[(Lsn, BaseId)] {
        &self.begun
    }
}

#[async_trait::async_trait]
impl Sink for LocalSink {
    async fn store_layer(&self, env: &Env, layer: &FinishedLayer) -> Result<LayerEntry, IngestError> {
        Ok(store_layer(&self.objects, &self.paths, env, layer).await?)
    }

    async fn commit(&mut self, slice: Slice) -> Result<(), IngestError> {
        self.slices.push(slice);
        Ok(())
    }

    async fn confirm(&mut self, bases: Vec<BaseId>) -> Result<(), IngestError> {
        self.confirmed.extend(bases);
        Ok(())
    }

    async fn begin_range(&mut self, at: Lsn, base: BaseId) -> Result<(), IngestError> {
        self.begun.push((at, base));
        Ok(())
    }

    async fn bases(&self) -> Result<Option<Vec<BaseImage>>, IngestError> {
        Ok(None)
    }

    fn epoch(&self) -> u64 {
        0
    }

    fn base_objects(&self) -> Option<(Arc<dyn ObjectStore>, TimelinePaths)> {
        self.base_objects.clone()
    }
}
