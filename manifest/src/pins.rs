//! Pins: small objects of their own that keep a timeline's history at an LSN, and so what it needs of its ancestors'
//! (PROTOCOLS.md §1, I7).

use crate::envelope::{self, PIN};
use crate::error::ManifestError;
use crate::names::{NameError, Names};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use zenith_pgformat::Lsn;
use zenith_store::{Creation, StoreError, TimelineId, create, get_if_present, list};

const PIN_BYTES_MAX: u64 = 4096;
/// The most pins of a cluster that are listed.
const LISTED_MAX: usize = 100_000;
const PINS_PARALLEL: usize = 16;

/// What keeps an LSN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// A timeline that was branched off there. Its pin counts until it has had a name and has none any more, and nothing
    /// that has one was branched off it: one that never had a name may get it at any moment.
    Branch(TimelineId),
}

/// A pin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The timeline that is kept.
    pub timeline: TimelineId,
    /// Where.
    pub lsn: Lsn,
    /// By whom.
    pub holder: Holder,
}

impl Names {
    /// Every pin of the cluster, those of branches that were given up or never finished included.
    pub async fn pins(&self) -> Result<Vec<Pin>, NameError> {
        let objects = list(&*self.objects, &self.cluster.pins(), LISTED_MAX).await?;
        let pins: Vec<Option<Pin>> = futures::stream::iter(objects)
            .map(|object| async move { self.read_pin(&object.location).await })
            .buffered(PINS_PARALLEL)
            .try_collect()
            .await?;
        Ok(pins.into_iter().flatten().collect())
    }

    /// `None` if it was removed meanwhile.
    async fn read_pin(&self, path: &Path) -> Result<Option<Pin>, NameError> {
        let Some(bytes) = get_if_present(&*self.objects, path, PIN_BYTES_MAX).await? else { return Ok(None) };
        let pin: Pin = envelope::open(PIN, path, &bytes)?;
        if self.pin_path(&pin) == *path {
            return Ok(Some(pin));
        }
        let reason = format!("it says that it is {}", self.pin_path(&pin));
        Err(ManifestError::Damaged { object: path.to_string(), reason }.into())
    }

    /// Writes a pin; whether it was not there before.
    pub(crate) async fn pin(&self, pin: &Pin) -> Result<bool, NameError> {
        let path = self.pin_path(pin);
        match create(&*self.objects, &self.env, &path, envelope::seal(PIN, &path, pin)?).await? {
            Creation::Created => Ok(true),
            Creation::Same => Ok(false),
            Creation::Other => {
                let reason = "the branch is pinned elsewhere already".to_owned();
                Err(ManifestError::Damaged { object: path.to_string(), reason }.into())
            }
        }
    }

    /// Removes a pin that nobody can count on any more.
    pub(crate) async fn unpin(&self, pin: &Pin) -> Result<(), NameError> {
        let path = self.pin_path(pin);
        match self.objects.delete(&path).await.map_err(|error| StoreError::from_request(&path, &error)) {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn pin_path(&self, pin: &Pin) -> Path {
        let Holder::Branch(child) = pin.holder;
        self.cluster.pin(pin.timeline, child.0)
    }
}
