//! Which timeline a base image goes to, and the commit that makes it exist.

use super::BaseSummary;
use super::preflight::Refusal;
use crate::cli::{Session, Settings, TimelineChoice};
use crate::push::command::BaseArgs;
use crate::push::origin::Origin;
use anyhow::{Context, bail};
use std::time::Duration;
use zenith_ingest::base::FinishedBase;
use zenith_manifest::names::{MAIN, Main};
use zenith_manifest::{BaseId, BaseImage, BaseKind, Change, Identity, ManifestStore, NameError, apply};
use zenith_pgformat::{Lsn, Tli};
use zenith_store::TimelineId;

/// The timeline that a base image goes to.
pub struct Destination {
    /// The cluster.
    pub session: Session,
    /// What the timeline is.
    pub identity: Identity,
    /// Its manifest.
    pub manifest: ManifestStore,
    /// The name that it gets with the first base image; until then nobody can see it.
    new_name: Option<String>,
    /// `main` was created.
    created_main: bool,
}

/// A base image whose objects are stored.
pub struct Gathered {
    /// Where it goes.
    pub destination: Destination,
    /// The base image.
    pub finished: FinishedBase,
    /// Files read.
    pub files: u64,
}

/// A base image that exists.
pub struct Registered {
    destination: Destination,
    image: BaseImage,
    files: u64,
    version: u64,
}

impl Destination {
    /// Finds or prepares the timeline for a cluster; refuses another cluster's.
    pub async fn find(
        session: Session,
        settings: &Settings,
        args: &BaseArgs,
        origin: Origin,
    ) -> anyhow::Result<Destination> {
        let choice = &settings.timeline;
        let fresh = || origin.identity(TimelineId(session.env.ids.fresh()));
        let is_main = *choice == TimelineChoice::Name(MAIN.to_owned());
        let (identity, new_name, created_main) = match (session.identity(choice).await, choice) {
            (Ok(identity), _) => {
                if args.create {
                    bail!("{choice} exists already: leave --create out to add a base image to it");
                }
                (identity, None, false)
            }
            (Err(NameError::NotFound { .. }), _) if is_main => {
                match session.names.adopt_or_create_main(&fresh()).await {
                    Ok(Main::Created(identity)) => (identity, None, true),
                    Ok(Main::Adopted(identity)) => (identity, None, false),
                    // Other names exist, so that main is a new one like any other.
                    Err(NameError::NotFound { .. }) if args.create => (fresh(), Some(MAIN.to_owned()), false),
                    Err(error) => return Err(error).context("add --create to make the timeline"),
                }
            }
            (Err(NameError::NotFound { .. }), TimelineChoice::Name(name)) if args.create => {
                zenith_store::probe_conditional_writes(
                    &*session.store.objects,
                    &session.env,
                    &session.cluster,
                )
                .await?;
                (fresh(), Some(name.clone()), false)
            }
            (Err(error @ NameError::NotFound { .. }), _) => {
                return Err(error).context("add --create to make the timeline");
            }
            (Err(error), _) => return Err(error.into()),
        };
        must_be_same_cluster(&identity, origin)?;
        let manifest = session.manifest(&identity);
        Ok(Destination { session, identity, manifest, new_name, created_main })
    }

    /// Refuses a base image that could not be registered, before hours are spent on it.
    pub async fn would_accept(&self, kind: BaseKind, tli: Tli, redo: Lsn) -> anyhow::Result<()> {
        let root = self.manifest.latest().await?;
        let trial = BaseImage {
            id: BaseId(self.session.env.ids.fresh()),
            kind,
            tli,
            redo,
            checkpoint: redo,
            end: Lsn(redo.0.saturating_add(8)),
            confirmed: false,
            taken_at: String::new(),
            data_bytes: 0,
            stored_bytes: 0,
            data_checksums: false,
        };
        let change = Change::RegisterBase { base: trial, layers: Vec::new() };
        apply(&root, &[change], self.session.env.ids.fresh())?;
        Ok(())
    }
}

fn must_be_same_cluster(identity: &Identity, origin: Origin) -> anyhow::Result<()> {
    if identity.system_identifier != origin.system_identifier {
        return Err(Refusal::AnotherCluster {
            server: origin.system_identifier,
            stored: identity.system_identifier,
            timeline: format!("timeline {}", identity.timeline),
        }
        .into());
    }
    if u64::from(identity.wal_segment_size) != origin.segment_size.bytes() {
        bail!(
            "the cluster has WAL segments of {} bytes, timeline {} was made for {}: use a timeline of its own (--timeline NEW --create)",
            origin.segment_size.bytes(),
            identity.timeline,
            identity.wal_segment_size
        );
    }
    Ok(())
}

/// Makes the base image exist. A new timeline gets its name last: that is what makes it exist.
pub async fn register(gathered: Gathered) -> anyhow::Result<Registered> {
    let Gathered { destination, finished, files } = gathered;
    let FinishedBase { image, layers } = finished;
    let change = Change::RegisterBase { base: image.clone(), layers };
    let committed =
        destination.manifest.commit(&change).await.context("the base image was not registered")?;
    if let Some(name) = &destination.new_name {
        destination
            .session
            .names
            .create_timeline(name, &destination.identity)
            .await
            .context("the base image is stored, but its timeline was not created")?;
    }
    Ok(Registered { destination, image, files, version: committed.root.version })
}

impl Registered {
    /// What the run came to.
    pub fn summary(&self, time: Duration) -> BaseSummary {
        BaseSummary {
            base: self.image.id.0.simple().to_string(),
            timeline: self.destination.identity.timeline.to_string(),
            created_timeline: self.destination.created_main || self.destination.new_name.is_some(),
            manifest_version: self.version,
            kind: self.image.kind,
            tli: self.image.tli,
            redo: self.image.redo,
            end: self.image.end,
            files: self.files,
            data_bytes: self.image.data_bytes,
            stored_bytes: self.image.stored_bytes,
            data_checksums: self.image.data_checksums,
            seconds: time.as_secs_f64(),
        }
    }
}
