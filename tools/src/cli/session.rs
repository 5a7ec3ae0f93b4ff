//! The store, cluster and timeline that the settings name, opened.

use super::options::{Settings, TimelineChoice};
use super::output;
use crate::restore::layout::Owner;
use anyhow::Context;
use rustix::process::geteuid;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use zenith_ingest::archive::{ArchiveChain, BranchPoint, WalArchive};
use zenith_manifest::{Identity, MAX_ANCESTORS, ManifestStore, Names};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_store::{ClusterPaths, Env, Store, StoreKind, StoreSettings, TimelineId, TimelinePaths};

/// The user that packages of PostgreSQL make for servers (DESIGN.md §7).
const SERVER_USER: &str = "postgres";

impl Settings {
    /// Opens the store; a writer creates the directory of a folder store. No request is sent yet.
    pub fn open_store(&self, create_folder: bool) -> anyhow::Result<Store> {
        let mut settings = self.store_settings().create_folder(create_folder);
        if create_folder && let Some(owner) = self.owner_of_new_folder()? {
            settings = settings.new_folder_owner(owner.uid, owner.gid);
        }
        let store = Store::open(&self.store, &settings)?;
        if create_folder && let StoreKind::Folder(folder) = &store.kind {
            warn_of_roots_folder(folder, self.owner.as_deref().unwrap_or(SERVER_USER));
        }
        Ok(store)
    }

    /// What environment and configuration file say of the store.
    pub fn store_settings(&self) -> StoreSettings {
        self.credentials.iter().fold(StoreSettings::from_environment(), |settings, (name, value)| {
            settings.set(name, value.as_str())
        })
    }

    /// Whom a folder is for that root creates; the default is no error where there is no such user.
    fn owner_of_new_folder(&self) -> anyhow::Result<Option<Owner>> {
        match &self.owner {
            Some(name) => Owner::for_process(name),
            None => Ok(Owner::for_process(SERVER_USER).unwrap_or_default()),
        }
    }
}

/// Root writes everywhere, and would learn only from the server's log that nobody else does.
fn warn_of_roots_folder(folder: &Path, user: &str) {
    let writable = |found: Metadata| found.uid() != 0 || found.mode() & 0o022 != 0;
    if geteuid().is_root() && !std::fs::metadata(folder).is_ok_and(writable) {
        let folder = folder.display();
        output::say(&format!(
            "warning: the folder {folder} belongs to root alone: archive_command, which the server runs as its own user, cannot \
             write there; give it to that user, as with chown -R {user}: {folder}"
        ));
    }
}

/// An open cluster.
#[derive(Clone, Debug)]
pub struct Session {
    /// Clock and ids.
    pub env: Env,
    /// The store.
    pub store: Store,
    /// Where the cluster's objects lie.
    pub cluster: ClusterPaths,
    /// Its names.
    pub names: Names,
}

impl Session {
    /// Opens the store that the settings name.
    pub fn open(env: &Env, settings: &Settings, create_folder: bool) -> anyhow::Result<Session> {
        let store = settings.open_store(create_folder)?;
        Ok(Session::of_cluster(env, store, &settings.cluster))
    }

    /// One cluster of a store that is open.
    pub fn of_cluster(env: &Env, store: Store, cluster: &str) -> Session {
        let cluster = ClusterPaths::new(&store.prefix, cluster);
        let names = Names::new(Arc::clone(&store.objects), env.clone(), cluster.clone());
        Session { env: env.clone(), store, cluster, names }
    }

    /// The identity of the timeline that is meant.
    pub async fn identity(&self, choice: &TimelineChoice) -> Result<Identity, zenith_manifest::NameError> {
        let id = match choice {
            TimelineChoice::Id(id) => *id,
            TimelineChoice::Name(name) => self.names.resolve(name).await?,
        };
        self.names.identity(id).await
    }

    /// Where a timeline's objects lie.
    pub fn paths(&self, timeline: TimelineId) -> TimelinePaths {
        self.cluster.timeline(timeline)
    }

    /// A timeline's manifest.
    pub fn manifest(&self, identity: &Identity) -> ManifestStore {
        ManifestStore::new(
            Arc::clone(&self.store.objects),
            self.env.clone(),
            self.paths(identity.timeline),
            identity.ancestor,
        )
    }

    /// A timeline's raw WAL.
    pub fn archive(&self, identity: &Identity) -> anyhow::Result<WalArchive> {
        let size = WalSegSize::new(u64::from(identity.wal_segment_size)).with_context(|| {
            format!(
                "{}: a WAL segment size of {} bytes, which PostgreSQL does not allow",
                self.paths(identity.timeline).identity(),
                identity.wal_segment_size
            )
        })?;
        Ok(WalArchive::new(
            Arc::clone(&self.store.objects),
            self.paths(identity.timeline),
            size,
            identity.system_identifier,
        ))
    }

    /// A timeline's raw WAL and that of its ancestors.
    pub async fn archive_chain(&self, identity: &Identity) -> anyhow::Result<ArchiveChain> {
        let own = self.archive(identity)?;
        let mut ancestors = Vec::new();
        let mut next = identity.ancestor;
        while let Some(ancestor) = next {
            if ancestors.len() == MAX_ANCESTORS {
                anyhow::bail!(
                    "timeline {} has more than {MAX_ANCESTORS} ancestors: an identity object of the store is damaged",
                    identity.timeline
                );
            }
            let parent = self.names.identity(ancestor.timeline).await.with_context(|| {
                format!("timeline {}, an ancestor of {}", ancestor.timeline, identity.timeline)
            })?;
            let branch = BranchPoint { lsn: ancestor.lsn, tli: ancestor.tli };
            ancestors.push((self.archive(&parent)?, branch));
            next = parent.ancestor;
        }
        Ok(ArchiveChain::new(own, ancestors).await?)
    }
}
