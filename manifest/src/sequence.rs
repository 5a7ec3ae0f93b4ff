//! The newest of objects that are numbered 1, 2, 3 … and never deleted from the upper end: found by probing, which
//! costs a few cheap requests where a listing would grow with the history.

use crate::error::ManifestError;
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path;
use zenith_store::get_if_present;

/// Numbered objects.
pub(crate) struct Sequence<'a, P> {
    pub(crate) objects: &'a dyn ObjectStore,
    /// The name of number n.
    pub(crate) path: P,
    /// The largest object.
    pub(crate) bytes_max: u64,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Numbered {
    pub(crate) n: u64,
    pub(crate) bytes: Bytes,
}

impl<P: Fn(u64) -> Path> Sequence<'_, P> {
    /// Number n, if it is there.
    pub(crate) async fn get(&self, n: u64) -> Result<Option<Numbered>, ManifestError> {
        let bytes = get_if_present(self.objects, &(self.path)(n), self.bytes_max).await?;
        Ok(bytes.map(|bytes| Numbered { n, bytes }))
    }

    /// The newest above `known`, which must be there (or 0): probes known+1, +2, +4 … until one is missing, then
    /// bisects. `None` if `known` is the newest.
    pub(crate) async fn newest_above(&self, known: u64) -> Result<Option<Numbered>, ManifestError> {
        let mut found: Option<Numbered> = None;
        let mut step = 1;
        let mut missing = loop {
            let Some(probe) = known.checked_add(step) else { break u64::MAX };
            match self.get(probe).await? {
                Some(present) => found = Some(present),
                None => break probe,
            }
            step = step.saturating_mul(2);
        };
        let mut present = found.as_ref().map_or(known, |found| found.n);
        while missing - present > 1 {
            let middle = present + (missing - present) / 2;
            match self.get(middle).await? {
                Some(higher) => {
                    present = middle;
                    found = Some(higher);
                }
                None => missing = middle,
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;
    use std::sync::Arc;
    use zenith_store::{CountingStore, Store};

    fn path(n: u64) -> Path {
        Path::from(format!("s/{n:020}"))
    }

    #[tokio::test]
    async fn the_newest_is_found_from_any_number_below_it_in_few_requests() {
        let store = CountingStore::new(Arc::clone(&Store::memory().objects));
        for newest in 0..70 {
            if newest > 0 {
                store.put(&path(newest), Bytes::from(newest.to_string()).into()).await.unwrap();
            }
            for known in 0..=newest {
                let before = store.counts().snapshot();
                let sequence = Sequence { objects: &store, path, bytes_max: 10 };
                let found = sequence.newest_above(known).await.unwrap();
                assert_eq!(found.as_ref().map(|found| found.n), (known < newest).then_some(newest));
                if let Some(found) = found {
                    assert_eq!(found.bytes, newest.to_string());
                }
                assert!(store.counts().snapshot().since(&before).requests() <= 14);
            }
        }
    }
}
