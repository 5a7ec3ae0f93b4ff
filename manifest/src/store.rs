//! One timeline's manifest in the store: the newest version, an old one, and the layers that it names.

use crate::boundary::{BoundaryCache, void_up_to};
use crate::codec::{ROOT_BYTES_MAX, decode_root};
use crate::entry::LayerEntry;
use crate::error::ManifestError;
use crate::index::{PAGE_BYTES_MAX, decode_page};
use crate::root::{Ancestor, IndexPageRef, Root};
use crate::sequence::{Numbered, Sequence};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;
use zenith_store::{Env, TimelinePaths, get, get_if_present, last_listed, put_hint};

/// Index pages are fetched this many at a time.
const PAGES_PARALLEL: usize = 8;
const HINT_BYTES_MAX: u64 = 64;
/// How often the newest version is looked for while GC moves the boundary over what was found.
const LATEST_TRIES: u32 = 8;

/// What probing found.
enum Probed {
    /// The newest version.
    Found(Arc<Root>),
    /// No version to begin with.
    Nothing {
        /// What the hint says; 0 if nothing.
        hinted: u64,
    },
}

/// The manifest of one timeline. Cheap to share; remembers what it has read.
#[derive(Debug)]
pub struct ManifestStore {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) env: Env,
    pub(crate) paths: TimelinePaths,
    ancestor: Option<Ancestor>,
    newest: Mutex<Option<Arc<Root>>>,
    boundary: BoundaryCache,
    pages: Mutex<HashMap<Uuid, Arc<Vec<LayerEntry>>>>,
}

impl ManifestStore {
    /// The manifest of the timeline at `paths`, whose identity names this ancestor.
    pub fn new(
        objects: Arc<dyn ObjectStore>,
        env: Env,
        paths: TimelinePaths,
        ancestor: Option<Ancestor>,
    ) -> ManifestStore {
        ManifestStore {
            objects,
            env,
            paths,
            ancestor,
            newest: Mutex::default(),
            boundary: BoundaryCache::default(),
            pages: Mutex::default(),
        }
    }

    /// Where the timeline's objects lie.
    pub fn paths(&self) -> &TimelinePaths {
        &self.paths
    }

    /// The newest version; version 0 if the timeline has none yet.
    pub async fn latest(&self) -> Result<Arc<Root>, ManifestError> {
        for _ in 0..LATEST_TRIES {
            let (root, hinted) = match self.newest_by_probing().await? {
                Probed::Found(root) => (Some(root), 0),
                Probed::Nothing { hinted } => (self.newest_by_listing().await?, hinted),
            };
            let void = self.void_up_to().await?;
            let listed = root.as_ref().map_or(0, |root| root.version);
            if hinted > void && listed < hinted {
                return Err(self.lost_newest(hinted, listed));
            }
            match root {
                Some(root) if root.version > void => {
                    self.remember(&root);
                    return Ok(root);
                }
                None if void == 0 => return Ok(Arc::new(Root::empty(self.paths.id(), self.ancestor))),
                // Collected since it was read, or created again by a writer that had stalled: look anew.
                _ => self.forget(),
            }
            if let Some(root) = self.newest_by_listing().await?.filter(|root| root.version > void) {
                self.remember(&root);
                return Ok(root);
            }
        }
        let reason = "its manifest versions are collected faster than they can be read".to_owned();
        Err(ManifestError::Damaged { object: self.paths.manifests().to_string(), reason })
    }

    /// One version, which must exist.
    pub async fn version(&self, n: u64) -> Result<Arc<Root>, ManifestError> {
        let path = self.paths.manifest(n);
        match get_if_present(&*self.objects, &path, ROOT_BYTES_MAX).await? {
            Some(bytes) => self.decode(&Numbered { n, bytes }),
            None => Err(ManifestError::NoVersion { object: path.to_string() }),
        }
    }

    /// All layers that a root names, those of index pages first.
    pub async fn layers(&self, root: &Root) -> Result<Vec<LayerEntry>, ManifestError> {
        // Collected first: a stream over borrowed pages is not `Send` inside a boxed future.
        let pages: Vec<_> = root.pages.iter().map(|page| self.page(page)).collect();
        let pages: Vec<Arc<Vec<LayerEntry>>> =
            futures::stream::iter(pages).buffered(PAGES_PARALLEL).try_collect().await?;
        let mut cached = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        cached.retain(|id, _| root.pages.iter().any(|page| page.id == *id));
        drop(cached);
        let mut layers: Vec<LayerEntry> = pages.iter().flat_map(|page| page.iter().cloned()).collect();
        layers.extend_from_slice(&root.recent);
        Ok(layers)
    }

    pub(crate) async fn page(&self, page: &IndexPageRef) -> Result<Arc<Vec<LayerEntry>>, ManifestError> {
        let cached = self.pages.lock().unwrap_or_else(PoisonError::into_inner).get(&page.id).cloned();
        if let Some(entries) = cached {
            return Ok(entries);
        }
        let path = self.paths.index_page(page.id);
        let bytes = match get(&*self.objects, &path, page.bytes.min(PAGE_BYTES_MAX)).await {
            Err(error) if error.is_not_found() => {
                let (object, named_by) = (path.to_string(), self.paths.manifests().to_string());
                return Err(ManifestError::Missing { object, named_by });
            }
            bytes => bytes?,
        };
        let entries = Arc::new(decode_page(&path, page, &bytes)?);
        self.keep_page(page.id, &entries);
        Ok(entries)
    }

    pub(crate) fn keep_page(&self, id: Uuid, entries: &Arc<Vec<LayerEntry>>) {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(entries));
    }

    /// Manifest versions up to this one are void.
    pub(crate) async fn void_up_to(&self) -> Result<u64, ManifestError> {
        void_up_to(&*self.objects, &self.paths, &self.boundary).await
    }

    /// The newest version that this process knows of, without asking the store.
    pub(crate) fn remembered(&self) -> Option<Arc<Root>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn remember(&self, root: &Arc<Root>) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.as_ref().is_none_or(|known| known.version < root.version) {
            *newest = Some(Arc::clone(root));
        }
    }

    pub(crate) fn forget(&self) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn decode(&self, found: &Numbered) -> Result<Arc<Root>, ManifestError> {
        let path = self.paths.manifest(found.n);
        let root = decode_root(&path, &found.bytes)?;
        if root.version != found.n || root.timeline != self.paths.id() {
            let reason = format!("it says version {} of timeline {}", root.version, root.timeline);
            return Err(ManifestError::Damaged { object: path.to_string(), reason });
        }
        if root.ancestor != self.ancestor {
            let reason = "its ancestor is not the one of the timeline's identity".to_owned();
            return Err(ManifestError::Damaged { object: path.to_string(), reason });
        }
        Ok(Arc::new(root))
    }

    /// Tells others where to begin looking. They do not trust it, so a failure does no harm.
    pub(crate) async fn hint(&self, version: u64) {
        let path = self.paths.manifest_hint();
        if let Err(error) = put_hint(&*self.objects, &path, version.to_string().into()).await {
            tracing::debug!(%path, %error, "the manifest hint lags");
        }
    }

    /// From what is remembered, else from the hint.
    async fn newest_by_probing(&self) -> Result<Probed, ManifestError> {
        if let Some(known) = self.remembered() {
            return Ok(Probed::Found(self.newest_from(known).await?));
        }
        let hinted = self.hinted().await?;
        if hinted == 0 {
            return Ok(Probed::Nothing { hinted });
        }
        // A hint that does not lag is the rule: what tells so is asked for at once.
        let (next, after) = (hinted.saturating_add(1), hinted.saturating_add(2));
        let sequence = self.sequence();
        let (found, next, after) =
            futures::try_join!(sequence.get(hinted), sequence.get(next), sequence.get(after))?;
        let Some(found) = found else { return Ok(Probed::Nothing { hinted }) };
        if next.is_none() && after.is_none() {
            return Ok(Probed::Found(self.decode(&found)?));
        }
        let newest = self.newest_from(self.decode(&found)?).await?;
        self.must_be_last(newest.version).await?;
        Ok(Probed::Found(newest))
    }

    async fn newest_from(&self, known: Arc<Root>) -> Result<Arc<Root>, ManifestError> {
        match self.sequence().newest_above(known.version).await? {
            Some(newer) => self.decode(&newer),
            None => Ok(known),
        }
    }

    /// What the hint says; 0 where there is none that reads as a number.
    async fn hinted(&self) -> Result<u64, ManifestError> {
        let hint = get_if_present(&*self.objects, &self.paths.manifest_hint(), HINT_BYTES_MAX).await?;
        let number = hint.as_deref().and_then(|hint| std::str::from_utf8(hint).ok()?.parse::<u64>().ok());
        Ok(number.unwrap_or(0))
    }

    /// Numbers are consecutive: the one after the next can be there only if the next one is, or was lost.
    async fn must_be_last(&self, newest: u64) -> Result<(), ManifestError> {
        let (next, after) = (newest.saturating_add(1), newest.saturating_add(2));
        let sequence = self.sequence();
        // Two commits may just have happened; so the next one is asked for last.
        if sequence.get(after).await?.is_none()
            || sequence.get(next).await?.is_some()
            || self.void_up_to().await? >= next
        {
            return Ok(());
        }
        let (object, after) = (self.paths.manifest(next).to_string(), self.paths.manifest(after));
        Err(ManifestError::Lost { object, evidence: format!("{after} follows it") })
    }

    /// The hint is written after the version that it names, and versions are collected from the lower end only.
    fn lost_newest(&self, hinted: u64, listed: u64) -> ManifestError {
        let evidence = format!(
            "{} names it and the newest version that is there is {listed} (whoever removes that hint goes back to it)",
            self.paths.manifest_hint()
        );
        ManifestError::Lost { object: self.paths.manifest(hinted).to_string(), evidence }
    }

    async fn newest_by_listing(&self) -> Result<Option<Arc<Root>>, ManifestError> {
        let Some(last) = last_listed(&*self.objects, &self.paths.manifests()).await? else { return Ok(None) };
        let number = last.filename().and_then(|name| name.strip_suffix(".manifest"));
        let Some(n) = number.and_then(|digits| digits.parse::<u64>().ok()) else {
            let reason = "it is no manifest version".to_owned();
            return Err(ManifestError::Damaged { object: last.to_string(), reason });
        };
        match self.sequence().get(n).await? {
            Some(found) => self.decode(&found).map(Some),
            None => Ok(None),
        }
    }

    fn sequence(&self) -> Sequence<'_, impl Fn(u64) -> Path> {
        Sequence { objects: &*self.objects, path: |n| self.paths.manifest(n), bytes_max: ROOT_BYTES_MAX }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
