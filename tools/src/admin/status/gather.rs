//! Reading the status of everything in a store.

use super::off_history::{OffHistory, off_history};
use crate::cli::{Session, Settings, TimelineChoice, time};
use anyhow::{Context, bail};
use futures::TryStreamExt;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::SystemTime;
use zenith_ingest::archive::WalArchive;
use zenith_manifest::{BaseImage, Identity, LayerKind, Root};
use zenith_pgformat::history::History;
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{Lsn, Tli};
use zenith_store::{Env, Store, StoreError, TimelineId};

/// Everything in a store.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The store's URL.
    pub store: String,
    /// Its clusters, by name.
    pub clusters: Vec<ClusterStatus>,
}

/// One cluster.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterStatus {
    /// Its name.
    pub cluster: String,
    /// Its timelines, by name.
    pub timelines: Vec<TimelineStatus>,
}

/// One timeline.
#[derive(Clone, Debug, Serialize)]
pub struct TimelineStatus {
    /// The names that mean it.
    pub names: Vec<String>,
    /// Its id.
    pub id: String,
    /// Of pg_control; as text, because JSON's numbers are too short for it.
    pub system_identifier: String,
    /// PostgreSQL's major version.
    pub pg_major: u32,
    /// In bytes.
    pub wal_segment_size: u32,
    /// Where it was branched off.
    pub ancestor: Option<AncestorStatus>,
    /// The newest manifest version; 0 while there is none.
    pub manifest_version: u64,
    /// Its base images, by redo LSN.
    pub base_images: Vec<BaseStatus>,
    /// What can be restored.
    pub ranges: Vec<Range>,
    /// What cannot be restored between those ranges.
    pub lost: Vec<Range>,
    /// How far WAL is sliced.
    pub sliced: Option<Position>,
    /// How far WAL is archived, without gaps, from where it is sliced.
    pub archived: Option<Position>,
    /// When the last WAL segment was archived, by the store's clock: of the TLI that is followed, or of a later one.
    pub last_archived_at: Option<String>,
    /// A segment that is missing while later ones are there.
    pub missing: Option<Missing>,
    /// Segments that are kept and never read.
    pub off_history: Vec<OffHistory>,
    /// When the oldest segment was archived that the slicer should have begun and has not.
    pub unsliced_since: Option<String>,
    /// Layer objects by kind.
    pub layers: BTreeMap<String, Count>,
    /// Archived WAL files.
    pub wal: Count,
    /// The times above, for comparing.
    #[serde(skip)]
    pub times: Times,
}

/// See [`TimelineStatus`].
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// See `last_archived_at`.
    pub last_archived: Option<SystemTime>,
    /// When the first segment behind the missing one was archived.
    pub behind_missing: Option<SystemTime>,
    /// See `unsliced_since`.
    pub unsliced_since: Option<SystemTime>,
}

/// Where a timeline was branched off.
#[derive(Clone, Debug, Serialize)]
pub struct AncestorStatus {
    /// Its id.
    pub timeline: String,
    /// The branch point.
    pub lsn: Lsn,
}

/// One base image.
#[derive(Clone, Debug, Serialize)]
pub struct BaseStatus {
    /// Its id.
    pub id: String,
    /// PostgreSQL's timeline number.
    pub tli: Tli,
    /// Slicing begins here.
    pub redo: Lsn,
    /// Reads begin here.
    pub end: Lsn,
    /// Its end was met in the WAL.
    pub confirmed: bool,
    /// When it was finished.
    pub taken_at: String,
    /// Bytes of relation files.
    pub data_bytes: u64,
    /// Bytes of its objects.
    pub stored_bytes: u64,
}

/// From one LSN to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// First.
    pub from: Lsn,
    /// Last.
    pub to: Lsn,
}

/// A position in the WAL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Position {
    /// PostgreSQL's timeline number.
    pub tli: Tli,
    /// Where.
    pub lsn: Lsn,
    /// The newest commit, abort, restore point or checkpoint up to there, RFC 3339.
    pub time: Option<String>,
}

/// Objects of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// A segment that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Its file name.
    pub segment: String,
    /// The first file behind it that is there.
    pub next: String,
}

/// Reads everything, or only the cluster and the timeline that were named.
pub async fn gather(env: &Env, settings: &Settings) -> anyhow::Result<Status> {
    let store = settings.open_store(false)?;
    let clusters = match settings.cluster_given {
        true => vec![settings.cluster.clone()],
        false => clusters(&store).await?,
    };
    let mut found = Vec::new();
    for cluster in clusters {
        let session = Session::of_cluster(env, store.clone(), &cluster);
        let timelines = timelines(&session, settings).await.with_context(|| format!("cluster {cluster}"))?;
        if settings.cluster_given && timelines.is_empty() {
            let there = self::clusters(&store).await?.join(", ");
            bail!("cluster \"{cluster}\" has no timeline; the store has these clusters: {there}");
        }
        found.push(ClusterStatus { cluster, timelines });
    }
    Ok(Status { store: settings.store.clone(), clusters: found })
}

async fn clusters(store: &Store) -> Result<Vec<String>, StoreError> {
    let prefix = (!store.prefix.as_ref().is_empty()).then_some(&store.prefix);
    let listed = store.objects.list_with_delimiter(prefix).await;
    let listed = listed.map_err(|error| StoreError::from_request(&store.prefix, &error))?;
    Ok(listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
}

async fn timelines(session: &Session, settings: &Settings) -> anyhow::Result<Vec<TimelineStatus>> {
    let mut names: BTreeMap<TimelineId, Vec<String>> = BTreeMap::new();
    for (name, id) in session.names.list().await? {
        names.entry(id).or_default().push(name);
    }
    if settings.timeline_given {
        let id = match &settings.timeline {
            TimelineChoice::Id(id) => *id,
            TimelineChoice::Name(name) => session.names.resolve(name).await?,
        };
        let known = names.remove(&id).unwrap_or_default();
        names = BTreeMap::from([(id, known)]);
    }
    let mut found = Vec::new();
    for (id, names) in names {
        let status = timeline(session, id, names).await.with_context(|| format!("timeline {id}"))?;
        found.push(status);
    }
    found.sort_by(|a, b| a.names.cmp(&b.names));
    Ok(found)
}

async fn timeline(session: &Session, id: TimelineId, names: Vec<String>) -> anyhow::Result<TimelineStatus> {
    let identity = session.names.identity(id).await?;
    let manifest = session.manifest(&identity);
    let root = manifest.latest().await?;
    let entries = manifest.layers(&root).await?;
    let mut layers: BTreeMap<String, Count> = BTreeMap::new();
    for entry in &entries {
        layers.entry(format!("{:?}", entry.kind).to_lowercase()).or_default().add(entry.bytes);
    }
    // The last ones: where the server's clock was once ahead, earlier ones say later times.
    let newest = entries
        .iter()
        .filter(|entry| entry.kind == LayerKind::Events)
        .max_by_key(|entry| entry.lsn_to)
        .and_then(|entry| entry.max_time);
    let archive = session.archive(&identity)?;
    let segment_size = archive.segment_size();
    let begin = root.sliced.as_ref().map(|sliced| (sliced.tli, sliced.lsn));
    let wal = listed_wal(session, &identity, segment_size).await?;
    let follow = follow(&archive, &wal, begin).await?;
    let unsliced_since = unsliced_since(&follow, &root, segment_size);
    let last_archived = wal.last_stored(follow.archived.as_ref().map(|position| position.tli));
    let times = Times { last_archived, behind_missing: follow.behind_missing, unsliced_since };
    let zone = jiff::tz::TimeZone::system();
    Ok(TimelineStatus {
        names,
        id: id.to_string(),
        system_identifier: identity.system_identifier.to_string(),
        pg_major: identity.pg_major,
        wal_segment_size: identity.wal_segment_size,
        ancestor: identity
            .ancestor
            .map(|ancestor| AncestorStatus { timeline: ancestor.timeline.to_string(), lsn: ancestor.lsn }),
        manifest_version: root.version,
        base_images: root.bases.iter().map(base_status).collect(),
        ranges: ranges(&root),
        lost: lost(&root),
        sliced: root.sliced.as_ref().map(|sliced| Position {
            tli: sliced.tli,
            lsn: sliced.lsn,
            time: newest.map(|time| time::format(time, &zone)),
        }),
        archived: follow.archived,
        last_archived_at: times.last_archived.map(time::rfc3339),
        missing: follow.missing,
        off_history: off_history(
            wal.segments.keys().copied(),
            &root.history,
            follow.newest.as_ref(),
            segment_size,
        ),
        unsliced_since: times.unsliced_since.map(time::rfc3339),
        layers,
        wal: wal.count,
        times,
    })
}

fn base_status(base: &BaseImage) -> BaseStatus {
    BaseStatus {
        id: base.id.0.simple().to_string(),
        tli: base.tli,
        redo: base.redo,
        end: base.end,
        confirmed: base.confirmed,
        taken_at: base.taken_at.clone(),
        data_bytes: base.data_bytes,
        stored_bytes: base.stored_bytes,
    }
}

/// What can be restored: from a confirmed base image's end to the end of its range.
fn ranges(root: &Root) -> Vec<Range> {
    let confirmed = |range: &zenith_manifest::ReadableRange| {
        range.base.and_then(|id| root.base(id)).is_none_or(|base| base.confirmed)
    };
    let readable = root.ranges.iter().filter(|range| confirmed(range));
    readable
        .map(|range| Range { from: range.from, to: root.run_end(range) })
        .filter(|range| range.from <= range.to)
        .collect()
}

/// What lies between two ranges.
fn lost(root: &Root) -> Vec<Range> {
    let pairs = root.ranges.windows(2);
    pairs
        .filter_map(|pair| match pair {
            [before, after] => Some(Range { from: root.run_end(before), to: after.from }),
            _ => None,
        })
        .collect()
}

/// The WAL files of a timeline, by one listing.
#[derive(Debug, Default)]
pub(super) struct ListedWal {
    /// All files.
    count: Count,
    /// When the newest was stored.
    newest: Option<SystemTime>,
    /// Complete segments: when each was stored.
    pub(super) segments: BTreeMap<(Tli, u64), SystemTime>,
}

impl ListedWal {
    /// When the last segment was stored, of the TLI that is followed or of a later one: a server that was promoted goes on
    /// archiving although following may stop before the switch. Of each TLI the last one by its number: a file that was stored
    /// while the store's clock was wrong would be the newest one for long. Without such a segment it is the newest file.
    fn last_stored(&self, tli: Option<Tli>) -> Option<SystemTime> {
        let from = |tli| self.segments.range((tli, 0)..);
        let segments = tli.into_iter().flat_map(from).map(|((tli, _), stored)| (*tli, *stored));
        // In order: the last one of a TLI stays.
        let last: BTreeMap<Tli, SystemTime> = segments.collect();
        last.into_values().max().or(self.newest)
    }
}

async fn listed_wal(session: &Session, identity: &Identity, size: WalSegSize) -> anyhow::Result<ListedWal> {
    let prefix = session.paths(identity.timeline).all_wal();
    let mut wal = ListedWal::default();
    let mut listing = session.store.objects.list(Some(&prefix));
    while let Some(meta) =
        listing.try_next().await.map_err(|error| StoreError::from_request(&prefix, &error))?
    {
        let stored = SystemTime::from(meta.last_modified);
        wal.count.add(meta.size);
        wal.newest = wal.newest.max(Some(stored));
        let name = meta.location.filename().and_then(|name| name.strip_suffix(".zst"));
        if let Some(WalFile::Segment { tli, segment }) = name.and_then(|name| WalFile::parse(name, size)) {
            wal.segments.insert((tli, segment), stored);
        }
    }
    Ok(wal)
}

/// Where the archive leads from the sliced position on.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub(super) archived: Option<Position>,
    pub(super) missing: Option<Missing>,
    pub(super) behind_missing: Option<SystemTime>,
    /// The history along which they were followed.
    pub(super) newest: Option<History>,
    /// The segments that were followed.
    pub(super) present: Vec<(u64, SystemTime)>,
}

async fn follow(
    archive: &WalArchive,
    wal: &ListedWal,
    begin: Option<(Tli, Lsn)>,
) -> anyhow::Result<Followed> {
    let Some((tli, lsn)) = begin else { return Ok(Followed::default()) };
    // The newest history that goes on from where slicing stands (recovery_target_timeline = latest).
    let histories = archive.histories(tli).await?;
    let newest = histories
        .into_iter()
        .filter(|history| history.contains(tli) && history.switch_point(tli).is_none_or(|point| point >= lsn))
        .max_by_key(History::tli);
    let followed = follow_along(wal, newest.as_ref(), tli, lsn, archive.segment_size());
    Ok(Followed { newest, ..followed })
}

/// Pure part: segments follow one another, each under the TLI that its end has in the history.
pub(super) fn follow_along(
    wal: &ListedWal,
    newest: Option<&History>,
    tli: Tli,
    lsn: Lsn,
    size: WalSegSize,
) -> Followed {
    // A switch inside a segment: the segment lies under the new number too, and is complete only there.
    let tli_of = |segment: u64| match newest {
        Some(history) => history.tli_of(Lsn(size.start_of(segment + 1).0.saturating_sub(1))).max(tli),
        None => tli,
    };
    // What is sliced was archived.
    let mut followed = Followed { archived: Some(Position { tli, lsn, time: None }), ..Followed::default() };
    let mut next = size.segment_of(lsn);
    while let Some(stored) = wal.segments.get(&(tli_of(next), next)) {
        followed.present.push((next, *stored));
        let end = size.start_of(next + 1);
        followed.archived = Some(Position { tli: tli_of(next), lsn: end, time: None });
        next += 1;
    }
    let wanted = tli_of(next);
    let behind = wal.segments.iter().find(|((found, segment), _)| *found >= wanted && *segment > next);
    if let Some(((found, segment), stored)) = behind {
        followed.missing = Some(Missing {
            segment: WalFile::Segment { tli: wanted, segment: next }.name(size),
            next: WalFile::Segment { tli: *found, segment: *segment }.name(size),
        });
        followed.behind_missing = Some(*stored);
    }
    followed
}

/// A segment past the one in which slicing stands is there: since when? The slicer should have gone on into it.
fn unsliced_since(followed: &Followed, root: &Root, size: WalSegSize) -> Option<SystemTime> {
    let sliced = size.segment_of(root.sliced.as_ref()?.lsn);
    followed.present.iter().filter(|(segment, _)| *segment > sliced).map(|(_, stored)| *stored).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn wal(segments: &[(Tli, u64)]) -> ListedWal {
        let stored = |segment: u64| UNIX_EPOCH + Duration::from_secs(segment);
        ListedWal {
            segments: segments.iter().map(|&(tli, segment)| ((tli, segment), stored(segment))).collect(),
            ..ListedWal::default()
        }
    }

    fn at(segment: u64) -> Lsn {
        WalSegSize::DEFAULT.start_of(segment)
    }

    #[test]
    fn the_archive_ends_where_segments_stop_following_one_another() {
        let wal = wal(&[(1, 2), (1, 3), (1, 4)]);
        let followed = follow_along(&wal, None, 1, at(3), WalSegSize::DEFAULT);
        assert_eq!(followed.archived, Some(Position { tli: 1, lsn: at(5), time: None }));
        assert_eq!(followed.missing, None);
    }

    #[test]
    fn a_segment_that_was_stored_while_the_clock_was_wrong_does_not_count_once_another_one_follows() {
        let mut wal = wal(&[(1, 2), (1, 3), (1, 4), (2, 3)]);
        let year = Duration::from_secs(365 * 86400);
        wal.segments.insert((1, 3), UNIX_EPOCH + 80 * year);
        wal.newest = Some(UNIX_EPOCH + 80 * year);
        assert_eq!(wal.last_stored(Some(1)), Some(UNIX_EPOCH + Duration::from_secs(4)));
        assert_eq!(wal.last_stored(Some(2)), Some(UNIX_EPOCH + Duration::from_secs(3)));
        assert_eq!(wal.last_stored(Some(3)), wal.newest);
        assert_eq!(wal.last_stored(None), wal.newest);
    }

    #[test]
    fn a_promoted_server_that_archives_counts_although_following_stops_before_the_switch() {
        let switch = Lsn(at(5).0 + 0x1000);
        let history = History::parse(2, format!("1\t{switch}\tpromoted\n").as_bytes()).expect("valid");
        let mut wal = wal(&[(1, 3), (2, 5), (2, 90)]);
        let century = UNIX_EPOCH + Duration::from_secs(100 * 365 * 86400);
        wal.segments.insert((2, 6), century);
        let followed = follow_along(&wal, Some(&history), 1, at(3), WalSegSize::DEFAULT);
        let archived = followed.archived.expect("segment 3");
        assert_eq!((archived.tli, archived.lsn), (1, at(4)));
        assert_eq!(wal.last_stored(Some(archived.tli)), Some(UNIX_EPOCH + Duration::from_secs(90)));
        // Of an earlier one, which nothing is archived on any more, it says nothing.
        wal.segments.insert((1, 4), century);
        assert_eq!(wal.last_stored(Some(2)), Some(UNIX_EPOCH + Duration::from_secs(90)));
    }

    #[test]
    fn an_archive_that_is_sliced_to_its_end_ends_there() {
        let followed = follow_along(&wal(&[(1, 2)]), None, 1, at(3), WalSegSize::DEFAULT);
        assert_eq!(followed.archived, Some(Position { tli: 1, lsn: at(3), time: None }));
    }

    #[test]
    fn a_segment_that_is_missing_is_named() {
        let wal = wal(&[(1, 3), (1, 5)]);
        let followed = follow_along(&wal, None, 1, at(3), WalSegSize::DEFAULT);
        let missing = followed.missing.expect("missing");
        assert_eq!(missing.segment, "000000010000000000000004");
        assert_eq!(missing.next, "000000010000000000000005");
        assert_eq!(followed.behind_missing, Some(UNIX_EPOCH + Duration::from_secs(5)));
    }

    #[test]
    fn a_promotion_is_followed_into_the_segment_that_it_switched_in() {
        let switch = Lsn(at(4).0 + 0x1000);
        let text = format!("1\t{switch}\tno recovery target specified\n");
        let history = History::parse(2, text.as_bytes()).expect("valid");
        let wal = wal(&[(1, 3), (2, 4), (2, 5)]);
        let followed = follow_along(&wal, Some(&history), 1, at(3), WalSegSize::DEFAULT);
        assert_eq!(followed.archived, Some(Position { tli: 2, lsn: at(6), time: None }));
        assert_eq!(followed.missing, None);
    }
}
