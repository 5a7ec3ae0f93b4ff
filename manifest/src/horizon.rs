//! The horizon of a timeline's history: what only LSNs below it need may be gone.
//!
//! GC raises the horizon, then reads the pins, then deletes what neither reaches. Whoever wants an LSN kept writes a pin
//! first and reads the horizon then: of the two, one sees what the other wrote (PROTOCOLS.md §1).

use crate::envelope::HORIZON;
use crate::error::ManifestError;
use crate::watermark::{Level, Seen, Watermark};
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use zenith_pgformat::Lsn;
use zenith_store::{Env, TimelinePaths};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// LSNs below this one may have been collected.
    collected_below: Lsn,
}

impl Level for Body {
    const WHAT: &'static str = "horizon";

    fn of(level: u64) -> Body {
        Body { collected_below: Lsn(level) }
    }

    fn level(&self) -> u64 {
        self.collected_below.0
    }
}

fn watermark<'a>(
    objects: &'a dyn ObjectStore,
    paths: &'a TimelinePaths,
) -> Watermark<'a, impl Fn(u64) -> Path> {
    Watermark { objects, kind: HORIZON, path: |n| paths.horizon(n) }
}

/// The horizon; LSN 0 while nothing was ever collected.
pub(crate) async fn horizon(objects: &dyn ObjectStore, paths: &TimelinePaths) -> Result<Lsn, ManifestError> {
    Ok(Lsn(watermark(objects, paths).newest::<Body>(Seen::default()).await?.level))
}

/// Raises the horizon to `lsn`, before anything that only LSNs below it need is deleted. Never lowers it.
pub async fn raise_horizon(
    objects: &dyn ObjectStore,
    env: &Env,
    paths: &TimelinePaths,
    lsn: Lsn,
) -> Result<(), ManifestError> {
    watermark(objects, paths).raise::<Body>(env, lsn.0).await
}
