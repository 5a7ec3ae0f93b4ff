//! Branches: timelines that go on where another one stood at an LSN (PROTOCOLS.md §1).
//!
//! Creating one: pins in what it reads, then the horizon there, the identity, manifest 1, and the name, which is the commit.
//! Whatever stops before it leaves objects that nobody can reach.

use crate::change::{Change, Refusal};
use crate::error::{CommitError, ManifestError};
use crate::horizon::horizon;
use crate::identity::Identity;
use crate::names::{NameError, Names};
use crate::pins::{Holder, Pin, reached};
use crate::root::{Ancestor, SlicedPosition};
use crate::store::ManifestStore;
use std::collections::BTreeSet;
use std::sync::Arc;
use zenith_pgformat::Lsn;
use zenith_store::TimelineId;

/// More ancestors than this are taken for damage.
const ANCESTORS_MAX: usize = 64;

/// A timeline that is to be branched off another one.
#[derive(Clone, PartialEq, Debug)]
pub struct Branch {
    /// Its id, which nobody has yet.
    pub timeline: TimelineId,
    /// Where it goes on.
    pub ancestor: Ancestor,
    /// Where slicing begins.
    pub start: SlicedPosition,
}

impl Branch {
    /// A branch off `ancestor`, in which the record that ends at its LSN starts at `last_record`. Its own WAL is of the next
    /// TLI.
    pub fn new(timeline: TimelineId, ancestor: Ancestor, last_record: Lsn) -> Branch {
        let tli = ancestor.tli.saturating_add(1);
        let start =
            SlicedPosition { tli, lsn: ancestor.lsn, prev: last_record, state: serde_json::Value::Null };
        Branch { timeline, ancestor, start }
    }
}

impl Names {
    /// Creates a branch. Tried again after an error it goes on where it stood.
    ///
    /// # Errors
    /// [`NameError::Taken`]; [`NameError::Collected`] where the history at the branch point is no longer kept;
    /// [`NameError::NoTimeline`] if there is no parent.
    pub async fn create_branch(&self, name: &str, branch: &Branch) -> Result<(), NameError> {
        let Branch { timeline, ancestor, start } = branch;
        self.check_free(name, Some(*timeline)).await?;
        let parent = self.pin_branch(*timeline, ancestor).await?;
        let identity = Identity { timeline: *timeline, ancestor: Some(*ancestor), ..parent };
        self.write_identity(&identity).await?;
        let paths = self.cluster.timeline(*timeline);
        let manifest =
            ManifestStore::new(Arc::clone(&self.objects), self.env.clone(), paths, identity.ancestor);
        match manifest.commit(&Change::CreateTimeline { start: start.clone() }).await {
            Ok(_) | Err(CommitError::Refused(Refusal::AlreadyCreated(_))) => {}
            Err(error) => return Err(error.into()),
        }
        self.create(name, *timeline).await
    }

    /// Pins the branch point in the parent, and above it as far as it lies before the parent's own branch point: a pin keeps
    /// what is at its LSN and nothing below it. Returns the parent's identity.
    async fn pin_branch(&self, child: TimelineId, branch_point: &Ancestor) -> Result<Identity, NameError> {
        let lsn = branch_point.lsn;
        // One that does not exist is not pinned.
        let parent = self.identity(branch_point.timeline).await?;
        let (mut timeline, mut ancestor) = (parent.timeline, parent.ancestor);
        let mut pins = Vec::new();
        for _ in 0..ANCESTORS_MAX {
            let pin = Pin { timeline, lsn, holder: Holder::Branch(child) };
            self.pin(&pin).await?;
            pins.push(pin);
            match ancestor {
                Some(above) if lsn < above.lsn => {
                    Identity { timeline, ancestor, .. } = self.identity(above.timeline).await?;
                }
                // What pinned it when this one was made holds it still.
                Some(above) if lsn == above.lsn => return Ok(parent),
                _ => return self.must_be_kept(&pins, timeline).await.map(|()| parent),
            }
        }
        let object = self.cluster.timeline(timeline).identity().to_string();
        let reason = format!("it has more than {ANCESTORS_MAX} descendants in a row");
        Err(ManifestError::Damaged { object, reason }.into())
    }

    /// Refuses pins that came too late, and removes them: nobody counts on them.
    async fn must_be_kept(&self, pins: &[Pin], owner: TimelineId) -> Result<(), NameError> {
        let collected_below = horizon(&*self.objects, &self.cluster.timeline(owner)).await?;
        let Some(pin) = pins.last().filter(|pin| pin.lsn < collected_below) else { return Ok(()) };
        for pin in pins {
            if let Err(error) = self.unpin(pin).await {
                tracing::warn!(%error, "a pin that keeps nothing stays");
            }
        }
        Err(NameError::Collected { timeline: owner, lsn: pin.lsn, from: collected_below })
    }

    /// Gives the name of a branch up; its objects fall to GC when nothing reaches them. What was branched off it while this
    /// went on keeps what it needs.
    ///
    /// # Errors
    /// [`NameError::NotFound`]; [`NameError::NoBranch`] for a timeline with a history of its own; [`NameError::HasBranches`].
    pub async fn delete_branch(&self, name: &str) -> Result<TimelineId, NameError> {
        let timeline = self.resolve(name).await?;
        let identity = self.identity(timeline).await?;
        let (named, pins) = futures::try_join!(self.list(), self.pins())?;
        // Another name still leads there, as after a rename that was interrupted.
        let is_last = !named.iter().any(|(other, id)| *id == timeline && other != name);
        if is_last && identity.ancestor.is_none() {
            return Err(NameError::NoBranch { name: name.to_owned() });
        }
        let branches = branches_of(timeline, &named, &pins);
        if is_last && !branches.is_empty() {
            return Err(NameError::HasBranches { name: name.to_owned(), branches: branches.join(", ") });
        }
        self.tombstone(name, timeline).await?;
        Ok(timeline)
    }

    /// Gives a timeline another name. Interrupted it may leave it with both; tried again it goes on.
    ///
    /// # Errors
    /// [`NameError::NotFound`]; [`NameError::Taken`] if `to` is another timeline's.
    pub async fn rename(&self, from: &str, to: &str) -> Result<TimelineId, NameError> {
        let timeline = self.resolve(from).await?;
        if from != to {
            self.create(to, timeline).await?;
            self.tombstone(from, timeline).await?;
        }
        Ok(timeline)
    }
}

/// The branches that were made off a timeline and can be reached: by name, or by id where only branches of theirs have one.
fn branches_of(timeline: TimelineId, named: &[(String, TimelineId)], pins: &[Pin]) -> Vec<String> {
    let reached = reached(named.iter().map(|(_, id)| *id), pins);
    let holders = pins.iter().filter(|pin| pin.timeline == timeline).map(|pin| pin.holder);
    let children: BTreeSet<TimelineId> =
        holders.map(|Holder::Branch(child)| child).filter(|child| reached.contains(child)).collect();
    let name = |child: &TimelineId| {
        let name = named.iter().find(|(_, id)| id == child).map(|(name, _)| name.clone());
        name.unwrap_or_else(|| child.to_string())
    };
    children.iter().map(name).collect()
}

#[cfg(test)]
#[path = "branches_tests.rs"]
mod tests;
