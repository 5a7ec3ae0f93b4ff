//! Around every store that is opened: keeps credentials out of `Debug`, and makes "already exists" on a folder
//! as durable as "created".

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, ObjectStore, PutOptions, PutPayload, PutResult, Result};
use std::fmt;
use std::fs::File;
use std::sync::Arc;

/// See the module.
pub(crate) struct Opened {
    inner: Arc<dyn ObjectStore>,
    label: String,
    folder: Option<LocalFileSystem>,
}

impl Opened {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, label: String, folder: Option<LocalFileSystem>) -> Opened {
        Opened { inner, label, folder }
    }

    /// On a folder an object is visible before its directory is synced. Whoever finds it there may be told so by
    /// a writer that was killed in between, and would take for durable what a power cut can still undo (I4).
    async fn make_durable(&self, location: &Path) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let file = folder.path_to_filesystem(location)?;
        let synced = tokio::task::spawn_blocking(move || {
            File::open(&file)?.sync_all()?;
            file.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        });
        synced.await?.map_err(|e| Error::Generic { store: "folder", source: Box::new(e) })
    }
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
            let result = self.inner.put_opts(location, payload, opts).await;
            if let Err(Error::AlreadyExists { .. }) = &result {
                self.make_durable(location).await?;
            }
            result
        }
    }
}
