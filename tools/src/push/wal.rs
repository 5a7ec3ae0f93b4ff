//! `zenith_push wal`: PostgreSQL's `archive_command` (facts/peers.md §4.4, PROTOCOLS.md §1).

use super::ahead::{self, Ahead};
use super::origin::{Neighbour, Origin};
use crate::cli::deadline::{ARCHIVING, Step, answer_within};
use crate::cli::{Session, Settings, StoreOptions, TimelineChoice, exit, output};
use anyhow::{Context, bail};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use zenith_ingest::archive::{Compressed, Stored, WalArchive};
use zenith_manifest::names::{MAIN, Main};
use zenith_manifest::{Identity, NameError};
use zenith_pgformat::history::History;
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_store::Env;

/// The most threads that compress one segment.
const THREADS_MAX: usize = 4;
/// After a push that took longer, nothing is pushed ahead: the store is slow, and the answer due.
const QUICK: Duration = Duration::from_secs(5);

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
    /// How many further segments it archived ahead of their turn.
    pub ahead: usize,
}

/// A file to archive, read.
struct Offered {
    compressed: Compressed,
    /// The data directory around it, where the file itself does not say which cluster it is of.
    neighbour: Option<Neighbour>,
}

/// Archives the file within [`ARCHIVING`], and up to `ahead` others that wait, and prints what that came to, as far as it is
/// wanted.
pub fn run(env: &Env, store: &StoreOptions, path: &Path, ahead: usize) -> anyhow::Result<()> {
    let pushed = push_within(env, ARCHIVING, store, path, ahead)?;
    if store.json {
        return output::json(&pushed);
    }
    if pushed.created_timeline {
        tracing::info!("timeline {} created", pushed.timeline);
    }
    if !pushed.stored {
        tracing::info!("{} was archived before, with the same content", pushed.file);
    }
    if pushed.ahead > 0 {
        tracing::info!("{} further segments archived ahead of their turn", pushed.ahead);
    }
    Ok(())
}

/// Archives the file within `limit`, and then up to `ahead` others; an error says that it is not known to be durable.
pub fn push_within(
    env: &Env,
    limit: Duration,
    store: &StoreOptions,
    path: &Path,
    ahead: usize,
) -> anyhow::Result<Pushed> {
    let name = wal_file_name(path)?;
    let step = Step::default();
    let work = {
        let (env, store, path, step) = (env.clone(), store.clone(), path.to_owned(), step.clone());
        move || {
            step.begin("reading the configuration");
            let settings = store.resolve()?;
            if let Some(pushed) = archived_before(&env, &settings, &path, ahead) {
                return Ok(pushed);
            }
            let runtime = exit::runtime(0)?;
            let pushed = runtime.block_on(async {
                step.begin("opening the store");
                let session = Session::open(&env, &settings, true)?;
                let begun = env.clock.elapsed();
                let (mut pushed, archive) = push_to(&session, &settings.timeline, &path, &step).await?;
                if ahead > 0 && env.clock.elapsed().saturating_sub(begun) < QUICK {
                    let others = Ahead { env: &env, settings: &settings, archive: &archive };
                    pushed.ahead = others.push_waiting(&path, ahead).await;
                }
                Ok(pushed)
            });
            runtime.shutdown_background();
            pushed
        }
    };
    answer_within(env, limit, &step, work).with_context(|| format!("{name} was not archived"))
}

/// What an earlier push that went ahead has done already.
fn archived_before(env: &Env, settings: &Settings, path: &Path, ahead: usize) -> Option<Pushed> {
    let name = wal_file_name(path).ok().filter(|_| ahead > 0)?;
    let timeline = ahead::archived_before(env, settings, path, name)?;
    Some(Pushed { file: name.to_owned(), stored: false, timeline, created_timeline: false, ahead: 0 })
}

/// Archives the file in an open cluster.
pub async fn push(
    session: &Session,
    timeline: &TimelineChoice,
    path: &Path,
    step: &Step,
) -> anyhow::Result<Pushed> {
    Ok(push_to(session, timeline, path, step).await?.0)
}

/// As [`push`], and where the file went.
async fn push_to(
    session: &Session,
    timeline: &TimelineChoice,
    path: &Path,
    step: &Step,
) -> anyhow::Result<(Pushed, WalArchive)> {
    let name = wal_file_name(path)?;
    step.begin("reading the file, and name and identity of the timeline");
    let owned = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || offered(&owned));
    let (found, offered) = tokio::join!(session.identity(timeline), reading);
    let Offered { compressed, neighbour } = offered.context("reading the file")??;
    let (identity, created_timeline) = match found {
        Ok(identity) => (identity, false),
        Err(NameError::NotFound { .. }) if *timeline == TimelineChoice::Name(MAIN.to_owned()) => {
            step.begin("creating the timeline");
            create_main(session, path, name, &compressed, neighbour.as_ref()).await?
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
    let stored = if says_its_cluster(file) || is_of(&identity, path, neighbour.as_ref())? {
        archive.put_compressed(&session.env, file, &compressed).await? == Stored::Stored
    } else {
        must_be_archived(&archive, file, path, &compressed).await?;
        false
    };
    let timeline = identity.timeline.to_string();
    Ok((Pushed { file: name.to_owned(), stored, timeline, created_timeline, ahead: 0 }, archive))
}

fn offered(path: &Path) -> anyhow::Result<Offered> {
    let file = path.file_name().and_then(|name| WalFile::parse(name.to_str()?, smallest_segments()));
    let neighbour = match file.filter(|file| !says_its_cluster(*file)) {
        Some(_) => Neighbour::of(path)?,
        None => None,
    };
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(THREADS_MAX));
    let threads = if threads > 1 { u32::try_from(threads)? } else { 0 };
    let compressed =
        Compressed::read(path, threads).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Offered { compressed, neighbour })
}

/// Segments carry the system identifier; the archive compares it.
fn says_its_cluster(file: WalFile) -> bool {
    matches!(file, WalFile::Segment { .. } | WalFile::Partial { .. })
}

/// Whether the data directory around the file is the timeline's cluster; an error if it is another one's, `false` if
/// there is none.
fn is_of(identity: &Identity, path: &Path, neighbour: Option<&Neighbour>) -> anyhow::Result<bool> {
    let Some(Neighbour { control, origin }) = neighbour else { return Ok(false) };
    if origin.system_identifier != identity.system_identifier {
        bail!(
            "{} belongs to a cluster with system identifier {} (by {}), but timeline {} to the one with {}: give every \
             cluster a --cluster or a timeline of its own",
            path.display(),
            origin.system_identifier,
            control.display(),
            identity.timeline,
            identity.system_identifier
        );
    }
    Ok(true)
}

/// A file of which nothing says that it is this cluster's: a foreign history would lead slicing astray, and keep its
/// name from the right one for ever. It succeeds only where the same bytes are archived already.
async fn must_be_archived(
    archive: &WalArchive,
    file: WalFile,
    path: &Path,
    compressed: &Compressed,
) -> anyhow::Result<()> {
    match archive.get(file).await? {
        Some(archived) if Some(&*archived) == compressed.whole() => Ok(()),
        Some(_) => bail!("it was archived before with other content; the archived file was kept"),
        None => bail!(
            "{} does not say which cluster it is of, and there is no global/pg_control beside it that would: push it \
             from the data directory of the server that wrote it, or with that as the current directory",
            path.display()
        ),
    }
}

/// Makes the timeline `main` of an empty cluster, or takes the one that another push has made meanwhile.
async fn create_main(
    session: &Session,
    path: &Path,
    name: &str,
    compressed: &Compressed,
    neighbour: Option<&Neighbour>,
) -> anyhow::Result<(Identity, bool)> {
    let origin = match (WalFile::parse(name, smallest_segments()), neighbour) {
        (Some(WalFile::Segment { .. } | WalFile::Partial { .. }), _) => {
            Origin::of_segment(name, compressed.head())?
        }
        (_, Some(neighbour)) => neighbour.origin,
        (_, None) => bail!(
            "{} is the first file for this cluster and does not say which cluster it comes from, and there is no \
             global/pg_control beside it: archive a WAL segment first, or take a base image with zenith_push base",
            path.display()
        ),
    };
    check_before_creating(&origin, name, compressed)?;
    let identity = origin.identity(zenith_store::TimelineId(session.env.ids.fresh()));
    Ok(match session.names.adopt_or_create_main(&identity).await? {
        Main::Created(identity) => (identity, true),
        Main::Adopted(identity) => (identity, false),
    })
}

/// A file that the archive would refuse anyway must not make a timeline.
fn check_before_creating(origin: &Origin, name: &str, compressed: &Compressed) -> anyhow::Result<()> {
    let head = compressed.head();
    match WalFile::parse(name, origin.segment_size) {
        Some(WalFile::Segment { segment, .. } | WalFile::Partial { segment, .. }) => {
            let size = origin.segment_size;
            let length = compressed.length();
            zenith_ingest::archive::check_segment_head(
                head,
                length,
                segment,
                size,
                origin.system_identifier,
            )?;
            Ok(())
        }
        Some(WalFile::History { tli }) => {
            let Some(content) = compressed.whole() else {
                bail!("it has {} bytes, more than any history file", compressed.length());
            };
            History::parse(tli, content)?;
            Ok(())
        }
        Some(WalFile::Backup { .. }) => Ok(()),
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

#[cfg(test)]
mod tests;
