//! The commit protocol (PROTOCOLS.md §2): the next version by put-if-absent, with an outcome that is always one of
//! committed, conflict, fenced, refused or unknown.
//!
//! Numbers are consecutive and a version never changes once it is there, so whether *this* commit happened is
//! decided by reading the body under its number: it holds this commit's id, or another's and then this one can
//! never be there.

use crate::change::{Change, apply};
use crate::codec::{ROOT_BYTES_MAX, encode_root};
use crate::error::{CommitError, ManifestError};
use crate::root::{Role, Root};
use crate::sequence::Numbered;
use crate::spill::Spilled;
use crate::store::ManifestStore;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;
use zenith_store::{Creation, StoreError, create, get_if_present};

/// How often a commit that others overtook is tried on the newer version.
pub const CONFLICT_TRIES: u32 = 24;
/// How often the boundary is asked for after a version was created.
const BOUNDARY_TRIES: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A change that is in the store.
#[derive(Clone, PartialEq, Debug)]
pub struct Committed {
    /// The version that holds it.
    pub root: Arc<Root>,
}

enum Attempt {
    Committed(Arc<Root>),
    Overtaken,
}

impl ManifestStore {
    /// Commits one change. See [`ManifestStore::commit_all`].
    pub async fn commit(&self, change: &Change) -> Result<Committed, CommitError> {
        self.commit_all(std::slice::from_ref(change)).await
    }

    /// Commits these changes as one version, all or none.
    ///
    /// A conflict is tried again on the newer version, where the change may be refused; a bounded number of times.
    /// Nothing is ever deleted, whatever the outcome (I5).
    pub async fn commit_all(&self, changes: &[Change]) -> Result<Committed, CommitError> {
        let commit_id = self.env.ids.fresh();
        let mut spilled = Spilled::default();
        for attempt in 0..CONFLICT_TRIES {
            if attempt > 0 {
                self.env.clock.sleep(self.pause(attempt)).await;
            }
            let (root, is_fresh) = match self.remembered() {
                Some(root) if attempt == 0 => (root, false),
                _ => (self.latest().await?, true),
            };
            let next = match apply(&root, changes, commit_id) {
                Ok(next) => next,
                // What is remembered may be old: only the newest version can refuse.
                Err(_) if !is_fresh => apply(&*self.latest().await?, changes, commit_id)?,
                Err(refusal) => return Err(refusal.into()),
            };
            match self.try_commit(next, &mut spilled).await? {
                Attempt::Committed(root) => return Ok(Committed { root }),
                Attempt::Overtaken => {}
            }
        }
        Err(CommitError::Conflict { timeline: self.paths.id().to_string(), tries: CONFLICT_TRIES })
    }

    /// Takes a role over: the returned root holds the new epoch. Whoever held the role is fenced from now on.
    pub async fn take_epoch(&self, role: Role) -> Result<(u64, Arc<Root>), CommitError> {
        let committed = self.commit(&Change::TakeEpoch(role)).await?;
        Ok((committed.root.epochs.of(role), committed.root))
    }

    async fn try_commit(&self, mut next: Root, spilled: &mut Spilled) -> Result<Attempt, CommitError> {
        self.spill(&mut next, spilled).await?;
        let version = next.version;
        let path = self.paths.manifest(version);
        let bytes = encode_root(&path, &next)?;
        match create(&*self.objects, &self.env, &path, bytes).await {
            Ok(Creation::Created | Creation::Same) => {}
            Ok(Creation::Other) => {
                match get_if_present(&*self.objects, &path, ROOT_BYTES_MAX).await? {
                    Some(bytes) => self.remember(&self.decode(&Numbered { n: version, bytes })?),
                    None => self.forget(),
                }
                return Ok(Attempt::Overtaken);
            }
            Err(source @ StoreError::Unknown { .. }) => {
                self.forget();
                return Err(CommitError::Unknown { version, source });
            }
            Err(definite) => return Err(definite.into()),
        }
        if version <= self.boundary_after(version).await? {
            // This writer slept while GC passed: the number was used before, so nothing was committed.
            self.forget();
            return Ok(Attempt::Overtaken);
        }
        let root = Arc::new(next);
        self.remember(&root);
        self.hint(version).await;
        Ok(Attempt::Committed(root))
    }

    /// The boundary, read after `version` was created: while it cannot be read, the outcome is unknown.
    async fn boundary_after(&self, version: u64) -> Result<u64, CommitError> {
        let mut tries = 1;
        loop {
            match self.void_up_to().await {
                Ok(void) => return Ok(void),
                Err(ManifestError::Store(source)) if tries >= BOUNDARY_TRIES || !source.is_transient() => {
                    self.forget();
                    return Err(CommitError::Unknown { version, source });
                }
                Err(ManifestError::Store(_)) => self.env.clock.sleep(self.pause(tries)).await,
                Err(other) => {
                    self.forget();
                    let reason = other.to_string();
                    let object = self.paths.manifest(version).to_string();
                    return Err(CommitError::Unknown {
                        version,
                        source: StoreError::Unknown { object, reason },
                    });
                }
            }
            tries += 1;
        }
    }

    /// Longer each time, and different for each writer, so that writers who met once do not meet again.
    fn pause(&self, attempt: u32) -> Duration {
        let longest = PAUSE_MIN.saturating_mul(1 << attempt.min(16)).min(PAUSE_MAX);
        let spread = jitter(self.env.ids.fresh());
        longest.mul_f64(0.5 + spread / 2.0)
    }
}

/// A number from 0 to 1 out of the random bits of an id.
fn jitter(id: Uuid) -> f64 {
    let low = u32::try_from(id.as_u128() & u128::from(u32::MAX)).unwrap_or(0);
    f64::from(low) / f64::from(u32::MAX)
}

#[cfg(test)]
#[path = "commit_tests.rs"]
mod tests;
