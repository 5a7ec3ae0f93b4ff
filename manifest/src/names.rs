//! Names and identities (PROTOCOLS.md §1). A name's versions are numbered objects, created and never deleted: each
//! gives the name to a timeline, or gives it up. The newest counts. Creating the name is what makes a new timeline
//! exist; everything made before it is garbage if that fails.

use crate::envelope::{self, IDENTITY, NAME};
use crate::error::{CommitError, ManifestError};
use crate::identity::Identity;
use crate::sequence::{Numbered, Sequence};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use uuid::Uuid;
use zenith_pgformat::Lsn;
use zenith_store::{
    ClusterPaths, Creation, Env, StoreError, TimelineId, create, get_if_present, list,
    probe_conditional_writes,
};

/// The name that the first push creates.
pub const MAIN: &str = "main";
const NAME_BYTES_MAX: u64 = 4096;
const IDENTITY_BYTES_MAX: u64 = 64 << 10;
const NAME_CHARS_MAX: usize = 63;
/// The most versions of all names together that are listed.
const LISTED_MAX: usize = 100_000;
const NAMES_PARALLEL: usize = 16;
/// Timelines of a cluster without names that are looked into.
const NAMELESS_MAX: usize = 64;
/// How often another version of a name may appear while one is being made.
const RACE_TRIES: u32 = 8;

/// What the newest version of a name says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameState {
    /// The name means this timeline.
    Timeline(TimelineId),
    /// The name was given up, and may be taken again.
    GivenUp,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    name: String,
    version: u64,
    state: NameState,
}

/// Why a name does not lead to a timeline, or cannot be made to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// Not a name at all.
    #[error(
        "\"{name}\" is no name for a timeline: use 1 to 63 of a-z, A-Z, 0-9, '.', '_' and '-', beginning with a \
             letter or digit"
    )]
    Malformed {
        /// As given.
        name: String,
    },
    /// No timeline has this name.
    #[error("cluster \"{cluster}\" has no timeline named \"{name}\"; there are: {known}")]
    NotFound {
        /// The cluster that was looked in.
        cluster: String,
        /// As given.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// Another timeline has this name.
    #[error("the name \"{name}\" belongs to timeline {timeline} already")]
    Taken {
        /// As given.
        name: String,
        /// Who has it.
        timeline: TimelineId,
    },
    /// The timeline has no identity, so it does not exist.
    #[error(
        "there is no timeline {timeline}: {object} is not in the store; if a name or a branch leads to it, restore that \
         object from a copy of the store"
    )]
    NoTimeline {
        /// Which timeline.
        timeline: TimelineId,
        /// What would make it exist.
        object: String,
    },
    /// The cluster was in use, and no name leads there any more.
    #[error(
        "cluster \"{cluster}\" has no names, but timeline {timeline} holds archived WAL: {object} was lost; restore it \
         from a copy of the store, use the timeline by --timeline-id, or choose another --cluster"
    )]
    NamesLost {
        /// The cluster.
        cluster: String,
        /// A timeline that is there.
        timeline: String,
        /// What is missing.
        object: String,
    },
    /// The history at a branch point is no longer kept.
    #[error("LSN {lsn} of timeline {timeline} is no longer kept: branch off at {from} or later")]
    Collected {
        /// Whose history.
        timeline: TimelineId,
        /// Asked for.
        lsn: Lsn,
        /// What is kept begins here.
        from: Lsn,
    },
    /// Too long a chain of branches.
    #[error(
        "timeline {timeline} has {limit} ancestors or more: branch off an earlier one, or begin anew with a base image \
         (zenith_push base --timeline NEW --create)"
    )]
    TooDeep {
        /// What was to be the parent.
        timeline: TimelineId,
        /// How many there may be.
        limit: usize,
    },
    /// Deleting it would delete a history of which there is nothing else.
    #[error("\"{name}\" is no branch but a history of its own, with base images: only branches are deleted")]
    NoBranch {
        /// As given.
        name: String,
    },
    /// Others were branched off it.
    #[error("\"{name}\" has branches: delete them first: {branches}")]
    HasBranches {
        /// As given.
        name: String,
        /// Their names.
        branches: String,
    },
    /// No compute has that pin.
    #[error("cluster \"{cluster}\" has no pin {id}: `zenith pin list` shows those that there are")]
    NoPin {
        /// The cluster that was looked in.
        cluster: String,
        /// As given.
        id: Uuid,
    },
    /// An object of the store cannot be read or written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Manifest 1 of a branch could not be committed.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl From<StoreError> for NameError {
    fn from(error: StoreError) -> NameError {
        NameError::Manifest(ManifestError::Store(error))
    }
}

/// What [`Names::adopt_or_create_main`] ended in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Main {
    /// The cluster was empty: this timeline was created.
    Created(Identity),
    /// It was there already, or another push created it first. Compare the identity with one's own server's.
    Adopted(Identity),
}

/// The names of one cluster.
#[derive(Clone, Debug)]
pub struct Names {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) env: Env,
    pub(crate) cluster: ClusterPaths,
}

impl Names {
    /// The names of the cluster at `cluster`.
    pub fn new(objects: Arc<dyn ObjectStore>, env: Env, cluster: ClusterPaths) -> Names {
        Names { objects, env, cluster }
    }

    /// The timeline of that name; an error lists the names that exist.
    pub async fn resolve(&self, name: &str) -> Result<TimelineId, NameError> {
        match self.newest(name).await? {
            Some((_, NameState::Timeline(timeline))) => Ok(timeline),
            _ => {
                let known: Vec<String> = self.list().await?.into_iter().map(|(name, _)| name).collect();
                let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
                Err(NameError::NotFound {
                    cluster: self.cluster.cluster().to_owned(),
                    name: name.to_owned(),
                    known,
                })
            }
        }
    }

    /// All names that mean a timeline, sorted, as of one moment while this runs: a timeline that is renamed meanwhile has its
    /// old name or its new one.
    pub async fn list(&self) -> Result<Vec<(String, TimelineId)>, NameError> {
        let mut given_up = BTreeSet::new();
        for _ in 0..RACE_TRIES {
            let names = self.newest_of_all().await?;
            let given_up_now = |(name, newest): &(String, Option<(u64, NameState)>)| match newest {
                Some((version, NameState::GivenUp)) => Some((name.clone(), *version)),
                _ => None,
            };
            let now: BTreeSet<(String, u64)> = names.iter().filter_map(given_up_now).collect();
            // A name that was given up since the last look may have been exchanged for one that this look began too early to see.
            if now.is_subset(&given_up) {
                let named = names.into_iter().filter_map(|(name, newest)| match newest {
                    Some((_, NameState::Timeline(timeline))) => Some((name, timeline)),
                    _ => None,
                });
                return Ok(named.collect());
            }
            given_up = now;
        }
        let object = self.cluster.names().to_string();
        let reason = "others give names up at the same time, again and again; try again".to_owned();
        Err(StoreError::Unavailable { object, reason }.into())
    }

    async fn newest_of_all(&self) -> Result<Vec<(String, Option<(u64, NameState)>)>, NameError> {
        futures::stream::iter(self.ever_used().await?)
            .map(|name| async move {
                let newest = self.newest(&name).await?;
                Ok::<_, NameError>((name, newest))
            })
            .buffered(NAMES_PARALLEL)
            .try_collect()
            .await
    }

    /// Gives `name` to `timeline`. A name that was given up may be taken again; one in use is an error.
    pub async fn create(&self, name: &str, timeline: TimelineId) -> Result<(), NameError> {
        for _ in 0..RACE_TRIES {
            let newest = self.newest(name).await?;
            match newest {
                Some((_, NameState::Timeline(same))) if same == timeline => return Ok(()),
                Some((_, NameState::Timeline(other))) => {
                    return Err(NameError::Taken { name: name.to_owned(), timeline: other });
                }
                Some((_, NameState::GivenUp)) | None => {}
            }
            let version = newest.map_or(0, |(version, _)| version).saturating_add(1);
            if self.put_version(name, version, NameState::Timeline(timeline)).await? {
                return Ok(());
            }
        }
        Err(self.restless(name))
    }

    /// Gives `name` up, if it still means `timeline`. Its objects fall to GC when nothing reaches them.
    pub async fn tombstone(&self, name: &str, timeline: TimelineId) -> Result<(), NameError> {
        for _ in 0..RACE_TRIES {
            let Some((version, state)) = self.newest(name).await? else {
                let (cluster, name) = (self.cluster.cluster().to_owned(), name.to_owned());
                return Err(NameError::NotFound { cluster, name, known: "not asked".to_owned() });
            };
            match state {
                NameState::GivenUp => return Ok(()),
                NameState::Timeline(other) if other != timeline => {
                    return Err(NameError::Taken { name: name.to_owned(), timeline: other });
                }
                NameState::Timeline(_) => {}
            }
            if self.put_version(name, version.saturating_add(1), NameState::GivenUp).await? {
                return Ok(());
            }
        }
        Err(self.restless(name))
    }

    /// What the timeline is.
    pub async fn identity(&self, timeline: TimelineId) -> Result<Identity, NameError> {
        let path = self.cluster.timeline(timeline).identity();
        let Some(bytes) = get_if_present(&*self.objects, &path, IDENTITY_BYTES_MAX).await? else {
            return Err(NameError::NoTimeline { timeline, object: path.to_string() });
        };
        let identity: Identity = envelope::open(IDENTITY, &path, &bytes)?;
        let damaged = |reason: String| {
            Err(NameError::Manifest(ManifestError::Damaged { object: path.to_string(), reason }))
        };
        if identity.timeline != timeline {
            return damaged(format!("it says that it is timeline {}", identity.timeline));
        }
        if identity.format > Identity::FORMAT {
            let (object, found) = (path.to_string(), identity.format);
            return Err(ManifestError::Newer { object, found, known: Identity::FORMAT }.into());
        }
        if let Some(algorithm) = &identity.encryption {
            return damaged(format!(
                "its objects are encrypted ({algorithm}), which this program does not know"
            ));
        }
        Ok(identity)
    }

    /// Creates a timeline without ancestor: its identity, and last its name, which is the commit.
    pub async fn create_timeline(&self, name: &str, identity: &Identity) -> Result<(), NameError> {
        self.check_free(name, Some(identity.timeline)).await?;
        self.write_identity(identity).await?;
        self.create(name, identity.timeline).await
    }

    /// Whether `name` can be taken, by `timeline` if it is known already.
    ///
    /// # Errors
    /// [`NameError::Malformed`], [`NameError::Taken`].
    pub async fn check_free(&self, name: &str, timeline: Option<TimelineId>) -> Result<(), NameError> {
        match self.newest(name).await? {
            Some((_, NameState::Timeline(other))) if timeline != Some(other) => {
                Err(NameError::Taken { name: name.to_owned(), timeline: other })
            }
            _ => Ok(()),
        }
    }

    /// What the first push does: the timeline `main` of an empty cluster is created; one that exists is adopted.
    /// Nothing else is ever created: where `main` was given up, or only other names exist, it is an error.
    ///
    /// Of two pushes at the same time one creates it, and the other adopts it.
    pub async fn adopt_or_create_main(&self, identity: &Identity) -> Result<Main, NameError> {
        if let Some((_, NameState::Timeline(timeline))) = self.newest(MAIN).await? {
            return Ok(Main::Adopted(self.identity(timeline).await?));
        }
        if !self.ever_used().await?.is_empty() {
            // Another push may have created it since: resolve tells.
            let timeline = self.resolve(MAIN).await?;
            return Ok(Main::Adopted(self.identity(timeline).await?));
        }
        if let Some(timeline) = self.timeline_with_wal().await? {
            // WAL is archived only after its timeline has a name, which another push may have made just now.
            if let Some((_, NameState::Timeline(timeline))) = self.newest(MAIN).await? {
                return Ok(Main::Adopted(self.identity(timeline).await?));
            }
            let (cluster, object) =
                (self.cluster.cluster().to_owned(), self.cluster.name_version(MAIN, 1).to_string());
            return Err(NameError::NamesLost { cluster, timeline, object });
        }
        probe_conditional_writes(&*self.objects, &self.env, &self.cluster).await?;
        self.write_identity(identity).await?;
        if self.put_version(MAIN, 1, NameState::Timeline(identity.timeline)).await? {
            return Ok(Main::Created(identity.clone()));
        }
        let timeline = self.resolve(MAIN).await?;
        Ok(Main::Adopted(self.identity(timeline).await?))
    }

    /// A timeline that holds archived WAL; looked for among the first so many.
    async fn timeline_with_wal(&self) -> Result<Option<String>, NameError> {
        let timelines = self.parts_below(&self.cluster.timelines()).await?;
        for timeline in timelines.into_iter().take(NAMELESS_MAX) {
            let parts = self.parts_below(&self.cluster.timelines().join(timeline.as_str())).await?;
            if parts.iter().any(|part| part == "wal") {
                return Ok(Some(timeline));
            }
        }
        Ok(None)
    }

    /// The directories directly below a path.
    async fn parts_below(&self, path: &Path) -> Result<Vec<String>, NameError> {
        let listed = self.objects.list_with_delimiter(Some(path)).await;
        let listed = listed.map_err(|error| StoreError::from_request(path, &error))?;
        Ok(listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    pub(crate) async fn write_identity(&self, identity: &Identity) -> Result<(), NameError> {
        let path = self.cluster.timeline(identity.timeline).identity();
        let bytes = envelope::seal(IDENTITY, &path, identity)?;
        match create(&*self.objects, &self.env, &path, bytes).await? {
            Creation::Created | Creation::Same => Ok(()),
            Creation::Other => {
                let reason = "the timeline has another identity already".to_owned();
                Err(ManifestError::Damaged { object: path.to_string(), reason }.into())
            }
        }
    }

    /// Every name that was ever used.
    async fn ever_used(&self) -> Result<BTreeSet<String>, NameError> {
        let names = self.cluster.names();
        let objects = list(&*self.objects, &names, LISTED_MAX).await?;
        let first_part = |path: &Path| path.prefix_match(&names)?.next().map(|part| part.as_ref().to_owned());
        Ok(objects.iter().filter_map(|object| first_part(&object.location)).collect())
    }

    async fn newest(&self, name: &str) -> Result<Option<(u64, NameState)>, NameError> {
        check_name(name)?;
        let path = |n| self.cluster.name_version(name, n);
        let sequence = Sequence { objects: &*self.objects, path, bytes_max: NAME_BYTES_MAX };
        // Nearly every name has one version: both that tell so are asked for at once.
        let found = match futures::try_join!(sequence.get(1), sequence.get(2))? {
            (first, None) => first,
            (_, Some(second)) => Some(sequence.newest_above(second.n).await?.unwrap_or(second)),
        };
        let Some(Numbered { n, bytes }) = found else { return Ok(None) };
        let path = self.cluster.name_version(name, n);
        let body: Body = envelope::open(NAME, &path, &bytes)?;
        if body.name != name || body.version != n {
            let reason = format!("it says version {} of \"{}\"", body.version, body.name);
            return Err(ManifestError::Damaged { object: path.to_string(), reason }.into());
        }
        Ok(Some((n, body.state)))
    }

    /// `false` if another made that version first.
    async fn put_version(&self, name: &str, version: u64, state: NameState) -> Result<bool, NameError> {
        let path = self.cluster.name_version(name, version);
        let bytes = envelope::seal(NAME, &path, &Body { name: name.to_owned(), version, state })?;
        Ok(match create(&*self.objects, &self.env, &path, bytes).await? {
            Creation::Created | Creation::Same => true,
            Creation::Other => false,
        })
    }

    fn restless(&self, name: &str) -> NameError {
        let object = self.cluster.name(name).to_string();
        let reason = "others change this name at the same time, again and again; try again".to_owned();
        StoreError::Unavailable { object, reason }.into()
    }
}

fn check_name(name: &str) -> Result<(), NameError> {
    let sound = (1..=NAME_CHARS_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if sound { Ok(()) } else { Err(NameError::Malformed { name: name.to_owned() }) }
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
