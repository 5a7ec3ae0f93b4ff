//! Around every store that is opened: keeps credentials out of `Debug`, and makes "already exists" on a folder
//! as durable as "created", and what root creates there its owner's.

use crate::owner::Owner;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, ObjectStore, PutOptions, PutPayload, PutResult, Result};
use std::fmt;
use std::fs::File;
use std::sync::Arc;

/// What is particular to a folder.
pub(crate) struct Folder {
    pub(crate) local: LocalFileSystem,
    /// To whom what this process creates has to be given.
    pub(crate) owner: Option<Owner>,
}

/// See the module.
pub(crate) struct Opened {
    inner: Arc<dyn ObjectStore>,
    label: String,
    folder: Option<Folder>,
}

impl Opened {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, label: String, folder: Option<Folder>) -> Opened {
        Opened { inner, label, folder }
    }

    /// On a folder an object is visible before its directory is synced. Whoever finds it there may be told so by
    /// a writer that was killed in between, and would take for durable what a power cut can still undo (I4).
    async fn make_durable(&self, location: &Path) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let file = folder.local.path_to_filesystem(location)?;
        let synced = tokio::task::spawn_blocking(move || {
            File::open(&file)?.sync_all()?;
            file.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        });
        synced.await?.map_err(failed)
    }

    /// Does something for the folder's owner before or after an object is put there, where this process is not the owner.
    async fn for_owner(
        &self,
        location: &Path,
        act: impl FnOnce(&Owner, &std::path::Path) -> std::io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let Some(Folder { local, owner: Some(owner) }) = &self.folder else { return Ok(()) };
        let (file, owner) = (local.path_to_filesystem(location)?, owner.clone());
        tokio::task::spawn_blocking(move || act(&owner, &file)).await?.map_err(failed)
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::Generic { store: "folder", source: Box::new(error) }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

crate::forward_object_store! {
    impl ObjectStore for Opened by inner {
        forward put_multipart_opts, get_opts, get_ranges, delete_stream, list, list_with_offset,
            list_with_delimiter, copy_opts, rename_opts;

        async fn put_opts(
            &self,
            location: &Path,
            payload: PutPayload,
            opts: PutOptions,
        ) -> Result<PutResult> {
            self.for_owner(location, Owner::make_directories).await?;
            let result = self.inner.put_opts(location, payload, opts).await;
            match &result {
                Ok(_) => {
                    // The object is there, whoever owns it.
                    if let Err(error) = self.for_owner(location, Owner::give_object).await {
                        tracing::warn!("{location} could not be given to the owner of the store: {error}");
                    }
                }
                Err(Error::AlreadyExists { .. }) => self.make_durable(location).await?,
                Err(_) => {}
            }
            result
        }
    }
}
