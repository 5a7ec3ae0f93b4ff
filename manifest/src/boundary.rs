//! The boundary against reused numbers: manifest versions up to it are void, whether they exist or not.
//!
//! Put-if-absent forgets deleted names: a writer that stalls longer than GC waits could create a collected number
//! again and believe that it committed. So GC raises the boundary before it deletes, and whoever creates or finds
//! a version checks afterwards that it lies above.

use crate::envelope::BOUNDARY;
use crate::error::ManifestError;
use crate::watermark::{Level, Seen, Watermark};
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use zenith_store::{Env, TimelinePaths};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// Versions up to this one are void.
    void_up_to: u64,
}

impl Level for Body {
    const WHAT: &'static str = "boundary";

    fn of(level: u64) -> Body {
        Body { void_up_to: level }
    }

    fn level(&self) -> u64 {
        self.void_up_to
    }
}

fn watermark<'a>(
    objects: &'a dyn ObjectStore,
    paths: &'a TimelinePaths,
) -> Watermark<'a, impl Fn(u64) -> Path> {
    Watermark { objects, kind: BOUNDARY, path: |n| paths.manifest_boundary(n) }
}

/// The newest boundary that was seen.
#[derive(Debug, Default)]
pub(crate) struct BoundaryCache(Mutex<Seen>);

/// Manifest versions up to this one are void; 0 while nothing was ever collected.
pub(crate) async fn void_up_to(
    objects: &dyn ObjectStore,
    paths: &TimelinePaths,
    cache: &BoundaryCache,
) -> Result<u64, ManifestError> {
    let known = *cache.0.lock().unwrap_or_else(PoisonError::into_inner);
    let newest = watermark(objects, paths).newest::<Body>(known).await?;
    let mut seen = cache.0.lock().unwrap_or_else(PoisonError::into_inner);
    *seen = newest.max(*seen);
    Ok(newest.level)
}

/// Raises the boundary to `version`, before anything up to it is deleted. Never lowers it.
pub async fn raise_boundary(
    objects: &dyn ObjectStore,
    env: &Env,
    paths: &TimelinePaths,
    version: u64,
) -> Result<(), ManifestError> {
    watermark(objects, paths).raise::<Body>(env, version).await
}
