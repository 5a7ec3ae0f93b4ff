//! A store that commands use and tests look into, copy and damage: a folder, or a bucket of its own in a real MinIO.
//! Objects are named by their path below the store's root: `main/names/main/00000000000000000001`.

use crate::minio::{Bucket, Minio};
use crate::pg::{give_to_server, server_dir};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutPayload};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Objects that are copied at the same time.
const PARALLEL: usize = 16;

/// Which kind of store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A bucket in MinIO.
    Minio,
}

/// Both kinds, for tests that run on each.
pub const KINDS: [Kind; 2] = [Kind::Folder, Kind::Minio];

/// Two tests, `on_a_folder` and `on_minio`, of each function named, which takes the kind of store.
#[macro_export]
macro_rules! on_each_store {
    ($($function:ident),+ $(,)?) => {
        $(
            mod $function {
                #[test]
                fn on_a_folder() {
                    super::$function($crate::store::Kind::Folder);
                }

                #[test]
                fn on_minio() {
                    super::$function($crate::store::Kind::Minio);
                }
            }
        )+
    };
}

/// A store of one test.
#[derive(Debug)]
pub enum TestStore {
    /// The folder `store` in a directory that the server's user owns.
    Folder(TempDir),
    /// A bucket of its own in a real MinIO.
    Minio(Bucket),
}

impl TestStore {
    /// An empty store of this kind.
    pub fn new(kind: Kind) -> TestStore {
        match kind {
            Kind::Folder => TestStore::folder(),
            Kind::Minio => TestStore::minio(),
        }
    }

    /// An empty folder, which does not exist yet: the first push makes it.
    pub fn folder() -> TestStore {
        TestStore::Folder(server_dir())
    }

    /// A folder in a directory of one's own.
    pub fn folder_in(directory: TempDir) -> TestStore {
        TestStore::Folder(directory)
    }

    /// An empty bucket.
    pub fn minio() -> TestStore {
        TestStore::Minio(wait(Minio::shared().bucket()))
    }

    /// A store of this kind with these objects.
    pub fn filled(kind: Kind, objects: &[(String, Bytes)]) -> TestStore {
        let store = TestStore::new(kind);
        store.fill(objects);
        store
    }

    /// Writes these objects.
    pub fn fill(&self, objects: &[(String, Bytes)]) {
        match self {
            TestStore::Folder(_) => objects.iter().for_each(|(name, content)| self.put(name, content)),
            TestStore::Minio(bucket) => {
                let opened = bucket.store();
                let puts = futures::stream::iter(objects).map(|(name, content)| {
                    let path = below(&opened.prefix, name);
                    let payload = PutPayload::from(content.clone());
                    let objects = &opened.objects;
                    async move { objects.put(&path, payload).await }
                });
                wait(puts.buffer_unordered(PARALLEL).try_collect::<Vec<_>>()).expect("MinIO takes objects");
            }
        }
    }

    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            TestStore::Folder(_) => Kind::Folder,
            TestStore::Minio(_) => Kind::Minio,
        }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        match self {
            TestStore::Folder(dir) => format!("file://{}/store", dir.path().display()),
            TestStore::Minio(bucket) => bucket.url.clone(),
        }
    }

    /// What a command needs to reach it besides the URL.
    pub fn credentials(&self) -> Vec<(String, String)> {
        match self {
            TestStore::Folder(_) => Vec::new(),
            TestStore::Minio(bucket) => bucket.variables.clone(),
        }
    }

    /// What a command or a server's environment needs to reach it, the URL included.
    pub fn env(&self) -> Vec<(String, String)> {
        let mut env = self.credentials();
        env.push(("ZENITH_STORE".to_owned(), self.url()));
        env
    }

    /// The names of all objects whose path begins with this, sorted.
    pub fn list(&self, prefix: &str) -> Vec<String> {
        let mut names = match self {
            TestStore::Folder(dir) => {
                let root = dir.path().join("store");
                let mut names = Vec::new();
                files_below(&root, &root, &mut names);
                names
            }
            TestStore::Minio(bucket) => {
                let store = bucket.store();
                let listed = wait(store.objects.list(Some(&store.prefix)).try_collect::<Vec<_>>());
                let root = format!("{}/", store.prefix);
                let listed = listed.expect("MinIO lists");
                listed
                    .iter()
                    .filter_map(|meta| Some(meta.location.as_ref().strip_prefix(&root)?.to_owned()))
                    .collect()
            }
        };
        names.retain(|name| name.starts_with(prefix));
        names.sort();
        names
    }

    /// The only object whose path begins and ends so.
    #[track_caller]
    pub fn only(&self, prefix: &str, suffix: &str) -> String {
        let mut names = self.list(prefix);
        names.retain(|name| name.ends_with(suffix));
        assert_eq!(names.len(), 1, "{prefix}...{suffix}: {names:?}");
        names.swap_remove(0)
    }

    /// An object's content.
    #[track_caller]
    pub fn get(&self, name: &str) -> Bytes {
        match self {
            TestStore::Folder(_) => {
                let path = self.path(name);
                std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
            }
            TestStore::Minio(bucket) => {
                let store = bucket.store();
                let path = below(&store.prefix, name);
                let content = wait(async { store.objects.get(&path).await?.bytes().await });
                content.unwrap_or_else(|error| panic!("{name}: {error}"))
            }
        }
    }

    /// All objects.
    pub fn objects(&self) -> Vec<(String, Bytes)> {
        self.list("").into_iter().map(|name| (name.clone(), self.get(&name))).collect()
    }

    /// Writes an object, whether it is there or not: what Zenith itself never does.
    pub fn put(&self, name: &str, content: &[u8]) {
        match self {
            TestStore::Folder(dir) => {
                let path = self.path(name);
                let parent = path.parent().expect("a directory");
                make_directories(dir.path(), parent);
                std::fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                give_to_server(&path);
            }
            TestStore::Minio(bucket) => {
                let store = bucket.store();
                let payload = PutPayload::from(content.to_vec());
                wait(store.objects.put(&below(&store.prefix, name), payload)).expect("MinIO takes an object");
            }
        }
    }

    /// Removes an object.
    pub fn delete(&self, name: &str) {
        match self {
            TestStore::Folder(_) => std::fs::remove_file(self.path(name)).expect(name),
            TestStore::Minio(bucket) => {
                let store = bucket.store();
                wait(store.objects.delete(&below(&store.prefix, name))).expect(name);
            }
        }
    }

    /// Where an object lies on disk; only of a folder.
    fn path(&self, name: &str) -> PathBuf {
        match self {
            TestStore::Folder(dir) => dir.path().join("store").join(name),
            TestStore::Minio(_) => panic!("a bucket has no paths"),
        }
    }
}

fn below(prefix: &ObjectPath, name: &str) -> ObjectPath {
    name.split('/').fold(prefix.clone(), |path, part| path.join(part))
}

fn files_below(root: &Path, directory: &Path, names: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files_below(root, &path, names);
        } else {
            let name = path.strip_prefix(root).expect("it lies below");
            names.push(name.to_str().expect("names are text").to_owned());
        }
    }
}

/// Those above it that are missing, too; all belong to the server's user.
fn make_directories(top: &Path, directory: &Path) {
    if directory.is_dir() || directory == top {
        return;
    }
    if let Some(parent) = directory.parent() {
        make_directories(top, parent);
    }
    std::fs::create_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    give_to_server(directory);
}

/// Waits in a thread of its own, so that a test with a runtime may call it, too.
fn wait<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(work)
        });
        worker.join().expect("the store answers")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_listed_read_replaced_and_removed() {
        for kind in KINDS {
            let store = TestStore::new(kind);
            assert_eq!(store.list(""), Vec::<String>::new());
            store.put("a/b/c", b"1");
            store.put("a/d", b"2");
            store.put("a/d", b"3");
            assert_eq!(store.list("a/"), ["a/b/c", "a/d"]);
            assert_eq!(store.only("a/b", "c"), "a/b/c");
            let copy = TestStore::filled(kind, &store.objects());
            store.delete("a/d");
            assert_eq!(store.list(""), ["a/b/c"]);
            assert_eq!((copy.kind(), copy.get("a/d").as_ref()), (kind, &b"3"[..]));
        }
    }
}
