//! A timeline in the store as the source of a data directory.

use super::source::{Facts, ForkSize, PageRange, Source};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use tokio::task::JoinSet;
use zenith_ingest::base::SmallFile;
use zenith_layers::Slru;
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::rel::DEFAULT_TABLESPACE;
use zenith_pgformat::{Lsn, Oid, Tli, Xid};
use zenith_reader::{BlockRange, LastRecord, ReadError, Snapshot};

/// The control file's path.
const CONTROL: &str = "global/pg_control";
/// Databases that are looked into at the same time.
const PARALLEL: usize = 16;

/// A snapshot at the end of a record.
#[derive(Clone)]
pub struct SnapshotSource {
    snapshot: Snapshot,
    last_record: LastRecord,
    files: BTreeMap<String, SmallFile>,
    control: ControlFile,
}

impl SnapshotSource {
    /// Reads the small files, which several answers come from.
    ///
    /// # Errors
    /// A snapshot that is not at the end of `last_record`, or whose base image has no valid control file.
    pub async fn new(snapshot: Snapshot, last_record: LastRecord) -> Result<SnapshotSource> {
        if snapshot.lsn() != last_record.end {
            bail!(
                "{} is not the end of a record: the last one before it ends at {}",
                snapshot.lsn(),
                last_record.end
            );
        }
        let files = snapshot.small_files().await?;
        let base = snapshot.base().id;
        let control =
            files.get(CONTROL).with_context(|| format!("base image {base:?} holds no {CONTROL}"))?;
        let control = ControlFile::decode(&control.content)
            .with_context(|| format!("{CONTROL} of base image {base:?}"))?;
        Ok(SnapshotSource { snapshot, last_record, files, control })
    }

    /// Whether a database has anything in a tablespace that it has no row of its own for: relations of a database in a
    /// second tablespace come without one.
    async fn is_used(&self, spc: Oid, db: Oid) -> Result<bool> {
        match self.snapshot.relations(spc, db).await {
            Ok(relations) => Ok(!relations.is_empty()),
            Err(ReadError::NoSuchDatabase { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait::async_trait]
impl Source for SnapshotSource {
    async fn facts(&self) -> Result<Facts> {
        let (checkpoint, next_xid, parameters) = futures::try_join!(
            self.snapshot.checkpoint(),
            self.snapshot.next_xid(),
            self.snapshot.parameters()
        )?;
        Ok(Facts {
            lsn: self.snapshot.lsn(),
            last_record: self.last_record.start,
            tli: self.snapshot.tli(),
            control: self.control.clone(),
            checkpoint,
            next_xid: next_xid.0,
            parameters,
        })
    }

    async fn small_files(&self) -> Result<BTreeMap<String, SmallFile>> {
        Ok(self.files.clone())
    }

    async fn history_file(&self, tli: Tli) -> Result<Option<Bytes>> {
        Ok(self.snapshot.timeline().history_file(tli).await?)
    }

    async fn segment_head(&self) -> Result<Bytes> {
        Ok(self.snapshot.segment_head().await?)
    }

    async fn databases(&self) -> Result<Vec<(Oid, Oid)>> {
        let mut known: BTreeSet<(Oid, Oid)> =
            self.snapshot.databases().into_iter().map(|entry| (entry.spc, entry.db)).collect();
        let databases: BTreeSet<Oid> = known.iter().map(|(_, db)| *db).collect();
        let tablespaces = self.snapshot.tablespaces().await?;
        let spaces = tablespaces.into_iter().map(|(spc, _)| spc).chain([DEFAULT_TABLESPACE]);
        let places = spaces.flat_map(|spc| databases.iter().map(move |db| (spc, *db)));
        let unknown: Vec<(Oid, Oid)> = places.filter(|place| !known.contains(place)).collect();
        let looked = unknown
            .into_iter()
            .map(async |place| anyhow::Ok(self.is_used(place.0, place.1).await?.then_some(place)));
        let looked: Vec<Option<(Oid, Oid)>> =
            futures::stream::iter(looked).buffered(PARALLEL).try_collect().await?;
        known.extend(looked.into_iter().flatten());
        Ok(known.into_iter().collect())
    }

    async fn relations(&self, spc: Oid, db: Oid) -> Result<Vec<ForkSize>> {
        let relations = self.snapshot.relations(spc, db).await?.into_iter();
        Ok(relations
            .map(|found| ForkSize { node: found.node, fork: found.fork, blocks: found.blocks })
            .collect())
    }

    async fn tablespaces(&self) -> Result<Vec<(Oid, String)>> {
        let tablespaces = self.snapshot.tablespaces().await?.into_iter();
        Ok(tablespaces.map(|(spc, tablespace)| (spc, tablespace.location)).collect())
    }

    async fn rel_map(&self, spc: Oid, db: Oid) -> Result<Option<Bytes>> {
        Ok(self.snapshot.rel_map(spc, db).await?)
    }

    async fn pages(&self, ranges: &[PageRange]) -> Result<Vec<Bytes>> {
        // One search of the layers and one batch of redo for all of them, many small relations among them.
        let ranges = ranges.iter().map(|&PageRange { node, fork, first, count }| BlockRange {
            node,
            fork,
            from: first,
            count,
        });
        let (snapshot, ranges) = (self.snapshot.clone(), ranges.collect::<Vec<_>>());
        // A task of its own: whoever waits for many batches at a time must not decode all of them on one thread. It ends with
        // the set that owns it.
        let mut task = JoinSet::new();
        task.spawn(async move { snapshot.page_ranges(&ranges).await });
        let read = task.join_next().await.context("no task reads the pages")?;
        Ok(read.context("reading pages ended early")??)
    }

    async fn slru_segments(&self, slru: Slru) -> Result<Vec<(u32, u32)>> {
        Ok(self.snapshot.slru_segments(slru).await?)
    }

    async fn slru_segment(&self, slru: Slru, segment: u32) -> Result<Bytes> {
        Ok(self.snapshot.slru_segment(slru, segment).await?)
    }

    async fn two_phase(&self) -> Result<Vec<(Xid, Bytes)>> {
        Ok(self.snapshot.two_phase().await?)
    }

    async fn repl_origins(&self) -> Result<Vec<(u16, Lsn)>> {
        let origins = self.snapshot.repl_origins().await?.into_iter();
        Ok(origins.map(|(origin, progress)| (origin, progress.remote_lsn)).collect())
    }
}
