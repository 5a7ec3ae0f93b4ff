//! `zenith_push wal`: PostgreSQL's `archive_command` (facts/peers.md §4.4, PROTOCOLS.md §1).

use super::origin::Origin;
use crate::cli::deadline::{ARCHIVING, Step, within};
use crate::cli::{Session, Settings, TimelineChoice, exit, output};
use anyhow::{Context, bail};
use serde::Serialize;
use std::io::Read;
use std::path::Path;
use zenith_ingest::archive::{Compressed, Stored};
use zenith_manifest::names::{MAIN, Main};
use zenith_manifest::{Identity, NameError};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_store::Env;

/// The largest segment that PostgreSQL allows.
const FILE_MAX: u64 = 1 << 30;

/// What archiving a file came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// The file's name.
    pub file: String,
    /// `false`: it was archived before, with the same content.
    pub stored: bool,
    /// Which timeline holds it.
    pub timeline: String,
    /// This push created the timeline.
    pub created_timeline: bool,
}

/// Archives the file and prints what it came to, as far as that is wanted.
pub fn run(env: &Env, settings: &Settings, path: &Path) -> anyhow::Result<()> {
    let runtime = exit::runtime(0)?;
    let pushed = runtime.block_on(push(env, settings, path));
    // A thread that hangs in a dead file system must not hold up the answer.
    runtime.shutdown_background();
    let pushed = pushed?;
    if settings.json {
        return output::json(&pushed);
    }
    if pushed.created_timeline {
        tracing::info!("timeline {} created", pushed.timeline);
    }
    if !pushed.stored {
        tracing::info!("{} was archived before, with the same content", pushed.file);
    }
    Ok(())
}

/// Archives the file within [`ARCHIVING`]; an error says that it is not known to be durable.
pub async fn push(env: &Env, settings: &Settings, path: &Path) -> anyhow::Result<Pushed> {
    let name = wal_file_name(path)?;
    let step = Step::default();
    within(env, ARCHIVING, &step, push_named(env, settings, path, name, &step))
        .await
        .with_context(|| format!("{name} was not archived"))
}

async fn push_named(
    env: &Env,
    settings: &Settings,
    path: &Path,
    name: &str,
    step: &Step,
) -> anyhow::Result<Pushed> {
    step.begin("reading name and identity of the timeline");
    let session = Session::open(env, settings, true)?;
    let owned = path.to_owned();
    let compressing = tokio::task::spawn_blocking(move || {
        Compressed::new(read(&owned)?).with_context(|| format!("cannot compress {}", owned.display()))
    });
    let (found, compressed) = tokio::join!(session.identity(&settings.timeline), compressing);
    let compressed = compressed.context("reading the file")??;
    let (identity, created_timeline) = match found {
        Ok(identity) => (identity, false),
        Err(NameError::NotFound { .. }) if settings.timeline == TimelineChoice::Name(MAIN.to_owned()) => {
            step.begin("creating the timeline");
            create_main(&session, path, name, compressed.content()).await?
        }
        Err(error) => return Err(error.into()),
    };
    let archive = session.archive(&identity)?;
    let Some(file) = WalFile::parse(name, archive.segment_size()) else {
        bail!(
            "timeline {} belongs to a cluster with WAL segments of {} bytes, which has no such file: is this another \
             cluster's?",
            identity.timeline,
            identity.wal_segment_size
        );
    };
    step.begin(format!("storing {name}"));
    let stored = archive.put_compressed(env, file, compressed).await? == Stored::Stored;
    Ok(Pushed { file: name.to_owned(), stored, timeline: identity.timeline.to_string(), created_timeline })
}

/// Makes the timeline `main` of an empty cluster, or takes the one that another push has made meanwhile.
async fn create_main(
    session: &Session,
    path: &Path,
    name: &str,
    content: &[u8],
) -> anyhow::Result<(Identity, bool)> {
    let origin = match WalFile::parse(name, smallest_segments()) {
        Some(WalFile::Segment { .. } | WalFile::Partial { .. }) => Origin::of_segment(name, content)?,
        _ => Origin::of_neighbourhood(path)?,
    };
    check_before_creating(&origin, name, content)?;
    let identity = origin.identity(zenith_store::TimelineId(session.env.ids.fresh()));
    Ok(match session.names.adopt_or_create_main(&identity).await? {
        Main::Created(identity) => (identity, true),
        Main::Adopted(identity) => (identity, false),
    })
}

/// A file that the archive would refuse anyway must not make a timeline.
fn check_before_creating(origin: &Origin, name: &str, content: &[u8]) -> anyhow::Result<()> {
    match WalFile::parse(name, origin.segment_size) {
        Some(WalFile::Segment { segment, .. } | WalFile::Partial { segment, .. }) => {
            let size = origin.segment_size;
            zenith_ingest::archive::check_segment(content, segment, size, origin.system_identifier)?;
            Ok(())
        }
        Some(_) => Ok(()),
        None => bail!("its own header says that its cluster has no file of this name"),
    }
}

/// The last part of the path, if PostgreSQL could have given that name to a file for archiving.
fn wal_file_name(path: &Path) -> anyhow::Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match WalFile::parse(name, smallest_segments()) {
        Some(_) => Ok(name),
        None => bail!(
            "{} is no WAL file: expected a segment such as 000000010000000000000001, or a .history, .backup or \
             .partial file",
            path.display()
        ),
    }
}

/// With the smallest segments every name that any cluster uses is valid.
fn smallest_segments() -> WalSegSize {
    WalSegSize::new(1 << 20).unwrap_or(WalSegSize::DEFAULT)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(path).with_context(cannot)?;
    let size = file.metadata().with_context(cannot)?.len();
    if size > FILE_MAX {
        bail!("{} has {size} bytes, more than the largest WAL segment", path.display());
    }
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.take(FILE_MAX + 1).read_to_end(&mut content).with_context(cannot)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_postgresql_archives_are_taken() {
        for name in [
            "pg_wal/000000010000000000000001",
            "/data/pg_wal/000000010000000000000FFF",
            "00000002.history",
            "pg_wal/000000010000000000000002.00000028.backup",
            "pg_wal/000000010000000000000003.partial",
        ] {
            assert!(wal_file_name(Path::new(name)).is_ok(), "{name}");
        }
        for name in ["", "/", "pg_wal", "postgresql.conf", "pg_wal/00000001000000000000000", "x.history"] {
            assert!(wal_file_name(Path::new(name)).is_err(), "{name}");
        }
    }
}
