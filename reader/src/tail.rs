//! WAL that is archived and not sliced yet: sliced into a private local folder, without rights to write to the store.

use crate::error::ReadError;
use crate::timeline::{State, Timeline};
use futures::future::BoxFuture;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use std::sync::Arc;
use uuid::Uuid;
use zenith_ingest::IngestError;
use zenith_ingest::slicer::{
    LocalSink, SliceReport, Slicer, SlicerOptions, SlicerStart, Stopped, slicer_layers,
};
use zenith_layers::{LayerError, LayerSet, LayerStore};
use zenith_manifest::{Change, LayerEntry, Role, Slice, apply};
use zenith_pgformat::Lsn;
use zenith_store::{ClusterPaths, StoreError, TimelinePaths};

/// Layers of the tail. Their folder goes with the last handle.
pub(crate) struct TailLayers {
    objects: Arc<dyn ObjectStore>,
    paths: TimelinePaths,
    pub(crate) store: Arc<LayerStore>,
    pub(crate) entries: Vec<Arc<LayerEntry>>,
    folder: Arc<tempfile::TempDir>,
}

/// What [`Timeline::slice_tail`] did to this timeline; its ancestors' tails are not counted.
#[derive(Clone, PartialEq, Debug)]
pub struct Tail {
    /// Where slicing stood in the store.
    pub from: Lsn,
    /// Where it stands now.
    pub to: Lsn,
    /// Records read.
    pub records: u64,
    /// Bytes of the layers written to the local folder.
    pub bytes: u64,
    /// Why it ended; `None` if there was nothing to do.
    pub stopped: Option<Stopped>,
}

impl Timeline {
    /// Slices the archived WAL that is not sliced yet, at most the records that end at or below `up_to`, into a private
    /// folder below [`crate::ReaderOptions::work_dir`], and adds it to what this handle reads; an ancestor's too, up to the
    /// branch point, where that is needed. Base images that end in the tail are confirmed. Nothing is written to the store.
    ///
    /// Handles that were cloned before do not change. The folder is removed with the last handle that uses it. Memory: as
    /// [`Slicer`] says; disk: the layers, less than the WAL.
    ///
    /// # Errors
    /// What stops the slicer (I9): the handle is as before then.
    pub async fn slice_tail(&mut self, up_to: Option<Lsn>) -> Result<Tail, ReadError> {
        let mut state = State::clone(&self.state);
        if let Some((parent, branch)) = &mut state.parent
            && parent.check(branch.lsn).is_err()
        {
            boxed_tail(parent, branch.lsn).await?;
        }
        let from = state.root.sliced.as_ref().map_or(Lsn::INVALID, |sliced| sliced.lsn);
        let mut tail = Tail { from, to: from, records: 0, bytes: 0, stopped: None };
        while state.root.sliced.is_some() && up_to.is_none_or(|up_to| up_to > tail.to) {
            let report = state.slice_once(up_to).await?;
            tail.to = report.to;
            tail.records += report.records;
            tail.bytes += report.layer_bytes;
            let again = matches!(report.stopped, Stopped::RangeBegun { .. });
            // The record that follows ends past it, so nothing up to it is missing.
            state.covered = up_to.filter(|_| report.stopped == Stopped::Target);
            tail.stopped = Some(report.stopped);
            if !again {
                break;
            }
        }
        state.set_layers(state.layer_set()?);
        self.state = Arc::new(state);
        Ok(tail)
    }
}

fn boxed_tail(parent: &mut Timeline, branch: Lsn) -> BoxFuture<'_, Result<Tail, ReadError>> {
    Box::pin(parent.slice_tail(Some(branch)))
}

/// Everything that this slicer stores goes to the folder.
fn failed(error: IngestError, tail: &TailLayers) -> ReadError {
    match error {
        IngestError::Layer(LayerError::Store { source: StoreError::Full { reason, .. }, .. }) => {
            ReadError::TailFolder { folder: tail.folder.path().display().to_string(), reason }
        }
        error => ReadError::Tail(error),
    }
}

impl State {
    /// One run of a slicer that commits nowhere; what it would have committed is applied to this copy of the manifest.
    async fn slice_once(&mut self, up_to: Option<Lsn>) -> Result<SliceReport, ReadError> {
        let tail = self.local_layers().await?;
        let objects = Arc::clone(&self.shared.store.objects);
        let sink = LocalSink::new(
            Arc::clone(&tail.objects),
            tail.paths.clone(),
            Some((objects, self.paths.clone())),
        );
        let options = SlicerOptions { stop_at: up_to, ..SlicerOptions::default() };
        let start = SlicerStart::from_root(&self.root).map_err(ReadError::Tail)?;
        let mut slicer = Slicer::new(
            options,
            self.shared.env.clone(),
            self.archive.own().clone(),
            start,
            self.slicer_set(&tail)?,
            Arc::clone(&tail.store),
            sink,
        );
        let report = slicer.run_once().await.map_err(|error| failed(error, &tail))?;
        self.adopt(&slicer.into_sink(), tail)?;
        Ok(report)
    }

    /// The folder for local layers; made when it is first needed.
    async fn local_layers(&self) -> Result<TailLayers, ReadError> {
        if let Some(tail) = &self.tail {
            return Ok(TailLayers {
                objects: Arc::clone(&tail.objects),
                paths: tail.paths.clone(),
                store: Arc::clone(&tail.store),
                entries: tail.entries.clone(),
                folder: Arc::clone(&tail.folder),
            });
        }
        let work_dir = self.shared.work_dir.clone();
        let made = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&work_dir)?;
            tempfile::Builder::new().prefix("zenith-tail-").tempdir_in(&work_dir)
        });
        let cannot =
            |source| ReadError::WorkDir { folder: self.shared.work_dir.display().to_string(), source };
        let folder = made.await.map_err(|e| cannot(std::io::Error::other(e)))?.map_err(cannot)?;
        let local = LocalFileSystem::new_with_prefix(folder.path());
        let objects: Arc<dyn ObjectStore> = Arc::new(local.map_err(|e| cannot(std::io::Error::other(e)))?);
        let paths = ClusterPaths::new(&Path::default(), "tail").timeline(self.identity.timeline);
        let store = LayerStore::new(Arc::clone(&objects), paths.clone(), self.shared.caches.layers.clone());
        Ok(TailLayers { objects, paths, store, entries: Vec::new(), folder: Arc::new(folder) })
    }

    /// What the slicer may read: its own view of base images, and the tail so far.
    fn slicer_set(&self, tail: &TailLayers) -> Result<LayerSet, ReadError> {
        let stored: Vec<LayerEntry> = self.entries.iter().map(|entry| LayerEntry::clone(entry)).collect();
        let parent = self.parent.as_ref().map(|(parent, branch)| (Arc::clone(parent.layers()), branch.lsn));
        let set = LayerSet::new(Arc::clone(&self.layer_store), slicer_layers(&self.root, stored), parent)?;
        Ok(set.with_layers(Arc::clone(&tail.store), tail.entries.iter().cloned())?)
    }

    /// Applies to the root what the slicer would have committed.
    fn adopt(&mut self, sink: &LocalSink, mut tail: TailLayers) -> Result<(), ReadError> {
        let epoch = self.root.epochs.slicer.saturating_add(1);
        let mut changes = vec![Change::TakeEpoch(Role::Slicer)];
        changes.extend(sink.slices().iter().map(|slice| Change::Slice(Slice { epoch, ..slice.clone() })));
        if !sink.confirmed().is_empty() {
            changes.push(Change::ConfirmBases { epoch, bases: sink.confirmed().to_vec() });
        }
        changes.extend(sink.begun().iter().map(|(at, base)| Change::BeginRange {
            epoch,
            at: *at,
            base: *base,
        }));
        let applied = apply(&self.root, &changes, Uuid::nil()).map_err(ReadError::TailRefused)?;
        self.root.bases = applied.bases;
        self.root.ranges = applied.ranges;
        self.root.history = applied.history;
        self.root.sliced = applied.sliced;
        tail.entries.extend(sink.layers().into_iter().map(Arc::new));
        self.tail = Some(Arc::new(tail));
        Ok(())
    }
}
