//! A store that accepts conditional writes and ignores their condition, as some servers do.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// See the module.
#[derive(Debug)]
pub struct UnconditionalStore {
    inner: Arc<dyn ObjectStore>,
}

impl UnconditionalStore {
    /// Over a store that does it right.
    pub fn new(inner: Arc<dyn ObjectStore>) -> UnconditionalStore {
        UnconditionalStore { inner }
    }
}

impl fmt::Display for UnconditionalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unconditional {}", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for UnconditionalStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let opts = PutOptions { mode: PutMode::Overwrite, ..opts };
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zenith_store::{ClusterPaths, Store, StoreError, probe_conditional_writes};

    #[tokio::test]
    async fn a_store_that_ignores_conditions_is_refused_by_the_probe() {
        let store = Store::memory().wrapped(UnconditionalStore::new);
        let cluster = ClusterPaths::new(&store.prefix, "main");
        let env = crate::env::test_env(1);
        let refused = probe_conditional_writes(&*store.objects, &env, &cluster).await.unwrap_err();
        assert!(matches!(refused, StoreError::Refused { .. }), "{refused}");
        assert!(refused.to_string().contains("conditional writes"), "{refused}");
    }
}
