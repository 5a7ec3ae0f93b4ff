//! Opening a timeline for reading, with the WAL that is not sliced yet.

use super::options::{Settings, TimelineChoice};
use super::output;
use super::session::Session;
use zenith_ingest::slicer::Stopped;
use zenith_pgformat::Lsn;
use zenith_reader::{ReadError, ReaderOptions, Timeline, TimelineRef};
use zenith_store::TimelineId;

/// Opens the newest version of the timeline that the settings name. Its working folder is where temporary files go.
pub async fn open(session: &Session, settings: &Settings) -> Result<Timeline, ReadError> {
    let which = match &settings.timeline {
        TimelineChoice::Name(name) => TimelineRef::Name(name.clone()),
        TimelineChoice::Id(id) => TimelineRef::Id(*id),
    };
    Timeline::open(&session.store, &settings.cluster, &which, options(session)).await
}

/// Opens the newest version of a timeline by its id.
pub async fn open_id(session: &Session, cluster: &str, id: TimelineId) -> Result<Timeline, ReadError> {
    Timeline::open(&session.store, cluster, &TimelineRef::Id(id), options(session)).await
}

fn options(session: &Session) -> ReaderOptions {
    ReaderOptions { env: session.env.clone(), ..ReaderOptions::new(std::env::temp_dir()) }
}

/// Slices archived WAL that the slicer has not reached, into a local folder, and says so.
pub async fn slice_what_is_not(timeline: &mut Timeline, up_to: Option<Lsn>) -> Result<(), ReadError> {
    let sliced = timeline.root().sliced.as_ref().map(|sliced| sliced.lsn);
    if let (Some(sliced), Some(up_to)) = (sliced, up_to)
        && up_to <= sliced
    {
        return Ok(());
    }
    let tail = timeline.slice_tail(up_to).await?;
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
