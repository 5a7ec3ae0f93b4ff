//! Opening a timeline for reading, with the WAL that is not sliced yet.

use super::options::{Settings, TimelineChoice};
use super::session::Session;
use super::{output, progress};
use std::path::Path;
use zenith_ingest::slicer::Stopped;
use zenith_layers::CacheOptions;
use zenith_pgformat::Lsn;
use zenith_reader::{ReadError, ReaderCaches, ReaderOptions, Timeline, TimelineRef};
use zenith_store::TimelineId;

/// Opens the newest version of the timeline that the settings name. Its working folder is where temporary files go.
pub async fn open(session: &Session, settings: &Settings) -> Result<Timeline, ReadError> {
    open_in(session, settings, &std::env::temp_dir()).await
}

/// As [`open`], with a working folder of one's own.
pub async fn open_in(session: &Session, settings: &Settings, work_dir: &Path) -> Result<Timeline, ReadError> {
    open_with(session, settings, options(session, work_dir)).await
}

/// As [`open_in`], for reading everything once, in the order of keys.
pub async fn open_whole(
    session: &Session,
    settings: &Settings,
    work_dir: &Path,
) -> Result<Timeline, ReadError> {
    // Stored bytes are kept rather than decoded ones, most of which are used once.
    let caches = CacheOptions {
        index_bytes: 192 << 20,
        block_bytes: 32 << 20,
        ahead_bytes: 128 << 20,
        ..CacheOptions::default()
    };
    let options = ReaderOptions { caches: ReaderCaches::new(caches, 0), ..options(session, work_dir) };
    open_with(session, settings, options).await
}

async fn open_with(
    session: &Session,
    settings: &Settings,
    options: ReaderOptions,
) -> Result<Timeline, ReadError> {
    let which = match &settings.timeline {
        TimelineChoice::Name(name) => TimelineRef::Name(name.clone()),
        TimelineChoice::Id(id) => TimelineRef::Id(*id),
    };
    Timeline::open(&session.store, &settings.cluster, &which, options).await
}

/// Opens the newest version of a timeline by its id.
pub async fn open_id(session: &Session, cluster: &str, id: TimelineId) -> Result<Timeline, ReadError> {
    let options = options(session, &std::env::temp_dir());
    Timeline::open(&session.store, cluster, &TimelineRef::Id(id), options).await
}

fn options(session: &Session, work_dir: &Path) -> ReaderOptions {
    ReaderOptions { env: session.env.clone(), ..ReaderOptions::new(work_dir) }
}

/// Slices archived WAL that the slicer has not reached, into a local folder, and says so.
pub async fn slice_what_is_not(timeline: &mut Timeline, up_to: Option<Lsn>) -> Result<(), ReadError> {
    if up_to.is_some_and(|up_to| timeline.check(up_to).is_ok()) {
        return Ok(());
    }
    let bar = progress::spinner("slicing WAL that zenith_slicedice has not reached");
    let tail = timeline.slice_tail(up_to).await;
    bar.finish_and_clear();
    let tail = tail?;
    if tail.to > tail.from {
        output::say(&format!(
            "WAL from {} to {} was archived and not sliced yet: it was sliced here, in a temporary folder \
             (zenith_slicedice does it once for everybody)",
            tail.from, tail.to
        ));
    }
    // An archive that could go on is no end to pass over in silence.
    if let Some(stopped @ (Stopped::Waiting { .. } | Stopped::EndOfRecords(_))) = &tail.stopped {
        output::say(&format!("WAL was read up to {}: {}", tail.to, ended(stopped)));
    }
    Ok(())
}

/// Why slicing ended, for people.
pub fn ended(stopped: &Stopped) -> String {
    match stopped {
        Stopped::EndOfArchive { next } => format!("end of the archive; {next} comes next"),
        Stopped::Waiting { missing, later } => format!(
            "waiting for WAL segment {missing}, which is missing while {later} is there: archive it, or take a base \
             image past it with zenith_push base"
        ),
        Stopped::EndOfRecords(error) => format!("end of the WAL in the last archived segment ({error})"),
        Stopped::Target => "the target is reached".to_owned(),
        Stopped::RangeBegun { base } => format!("goes on at base image {}", base.0.simple()),
        Stopped::Asked => "it was asked to stop; there may be more WAL".to_owned(),
        Stopped::Going => "there is more WAL".to_owned(),
    }
}
