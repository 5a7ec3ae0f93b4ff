//! `zenith_push wal --ahead`: PostgreSQL archives one file at a time, and a backlog of them over a distant store takes long.
//! So a push that is done goes on with further segments that wait, several at a time, and writes down which it has
//! archived; when PostgreSQL comes to one of these, there is nothing left to do.
//!
//! A record says: this very file, untouched since, was stored durably where these settings lead. It lies beside the mark that
//! says that the file waits (`archive_status`, which no copy of a data directory takes along), and is disposable: without it,
//! or if it cannot be read or is old, the file is pushed again, which changes nothing.

use crate::cli::Settings;
use crate::cli::deadline::ARCHIVING;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};
use zenith_ingest::archive::{Compressed, WalArchive};
use zenith_pgformat::wal_name::WalFile;
use zenith_store::Env;

/// What marks a file that waits to be archived (xlogarchive.c).
const READY: &str = ".ready";
/// What our records end with.
const RECORD: &str = ".zenith";
/// What they are called until they are whole.
const UNNAMED: &str = ".zenith.tmp";
/// The most segments that one push archives ahead.
pub(super) const AHEAD_MAX: usize = 1024;
/// Segments on their way at the same time.
const PARALLEL_MAX: u64 = 4;
/// Content of segments on their way at the same time.
const PARALLEL_BYTES: u64 = 64 << 20;
/// PostgreSQL waits meanwhile, and a server that shuts down waits for it: after this time no further segment is begun.
const LIMIT: Duration = Duration::from_secs(5);
/// Those that are on their way then are waited for, but not for longer than this.
const LAST_LIMIT: Duration = Duration::from_secs(30);
/// In seconds. A record counts no longer than a push may take: what happens to a name or a store between its look at the name
/// and its end, neither of them sees.
const RECORD_AGE_MAX: u64 = ARCHIVING.as_secs();

/// A record of a segment that was archived before its turn.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Which store, cluster and timeline were meant: [`fingerprint`].
    settings: u64,
    /// Where that led.
    timeline: String,
    file: FileState,
    /// Seconds since 1970.
    at: u64,
}

/// By what a file is known again that nobody has touched since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileState {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileState {
    fn of(path: &Path) -> std::io::Result<FileState> {
        let about = std::fs::metadata(path)?;
        Ok(FileState {
            device: about.dev(),
            inode: about.ino(),
            length: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        })
    }
}

/// The directory in which PostgreSQL marks what waits, beside a file of `pg_wal`.
fn status_directory(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join("archive_status")
}

fn seconds(env: &Env) -> u64 {
    env.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What the settings mean, as one number: records made under other settings count for nothing.
fn fingerprint(settings: &Settings) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&settings.store, &settings.cluster, settings.timeline.to_string()).hash(&mut hasher);
    for option in settings.store_settings().place() {
        option.hash(&mut hasher);
    }
    hasher.finish()
}

/// The timeline that holds the file, if it was archived ahead of its turn. The record is used up.
pub(super) fn archived_before(env: &Env, settings: &Settings, path: &Path, name: &str) -> Option<String> {
    let record_path = status_directory(path).join(format!("{name}{RECORD}"));
    let text = std::fs::read(&record_path).ok()?;
    // Whatever it says, it has had its turn.
    drop(std::fs::remove_file(&record_path));
    let record: Record = serde_json::from_slice(&text).ok()?;
    let age = seconds(env).checked_sub(record.at)?;
    let holds = age <= RECORD_AGE_MAX
        && record.settings == fingerprint(settings)
        && FileState::of(path).is_ok_and(|file| file == record.file);
    holds.then_some(record.timeline)
}

/// Archives further segments ahead of their turn.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a> {
    /// Clock.
    pub(super) env: &'a Env,
    /// What the command was told.
    pub(super) settings: &'a Settings,
    /// Where that led.
    pub(super) archive: &'a WalArchive,
}

impl Ahead<'_> {
    /// Archives up to `count` segments that wait beside `path`, which was just archived. What does not succeed is left for
    /// its turn, which will tell why; nothing is begun after that, nor after [`LIMIT`]. Answers with how many were archived.
    pub(super) async fn push_waiting(self, path: &Path, count: usize) -> usize {
        let directory = status_directory(path);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let listing = {
            let directory = directory.clone();
            tokio::task::spawn_blocking(move || waiting(&directory, &name, count))
        };
        let settings = fingerprint(self.settings);
        let pushed = Cell::new(0);
        let pushing = async {
            let names = listing.await.unwrap_or_default();
            let parallel = (PARALLEL_BYTES / self.archive.segment_size().bytes()).clamp(1, PARALLEL_MAX);
            let failed = Cell::new(false);
            let begun = self.env.clock.elapsed();
            let goes_on = || !failed.get() && self.env.clock.elapsed().saturating_sub(begun) < LIMIT;
            let mut pushes = futures::stream::iter(names)
                .take_while(|_| std::future::ready(goes_on()))
                .map(|name| self.push_one(path.with_file_name(name), &directory, settings))
                .buffer_unordered(usize::try_from(parallel).unwrap_or(1));
            while let Some(outcome) = pushes.next().await {
                match outcome {
                    Ok(()) => pushed.set(pushed.get() + 1),
                    Err(error) => {
                        tracing::warn!("a segment was not archived ahead of its turn: {error:#}");
                        failed.set(true);
                    }
                }
            }
        };
        tokio::select! {
            () = pushing => {}
            () = self.env.clock.sleep(LAST_LIMIT) => {}
        }
        pushed.get()
    }

    async fn push_one(self, path: PathBuf, directory: &Path, settings: u64) -> anyhow::Result<()> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(file @ WalFile::Segment { .. }) = WalFile::parse(name, self.archive.segment_size()) else {
            anyhow::bail!("{name} is no segment of this cluster");
        };
        let (state, compressed) = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || read_untouched(&path)).await??
        };
        self.archive.put_compressed(self.env, file, &compressed).await?;
        let record = Record {
            settings,
            timeline: self.archive.paths().id().to_string(),
            file: state,
            at: seconds(self.env),
        };
        write_record(directory, name, &record)
    }
}

/// A file's content, and the state of the file that has it.
fn read_untouched(path: &Path) -> anyhow::Result<(FileState, Compressed)> {
    let before = FileState::of(path)?;
    let compressed = Compressed::read(path, 0)?;
    let after = FileState::of(path)?;
    anyhow::ensure!(
        before == after && before.length == compressed.length(),
        "{} changed while it was read",
        path.display()
    );
    Ok((before, compressed))
}

/// In one step, so that no half of it is ever read.
fn write_record(directory: &Path, name: &str, record: &Record) -> anyhow::Result<()> {
    let unnamed = directory.join(format!("{name}{UNNAMED}"));
    std::fs::write(&unnamed, serde_json::to_vec(record)?)?;
    Ok(std::fs::rename(&unnamed, directory.join(format!("{name}{RECORD}")))?)
}

/// The next `count` segments of the same TLI behind `name` that wait and have no record yet. Records of files that do not
/// wait any more are removed.
fn waiting(directory: &Path, name: &str, count: usize) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = || entries.filter_map(|entry| entry.file_name().into_string().ok());
    let Sorted { next, stale } =
        sort(names(), name, count, |name| directory.join(format!("{name}{READY}")).exists());
    for name in stale {
        drop(std::fs::remove_file(directory.join(name)));
    }
    next
}

/// What a listing of `archive_status` comes to.
#[derive(Debug, PartialEq, Eq, Default)]
struct Sorted {
    next: Vec<String>,
    stale: Vec<String>,
}

/// See [`waiting`].
fn sort(
    names: impl Iterator<Item = String>,
    after: &str,
    count: usize,
    waits: impl Fn(&str) -> bool,
) -> Sorted {
    let mut next = BTreeSet::new();
    let mut records = BTreeSet::new();
    for name in names {
        if let Some(segment) = name.strip_suffix(READY) {
            if follows(segment, after) {
                next.insert(segment.to_owned());
            }
            // Some of them may turn out to have a record.
            if next.len() > count.saturating_add(AHEAD_MAX) {
                next.pop_last();
            }
        } else if name.ends_with(RECORD) || name.ends_with(UNNAMED) {
            records.insert(name);
        }
    }
    let segment_of = |record: &str| record.split('.').next().unwrap_or_default().to_owned();
    let (kept, stale): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| waits(&segment_of(record)));
    for record in kept.iter().filter(|record| record.ends_with(RECORD)) {
        next.remove(&segment_of(record));
    }
    Sorted { next: next.into_iter().take(count).collect(), stale }
}

/// Whether this is a segment of the same TLI with a higher number.
fn follows(segment: &str, after: &str) -> bool {
    let is_segment =
        segment.len() == 24 && segment.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    is_segment && segment.get(..8) == after.get(..8) && segment > after
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(names: &[&str], count: usize) -> Sorted {
        let ready = |segment: &str| names.contains(&format!("{segment}{READY}").as_str());
        sort(names.iter().map(|name| (*name).to_owned()), "000000010000000000000002", count, ready)
    }

    #[test]
    fn the_next_segments_of_the_same_tli_that_have_no_record_are_pushed_in_order() {
        let names = [
            "000000010000000000000007.ready",
            "000000010000000000000001.ready",
            "000000010000000000000002.ready",
            "000000010000000000000003.done",
            "000000010000000000000004.ready",
            "000000010000000000000005.ready",
            "000000010000000000000004.zenith",
            "000000020000000000000003.ready",
            "00000002.history.ready",
            "000000010000000000000006.partial.ready",
            "000000010000000000000006.00000028.backup.ready",
        ];
        let next = ["000000010000000000000005", "000000010000000000000007"];
        assert_eq!(sorted(&names, 9), Sorted { next: next.map(str::to_owned).into(), stale: vec![] });
        assert_eq!(sorted(&names, 1).next, next[..1]);
        assert_eq!(sorted(&names, 0).next, [""; 0]);
    }

    #[test]
    fn records_of_what_does_not_wait_any_more_are_removed_and_a_half_written_one_is_none() {
        let names = [
            "000000010000000000000001.zenith",
            "000000010000000000000003.zenith.tmp",
            "000000010000000000000004.zenith.tmp",
            "000000010000000000000004.ready",
            "somebody's",
        ];
        let Sorted { next, stale } = sorted(&names, 9);
        assert_eq!(next, ["000000010000000000000004"]);
        assert_eq!(stale, ["000000010000000000000001.zenith", "000000010000000000000003.zenith.tmp"]);
    }

    #[test]
    fn what_is_held_of_a_backlog_is_bounded() {
        let names = (3..100_000u64).rev().map(|n| format!("00000001{n:016X}{READY}"));
        let Sorted { next, .. } = sort(names, "000000010000000000000002", 2, |_| true);
        assert_eq!(next, ["000000010000000000000003", "000000010000000000000004"]);
    }
}
