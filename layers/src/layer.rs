//! One open layer: searching its keys and fetching its rows. Every byte that is used is verified.

use crate::error::LayerError;
use crate::events::{Event, EventFilter, from_batch};
use crate::footer::{Footer, Group, Part};
use crate::index::{Found, GroupDetails, GroupKeys};
use crate::page::{Block, PageRef};
use crate::reader::{IndexKey, IndexPart, LayerStore};
use crate::row::{Row, Source, Value, row_crc};
use crate::schema::{DETAIL_COLUMNS, KEY_COLUMNS};
use arrow_array::{RecordBatch, RecordBatchReader};
use arrow_select::concat::concat_batches;
use bytes::Bytes;
use futures::future::{BoxFuture, Shared, try_join, try_join_all, try_join3};
use futures::{FutureExt, TryFutureExt};
use object_store::path::Path;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use zenith_manifest::parquet_pages::{decode_foreign, pages_within};
use zenith_manifest::{LayerEntry, LayerKind};
use zenith_pgformat::{BLCKSZ, Lsn};

/// Payload pages at most this far apart are fetched together: the bytes between cost less than a request ...
const GAP_BYTES_MAX: u64 = 64 << 10;
/// ... into requests of at most this length.
const SPAN_BYTES_MAX: u64 = 4 << 20;

/// Larger columns of a row group are refused, whatever its number of rows.
const COLUMNS_BYTES_MAX: u64 = 64 << 20;

/// An open layer. A clone is cheap.
#[derive(Clone, Debug)]
pub struct Layer {
    store: Arc<LayerStore>,
    entry: Arc<LayerEntry>,
    path: Path,
    footer: Arc<Footer>,
    /// Nothing is taken from what was read ahead.
    exactly: bool,
}

/// A row to fetch: its row group, and what a search found of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pick {
    pub(crate) group: u32,
    pub(crate) found: Found,
}

/// The most that the pages of some columns of so many rows take, decompressed. The payload is decoded otherwise; of the
/// other columns the widest are the names of events, at most 199 bytes (`GIDSIZE`, access/xact.h), each of which takes
/// three where it is no UTF-8.
fn decoded_max(rows: usize) -> u64 {
    (rows as u64).saturating_mul(1024).min(COLUMNS_BYTES_MAX) + (64 << 10)
}

type Fetch<'a> = Shared<BoxFuture<'a, Result<Bytes, LayerError>>>;

impl Layer {
    pub(crate) fn new(
        store: Arc<LayerStore>,
        entry: Arc<LayerEntry>,
        path: Path,
        footer: Arc<Footer>,
    ) -> Layer {
        Layer { store, entry, path, footer, exactly: false }
    }

    /// What the manifest says of it.
    pub fn entry(&self) -> &Arc<LayerEntry> {
        &self.entry
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of row groups: the unit of [`Layer::group_rows`].
    pub fn groups(&self) -> usize {
        self.footer.groups.len()
    }

    #[cfg(test)]
    pub(crate) fn payload_pages(&self) -> &[PageRef] {
        &self.footer.pages
    }

    pub(crate) fn group_table(&self) -> &[Group] {
        &self.footer.groups
    }

    fn damaged(&self, what: impl Into<String>) -> LayerError {
        LayerError::damaged(&self.path, what)
    }

    /// Bytes of the object: from the store, unless the layer is small and was read whole.
    async fn read(&self, range: Range<u64>) -> Result<Bytes, LayerError> {
        match self.footer.resident(&range) {
            Some(bytes) => Ok(bytes),
            None if self.exactly => self.store.get_exactly(&self.entry, range).await,
            None => self.store.get(&self.entry, range).await,
        }
    }

    fn group(&self, group: u32) -> Result<&Group, LayerError> {
        let found = self.footer.groups.get(group as usize);
        found.ok_or_else(|| self.damaged(format!("it has no row group {group}")))
    }

    /// The key columns of a row group: from the cache, or by one request.
    pub(crate) async fn keys(&self, group: u32) -> Result<Arc<GroupKeys>, LayerError> {
        let load = async move {
            let about = self.group(group)?;
            let columns = 0..KEY_COLUMNS.len();
            let batch = self.columns(group, about.keys.clone(), about.entry.keys_crc, columns).await?;
            let keys = GroupKeys::new(&batch).map_err(|what| self.damaged(what))?;
            self.check_keys(&keys, about)?;
            Ok(IndexPart::Keys(Arc::new(keys)))
        };
        match self.store.index_part(IndexKey::Keys(self.entry.id, group), load.boxed()).await? {
            IndexPart::Keys(keys) => Ok(keys),
            _ => Err(self.damaged("the cache holds another part of it")),
        }
    }

    /// The footer's ends of a row group decide whether its keys are looked at: they must be right.
    fn check_keys(&self, keys: &GroupKeys, about: &Group) -> Result<(), LayerError> {
        let entry = &about.entry;
        let ends = keys.ends().map(|(first, last)| (first.to_bytes(), last.to_bytes()));
        let fits = keys.rows() == entry.rows as usize
            && ends == Some((entry.first, entry.last))
            && keys.lsn_ends() == Some((entry.lsn_min, entry.lsn_max));
        if fits { Ok(()) } else { Err(self.damaged("its keys contradict its footer")) }
    }

    /// The key columns of a row group, if they are in the cache.
    pub(crate) async fn cached_keys(&self, group: u32) -> Option<Arc<GroupKeys>> {
        match self.store.cached_part(IndexKey::Keys(self.entry.id, group)).await? {
            IndexPart::Keys(keys) => Some(keys),
            _ => None,
        }
    }

    async fn details(&self, group: u32) -> Result<Arc<GroupDetails>, LayerError> {
        let load = async move {
            let about = self.group(group)?;
            let columns = KEY_COLUMNS.len()..KEY_COLUMNS.len() + DETAIL_COLUMNS.len();
            let batch = self.columns(group, about.details.clone(), about.entry.details_crc, columns).await?;
            let details = GroupDetails::new(&batch).map_err(|what| self.damaged(what))?;
            if details.rows() != about.entry.rows as usize {
                return Err(self.damaged("its details contradict its footer"));
            }
            Ok(IndexPart::Details(Arc::new(details)))
        };
        match self.store.index_part(IndexKey::Details(self.entry.id, group), load.boxed()).await? {
            IndexPart::Details(details) => Ok(details),
            _ => Err(self.damaged("the cache holds another part of it")),
        }
    }

    /// Some columns of a row group, whose stored bytes lie in `range` and have this CRC.
    async fn columns(
        &self,
        group: u32,
        range: Range<u64>,
        crc: u32,
        columns: Range<usize>,
    ) -> Result<RecordBatch, LayerError> {
        let start = range.start;
        let bytes = self.read(range).await?;
        if crc32c::crc32c(&bytes) != crc {
            return Err(self.damaged(format!("the CRC of columns {columns:?} of row group {group} is wrong")));
        }
        self.decode(group, Part { start, bytes }, columns)
    }

    fn decode(&self, group: u32, part: Part, columns: Range<usize>) -> Result<RecordBatch, LayerError> {
        let arrow = self.footer.arrow();
        let rows = self.group(group)?.entry.rows as usize;
        let mask = ProjectionMask::leaves(arrow.metadata().file_metadata().schema_descr(), columns);
        let unreadable = |error: String| self.damaged(format!("row group {group} is unreadable: {error}"));
        pages_within(decoded_max(rows), &part.bytes).map_err(unreadable)?;
        let batch = decode_foreign(|| {
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(part, arrow.clone())
                .with_projection(mask)
                .with_row_groups(vec![group as usize])
                .with_batch_size(rows)
                .build()
                .map_err(|error| error.to_string())?;
            let schema = reader.schema();
            let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
            match <[RecordBatch; 1]>::try_from(batches) {
                Ok([batch]) => Ok(batch),
                Err(batches) => concat_batches(&schema, &batches).map_err(|error| error.to_string()),
            }
        });
        let batch = batch.map_err(unreadable)?;
        if batch.num_rows() == rows { Ok(batch) } else { Err(unreadable("rows are missing".to_owned())) }
    }

    /// The rows of some places, in the order given: one wave of requests, near ones joined. Without `sources` nothing is
    /// read of where they come from.
    pub(crate) async fn fetch(&self, picks: &[Pick], sources: bool) -> Result<Vec<Row>, LayerError> {
        match self.fetch_once(picks, sources).await {
            // It may be a page of CRCs alone, or what was read ahead, that was read wrong and is cached; the CRCs of the
            // details are verified.
            Err(LayerError::Damaged { .. }) if !sources => {
                Layer { exactly: true, ..self.clone() }.fetch_once(picks, true).await
            }
            fetched => fetched,
        }
    }

    async fn fetch_once(&self, picks: &[Pick], sources: bool) -> Result<Vec<Row>, LayerError> {
        let mut pages = BTreeSet::new();
        let mut crc_pages = BTreeSet::new();
        let mut groups = BTreeSet::new();
        for pick in picks {
            pages.insert(self.page_of(pick)?);
            // The details hold the CRCs, too.
            match sources {
                true => drop(groups.insert(pick.group)),
                false => drop(crc_pages.insert(self.crcs_of(pick)?)),
            }
        }
        let details = try_join_all(
            groups.into_iter().map(|group| self.details(group).map_ok(move |details| (group, details))),
        );
        let crcs =
            try_join_all(crc_pages.into_iter().map(|page| self.crcs(page).map_ok(move |crcs| (page, crcs))));
        let (details, crcs, blocks) = try_join3(details, crcs, self.blocks(pages)).await?;
        let details: BTreeMap<u32, Arc<GroupDetails>> = details.into_iter().collect();
        let crcs: BTreeMap<usize, Arc<[u32]>> = crcs.into_iter().collect();
        let mut rows = Vec::with_capacity(picks.len());
        for pick in picks {
            let position = self.page_of(pick)?;
            let block = blocks.get(&position).zip(self.footer.pages.get(position));
            let about = match sources {
                true => details.get(&pick.group).and_then(|details| details.get(pick.found.row)),
                false => {
                    let position = self.crcs_of(pick)?;
                    let crcs = crcs.get(&position).zip(self.footer.crcs.get(position));
                    let crc = crcs.and_then(|(crcs, page)| page.crc_of(pick.found.row, crcs));
                    crc.map(|crc| (Source::NONE, crc))
                }
            };
            let (Some((block, page)), Some(about)) = (block, about) else {
                return Err(self.damaged(format!("{} at {} is missing", pick.found.key, pick.found.lsn)));
            };
            rows.push(self.row(&pick.found, about, block, page)?);
        }
        Ok(rows)
    }

    /// The CRCs of one page of them: from the cache, or by one request. They need no verification: a wrong one fits no row.
    async fn crcs(&self, position: usize) -> Result<Arc<[u32]>, LayerError> {
        let load = async move {
            let page = self.footer.crcs.get(position);
            let page = page.ok_or_else(|| self.damaged(format!("it has no page {position} of CRCs")))?;
            let bytes = self.read(page.range()).await?;
            let (values, _) = bytes.as_chunks::<4>();
            Ok(IndexPart::Crcs(values.iter().map(|value| u32::from_le_bytes(*value)).collect()))
        };
        let number = u32::try_from(position).unwrap_or(u32::MAX);
        match self.store.index_part(IndexKey::Crcs(self.entry.id, number), load.boxed()).await? {
            IndexPart::Crcs(crcs) => Ok(crcs),
            _ => Err(self.damaged("the cache holds another part of it")),
        }
    }

    fn crcs_of(&self, pick: &Pick) -> Result<usize, LayerError> {
        let page = self.footer.crcs_of(pick.group as usize, pick.found.row);
        page.ok_or_else(|| self.damaged(format!("no page holds the CRC of row {}", pick.found.row)))
    }

    /// Which payload page holds a row, and how many bytes that has when it is decoded.
    pub(crate) fn decoded_page(&self, pick: &Pick) -> Result<(usize, usize), LayerError> {
        let position = self.page_of(pick)?;
        Ok((position, self.footer.pages.get(position).map_or(0, |page| page.decoded as usize)))
    }

    fn page_of(&self, pick: &Pick) -> Result<usize, LayerError> {
        let page = self.footer.page_of(pick.group as usize, pick.found.row);
        page.ok_or_else(|| self.damaged(format!("no page holds {} at {}", pick.found.key, pick.found.lsn)))
    }

    /// One row, verified by its CRC.
    fn row(
        &self,
        found: &Found,
        (source, crc): (Source, u32),
        block: &Block,
        page: &PageRef,
    ) -> Result<Row, LayerError> {
        let Found { key, lsn, row, kind } = *found;
        let payload = row.checked_sub(page.first_row).and_then(|row| block.get(row));
        let Some(payload) = payload.filter(|payload| row_crc(&key, lsn, kind, payload) == crc) else {
            return Err(self.damaged(format!("the CRC of {key} at {lsn} is wrong")));
        };
        match Value::from_parts(kind, payload) {
            Some(Value::Page(bytes)) if !bytes.is_empty() && bytes.len() != BLCKSZ => {
                Err(self.damaged(format!("{key} at {lsn} is a page of {} bytes", bytes.len())))
            }
            Some(value) => Ok(Row { key, lsn, value, source }),
            None => Err(self.damaged(format!("{key} at {lsn} has kind {kind}"))),
        }
    }

    /// Payload pages by their positions: from the cache, or by requests that near ones share.
    async fn blocks(&self, pages: BTreeSet<usize>) -> Result<BTreeMap<usize, Arc<Block>>, LayerError> {
        let mut blocks = BTreeMap::new();
        let mut missing = Vec::new();
        for position in pages {
            match self.store.cached_block(self.block_key(position)).await {
                Some(block) => drop(blocks.insert(position, block)),
                None => missing.extend(self.footer.pages.get(position).map(|page| (position, *page))),
            }
        }
        let mut loads = Vec::with_capacity(missing.len());
        for (span, members) in join_near(&missing) {
            // Started by the first page that has to be loaded; pages that someone else is loading do not start it.
            let fetch: Fetch<'_> = self.read(span.clone()).boxed().shared();
            for (position, page) in members {
                let load = self.load_block(fetch.clone(), span.start, page).boxed();
                let block = self.store.block(self.block_key(position), load);
                loads.push(block.map_ok(move |block| (position, block)));
            }
        }
        blocks.extend(try_join_all(loads).await?);
        Ok(blocks)
    }

    fn block_key(&self, position: usize) -> (uuid::Uuid, u32) {
        (self.entry.id, u32::try_from(position).unwrap_or(u32::MAX))
    }

    async fn load_block(
        &self,
        fetch: Fetch<'_>,
        start: u64,
        page: PageRef,
    ) -> Result<Arc<Block>, LayerError> {
        let bytes = fetch.await?;
        self.decode_block(&bytes, start, &page).map(Arc::new)
    }

    /// A page out of bytes that begin at `start` of the object.
    fn decode_block(&self, bytes: &Bytes, start: u64, page: &PageRef) -> Result<Block, LayerError> {
        let from = page.offset.checked_sub(start).and_then(|from| usize::try_from(from).ok());
        let stored = from.and_then(|from| bytes.get(from..from.checked_add(page.size as usize)?));
        let stored = stored.ok_or_else(|| self.damaged("a payload page lies outside what was read"))?;
        Block::decode(page, stored).map_err(|what| self.damaged(format!("at {}: {what}", page.offset)))
    }

    /// All rows of a row group in order, past the block cache: for compaction and verification. At most about 16 MB
    /// of payload, or one row that is larger.
    pub async fn group_rows(&self, group: usize) -> Result<Vec<Row>, LayerError> {
        let number = u32::try_from(group).unwrap_or(u32::MAX);
        let pages = self.group(number)?.pages.clone();
        let pages = self.footer.pages.get(pages).unwrap_or_default();
        let (Some(first), Some(last)) = (pages.first(), pages.last()) else { return Ok(Vec::new()) };
        let payload = first.offset..last.offset.saturating_add(u64::from(last.size));
        let payload = self.read(payload);
        let ((keys, details), bytes) =
            try_join(try_join(self.keys(number), self.details(number)), payload).await?;
        let mut rows = Vec::with_capacity(keys.rows());
        let mut found = keys.all().into_iter();
        for page in pages {
            let block = self.decode_block(&bytes, first.offset, page)?;
            for found in found.by_ref().take(page.rows as usize) {
                let details = details.get(found.row).ok_or_else(|| self.damaged("rows are missing"))?;
                rows.push(self.row(&found, details, &block, page)?);
            }
        }
        Ok(rows)
    }

    /// The events of an events layer with `after < lsn <= upto` that are looked for, in LSN order.
    pub async fn events(
        &self,
        after: Lsn,
        upto: Lsn,
        filter: EventFilter<'_>,
    ) -> Result<Vec<Event>, LayerError> {
        if self.entry.kind != LayerKind::Events {
            return Err(self.damaged("it is not an events layer"));
        }
        let mut events: Vec<Event> = Vec::new();
        let metadata = self.footer.arrow().metadata().row_groups();
        for ((number, about), statistics) in (0u32..).zip(&self.footer.groups).zip(metadata) {
            let outside = about.entry.lsn_max <= after || about.entry.lsn_min > upto;
            if outside || !filter.may_be_in(statistics) {
                continue;
            }
            let columns = 0..self.footer.arrow().schema().fields().len();
            let batch = self.columns(number, about.keys.clone(), about.entry.keys_crc, columns).await?;
            let group = from_batch(&batch).map_err(|what| self.damaged(what))?;
            let lsns = (group.first().map(|event| event.lsn), group.last().map(|event| event.lsn));
            let sorted = group.is_sorted_by(|a, b| a.lsn < b.lsn);
            if !sorted || lsns != (Some(about.entry.lsn_min), Some(about.entry.lsn_max)) {
                return Err(self.damaged("its events are out of order"));
            }
            let wanted = |event: &Event| after < event.lsn && event.lsn <= upto && filter.takes(event);
            events.extend(group.into_iter().filter(wanted));
        }
        Ok(events)
    }
}

type Members = Vec<(usize, PageRef)>;

/// Joins pages, in order of their offsets, into ranges of the object to fetch at once.
fn join_near(pages: &[(usize, PageRef)]) -> Vec<(Range<u64>, Members)> {
    let mut spans: Vec<(Range<u64>, Members)> = Vec::new();
    for (position, page) in pages {
        let end = page.offset.saturating_add(u64::from(page.size));
        if let Some((span, members)) = spans.last_mut()
            && page.offset.saturating_sub(span.end) <= GAP_BYTES_MAX
            && end.saturating_sub(span.start) <= SPAN_BYTES_MAX
        {
            span.end = end;
            members.push((*position, *page));
        } else {
            spans.push((page.offset..end, vec![(*position, *page)]));
        }
    }
    spans
}
