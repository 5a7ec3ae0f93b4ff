//! The stores of a run: a folder, MinIO, and MinIO a round trip away.

use crate::measure::{Took, time};
use crate::peers::each;
use crate::proxy::{Authority, Proxy, Traffic};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use zenith_testkit::commands::zenith_bin;
use zenith_testkit::minio::{Bucket, Minio};
use zenith_testkit::pg;

/// The added round trip.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// Where a store lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Place {
    /// A folder of this machine.
    Folder,
    /// MinIO on this machine, by TLS.
    Minio,
    /// The same with 20 ms added to every round trip.
    Distant,
}

impl Place {
    /// As it stands in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Place::Folder => "folder",
            Place::Minio => "MinIO",
            Place::Distant => "MinIO + 20 ms",
        }
    }
}

/// What the stores of one process share.
pub(crate) struct Stores {
    runtime: Runtime,
    authority: Authority,
    _files: TempDir,
}

/// How to reach one empty store.
pub(crate) enum Reached {
    /// A directory.
    Folder(TempDir),
    /// A bucket behind a proxy.
    Bucket {
        /// Its name.
        bucket: String,
        /// The proxy's port.
        port: u16,
        /// Access key and secret.
        keys: [String; 2],
        /// The certificate that certifies the proxy's.
        authority: std::path::PathBuf,
        /// What went through.
        traffic: Arc<Traffic>,
        /// What is added to each round trip.
        round_trip: Duration,
    },
}

impl Stores {
    /// Nothing is started yet.
    pub(crate) fn new() -> anyhow::Result<Stores> {
        let files = pg::server_dir();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Stores { runtime, authority: Authority::new(files.path())?, _files: files })
    }

    /// A new, empty store.
    pub(crate) fn empty(&self, place: Place) -> anyhow::Result<Reached> {
        let round_trip = match place {
            Place::Folder => return Ok(Reached::Folder(pg::server_dir())),
            Place::Minio => Duration::ZERO,
            Place::Distant => ROUND_TRIP,
        };
        let Bucket { url, variables } = self.runtime.block_on(Minio::shared().bucket());
        let value = |name: &str| {
            let found = variables.iter().find(|(variable, _)| variable == name);
            found.map(|(_, value)| value.clone()).with_context(|| format!("MinIO's {name}"))
        };
        let server = value("AWS_ENDPOINT_URL")?.trim_start_matches("http://").parse()?;
        let proxy = self.runtime.block_on(Proxy::start(&self.authority, server, round_trip))?;
        let bucket = url.trim_start_matches("s3://").split('/').next().unwrap_or_default().to_owned();
        Ok(Reached::Bucket {
            bucket,
            port: proxy.address.port(),
            keys: [value("AWS_ACCESS_KEY_ID")?, value("AWS_SECRET_ACCESS_KEY")?],
            authority: self.authority.file.clone(),
            traffic: proxy.traffic,
            round_trip,
        })
    }
}

impl Reached {
    /// One of Zenith's commands on this store.
    pub(crate) fn zenith(&self, program: &str) -> Command {
        let mut command = pg::command(zenith_bin(program));
        match self {
            Reached::Folder(directory) => {
                command.env("ZENITH_STORE", format!("file://{}", directory.path().display()));
            }
            Reached::Bucket { bucket, port, keys: [key, secret], authority, .. } => {
                command
                    .env("ZENITH_STORE", format!("s3://{bucket}/zenith"))
                    .env("AWS_ENDPOINT_URL", format!("https://127.0.0.1:{port}"))
                    .env("AWS_REGION", "us-east-1")
                    .env("AWS_ACCESS_KEY_ID", key)
                    .env("AWS_SECRET_ACCESS_KEY", secret)
                    .env("SSL_CERT_FILE", authority);
            }
        }
        command
    }

    /// Archives segments, a process each, one after the other.
    pub(crate) fn push_wal(&self, segments: &[PathBuf]) -> anyhow::Result<Took> {
        each(segments, |segment| {
            let mut command = self.zenith("zenith_push");
            command.arg("wal").arg(segment);
            Ok(command)
        })
    }

    /// Requests, bytes to the store and bytes from it since they were `before`.
    pub(crate) fn traffic_since(&self, before: Option<[u64; 3]>) -> Option<[u64; 3]> {
        let (before, after) = before.zip(self.traffic())?;
        Some([0, 1, 2].map(|at| after[at] - before[at]))
    }

    /// Requests and bytes so far, where there is a network to count them on.
    pub(crate) fn traffic(&self) -> Option<[u64; 3]> {
        match self {
            Reached::Folder(_) => None,
            Reached::Bucket { traffic, .. } => Some(traffic.read()),
        }
    }

    /// pgBackRest's processes: one for each core, and more where they mostly wait.
    pub(crate) fn processes(&self) -> usize {
        match self {
            Reached::Bucket { round_trip, .. } if !round_trip.is_zero() => 8,
            _ => 2,
        }
    }

    /// pgBackRest's options for a repository in this store.
    pub(crate) fn pgbackrest(&self) -> Vec<String> {
        match self {
            Reached::Folder(directory) => vec![format!("repo1-path={}", directory.path().display())],
            Reached::Bucket { bucket, port, keys: [key, secret], authority, .. } => vec![
                "repo1-type=s3".to_owned(),
                "repo1-path=/pgbackrest".to_owned(),
                format!("repo1-s3-bucket={bucket}"),
                // It compares names of certificates with no address.
                "repo1-s3-endpoint=localhost".to_owned(),
                format!("repo1-storage-port={port}"),
                "repo1-s3-region=us-east-1".to_owned(),
                "repo1-s3-uri-style=path".to_owned(),
                format!("repo1-s3-key={key}"),
                format!("repo1-s3-key-secret={secret}"),
                format!("repo1-storage-ca-file={}", authority.display()),
            ],
        }
    }

    /// Another store with the same content, of a folder.
    pub(crate) fn copy(&self) -> anyhow::Result<Reached> {
        let Reached::Folder(directory) = self else { bail!("only a folder is copied") };
        let copy = pg::server_dir();
        time(pg::command("cp").arg("-a").arg(directory.path().join(".")).arg(copy.path()))?;
        Ok(Reached::Folder(copy))
    }

    /// Bytes of everything stored, of a folder.
    pub(crate) fn stored(&self) -> Option<u64> {
        match self {
            Reached::Folder(directory) => Some(size_of(directory.path())),
            Reached::Bucket { .. } => None,
        }
    }
}

/// Bytes of a file, or of everything in a directory.
pub(crate) fn size_of(path: &Path) -> u64 {
    if let Ok(about) = path.metadata()
        && about.is_file()
    {
        return about.len();
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => size_of(&entry.path()),
        Ok(about) => about.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}
