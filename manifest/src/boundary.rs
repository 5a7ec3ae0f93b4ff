//! The boundary against reused numbers: manifest versions up to it are void, whether they exist or not.
//!
//! Put-if-absent forgets deleted names: a writer that stalls longer than GC waits could create a collected number
//! again and believe that it committed. So GC raises the boundary before it deletes, and whoever creates or finds
//! a version checks afterwards that it lies above. A folder store has no conditional update, so the boundary is
//! not one object but a numbered sequence, each naming a version at least as high as the one before.

use crate::envelope::{self, BOUNDARY};
use crate::error::ManifestError;
use crate::sequence::{Numbered, Sequence};
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use zenith_store::{Creation, Env, StoreError, TimelinePaths, create};

const BOUNDARY_BYTES_MAX: u64 = 4096;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// Versions up to this one are void.
    void_up_to: u64,
}

/// The newest boundary that was seen: its number in the sequence, and the version that it names.
#[derive(Debug, Default)]
pub(crate) struct BoundaryCache(Mutex<(u64, u64)>);

impl BoundaryCache {
    fn seen(&self) -> (u64, u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, seen: (u64, u64)) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = (*newest).max(seen);
    }
}

/// Manifest versions up to this one are void; 0 while nothing was ever collected.
pub(crate) async fn void_up_to(
    objects: &dyn ObjectStore,
    paths: &TimelinePaths,
    cache: &BoundaryCache,
) -> Result<u64, ManifestError> {
    let path = |n: u64| -> Path { paths.manifest_boundary(n) };
    let sequence = Sequence { objects, path, bytes_max: BOUNDARY_BYTES_MAX };
    let (known, void) = cache.seen();
    let Some(Numbered { n, bytes }) = sequence.newest_above(known).await? else { return Ok(void) };
    let body: Body = envelope::open(BOUNDARY, &paths.manifest_boundary(n), &bytes)?;
    cache.remember((n, body.void_up_to.max(void)));
    Ok(body.void_up_to.max(void))
}

/// Raises the boundary to `version`, before anything up to it is deleted. Never lowers it.
pub async fn raise_boundary(
    objects: &dyn ObjectStore,
    env: &Env,
    paths: &TimelinePaths,
    version: u64,
) -> Result<(), ManifestError> {
    let cache = BoundaryCache::default();
    for _ in 0..RAISE_TRIES {
        if void_up_to(objects, paths, &cache).await? >= version {
            return Ok(());
        }
        let path = paths.manifest_boundary(cache.seen().0.saturating_add(1));
        let bytes = envelope::seal(BOUNDARY, &path, &Body { void_up_to: version })?;
        match create(objects, env, &path, bytes).await? {
            Creation::Created | Creation::Same => return Ok(()),
            Creation::Other => {}
        }
    }
    let object = paths.manifest_boundary(cache.seen().0.saturating_add(1)).to_string();
    let reason = "others raised the boundary first, again and again".to_owned();
    Err(ManifestError::Store(StoreError::Unavailable { object, reason }))
}

const RAISE_TRIES: u32 = 16;
