//! A layer object as it is encoded: its row groups, their CRCs, the footer.

use crate::columns::Column;
use crate::error::LayerError;
use crate::schema::{GroupEntry, KEY_COLUMNS, PAYLOAD_COLUMN, Properties};
use crate::writer::FinishedLayer;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowSchemaConverter;
use parquet::column::writer::{ColumnCloseResult, ColumnWriter, get_column_writer};
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::properties::{WriterProperties, WriterPropertiesPtr};
use parquet::file::writer::{SerializedFileWriter, SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use std::ops::Range;
use std::sync::Arc;
use uuid::Uuid;
use zenith_manifest::{LayerEntry, LayerKind};
use zenith_pgformat::Lsn;

/// A Parquet object in memory that grows by row groups.
pub(crate) struct ObjectEncoder {
    writer: SerializedFileWriter<Vec<u8>>,
    groups: Vec<GroupEntry>,
}

impl ObjectEncoder {
    /// Arrow's own copy of the schema is left out: it is for Arrow only, and the columns' types say all there is.
    pub(crate) fn new(schema: &SchemaRef, properties: WriterProperties) -> Result<ObjectEncoder, LayerError> {
        let schema = ArrowSchemaConverter::new().convert(schema).map_err(encode)?;
        let writer = SerializedFileWriter::new(Vec::new(), schema.root_schema_ptr(), Arc::new(properties));
        Ok(ObjectEncoder { writer: writer.map_err(encode)?, groups: Vec::new() })
    }

    /// Size of the row groups that are encoded.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.writer.bytes_written() as u64
    }

    /// Encodes a row group. `entry`: what is known of it but for the CRCs.
    pub(crate) fn write_group(
        &mut self,
        columns: &[Column<'_>],
        entry: GroupEntry,
    ) -> Result<(), LayerError> {
        let (descriptor, properties) = (self.writer.schema_descr().clone(), self.writer.properties().clone());
        if columns.len() != descriptor.num_columns() {
            return Err(LayerError::Encode(format!("{} columns for the schema's", columns.len())));
        }
        let mut group = self.writer.next_row_group().map_err(encode)?;
        for (number, column) in columns.iter().enumerate() {
            let (bytes, close) = encode_column(descriptor.column(number), properties.clone(), column)?;
            group.append_column(&bytes, close).map_err(encode)?;
        }
        let group = group.close().map_err(encode)?;
        // What was written lies in the writer's own buffer until then.
        self.writer.flush().map_err(|error| LayerError::Encode(error.to_string()))?;
        self.groups.push(self.with_crcs(&group, entry));
        Ok(())
    }

    fn with_crcs(&self, group: &RowGroupMetaData, entry: GroupEntry) -> GroupEntry {
        let chunks: Vec<Range<usize>> = group
            .columns()
            .iter()
            .map(|column| column.byte_range())
            .map(|(start, length)| start as usize..(start + length) as usize)
            .collect();
        let object = self.writer.inner();
        let crc = |columns: &[Range<usize>]| {
            let (Some(first), Some(last)) = (columns.first(), columns.last()) else { return 0 };
            object.get(first.start..last.end).map_or(0, crc32c::crc32c)
        };
        let rows_of_keys = chunks.len() == PAYLOAD_COLUMN + 1;
        if rows_of_keys {
            let (keys, others) = chunks.split_at(KEY_COLUMNS.len());
            let details = others.split_last().map_or(others, |(_, details)| details);
            GroupEntry { keys_crc: crc(keys), details_crc: crc(details), ..entry }
        } else {
            GroupEntry { keys_crc: crc(&chunks), details_crc: 0, ..entry }
        }
    }

    /// Ends the object.
    pub(crate) fn finish(mut self, about: About) -> Result<FinishedLayer, LayerError> {
        let (Some(first), Some(last)) = (self.groups.first(), self.groups.last()) else {
            return Err(LayerError::Refused("it has no rows".to_owned()));
        };
        let properties = Properties {
            kind: about.kind,
            tli: about.tli,
            key_min: first.first,
            key_max: last.last,
            lsn_from: about.lsn_from,
            lsn_to: about.lsn_to,
            rows: self.groups.iter().map(|group| u64::from(group.rows)).sum(),
            groups: self.groups,
        };
        for pair in properties.to_key_values() {
            self.writer.append_key_value_metadata(pair);
        }
        let meta_offset = self.writer.bytes_written();
        let object = Bytes::from(self.writer.into_inner().map_err(encode)?);
        let tail = object.get(meta_offset..).unwrap_or_default();
        let entry = LayerEntry {
            id: Uuid::nil(),
            kind: about.kind,
            tli: about.tli,
            key_min: properties.key_min,
            key_max: properties.key_max,
            lsn_from: about.lsn_from,
            lsn_to: about.lsn_to,
            serves_from: about.lsn_from,
            base: None,
            rows: properties.rows,
            bytes: object.len() as u64,
            meta_offset: meta_offset as u64,
            meta_crc: crc32c::crc32c(tail),
            max_time: None,
        };
        Ok(FinishedLayer { entry, object })
    }
}

/// One column chunk as it is stored, its offsets counted from its own beginning.
fn encode_column(
    descriptor: ColumnDescPtr,
    properties: WriterPropertiesPtr,
    column: &Column<'_>,
) -> Result<(Bytes, ColumnCloseResult), LayerError> {
    let mut chunk = TrackedWrite::new(Vec::new());
    let pages = Box::new(SerializedPageWriter::new(&mut chunk));
    let mut writer = get_column_writer(descriptor, properties, pages);
    let written = match (&mut writer, column) {
        (ColumnWriter::Int32ColumnWriter(writer), Column::Int32(values)) => {
            writer.write_batch(values, None, None)
        }
        (ColumnWriter::Int64ColumnWriter(writer), Column::Int64(values)) => {
            writer.write_batch(values, None, None)
        }
        (ColumnWriter::ByteArrayColumnWriter(writer), Column::Bytes(values)) => {
            writer.write_batch(values, None, None)
        }
        _ => return Err(LayerError::Encode("a column of another type than the schema's".to_owned())),
    };
    written.map_err(encode)?;
    let mut close = writer.close().map_err(encode)?;
    if let (Some(index), Column::Bytes(values)) = (&mut close.offset_index, column) {
        index.unencoded_byte_array_data_bytes = Some(plain_bytes(index.page_locations(), values));
    }
    Ok((Bytes::from(chunk.into_inner().map_err(encode)?), close))
}

/// Bytes of the values of each page. Parquet's writer counts them only where it also keeps the lowest and highest value,
/// which for payloads nobody asks for.
fn plain_bytes(pages: &[PageLocation], values: &[ByteArray]) -> Vec<i64> {
    let starts = pages.iter().map(|page| usize::try_from(page.first_row_index).unwrap_or(usize::MAX));
    let ends = starts.clone().skip(1).chain([values.len()]);
    let bytes = |(start, end)| values.get(start..end).unwrap_or_default().iter().map(ByteArray::len).sum();
    starts.zip(ends).map(bytes).map(|bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX)).collect()
}

/// What a layer's writer knows before the first row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct About {
    pub(crate) kind: LayerKind,
    pub(crate) tli: u32,
    pub(crate) lsn_from: Lsn,
    pub(crate) lsn_to: Lsn,
}

#[allow(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
pub(crate) fn encode(error: ParquetError) -> LayerError {
    LayerError::Encode(error.to_string())
}
