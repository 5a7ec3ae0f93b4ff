//! A layer object as it is encoded: its row groups, their CRCs, the footer.

use crate::chunk::ChunkEncoder;
use crate::columns::Column;
use crate::error::LayerError;
use crate::schema::{GroupEntry, KEY_COLUMNS, PAYLOAD_COLUMN, Properties};
use crate::writer::FinishedLayer;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowSchemaConverter;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnDescPtr;
use std::ops::Range;
use std::sync::Arc;
use uuid::Uuid;
use zenith_manifest::{LayerEntry, LayerKind};
use zenith_pgformat::Lsn;

/// A Parquet object in memory that grows by row groups.
pub(crate) struct ObjectEncoder {
    writer: SerializedFileWriter<Vec<u8>>,
    /// The columns of the open row group.
    open: Vec<ChunkEncoder>,
    /// Size of their complete pages; it is asked for with every line.
    open_bytes: usize,
    groups: Vec<GroupEntry>,
}

impl ObjectEncoder {
    /// Arrow's own copy of the schema is left out: it is for Arrow only, and the columns' types say all there is.
    pub(crate) fn new(schema: &SchemaRef, properties: WriterProperties) -> Result<ObjectEncoder, LayerError> {
        let schema = ArrowSchemaConverter::new().convert(schema).map_err(encode)?;
        let writer = SerializedFileWriter::new(Vec::new(), schema.root_schema_ptr(), Arc::new(properties));
        Ok(ObjectEncoder {
            writer: writer.map_err(encode)?,
            open: Vec::new(),
            open_bytes: 0,
            groups: Vec::new(),
        })
    }

    /// About how large the object would be if it ended now.
    pub(crate) fn estimated_bytes(&self) -> u64 {
        (self.writer.bytes_written() + self.open_bytes) as u64
    }

    /// Adds lines to the open row group.
    pub(crate) fn write(&mut self, columns: &[Column<'_>]) -> Result<(), LayerError> {
        if self.open.is_empty() {
            let (schema, properties) = (self.writer.schema_descr(), self.writer.properties());
            let chunk = |column: &ColumnDescPtr| ChunkEncoder::new(column.clone(), properties.clone());
            self.open = schema.columns().iter().map(chunk).collect();
        }
        if self.open.len() != columns.len() {
            return Err(LayerError::Encode(format!("{} columns for {}", columns.len(), self.open.len())));
        }
        self.open.iter_mut().zip(columns).try_for_each(|(chunk, column)| chunk.write(column))?;
        self.open_bytes = self.open.iter().map(ChunkEncoder::bytes_written).sum();
        Ok(())
    }

    /// Ends the open row group. `entry`: what is known of it but for the CRCs.
    pub(crate) fn end_group(&mut self, entry: GroupEntry) -> Result<(), LayerError> {
        let mut group = self.writer.next_row_group().map_err(encode)?;
        for chunk in self.open.drain(..) {
            let (bytes, close) = chunk.finish()?;
            group.append_column(&bytes, close).map_err(encode)?;
        }
        self.open_bytes = 0;
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
