//! A timeline at one LSN.

use crate::assemble::HintLogging;
use crate::error::ReadError;
use crate::plan::ForkPlan;
use crate::timeline::Timeline;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use zenith_ingest::base::{SmallFile, read_small_files};
use zenith_ingest::model::{Database, ModelError, NextXid, Parameters, ReplOrigin, Tablespace};
use zenith_layers::{
    ByteCache, Key, KeyClass, KeyHistory, KeyRange, MokaCache, ReadMode, Row, UsedBase, Value, Weighed,
};
use zenith_manifest::{BaseImage, TliSwitch};
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::wal_name::SegmentName;
use zenith_pgformat::{Fork, Lsn, Oid, RelNode, Tli, Xid};

/// Sizes of relations in memory at once, where they are listed.
pub(crate) const MAX_ROWS: usize = 8192;
/// Bytes of fork plans that a snapshot keeps.
const PLAN_BYTES: u64 = 8 << 20;
/// More databases that were copied from one another than any cluster has; a longer chain is damage.
pub(crate) const MAX_COPIES: usize = 64;

/// A timeline at one LSN: everything that a data directory holds. Immutable; a clone is cheap, and any number of tasks
/// may read at the same time.
///
/// Memory: the databases and settings (a few KB), 8 MB of plans, and for every call what it returns plus the rows that its
/// pages are built from, [`crate::ReaderOptions::rows`] at a time: about 14 MB at most unless told otherwise (4 MB of rows,
/// 4 MB of decoded payload pages and what is stored of them, 2 MB that rows cost beside their payload), however many pages
/// are asked for and however long their histories are.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) timeline: Timeline,
    pub(crate) lsn: Lsn,
    pub(crate) base: BaseImage,
    pub(crate) used: UsedBase,
    history: Vec<TliSwitch>,
    tli: Tli,
    /// All that ever were; `None`: dropped.
    databases: BTreeMap<(Oid, Oid), Option<Database>>,
    pub(crate) hints: HintLogging,
    pub(crate) plans: Arc<dyn ByteCache<(RelNode, Fork), CachedPlan, ReadError>>,
}

/// A fork's plan, or that it does not exist.
#[derive(Clone)]
pub(crate) struct CachedPlan(pub(crate) Option<Arc<ForkPlan>>);

impl Weighed for CachedPlan {
    fn weight(&self) -> usize {
        self.0.as_ref().map_or(0, |plan| plan.weight())
    }
}

/// A database in a tablespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DatabaseEntry {
    /// Tablespace.
    pub spc: Oid,
    /// Database.
    pub db: Oid,
}

impl Snapshot {
    /// At a readable LSN, which the caller has checked.
    pub(crate) async fn load(timeline: Timeline, lsn: Lsn) -> Result<Snapshot, ReadError> {
        let layers = timeline.values();
        let used =
            layers.base_for(lsn, ReadMode::Serve).ok_or(ReadError::NoBase { timeline: timeline.id() })?;
        let base = timeline.base_image(used.id)?;
        let history = timeline.tli_history(lsn);
        let tli = history.last().map(|last| last.tli);
        let tli = tli.ok_or(ReadError::NoTli { lsn, timeline: timeline.id() })?;
        let all = [KeyRange::class(KeyClass::Database)];
        let (found, hints) = futures::try_join!(
            async { Ok(layers.history(&all, lsn, ReadMode::Serve).await?) },
            load_hints(&timeline, &base, used, lsn)
        )?;
        let mut databases = BTreeMap::new();
        for row in found.into_iter().filter_map(|history| history.rows.into_iter().next()) {
            databases.insert((row.key.spc, row.key.db), decode_database(row)?);
        }
        let plans: MokaCache<(RelNode, Fork), CachedPlan> = MokaCache::new("fork plans", PLAN_BYTES);
        let plans = Arc::new(plans);
        let inner = Inner { timeline, lsn, base, used, history, tli, databases, hints, plans };
        Ok(Snapshot { inner: Arc::new(inner) })
    }

    /// The LSN: every record whose end is at most this is in.
    pub fn lsn(&self) -> Lsn {
        self.inner.lsn
    }

    /// The timeline.
    pub fn timeline(&self) -> &Timeline {
        &self.inner.timeline
    }

    /// PostgreSQL's timeline number at the LSN: that of the last record that is in.
    pub fn tli(&self) -> Tli {
        self.inner.tli
    }

    /// PostgreSQL's timelines up to the LSN, as far back as WAL was sliced, ancestors' included, ascending.
    pub fn history(&self) -> &[TliSwitch] {
        &self.inner.history
    }

    /// The base image that reads start from; of a child timeline perhaps an ancestor's.
    pub fn base(&self) -> &BaseImage {
        &self.inner.base
    }

    /// Whether the cluster has data checksums.
    pub fn data_checksums(&self) -> bool {
        self.inner.base.data_checksums
    }

    /// The non-relation files of the base image, by path below the data directory. They are as old as the base image.
    pub async fn small_files(&self) -> Result<BTreeMap<String, SmallFile>, ReadError> {
        let (home, base) = self.inner.timeline.base_home(self.inner.base.id)?;
        Ok(read_small_files(&*home.state.shared.store.objects, home.paths(), base.id).await?)
    }

    /// The raw WAL of the segment that holds this LSN, from its start up to the LSN: what the first segment of a timeline
    /// that is branched off here begins with. Empty at a segment's start.
    pub async fn segment_head(&self) -> Result<Bytes, ReadError> {
        let timeline = &self.inner.timeline;
        let length = timeline.segment_size().offset_of(self.inner.lsn);
        if length == 0 {
            return Ok(Bytes::new());
        }
        let (tli, bytes) = timeline.segment_before(self.inner.lsn).await?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if bytes.len() < length {
            let size = timeline.segment_size();
            let segment = SegmentName(tli, size.segment_of(self.inner.lsn), size).to_string();
            return Err(ReadError::MissingSegment { segment, timeline: timeline.id() });
        }
        Ok(bytes.slice(..length))
    }

    /// The databases, by tablespace. One that has relations in several tablespaces may come several times. Shared
    /// relations, `(1664, 0)`, are not among them.
    pub fn databases(&self) -> Vec<DatabaseEntry> {
        let live = self.inner.databases.iter().filter(|(_, database)| database.is_some());
        live.map(|((spc, db), _)| DatabaseEntry { spc: *spc, db: *db }).collect()
    }

    /// The tablespaces other than the two built-in ones, by number.
    pub async fn tablespaces(&self) -> Result<Vec<(Oid, Tablespace)>, ReadError> {
        let rows = self.class(KeyClass::Tablespace).await?;
        live(&rows)?
            .map(|(key, lsn, bytes)| Ok((key.spc, decoded(key, lsn, Tablespace::decode(bytes))?)))
            .collect()
    }

    /// A database's relation map (`pg_filenode.map`); `(1664, 0)` is the shared one. `None` where there is none:
    /// only a database's default tablespace has one.
    pub async fn rel_map(&self, spc: Oid, db: Oid) -> Result<Option<Bytes>, ReadError> {
        let (mut place, mut upto) = ((spc, db), self.inner.lsn);
        for _ in 0..MAX_COPIES {
            let Some(database) = self.database(place, upto).await? else { return Ok(None) };
            let key = Key::rel_map(place.0, place.1);
            match self.newest(key, upto).await? {
                Some(row) if row.lsn >= database.created => return state_bytes(row),
                _ => {}
            }
            let Some(alias) = database.alias else { return Ok(None) };
            (place, upto) = ((alias.spc, alias.db), alias.lsn);
        }
        Err(endless_copies(Key::database(spc, db), self.inner.lsn))
    }

    /// The prepared transactions' state files (`pg_twophase`).
    pub async fn two_phase(&self) -> Result<Vec<(Xid, Bytes)>, ReadError> {
        let rows = self.class(KeyClass::TwoPhase).await?;
        Ok(live(&rows)?.map(|(key, _, bytes)| (key.spc, bytes.clone())).collect())
    }

    /// The replication origins' progress.
    pub async fn repl_origins(&self) -> Result<Vec<(u16, ReplOrigin)>, ReadError> {
        let rows = self.class(KeyClass::ReplOrigin).await?;
        live(&rows)?
            .map(|(key, lsn, bytes)| {
                let origin = u16::try_from(key.spc).map_err(|_| bad(key, lsn, "no origin's number"))?;
                Ok((origin, decoded(key, lsn, ReplOrigin::decode(bytes))?))
            })
            .collect()
    }

    /// The checkpoint counters at the LSN, as redo of all records would have left them.
    pub async fn checkpoint(&self) -> Result<CheckPoint, ReadError> {
        let (lsn, bytes) = self.required(Key::CHECKPOINT).await?;
        CheckPoint::decode(&bytes).map_err(|error| bad(Key::CHECKPOINT, lsn, error.to_string()))
    }

    /// The next transaction id with its epoch.
    pub async fn next_xid(&self) -> Result<NextXid, ReadError> {
        let (lsn, bytes) = self.required(Key::NEXT_XID).await?;
        decoded(Key::NEXT_XID, lsn, NextXid::decode(&bytes))
    }

    /// The settings that recovery depends on.
    pub async fn parameters(&self) -> Result<Parameters, ReadError> {
        let (lsn, bytes) = self.required(Key::PARAMETERS).await?;
        decoded(Key::PARAMETERS, lsn, Parameters::decode(&bytes))
    }

    async fn required(&self, key: Key) -> Result<(Lsn, Bytes), ReadError> {
        let row = self.newest(key, self.inner.lsn).await?;
        let row = row.ok_or(ReadError::LostBase { key, lsn: self.inner.lsn })?;
        let lsn = row.lsn;
        let bytes = state_bytes(row)?.ok_or_else(|| bad(key, lsn, "a tombstone where a state belongs"))?;
        Ok((lsn, bytes))
    }

    /// How layers are searched at `upto`: inside the base image's fuzzy window (a database copied while the backup ran)
    /// the base is named, because it does not serve there yet.
    pub(crate) fn mode(&self, upto: Lsn) -> ReadMode {
        if upto >= self.inner.used.serves_from { ReadMode::Serve } else { ReadMode::From(self.inner.used.id) }
    }

    /// All keys of a small class at the LSN.
    async fn class(&self, class: KeyClass) -> Result<Vec<KeyHistory>, ReadError> {
        self.history_of(&[KeyRange::class(class)], self.inner.lsn).await
    }

    pub(crate) async fn history_of(
        &self,
        ranges: &[KeyRange],
        upto: Lsn,
    ) -> Result<Vec<KeyHistory>, ReadError> {
        Ok(self.inner.timeline.values().history(ranges, upto, self.mode(upto)).await?)
    }

    /// The newest row of a state key, tombstones included.
    pub(crate) async fn newest(&self, key: Key, upto: Lsn) -> Result<Option<Row>, ReadError> {
        let found = self.history_of(&[KeyRange::one(key)], upto).await?;
        Ok(found.into_iter().next().and_then(|history| history.rows.into_iter().next()))
    }

    /// A database in a tablespace at `upto`; `None` if it was dropped. Shared relations have no database, and relations
    /// in a second tablespace may come without a row of their own: both are as old as the base image.
    pub(crate) async fn database(&self, place: (Oid, Oid), upto: Lsn) -> Result<Option<Database>, ReadError> {
        let unrecorded = Some(Database { created: Lsn::INVALID, alias: None });
        if upto == self.inner.lsn {
            return Ok(self.inner.databases.get(&place).copied().unwrap_or(unrecorded));
        }
        match self.newest(Key::database(place.0, place.1), upto).await? {
            None => Ok(unrecorded),
            Some(row) => decode_database(row),
        }
    }
}

/// `None` for a tombstone.
fn decode_database(row: Row) -> Result<Option<Database>, ReadError> {
    let (key, lsn) = (row.key, row.lsn);
    state_bytes(row)?.map(|bytes| decoded(key, lsn, Database::decode(&bytes))).transpose()
}

/// `wal_log_hints` over the LSNs that records are read from.
async fn load_hints(
    timeline: &Timeline,
    base: &BaseImage,
    used: UsedBase,
    lsn: Lsn,
) -> Result<HintLogging, ReadError> {
    let range = [KeyRange::one(Key::PARAMETERS)];
    let layers = timeline.values();
    let read = |row: &Row| match &row.value {
        Value::State(bytes) => decoded(row.key, row.lsn, Parameters::decode(bytes)),
        _ => Err(bad(row.key, row.lsn, "no state where one belongs")),
    };
    let (first, later) = futures::try_join!(
        layers.history(&range, used.lsn, ReadMode::From(used.id)),
        layers.versions(&range, used.lsn, lsn)
    )?;
    let first = first.iter().flat_map(|history| history.rows.first()).next();
    let first = first.ok_or(ReadError::LostBase { key: Key::PARAMETERS, lsn: used.lsn })?;
    let changes: Result<Vec<(Lsn, bool)>, ReadError> =
        later.iter().map(|row| Ok((row.lsn, read(row)?.wal_log_hints))).collect();
    Ok(HintLogging::new(base.data_checksums, read(first)?.wal_log_hints, changes?))
}

/// The keys that exist, with their state.
pub(crate) fn live(found: &[KeyHistory]) -> Result<impl Iterator<Item = (Key, Lsn, &Bytes)>, ReadError> {
    let mut live = Vec::with_capacity(found.len());
    for row in found.iter().filter_map(|history| history.rows.first()) {
        match &row.value {
            Value::State(bytes) => live.push((row.key, row.lsn, bytes)),
            Value::Tombstone => {}
            _ => return Err(bad(row.key, row.lsn, "no state where one belongs")),
        }
    }
    Ok(live.into_iter())
}

/// A state row's bytes; `None` for a tombstone.
pub(crate) fn state_bytes(row: Row) -> Result<Option<Bytes>, ReadError> {
    match row.value {
        Value::State(bytes) => Ok(Some(bytes)),
        Value::Tombstone => Ok(None),
        _ => Err(bad(row.key, row.lsn, "no state where one belongs")),
    }
}

pub(crate) fn decoded<T>(key: Key, lsn: Lsn, result: Result<T, ModelError>) -> Result<T, ReadError> {
    result.map_err(|error| bad(key, lsn, error.to_string()))
}

pub(crate) fn bad(key: Key, lsn: Lsn, problem: impl Into<String>) -> ReadError {
    ReadError::BadValue { key, lsn, problem: problem.into() }
}

pub(crate) fn endless_copies(key: Key, lsn: Lsn) -> ReadError {
    bad(key, lsn, format!("copied from copies more than {MAX_COPIES} times"))
}
