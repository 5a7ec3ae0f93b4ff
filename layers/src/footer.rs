//! The tail of a layer object (page indexes and footer), read and verified as one, and what of it stays in memory.

use crate::cache::Weighed;
use crate::error::LayerError;
use crate::page::PageRef;
use crate::schema::{
    CRC_COLUMN, DETAIL_COLUMNS, GroupEntry, KEY_COLUMNS, PAYLOAD_COLUMN, Properties, row_schema,
};
use bytes::{Buf, Bytes};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::page_index::PageIndexProvider;
use parquet::file::metadata::{
    ColumnChunkMask, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData,
};
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use parquet::file::reader::{ChunkReader, Length};
use std::ops::Range;
use std::sync::Arc;
use zenith_manifest::parquet_pages::{decode_foreign, footer_is_sound, structure_is_sound};
use zenith_manifest::{LayerEntry, LayerKind};

/// The longest tail that is read: 128 MB of layer have about 1 MB of it.
const TAIL_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a CRC.
const CRC_BYTES: u64 = 4;

/// One row group of a layer.
#[derive(Debug)]
pub(crate) struct Group {
    /// What the footer says of it.
    pub(crate) entry: GroupEntry,
    /// Where its key columns lie (events: all columns).
    pub(crate) keys: Range<u64>,
    /// Where its detail columns lie (events: nothing).
    pub(crate) details: Range<u64>,
    /// Its payload pages, as positions in [`Footer::pages`].
    pub(crate) pages: Range<usize>,
    /// Its pages of CRCs, as positions in [`Footer::crcs`].
    crcs: Range<usize>,
}

/// The values of a data page of the `crc` column, which is neither encoded nor compressed: four bytes for each row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrcPage {
    /// Where the values begin in the object.
    offset: u64,
    /// Number of the first row, in the row group.
    first_row: u32,
    /// Number of rows.
    rows: u32,
}

impl CrcPage {
    /// Where the values lie in the object.
    pub(crate) fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(u64::from(self.rows) * CRC_BYTES)
    }

    /// The CRC of a row among the values.
    pub(crate) fn crc_of(&self, row: u32, values: &[u32]) -> Option<u32> {
        values.get(row.checked_sub(self.first_row)? as usize).copied()
    }
}

/// The footer of a layer, verified.
#[derive(Debug)]
pub(crate) struct Footer {
    /// Row groups, in order.
    pub(crate) groups: Vec<Group>,
    /// The payload's data pages, in order.
    pub(crate) pages: Vec<PageRef>,
    /// The CRCs' data pages, in order.
    pub(crate) crcs: Vec<CrcPage>,
    /// The whole object, if it is small.
    whole: Option<Bytes>,
    /// For Parquet's reader; without the page indexes.
    arrow: ArrowReaderMetadata,
    weight: usize,
}

impl Weighed for Footer {
    fn weight(&self) -> usize {
        self.weight
    }
}

/// The footer, with the payload column's pages where the layer has rows.
fn parquet_metadata(tail: &Bytes, entry: &LayerEntry) -> Result<ParquetMetaData, String> {
    footer_is_sound(tail)?;
    let text = |error: ParquetError| error.to_string();
    let mut footer = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Skip);
    footer.try_parse_sized(tail, entry.bytes).map_err(text)?;
    let metadata = footer.finish().map_err(text)?;
    if entry.kind == LayerKind::Events {
        return Ok(metadata);
    }
    let columns = metadata.row_groups().iter().filter_map(|group| group.columns().get(CRC_COLUMN..));
    for column in columns.flatten() {
        let in_tail = |offset: u64| usize::try_from(offset.checked_sub(entry.meta_offset)?).ok();
        let range = column.offset_index_range();
        let range = range.and_then(|range| Some(in_tail(range.start)?..in_tail(range.end)?));
        structure_is_sound(range.and_then(|range| tail.get(range)).ok_or("it has no page index")?)?;
    }
    let mut index = ParquetMetaDataReader::new_with_metadata(metadata)
        .with_column_index_policy(PageIndexPolicy::Skip)
        .with_offset_index_policy(PageIndexPolicy::Required)
        .with_offset_index_mask(ColumnChunkMask::columns([CRC_COLUMN, PAYLOAD_COLUMN]));
    index.read_page_indexes_sized(tail, entry.bytes).map_err(text)?;
    index.finish().map_err(text)
}

/// The range of an object that [`Footer::decode`] wants.
pub(crate) fn tail_range(object: &str, entry: &LayerEntry) -> Result<Range<u64>, LayerError> {
    match entry.bytes.checked_sub(entry.meta_offset) {
        Some(1..=TAIL_BYTES_MAX) => Ok(entry.meta_offset..entry.bytes),
        _ => Err(LayerError::BadEntry {
            object: object.to_owned(),
            what: format!("{} bytes with the footer at {}", entry.bytes, entry.meta_offset),
        }),
    }
}

impl Footer {
    /// From the bytes of [`tail_range`], or all bytes of the object, which are kept then.
    pub(crate) fn decode(object: &str, entry: &LayerEntry, bytes: &Bytes) -> Result<Footer, LayerError> {
        let damaged = |what: &str| LayerError::damaged(object, what);
        let whole = (bytes.len() as u64 == entry.bytes).then(|| bytes.clone());
        let tail = match &whole {
            Some(whole) => usize::try_from(entry.meta_offset).ok().and_then(|at| whole.get(at..)),
            None => Some(&bytes[..]),
        };
        let tail = bytes.slice_ref(tail.unwrap_or_default());
        if crc32c::crc32c(&tail) != entry.meta_crc {
            return Err(damaged("the CRC of its footer does not match the manifest"));
        }
        let unreadable = |error: String| damaged(&format!("its footer is unreadable: {error}"));
        let events = entry.kind == LayerKind::Events;
        let metadata = decode_foreign(|| parquet_metadata(&tail, entry));
        let metadata = metadata.map_err(unreadable)?;
        let none = Vec::new();
        let pairs = metadata.file_metadata().key_value_metadata().unwrap_or(&none);
        let properties = Properties::from_key_values(object, pairs)?;
        agree(&properties, entry).map_err(|what| damaged(&what))?;
        let index = metadata.page_index().cloned();
        // Parquet's reader must not take the page indexes for a reason to skip pages.
        let metadata = metadata.into_builder().set_page_index(None).build();
        let (groups, pages, crcs) = if events {
            (event_groups(&properties, &metadata, entry), Vec::new(), Vec::new())
        } else {
            let index = index.ok_or_else(|| damaged("it has no page index"))?;
            row_groups(&properties, &metadata, &*index, entry).unwrap_or_default()
        };
        if groups.len() != metadata.num_row_groups() || groups.is_empty() {
            return Err(damaged("its footer contradicts itself"));
        }
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let arrow = decode_foreign(|| ArrowReaderMetadata::try_new(Arc::new(metadata), options));
        let arrow = arrow.map_err(unreadable)?;
        if !events && !same_columns(&arrow) {
            return Err(damaged("its columns are not those of a layer"));
        }
        let weight = size_of::<Footer>()
            + groups.capacity() * size_of::<Group>()
            + pages.capacity() * size_of::<PageRef>()
            + crcs.capacity() * size_of::<CrcPage>()
            + whole.as_ref().map_or(0, Bytes::len)
            + arrow.metadata().memory_size();
        Ok(Footer { groups, pages, crcs, whole, arrow, weight })
    }

    /// Some bytes of the object, if it is small and they are here.
    pub(crate) fn resident(&self, range: &Range<u64>) -> Option<Bytes> {
        let whole = self.whole.as_ref()?;
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        (start <= end && end <= whole.len()).then(|| whole.slice(start..end))
    }

    /// For Parquet's reader.
    pub(crate) fn arrow(&self) -> &ArrowReaderMetadata {
        &self.arrow
    }

    /// Position in [`Footer::pages`] of the page that holds a row of a group.
    pub(crate) fn page_of(&self, group: usize, row: u32) -> Option<usize> {
        let range = self.groups.get(group)?.pages.clone();
        let pages = self.pages.get(range.clone())?;
        let after = pages.partition_point(|page| page.first_row <= row);
        let page = pages.get(after.checked_sub(1)?)?;
        (row - page.first_row < page.rows).then_some(range.start + after - 1)
    }

    /// Position in [`Footer::crcs`] of the page that holds the CRC of a row of a group.
    pub(crate) fn crcs_of(&self, group: usize, row: u32) -> Option<usize> {
        let range = self.groups.get(group)?.crcs.clone();
        let pages = self.crcs.get(range.clone())?;
        let after = pages.partition_point(|page| page.first_row <= row);
        let page = pages.get(after.checked_sub(1)?)?;
        (row - page.first_row < page.rows).then_some(range.start + after - 1)
    }
}

/// The manifest and the object must say the same.
fn agree(properties: &Properties, entry: &LayerEntry) -> Result<(), String> {
    let rows: u64 = properties.groups.iter().map(|group| u64::from(group.rows)).sum();
    let same = properties.kind == entry.kind
        && properties.tli == entry.tli
        && properties.key_min == entry.key_min
        && properties.key_max == entry.key_max
        && properties.lsn_from == entry.lsn_from
        && properties.lsn_to == entry.lsn_to
        && properties.rows == entry.rows
        && rows == entry.rows;
    if same { Ok(()) } else { Err("its footer and the manifest do not speak of the same layer".to_owned()) }
}

fn same_columns(arrow: &ArrowReaderMetadata) -> bool {
    let expected = row_schema();
    let found = arrow.schema();
    found.fields().len() == expected.fields().len()
        && found.fields().iter().zip(expected.fields()).all(|(found, expected)| {
            found.name() == expected.name()
                && found.data_type() == expected.data_type()
                && !found.is_nullable()
        })
}

/// The bytes of some columns of a row group, which must follow one another.
fn span(group: &RowGroupMetaData, columns: Range<usize>, end: u64) -> Option<Range<u64>> {
    let mut span: Option<Range<u64>> = None;
    for column in group.columns().get(columns)? {
        let start =
            u64::try_from(column.dictionary_page_offset().unwrap_or(column.data_page_offset())).ok()?;
        let length = u64::try_from(column.compressed_size()).ok()?;
        let from = match span {
            Some(span) if span.end != start => return None,
            Some(span) => span.start,
            None => start,
        };
        span = Some(from..start.checked_add(length)?);
    }
    span.filter(|span| span.end <= end)
}

fn event_groups(properties: &Properties, metadata: &ParquetMetaData, entry: &LayerEntry) -> Vec<Group> {
    let pairs = properties.groups.iter().zip(metadata.row_groups());
    let groups = pairs.map_while(|(group, row_group)| {
        let keys = span(row_group, 0..row_group.num_columns(), entry.meta_offset)?;
        let same_rows = row_group.num_rows() == i64::from(group.rows);
        same_rows.then_some(Group { entry: *group, keys, details: 0..0, pages: 0..0, crcs: 0..0 })
    });
    groups.collect()
}

fn row_groups(
    properties: &Properties,
    metadata: &ParquetMetaData,
    index: &dyn PageIndexProvider,
    entry: &LayerEntry,
) -> Option<(Vec<Group>, Vec<PageRef>, Vec<CrcPage>)> {
    let (mut groups, mut pages, mut crcs) = (Vec::new(), Vec::new(), Vec::new());
    let details_end = KEY_COLUMNS.len() + DETAIL_COLUMNS.len();
    for (number, (group, row_group)) in properties.groups.iter().zip(metadata.row_groups()).enumerate() {
        if row_group.num_rows() != i64::from(group.rows) || row_group.num_columns() != PAYLOAD_COLUMN + 1 {
            return None;
        }
        let keys = span(row_group, 0..KEY_COLUMNS.len(), entry.meta_offset)?;
        let details = span(row_group, KEY_COLUMNS.len()..details_end, entry.meta_offset)?;
        let payload = span(row_group, PAYLOAD_COLUMN..PAYLOAD_COLUMN + 1, entry.meta_offset)?;
        let first = pages.len();
        push_pages(&mut pages, index.offset_index(number, PAYLOAD_COLUMN)?, group.rows, &payload)?;
        let first_crc = crcs.len();
        let crc = row_group.column(CRC_COLUMN);
        if crc.compression() != Compression::UNCOMPRESSED {
            return None;
        }
        let chunk = span(row_group, CRC_COLUMN..CRC_COLUMN + 1, entry.meta_offset)?;
        push_crcs(&mut crcs, index.offset_index(number, CRC_COLUMN)?, group.rows, &chunk)?;
        let (pages, crcs) = (first..pages.len(), first_crc..crcs.len());
        groups.push(Group { entry: *group, keys, details, pages, crcs });
    }
    pages.shrink_to_fit();
    crcs.shrink_to_fit();
    Some((groups, pages, crcs))
}

/// Adds the pages of CRCs of one row group, which must cover all its rows and lie, one after the other, in their chunk.
fn push_crcs(
    crcs: &mut Vec<CrcPage>,
    index: &OffsetIndexMetaData,
    rows: u32,
    chunk: &Range<u64>,
) -> Option<()> {
    for StoredPage { at, size, first_row, rows } in stored_pages(index, rows, chunk)? {
        // A header of some bytes, then the values.
        let end = at.checked_add(u64::from(size))?;
        let offset = end.checked_sub(u64::from(rows) * CRC_BYTES).filter(|offset| *offset > chunk.start)?;
        crcs.push(CrcPage { offset, first_row, rows });
    }
    Some(())
}

/// Adds the pages of one row group: they must cover all its rows and lie, one after the other, in its payload chunk.
fn push_pages(
    pages: &mut Vec<PageRef>,
    index: &OffsetIndexMetaData,
    rows: u32,
    payload: &Range<u64>,
) -> Option<()> {
    let stored = stored_pages(index, rows, payload)?;
    let plain = index.unencoded_byte_array_data_bytes()?;
    if plain.len() != stored.len() {
        return None;
    }
    for (StoredPage { at, size, first_row, rows }, plain) in stored.into_iter().zip(plain) {
        let decoded = u32::try_from(plain.checked_add(i64::from(rows) * 4)?).ok()?;
        if decoded > i32::MAX as u32 {
            return None;
        }
        pages.push(PageRef { offset: at, size, first_row, rows, decoded });
    }
    Some(())
}

/// A page as the index of its chunk tells it: where it begins in the object, its size with its header, its rows.
struct StoredPage {
    at: u64,
    size: u32,
    first_row: u32,
    rows: u32,
}

/// The pages of one chunk, if they cover all rows of its row group and lie, one after the other, in `chunk`.
fn stored_pages(index: &OffsetIndexMetaData, rows: u32, chunk: &Range<u64>) -> Option<Vec<StoredPage>> {
    let locations = index.page_locations();
    if locations.first()?.first_row_index != 0 {
        return None;
    }
    let ends = locations.iter().skip(1).map(|next| next.first_row_index).chain([i64::from(rows)]);
    let mut stored = Vec::with_capacity(locations.len());
    let mut at = chunk.start;
    for (location, end) in locations.iter().zip(ends) {
        let size = u32::try_from(location.compressed_page_size).ok()?;
        let first_row = u32::try_from(location.first_row_index).ok()?;
        let rows = u32::try_from(end.checked_sub(location.first_row_index)?).ok()?;
        if u64::try_from(location.offset).ok()? != at || rows == 0 {
            return None;
        }
        stored.push(StoredPage { at, size, first_row, rows });
        at = at.checked_add(u64::from(size))?;
    }
    (at == chunk.end).then_some(stored)
}

/// Part of an object in memory, for Parquet's reader, which thinks in offsets of the object.
pub(crate) struct Part {
    /// Offset of `bytes` in the object.
    pub(crate) start: u64,
    /// The part.
    pub(crate) bytes: Bytes,
}

impl Part {
    fn slice(&self, start: u64, length: Option<usize>) -> Option<Bytes> {
        let from = usize::try_from(start.checked_sub(self.start)?).ok()?;
        let end = length.map_or(Some(self.bytes.len()), |length| from.checked_add(length))?;
        (from <= end && end <= self.bytes.len()).then(|| self.bytes.slice(from..end))
    }
}

impl Length for Part {
    fn len(&self) -> u64 {
        self.start.saturating_add(self.bytes.len() as u64)
    }
}

impl ChunkReader for Part {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        self.slice(start, None).map(Buf::reader).ok_or_else(|| outside(start))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.slice(start, Some(length)).ok_or_else(|| outside(start))
    }
}

fn outside(start: u64) -> ParquetError {
    ParquetError::EOF(format!("offset {start} lies outside the part that was read"))
}
