//! A timeline opened for reading: one manifest version of it and of each of its ancestors, their layers as one set, their
//! raw archives as one chain.

use crate::error::ReadError;
use crate::options::{ReaderCaches, ReaderOptions, RedoSource, TimelineRef};
use crate::snapshot::Snapshot;
use crate::tail::TailLayers;
use crate::wal::before_header;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use zenith_ingest::archive::{ArchiveChain, BranchPoint, WalArchive};
use zenith_layers::{LayerSet, LayerStore, RowLimit};
use zenith_manifest::{
    Ancestor, BaseId, BaseImage, Identity, LayerEntry, LayerKind, MAX_ANCESTORS, ManifestStore, Names, Root,
    TliSwitch, Unreadable,
};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{Lsn, Tli};
use zenith_store::{Clock, ClusterPaths, CountingStore, Counts, Env, Store, TimelineId, TimelinePaths};

/// A timeline opened for reading. A clone is cheap and is the same timeline. What it holds does not change, except by
/// [`Timeline::slice_tail`], which gives this handle more to read.
///
/// Memory: the manifest's entries, about 300 bytes a layer; everything else is in the caches it was given.
#[derive(Clone)]
pub struct Timeline {
    pub(crate) state: Arc<State>,
}

/// What all handles of one opening share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) caches: ReaderCaches,
    pub(crate) redo: RedoSource,
    pub(crate) work_dir: PathBuf,
    pub(crate) rows: RowLimit,
    pub(crate) counts: Arc<Counts>,
    pub(crate) store: Store,
    pub(crate) cluster: ClusterPaths,
}

#[derive(Clone)]
pub(crate) struct State {
    pub(crate) shared: Shared,
    pub(crate) identity: Identity,
    pub(crate) paths: TimelinePaths,
    pub(crate) root: Root,
    /// Of the store; those of the tail are with it.
    pub(crate) entries: Arc<Vec<Arc<LayerEntry>>>,
    /// Layers of it and its ancestors that are read in parts.
    large: usize,
    pub(crate) layer_store: Arc<LayerStore>,
    pub(crate) layers: Arc<LayerSet>,
    /// The same; their rows do not say where they come from.
    pub(crate) values: LayerSet,
    pub(crate) archive: ArchiveChain,
    pub(crate) parent: Option<(Timeline, Ancestor)>,
    pub(crate) tail: Option<Arc<TailLayers>>,
    /// Up to here the local tail holds every record, although the last one may end earlier.
    pub(crate) covered: Option<Lsn>,
    /// The raw WAL that was read last.
    pub(crate) segment: Arc<Mutex<Option<KeptSegment>>>,
    segment_size: WalSegSize,
}

/// A segment by PostgreSQL's timeline and number, and what is in it.
type KeptSegment = ((Tli, u64), Bytes);

/// LSNs that can be read from one base image on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Readable {
    /// The first: the end of the base image.
    pub from: Lsn,
    /// The last.
    pub to: Lsn,
    /// The base image; perhaps an ancestor's.
    pub base: BaseImage,
}

impl Timeline {
    /// Opens a timeline and its ancestors: the newest manifest version, or the one that `options` name, and the newest of
    /// each ancestor. Only reads.
    ///
    /// # Errors
    /// A name or id that does not exist; a manifest or identity that cannot be read. A timeline without base image opens,
    /// and refuses every LSN.
    pub async fn open(
        store: &Store,
        cluster: &str,
        which: &TimelineRef,
        options: ReaderOptions,
    ) -> Result<Timeline, ReadError> {
        let counting = CountingStore::new(Arc::clone(&store.objects));
        let counts = counting.counts();
        let store = store.wrapped(|_| counting);
        let cluster = ClusterPaths::new(&store.prefix, cluster);
        let ReaderOptions { env, caches, redo, work_dir, version, rows } = options;
        let shared = Shared { env, caches, redo, work_dir, rows, counts, store, cluster };
        let id = match which {
            TimelineRef::Id(id) => *id,
            TimelineRef::Name(name) => shared.names().resolve(name).await?,
        };
        open_with_ancestors(shared, id, version, 0).await
    }

    /// Whether both come from one call of [`Timeline::open`].
    pub(crate) fn is_same_opening(&self, other: &Timeline) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// Which timeline.
    pub fn id(&self) -> TimelineId {
        self.state.identity.timeline
    }

    /// What the timeline is.
    pub fn identity(&self) -> &Identity {
        &self.state.identity
    }

    /// The manifest version that is read, the tail that was sliced locally included.
    pub fn root(&self) -> &Root {
        &self.state.root
    }

    /// Where the timeline's objects lie.
    pub fn paths(&self) -> &TimelinePaths {
        &self.state.paths
    }

    /// The timeline that this one was branched off.
    pub fn parent(&self) -> Option<&Timeline> {
        self.state.parent.as_ref().map(|(parent, _)| parent)
    }

    /// The layers, the ancestors' up to the branch points included, those of unconfirmed base images left out.
    pub fn layers(&self) -> &Arc<LayerSet> {
        &self.state.layers
    }

    /// The layers for whoever wants values alone.
    pub(crate) fn values(&self) -> &LayerSet {
        &self.state.values
    }

    /// The entries of this timeline's own layers in this manifest version, without those of a local tail.
    pub fn entries(&self) -> &[Arc<LayerEntry>] {
        &self.state.entries
    }

    /// The entries of this timeline's own layers, those of a local tail included.
    pub(crate) fn all_entries(&self) -> impl Iterator<Item = &Arc<LayerEntry>> {
        let tail = self.state.tail.iter().flat_map(|tail| tail.entries.iter());
        self.state.entries.iter().chain(tail)
    }

    /// The raw archives of the timeline and its ancestors.
    pub fn archive(&self) -> &ArchiveChain {
        &self.state.archive
    }

    /// The size of WAL segments.
    pub fn segment_size(&self) -> WalSegSize {
        self.state.segment_size
    }

    /// Requests made of the store through this opening.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.state.shared.counts
    }

    pub(crate) fn caches(&self) -> &ReaderCaches {
        &self.state.shared.caches
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.state.shared.env.clock
    }

    pub(crate) fn redo(&self) -> &RedoSource {
        &self.state.shared.redo
    }

    /// How much of pages' histories is held at a time.
    pub(crate) fn row_limit(&self) -> RowLimit {
        self.state.shared.rows
    }

    /// A base image of this timeline or of an ancestor.
    pub(crate) fn base_image(&self, id: BaseId) -> Result<BaseImage, ReadError> {
        self.base_home(id).map(|(_, base)| base)
    }

    /// A base image and the timeline that it belongs to.
    pub(crate) fn base_home(&self, id: BaseId) -> Result<(&Timeline, BaseImage), ReadError> {
        match (self.root().base(id), self.parent()) {
            (Some(base), _) => Ok((self, base.clone())),
            (None, Some(parent)) => parent.base_home(id),
            (None, None) => Err(ReadError::UnknownBase { base: id, timeline: self.id() }),
        }
    }

    /// The LSNs that can be read, ascending, ancestors' included.
    pub fn ranges(&self) -> Vec<Readable> {
        let mut ranges: Vec<Readable> = Vec::new();
        if let Some((parent, branch)) = &self.state.parent {
            ranges = parent.ranges();
            ranges.retain(|range| range.from <= branch.lsn);
            ranges.iter_mut().for_each(|range| range.to = range.to.min(branch.lsn));
        }
        for range in &self.root().ranges {
            let covered = self.state.covered.filter(|_| range.to.is_none()).unwrap_or(Lsn::INVALID);
            let to = self.root().run_end(range).max(covered);
            match range.base.and_then(|id| self.root().base(id)) {
                Some(base) if base.confirmed && range.from <= to => {
                    ranges.push(Readable { from: range.from, to, base: base.clone() });
                }
                Some(_) => {}
                // A child goes on where the parent's last range was cut.
                None => match ranges.last_mut().filter(|last| last.to == range.from) {
                    Some(last) => last.to = to.max(last.to),
                    None => break,
                },
            }
        }
        ranges
    }

    /// The last LSN that can be read.
    pub fn end(&self) -> Result<Lsn, ReadError> {
        match self.ranges().last() {
            Some(last) => Ok(last.to),
            None => Err(self.check(Lsn::MAX).err().unwrap_or(ReadError::NoBase { timeline: self.id() })),
        }
    }

    /// Whether `lsn` can be read.
    ///
    /// # Errors
    /// [`ReadError::NoBase`], [`ReadError::BelowBase`], [`ReadError::InGap`], [`ReadError::PastEnd`],
    /// [`ReadError::Unconfirmed`]; they say what can be.
    pub fn check(&self, lsn: Lsn) -> Result<(), ReadError> {
        let timeline = self.id();
        if let Some((parent, branch)) = &self.state.parent {
            if lsn <= branch.lsn {
                return parent.check_for_branch(branch, lsn);
            }
            if self.root().ranges.is_empty() {
                return Err(ReadError::PastEnd { lsn, end: branch.lsn, timeline });
            }
        }
        match self.root().readable(lsn) {
            Ok(range) if range.base.is_none() => match &self.state.parent {
                Some((parent, branch)) => parent.check_for_branch(branch, branch.lsn),
                None => Err(ReadError::NoBase { timeline }),
            },
            Ok(_) => Ok(()),
            Err(Unreadable::Empty) => Err(ReadError::NoBase { timeline }),
            Err(Unreadable::BeforeFirst { lsn, from }) => {
                Err(ReadError::BelowBase { lsn, earliest: from, timeline })
            }
            Err(Unreadable::Gap { lsn, to, from }) => {
                Err(ReadError::InGap { lsn, before: to, after: from, timeline })
            }
            Err(Unreadable::NotConfirmed { base, end, .. }) => {
                Err(ReadError::Unconfirmed { base, end, timeline })
            }
            Err(Unreadable::NotSliced { lsn, sliced })
                if self.state.covered.is_some_and(|upto| lsn <= upto) =>
            {
                self.check(sliced)
            }
            Err(Unreadable::NotSliced { lsn, sliced }) => Err(self.past(lsn, sliced)),
        }
    }

    /// Whether what was branched off here can read `lsn`, which is at or below its branch point.
    ///
    /// # Errors
    /// As [`Timeline::check`], and [`ReadError::OtherHistory`]: this timeline went on along another history since.
    pub fn check_for_branch(&self, branch: &Ancestor, lsn: Lsn) -> Result<(), ReadError> {
        self.check(lsn)?;
        let tli = self.tli_at(lsn)?;
        if tli <= branch.tli {
            return Ok(());
        }
        let Ancestor { timeline, lsn: at, tli: before } = *branch;
        Err(ReadError::OtherHistory { timeline, lsn: at, before, after: tli })
    }

    /// Past what is sliced; before the end of its base image nothing is readable yet.
    fn past(&self, lsn: Lsn, sliced: Lsn) -> ReadError {
        let timeline = self.id();
        let range = self.root().ranges.last();
        let open = range.and_then(|range| range.base).and_then(|id| self.root().base(id));
        match open.filter(|base| !base.confirmed) {
            Some(base) => ReadError::Unconfirmed { base: base.id, end: base.end, timeline },
            None => ReadError::PastEnd { lsn, end: sliced, timeline },
        }
    }

    /// The timeline at `lsn`. A position inside a WAL page header means the page's start.
    ///
    /// # Errors
    /// As [`Timeline::check`].
    pub async fn snapshot(&self, lsn: Lsn) -> Result<Snapshot, ReadError> {
        Snapshot::load(self.clone(), self.checked(lsn)?).await
    }

    /// What an LSN that somebody typed means; a refusal names it as it was typed.
    pub(crate) fn checked(&self, asked: Lsn) -> Result<Lsn, ReadError> {
        let lsn = before_header(asked, self.segment_size().bytes());
        self.check(lsn).map_err(|refusal| refusal.of(asked))?;
        Ok(lsn)
    }

    /// PostgreSQL's timelines with records that end at or below `upto`, as far back as WAL was sliced, ascending.
    pub(crate) fn tli_history(&self, upto: Lsn) -> Vec<TliSwitch> {
        let mut history = match &self.state.parent {
            Some((parent, branch)) => parent.tli_history(branch.lsn.min(upto)),
            None => Vec::new(),
        };
        for switch in &self.root().history {
            if switch.from < upto || (history.is_empty() && switch.from == upto) {
                history.retain(|earlier| earlier.tli < switch.tli);
                history.push(*switch);
            }
        }
        history
    }

    /// PostgreSQL's timeline of the last record that ends at or below `lsn`.
    pub fn tli_at(&self, lsn: Lsn) -> Result<Tli, ReadError> {
        let last = self.tli_history(lsn).last().map(|switch| switch.tli);
        last.ok_or(ReadError::NoTli { lsn, timeline: self.id() })
    }
}

impl Shared {
    pub(crate) fn names(&self) -> Names {
        Names::new(Arc::clone(&self.store.objects), self.env.clone(), self.cluster.clone())
    }

    pub(crate) fn manifest(&self, identity: &Identity) -> ManifestStore {
        let paths = self.cluster.timeline(identity.timeline);
        ManifestStore::new(Arc::clone(&self.store.objects), self.env.clone(), paths, identity.ancestor)
    }
}

impl State {
    pub(crate) fn set_layers(&mut self, layers: LayerSet) {
        self.values = layers.without_sources();
        self.layers = Arc::new(layers);
    }

    /// The layers that may be read: those of unconfirmed base images are left out, and the local tail's come on top.
    pub(crate) fn layer_set(&self) -> Result<LayerSet, ReadError> {
        let unconfirmed: HashSet<BaseId> =
            self.root.bases.iter().filter(|base| !base.confirmed).map(|base| base.id).collect();
        let readable =
            self.entries.iter().filter(|entry| entry.base.is_none_or(|base| !unconfirmed.contains(&base)));
        let parent = self.parent.as_ref().map(|(parent, branch)| (Arc::clone(parent.layers()), branch.lsn));
        let set = LayerSet::new(Arc::clone(&self.layer_store), readable.cloned(), parent)?;
        Ok(match &self.tail {
            Some(tail) => set.with_layers(Arc::clone(&tail.store), tail.entries.iter().cloned())?,
            None => set,
        })
    }
}

fn open_with_ancestors(
    shared: Shared,
    id: TimelineId,
    version: Option<u64>,
    depth: usize,
) -> BoxFuture<'static, Result<Timeline, ReadError>> {
    Box::pin(async move {
        if depth > MAX_ANCESTORS {
            return Err(ReadError::TooManyAncestors { timeline: id, limit: MAX_ANCESTORS });
        }
        let identity = shared.names().identity(id).await?;
        let manifest = shared.manifest(&identity);
        let root = match version {
            Some(version) => manifest.version(version).await?,
            None => manifest.latest().await?,
        };
        let entries = manifest.layers(&root).await?.into_iter().map(Arc::new).collect();
        let parent = match identity.ancestor {
            None => None,
            Some(ancestor) => {
                let parent = open_with_ancestors(shared.clone(), ancestor.timeline, None, depth + 1).await?;
                Some((parent, ancestor))
            }
        };
        assemble(shared, identity, Root::clone(&root), Arc::new(entries), parent).await
    })
}

async fn assemble(
    shared: Shared,
    identity: Identity,
    root: Root,
    entries: Arc<Vec<Arc<LayerEntry>>>,
    parent: Option<(Timeline, Ancestor)>,
) -> Result<Timeline, ReadError> {
    let id = identity.timeline;
    let segment_size = WalSegSize::new(u64::from(identity.wal_segment_size))
        .ok_or(ReadError::BadIdentity { timeline: id, segment_bytes: identity.wal_segment_size })?;
    let paths = shared.cluster.timeline(id);
    let objects = Arc::clone(&shared.store.objects);
    let caches = shared.caches.layers.clone();
    let large = large_layers(&entries, &shared) + parent.as_ref().map_or(0, |(parent, _)| parent.state.large);
    let layer_store = LayerStore::reading_ahead(Arc::clone(&objects), paths.clone(), caches, large);
    let own = WalArchive::new(objects, paths.clone(), segment_size, identity.system_identifier);
    let archive = ArchiveChain::new(own, ancestor_archives(parent.as_ref())).await?;
    let none = LayerSet::new(Arc::clone(&layer_store), Vec::<LayerEntry>::new(), None)?;
    let mut state = State {
        shared,
        identity,
        paths,
        root,
        entries,
        large,
        layer_store,
        values: none.without_sources(),
        layers: Arc::new(none),
        archive,
        parent,
        tail: None,
        covered: None,
        segment: Arc::default(),
        segment_size,
    };
    state.set_layers(state.layer_set()?);
    Ok(Timeline { state: Arc::new(state) })
}

/// How many layers hold rows and are too large to be read whole.
fn large_layers(entries: &[Arc<LayerEntry>], shared: &Shared) -> usize {
    let whole = shared.caches.layers.options().whole_bytes;
    entries.iter().filter(|entry| entry.kind != LayerKind::Events && entry.bytes > whole).count()
}

/// The ancestors' archives, nearest first.
fn ancestor_archives(parent: Option<&(Timeline, Ancestor)>) -> Vec<(WalArchive, BranchPoint)> {
    let mut archives = Vec::new();
    let mut next = parent;
    while let Some((timeline, branch)) = next {
        let point = BranchPoint { lsn: branch.lsn, tli: branch.tli };
        archives.push((timeline.archive().own().clone(), point));
        next = timeline.state.parent.as_ref();
    }
    archives
}
