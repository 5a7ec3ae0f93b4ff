//! Pins: small objects of their own that keep a timeline's history at an LSN, and so what it needs of its ancestors'
//! (PROTOCOLS.md §1, I7).

use crate::envelope::{self, PIN};
use crate::error::ManifestError;
use crate::horizon::horizon;
use crate::names::{NameError, Names};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
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
    /// A compute that does not have all of its pages yet. Its pin counts until somebody removes it.
    Compute(Uuid),
}

impl Holder {
    fn id(&self) -> Uuid {
        match self {
            Holder::Branch(child) => child.0,
            Holder::Compute(id) => *id,
        }
    }
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

    /// Keeps an LSN for a compute, in the timeline in whose own history it lies: what the compute has to read from. Tried again
    /// after an error it goes on where it stood.
    ///
    /// # Errors
    /// [`NameError::Collected`] if its history is no longer kept; [`NameError::NoTimeline`].
    pub async fn pin_compute(&self, id: Uuid, timeline: TimelineId, lsn: Lsn) -> Result<Pin, NameError> {
        let owner = self.owner(timeline, lsn).await?;
        let pin = Pin { timeline: owner.timeline, lsn, holder: Holder::Compute(id) };
        self.keep(&pin).await?;
        Ok(pin)
    }

    /// Removes a compute's pin.
    ///
    /// # Errors
    /// [`NameError::NoPin`].
    pub async fn end_pin(&self, id: Uuid) -> Result<Pin, NameError> {
        let pins = self.pins().await?;
        let pin = pins.into_iter().find(|pin| pin.holder == Holder::Compute(id));
        let pin = pin.ok_or_else(|| NameError::NoPin { cluster: self.cluster.cluster().to_owned(), id })?;
        self.unpin(&pin).await?;
        Ok(pin)
    }

    /// Writes a pin, and refuses one that came too late; then nobody counts on it.
    pub(crate) async fn keep(&self, pin: &Pin) -> Result<(), NameError> {
        let Pin { timeline, lsn, .. } = *pin;
        let is_new = self.pin(pin).await?;
        let from = horizon(&*self.objects, &self.cluster.timeline(timeline)).await?;
        // One that was there before keeps what it pins, whatever the horizon.
        if lsn >= from || !is_new {
            return Ok(());
        }
        if let Err(error) = self.unpin(pin).await {
            tracing::warn!(%error, "a pin that keeps nothing stays");
        }
        Err(NameError::Collected { timeline, lsn, from })
    }

    /// Writes a pin; whether it was not there before.
    async fn pin(&self, pin: &Pin) -> Result<bool, NameError> {
        let path = self.pin_path(pin);
        match create(&*self.objects, &self.env, &path, envelope::seal(PIN, &path, pin)?).await? {
            Creation::Created => Ok(true),
            Creation::Same => Ok(false),
            Creation::Other => {
                let reason = "its holder has pinned another LSN already".to_owned();
                Err(ManifestError::Damaged { object: path.to_string(), reason }.into())
            }
        }
    }

    /// Removes a pin that nobody can count on any more.
    async fn unpin(&self, pin: &Pin) -> Result<(), NameError> {
        let path = self.pin_path(pin);
        match self.objects.delete(&path).await.map_err(|error| StoreError::from_request(&path, &error)) {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn pin_path(&self, pin: &Pin) -> Path {
        self.cluster.pin(pin.timeline, pin.holder.id())
    }
}
