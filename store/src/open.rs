//! A store by its URL: `file:///dir`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.

use crate::error::StoreError;
use crate::http::BoundedConnector;
use crate::opened::{Folder, Opened};
use crate::owner::{Owner, give_directory};
use crate::settings::{AWS, AZURE, GOOGLE, StoreSettings, belongs_to};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// How long to wait for a connection.
const CONNECT_TIMEOUT: &str = "5 seconds";
/// How long one attempt may take from first to last byte: the longest upload allowed, see [`crate::http`].
const ATTEMPT_TIMEOUT: &str = "300 seconds";

/// Attempts at one request end after this time, so that a store which is down is reported within half a minute.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(3),
            base: 2.0,
        },
        max_retries: 8,
        retry_timeout: Duration::from_secs(15),
    }
}

/// Which kind of store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreKind {
    /// A directory. It has no conditional update, and every write is synced (I4).
    Folder(PathBuf),
    /// Amazon S3, or a server that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
    /// The memory of this process, for tests.
    Memory,
}

/// An opened store.
#[derive(Clone, Debug)]
pub struct Store {
    /// The objects.
    pub objects: Arc<dyn ObjectStore>,
    /// The path part of the URL: everything of Zenith's lies below it.
    pub prefix: Path,
    /// Which kind.
    pub kind: StoreKind,
}

impl Store {
    /// Opens the store at `url`. No request is sent yet: an unreachable store is told by the first one.
    pub fn open(url: &str, settings: &StoreSettings) -> Result<Store, StoreError> {
        let parsed =
            Url::parse(url).map_err(|e| wrong(format!("\"{}\" is not a URL: {e}; {EXPECTED}", safe(url))))?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(wrong(format!(
                "a URL must hold no credentials: give them in the environment or in zenith.toml ({}://...)",
                parsed.scheme()
            )));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(wrong(format!("\"{}\" must hold no '?' and no '#'; {EXPECTED}", safe(url))));
        }
        match parsed.scheme() {
            "file" => open_folder(&parsed, settings),
            "s3" => open_s3(&parsed, settings),
            "gs" => open_gcs(&parsed, settings),
            "az" => open_azure(&parsed, settings),
            other => Err(wrong(format!("\"{other}\" is no kind of store; {EXPECTED}"))),
        }
    }

    /// A store in memory, for tests.
    pub fn memory() -> Store {
        let objects = Opened::new(Arc::new(InMemory::new()), "memory:".to_owned(), None);
        Store { objects: Arc::new(objects), prefix: Path::default(), kind: StoreKind::Memory }
    }

    /// The same store with its objects seen through a wrapper.
    #[must_use]
    pub fn wrapped<W: ObjectStore>(&self, wrap: impl FnOnce(Arc<dyn ObjectStore>) -> W) -> Store {
        Store {
            objects: Arc::new(wrap(Arc::clone(&self.objects))),
            prefix: self.prefix.clone(),
            kind: self.kind.clone(),
        }
    }
}

const EXPECTED: &str =
    "expected file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";

fn wrong(message: String) -> StoreError {
    StoreError::Settings(message)
}

/// A URL as it may be printed: without the part in which people put credentials.
fn safe(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    if scheme.is_empty() { rest.to_owned() } else { format!("{scheme}://{rest}") }
}

fn open_folder(url: &Url, settings: &StoreSettings) -> Result<Store, StoreError> {
    let directory = url.to_file_path().map_err(|()| {
        wrong(format!("\"{url}\" names no directory: expected an absolute one, file:///directory"))
    })?;
    let object = directory.display().to_string();
    if settings.may_create_folder() {
        create_synced(&directory, settings.owner_of_new_folder()).map_err(|e| folder_error(&object, &e))?;
    }
    match std::fs::metadata(&directory) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(wrong(format!("{object} is not a directory"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(StoreError::NotFound {
                object,
                reason: "there is no such directory; zenith_push creates it, a reader does not".to_owned(),
            });
        }
        Err(e) => return Err(folder_error(&object, &e)),
    }
    let local = LocalFileSystem::new_with_prefix(&directory)
        .map_err(|e| StoreError::from_request(&object, &e))?
        .with_fsync(true);
    let owner = Owner::of(&directory).map_err(|e| folder_error(&object, &e))?;
    let folder = Folder { local: local.clone(), owner };
    let opened = Opened::new(Arc::new(local), format!("file://{object}"), Some(folder));
    Ok(Store { objects: Arc::new(opened), prefix: Path::default(), kind: StoreKind::Folder(directory) })
}

/// Creates a directory and those above it, each one synced in its parent (I4) and given to `owner`.
fn create_synced(directory: &std::path::Path, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = directory.parent();
    if let Some(parent) = parent {
        create_synced(parent, owner)?;
    }
    match std::fs::create_dir(directory) {
        Ok(()) => owner.map_or(Ok(()), |(uid, gid)| give_directory(directory, uid, gid))?,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
    }
    match parent {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn folder_error(object: &str, error: &std::io::Error) -> StoreError {
    let copy = std::io::Error::new(error.kind(), error.to_string());
    StoreError::from_request(
        &object,
        &object_store::Error::Generic { store: "folder", source: Box::new(copy) },
    )
}

/// The bucket and the prefix below it.
fn bucket_and_prefix(url: &Url) -> Result<(String, Path), StoreError> {
    let bucket = url.host_str().filter(|bucket| !bucket.is_empty());
    let bucket = bucket.ok_or_else(|| wrong(format!("\"{url}\" names no bucket; {EXPECTED}")))?;
    let prefix = Path::from_url_path(url.path()).map_err(|e| wrong(format!("\"{url}\": {e}")))?;
    Ok((bucket.to_owned(), prefix))
}

/// Defaults, then the environment, then the file, each going before the one before it.
fn configure<B, K: FromStr>(
    url: &Url,
    settings: &StoreSettings,
    own_prefixes: &[&str],
    builder: B,
    client_key: impl Fn(ClientConfigKey) -> K,
    with: impl Fn(B, K, String) -> B,
) -> Result<B, StoreError> {
    let mut builder = with(builder, client_key(ClientConfigKey::ConnectTimeout), CONNECT_TIMEOUT.to_owned());
    builder = with(builder, client_key(ClientConfigKey::Timeout), ATTEMPT_TIMEOUT.to_owned());
    for (name, value, must_be_known) in settings.options() {
        let of_another_cloud = belongs_to(name, &[AWS, AZURE, GOOGLE]) && !belongs_to(name, &[own_prefixes]);
        match K::from_str(name) {
            Ok(_) if of_another_cloud => {}
            Ok(key) => builder = with(builder, key, value.to_owned()),
            Err(_) if !must_be_known || of_another_cloud => {}
            Err(_) => return Err(wrong(format!("\"{name}\" is no option of a {}:// store", url.scheme()))),
        }
    }
    Ok(builder)
}

fn open_s3(url: &Url, settings: &StoreSettings) -> Result<Store, StoreError> {
    let (bucket, prefix) = bucket_and_prefix(url)?;
    let builder = configure(
        url,
        settings,
        AWS,
        AmazonS3Builder::new(),
        AmazonS3ConfigKey::Client,
        |builder, key, value| builder.with_config(key, value),
    )?;
    let built = builder
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(retries())
        .with_http_connector(BoundedConnector::default())
        .build();
    finish(url, built, prefix, StoreKind::S3)
}

fn open_gcs(url: &Url, settings: &StoreSettings) -> Result<Store, StoreError> {
    let (bucket, prefix) = bucket_and_prefix(url)?;
    let builder = configure(
        url,
        settings,
        GOOGLE,
        GoogleCloudStorageBuilder::new(),
        GoogleConfigKey::Client,
        |builder, key, value| builder.with_config(key, value),
    )?;
    let built = builder
        .with_bucket_name(bucket)
        .with_retry(retries())
        .with_http_connector(BoundedConnector::default())
        .build();
    finish(url, built, prefix, StoreKind::Gcs)
}

fn open_azure(url: &Url, settings: &StoreSettings) -> Result<Store, StoreError> {
    let (container, prefix) = bucket_and_prefix(url)?;
    let builder = configure(
        url,
        settings,
        AZURE,
        MicrosoftAzureBuilder::new(),
        AzureConfigKey::Client,
        |builder, key, value| builder.with_config(key, value),
    )?;
    let built = builder
        .with_container_name(container)
        .with_retry(retries())
        .with_http_connector(BoundedConnector::default())
        .build();
    finish(url, built, prefix, StoreKind::Azure)
}

fn finish<S: ObjectStore>(
    url: &Url,
    built: object_store::Result<S>,
    prefix: Path,
    kind: StoreKind,
) -> Result<Store, StoreError> {
    let inner = built.map_err(|e| wrong(format!("{url}: {e}")))?;
    let opened = Opened::new(Arc::new(inner), url.to_string(), None);
    Ok(Store { objects: Arc::new(opened), prefix, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(url: &str) -> String {
        Store::open(url, &StoreSettings::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_url_is_told_what_is_expected() {
        for url in ["store", "http://host/x", "file://host/x", "s3:///x", "gs://b?x=1"] {
            assert!(message(url).contains("expected"), "{url}: {}", message(url));
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        for url in ["s3://key:hunter2@bucket/x", "s3://key:hunter2@bu cket/x", "s3://b/x?secret=hunter2"] {
            assert!(!message(url).contains("hunter2"), "{}", message(url));
        }
    }

    #[test]
    fn a_folder_is_created_for_a_writer_only() {
        let base = tempfile::tempdir().unwrap();
        let url = Url::from_file_path(base.path().join("a/b")).unwrap();
        let reader = Store::open(url.as_str(), &StoreSettings::default()).unwrap_err();
        assert!(reader.is_not_found() && reader.to_string().contains("a/b"), "{reader}");
        let writer = Store::open(url.as_str(), &StoreSettings::default().create_folder(true)).unwrap();
        assert_eq!(writer.kind, StoreKind::Folder(base.path().join("a/b")));
        Store::open(url.as_str(), &StoreSettings::default()).unwrap();
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let url = Url::from_file_path(file.path()).unwrap();
        assert!(message(url.as_str()).contains("is not a directory"));
    }

    #[test]
    fn an_option_that_the_store_does_not_know_is_an_error_when_a_file_says_it() {
        let settings = StoreSettings::default().set("aws_regoin", "x");
        let error = Store::open("s3://bucket/p", &settings).unwrap_err().to_string();
        assert!(error.contains("aws_regoin"), "{error}");
        let variables = [("AWS_REGOIN".to_owned(), "x".to_owned())];
        Store::open("s3://bucket/p", &StoreSettings::from_variables(variables)).unwrap();
    }

    #[test]
    fn no_secret_shows_in_debug_of_an_opened_store() {
        let s3 =
            StoreSettings::default().set("aws_access_key_id", "k").set("aws_secret_access_key", "hunter2");
        let azure = StoreSettings::default()
            .set("azure_storage_account_name", "a")
            .set("azure_storage_account_key", "aHVudGVyMg==");
        for (url, settings) in [("s3://bucket/p", s3), ("az://container/p", azure)] {
            let text = format!("{:?}", Store::open(url, &settings).unwrap());
            assert!(text.contains(url) && !text.contains("hunter") && !text.contains("104, 117"), "{text}");
        }
    }

    #[test]
    fn the_path_of_the_url_becomes_the_prefix() {
        let store = Store::open("s3://bucket/a/b%20c", &StoreSettings::default()).unwrap();
        assert_eq!(store.prefix.as_ref(), "a/b c");
    }
}
