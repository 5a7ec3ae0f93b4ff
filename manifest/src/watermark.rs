//! Levels that only rise, for stores without conditional updates: numbered objects, each naming a level at least as high as
//! the one before. The newest counts.

use crate::envelope::{self, Kind};
use crate::error::ManifestError;
use crate::sequence::{Numbered, Sequence};
use object_store::ObjectStore;
use object_store::path::Path;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zenith_store::{Creation, Env, StoreError, create};

const BYTES_MAX: u64 = 4096;
const RAISE_TRIES: u32 = 16;

/// What the numbered objects say.
pub(crate) trait Level: Serialize + DeserializeOwned {
    /// For messages: what others raise at the same time.
    const WHAT: &'static str;
    fn of(level: u64) -> Self;
    fn level(&self) -> u64;
}

/// A level and the number of the object that names it; 0 and 0 before the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) n: u64,
    pub(crate) level: u64,
}

/// A sequence of such objects.
pub(crate) struct Watermark<'a, P> {
    pub(crate) objects: &'a dyn ObjectStore,
    pub(crate) kind: Kind,
    /// The name of number n.
    pub(crate) path: P,
}

impl<P: Fn(u64) -> Path> Watermark<'_, P> {
    /// The newest, by one that was seen before.
    pub(crate) async fn newest<L: Level>(&self, seen: Seen) -> Result<Seen, ManifestError> {
        let sequence = Sequence { objects: self.objects, path: &self.path, bytes_max: BYTES_MAX };
        let Some(Numbered { n, bytes }) = sequence.newest_above(seen.n).await? else { return Ok(seen) };
        let body: L = envelope::open(self.kind, &(self.path)(n), &bytes)?;
        Ok(Seen { n, level: body.level().max(seen.level) })
    }

    /// Raises the level. Never lowers it.
    pub(crate) async fn raise<L: Level>(&self, env: &Env, level: u64) -> Result<(), ManifestError> {
        let mut seen = Seen::default();
        for _ in 0..RAISE_TRIES {
            seen = self.newest::<L>(seen).await?;
            if seen.level >= level {
                return Ok(());
            }
            let path = (self.path)(seen.n.saturating_add(1));
            let bytes = envelope::seal(self.kind, &path, &L::of(level))?;
            match create(self.objects, env, &path, bytes).await? {
                Creation::Created | Creation::Same => return Ok(()),
                Creation::Other => {}
            }
        }
        let object = (self.path)(seen.n.saturating_add(1)).to_string();
        let reason = format!("others raised the {} first, again and again", L::WHAT);
        Err(ManifestError::Store(StoreError::Unavailable { object, reason }))
    }
}
