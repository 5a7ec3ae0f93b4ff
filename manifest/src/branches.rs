//! Branches: timelines that go on where another one stood at an LSN (PROTOCOLS.md §1).
//!
//! Creating one: a pin in what it reads, then the horizon there, the identity, manifest 1, and the name, which is the commit.
//! Whatever stops before it leaves objects that nobody can reach.

use crate::change::{Change, Refusal};
use crate::error::CommitError;
use crate::identity::Identity;
use crate::names::{NameError, Names};
use crate::pins::{Holder, Pin};
use crate::root::{Ancestor, SlicedPosition};
use crate::store::ManifestStore;
use futures::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zenith_pgformat::Lsn;
use zenith_store::TimelineId;

/// A timeline has no more ancestors than this.
pub const MAX_ANCESTORS: usize = 64;
/// Identities that are read at the same time.
const PARALLEL: usize = 16;

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

/// A timeline that somebody can reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// What it is.
    pub identity: Identity,
    /// More than one while it is renamed; none where only what was branched off it has one.
    pub names: Vec<String>,
}

/// A name that was given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deleted {
    /// What it meant.
    pub timeline: TimelineId,
    /// The names that still mean it.
    pub left: Vec<String>,
}

impl Names {
    /// Creates a branch, off the timeline whose own history holds the branch point: `branch`'s ancestor, or one of that one's.
    /// Returns that branch point. Tried again after an error it goes on where it stood.
    ///
    /// # Errors
    /// [`NameError::Taken`]; [`NameError::Collected`] where the history at the branch point is no longer kept;
    /// [`NameError::NoTimeline`] if there is no parent; [`NameError::TooDeep`].
    pub async fn create_branch(&self, name: &str, branch: &Branch) -> Result<Ancestor, NameError> {
        let Branch { timeline, start, .. } = branch;
        self.check_free(name, Some(*timeline)).await?;
        let parent = self.owner(branch.ancestor.timeline, branch.ancestor.lsn).await?;
        let ancestor = Ancestor { timeline: parent.timeline, ..branch.ancestor };
        self.keep(&Pin { timeline: ancestor.timeline, lsn: ancestor.lsn, holder: Holder::Branch(*timeline) })
            .await?;
        let identity = Identity { timeline: *timeline, ancestor: Some(ancestor), ..parent };
        self.write_identity(&identity).await?;
        let paths = self.cluster.timeline(*timeline);
        let manifest =
            ManifestStore::new(Arc::clone(&self.objects), self.env.clone(), paths, identity.ancestor);
        match manifest.commit(&Change::CreateTimeline { start: start.clone() }).await {
            Ok(_) | Err(CommitError::Refused(Refusal::AlreadyCreated(_))) => {}
            Err(error) => return Err(error.into()),
        }
        self.create(name, *timeline).await?;
        Ok(ancestor)
    }

    /// The timeline in whose own history an LSN of `timeline` lies: what a branch has not written itself is its ancestors'.
    ///
    /// # Errors
    /// [`NameError::NoTimeline`]; [`NameError::TooDeep`].
    pub async fn owner(&self, timeline: TimelineId, lsn: Lsn) -> Result<Identity, NameError> {
        let mut owner = None;
        let mut next = Some(timeline);
        for _ in 0..MAX_ANCESTORS {
            let Some(above) = next else { break };
            let identity = self.identity(above).await?;
            next = identity.ancestor.map(|above| above.timeline);
            if owner.is_none() && identity.ancestor.is_none_or(|above| lsn > above.lsn) {
                owner = Some(identity);
            }
        }
        match (owner, next) {
            (Some(owner), None) => Ok(owner),
            _ => Err(NameError::TooDeep { timeline, limit: MAX_ANCESTORS }),
        }
    }

    /// The timelines that somebody can reach, by name or as an ancestor of one that has a name.
    pub async fn known(&self) -> Result<Vec<Known>, NameError> {
        let mut names: BTreeMap<TimelineId, Vec<String>> = BTreeMap::new();
        for (name, timeline) in self.list().await? {
            names.entry(timeline).or_default().push(name);
        }
        let mut known = Vec::new();
        let mut seen: BTreeSet<TimelineId> = names.keys().copied().collect();
        let mut next: Vec<TimelineId> = seen.iter().copied().collect();
        while !next.is_empty() {
            let identities = next.into_iter().map(async |timeline| self.identity(timeline).await);
            let identities: Vec<Identity> =
                futures::stream::iter(identities).buffered(PARALLEL).try_collect().await?;
            let above = identities.iter().filter_map(|identity| Some(identity.ancestor?.timeline));
            next = above.filter(|timeline| seen.insert(*timeline)).collect();
            known.extend(identities.into_iter().map(|identity| {
                let names = names.remove(&identity.timeline).unwrap_or_default();
                Known { identity, names }
            }));
        }
        Ok(known)
    }

    /// Gives a name of a branch up; if it was the last, the branch's objects fall to GC when nothing reaches them. What was
    /// branched off it while this went on keeps what it needs.
    ///
    /// # Errors
    /// [`NameError::NotFound`]; [`NameError::NoBranch`] for the only name of a timeline with a history of its own;
    /// [`NameError::HasBranches`].
    pub async fn delete_branch(&self, name: &str) -> Result<Deleted, NameError> {
        let timeline = self.resolve(name).await?;
        let known = self.known().await?;
        let own = known.iter().find(|one| one.identity.timeline == timeline);
        let is_last = own.is_none_or(|one| one.names.iter().all(|other| other == name));
        if is_last && own.is_some_and(|one| one.identity.ancestor.is_none()) {
            return Err(NameError::NoBranch { name: name.to_owned() });
        }
        let branches = branches_of(timeline, &known);
        if is_last && !branches.is_empty() {
            return Err(NameError::HasBranches { name: name.to_owned(), branches: branches.join(", ") });
        }
        self.tombstone(name, timeline).await?;
        let left = if is_last { Vec::new() } else { self.names_left(name, timeline).await? };
        Ok(Deleted { timeline, left })
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
            self.names_left(from, timeline).await?;
        }
        Ok(timeline)
    }

    /// The names of a timeline after one of several was given up. Had others given theirs up at the same time, so that none is
    /// left, it gets this one back.
    async fn names_left(&self, given_up: &str, timeline: TimelineId) -> Result<Vec<String>, NameError> {
        let names = self.list().await?.into_iter().filter(|(_, id)| *id == timeline);
        let names: Vec<String> = names.map(|(name, _)| name).collect();
        if names.is_empty() {
            self.create(given_up, timeline).await?;
            return Ok(vec![given_up.to_owned()]);
        }
        Ok(names)
    }
}

/// What was branched off a timeline, by name; of one that has none, what was branched off it.
fn branches_of(timeline: TimelineId, known: &[Known]) -> Vec<String> {
    let mut branches = Vec::new();
    let mut next = vec![timeline];
    while let Some(parent) = next.pop() {
        let is_child = |one: &&Known| one.identity.ancestor.is_some_and(|above| above.timeline == parent);
        for child in known.iter().filter(is_child) {
            match child.names.first() {
                Some(name) => branches.push(name.clone()),
                None => next.push(child.identity.timeline),
            }
        }
    }
    branches
}

#[cfg(test)]
#[path = "branches_tests.rs"]
mod tests;
