//! A store that accepts conditional writes and ignores their condition, as some servers do.

use object_store::path::Path;
use object_store::{ObjectStore, PutMode, PutOptions, PutPayload, PutResult, Result};
use std::fmt;
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

zenith_store::forward_object_store! {
    impl ObjectStore for UnconditionalStore by inner {
        forward put_multipart_opts, get_opts, get_ranges, delete_stream, list, list_with_offset,
            list_with_delimiter, copy_opts, rename_opts;

        async fn put_opts(
            &self,
            location: &Path,
            payload: PutPayload,
            opts: PutOptions,
        ) -> Result<PutResult> {
            let opts = PutOptions { mode: PutMode::Overwrite, ..opts };
            self.inner.put_opts(location, payload, opts).await
        }
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
