//! Does this store keep its word about conditional writes? Some accept the header and ignore it (Garage): there,
//! two writers would both believe that they committed.

use crate::env::Env;
use crate::error::StoreError;
use crate::get::get;
use crate::paths::ClusterPaths;
use crate::put::{Creation, create};
use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt};

/// Puts one object twice, with different bytes, and refuses the store unless the second put says that there is
/// one and the first bytes are still there. The object is removed afterwards; if that fails it is garbage.
pub async fn probe_conditional_writes(
    objects: &dyn ObjectStore,
    env: &Env,
    cluster: &ClusterPaths,
) -> Result<(), StoreError> {
    let path = cluster.probe(env.ids.fresh());
    let first = Bytes::from(format!("first {}", env.ids.fresh()));
    let second = Bytes::from(format!("second {}", env.ids.fresh()));
    let refused = |what: &str| StoreError::Refused {
        object: path.to_string(),
        reason: format!(
            "{what}: this store ({objects}) does not keep conditional writes (If-None-Match), so two writers could \
             overwrite one another; use one that does"
        ),
    };
    let verdict = match create(objects, env, &path, first.clone()).await? {
        Creation::Other => Err(refused("a new name was taken")),
        Creation::Created | Creation::Same => match create(objects, env, &path, second).await? {
            Creation::Other => Ok(()),
            Creation::Created | Creation::Same => Err(refused("an existing object was created again")),
        },
    };
    let intact = match verdict {
        Ok(()) if get(objects, &path, 256).await? != first => {
            Err(refused("an existing object was overwritten"))
        }
        other => other,
    };
    if let Err(error) = objects.delete(&path).await {
        tracing::debug!(%path, %error, "the probe object stays behind");
    }
    intact
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;
    use object_store::path::Path;

    #[tokio::test]
    async fn a_store_that_keeps_conditional_writes_passes_and_keeps_nothing() {
        let store = Store::memory();
        let cluster = ClusterPaths::new(&store.prefix, "main");
        probe_conditional_writes(&*store.objects, &Env::system(), &cluster).await.unwrap();
        assert!(crate::get::list(&*store.objects, &Path::from("main"), 9).await.unwrap().is_empty());
    }
}
