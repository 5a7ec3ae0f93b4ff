//! A layer object as it is encoded: its row groups, their CRCs, the footer.

use crate::error::LayerError;
use crate::schema::{GroupEntry, KEY_COLUMNS, PAYLOAD_COLUMN, Properties};
use crate::writer::FinishedLayer;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use std::ops::Range;
use uuid::Uuid;
use zenith_manifest::{LayerEntry, LayerKind};
use zenith_pgformat::Lsn;

/// A Parquet object in memory that grows by row groups.
pub(crate) struct ObjectEncoder {
    writer: ArrowWriter<Vec<u8>>,
    groups: Vec<GroupEntry>,
}

impl ObjectEncoder {
    pub(crate) fn new(schema: SchemaRef, properties: WriterProperties) -> Result<ObjectEncoder, LayerError> {
        // Arrow's own copy of the schema is for Arrow only: the columns' types say all there is.
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(Vec::new(), schema, options).map_err(encode)?;
        Ok(ObjectEncoder { writer, groups: Vec::new() })
    }

    /// Adds rows to the open row group.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), LayerError> {
        self.writer.write(batch).map_err(encode)
    }

    /// About how large the object would be if it ended now.
    pub(crate) fn estimated_bytes(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    /// Ends the open row group. `entry`: what is known of it but for the CRCs.
    pub(crate) fn end_group(&mut self, entry: GroupEntry) -> Result<(), LayerError> {
        self.writer.flush().map_err(encode)?;
        self.writer.sync().map_err(|error| LayerError::Encode(error.to_string()))?;
        let group = self.writer.flushed_row_groups().last();
        let chunks: Vec<Range<usize>> = group
            .into_iter()
            .flat_map(|group| group.columns())
            .map(|column| column.byte_range())
            .map(|(start, length)| start as usize..(start + length) as usize)
            .collect();
        let object = self.writer.inner();
        let crc = |columns: &[Range<usize>]| {
            let (Some(first), Some(last)) = (columns.first(), columns.last()) else { return 0 };
            object.get(first.start..last.end).map_or(0, crc32c::crc32c)
        };
        let rows_of_keys = chunks.len() == PAYLOAD_COLUMN + 1;
        let entry = if rows_of_keys {
            let (keys, others) = chunks.split_at(KEY_COLUMNS.len());
            let details = others.split_last().map_or(others, |(_, details)| details);
            GroupEntry { keys_crc: crc(keys), details_crc: crc(details), ..entry }
        } else {
            GroupEntry { keys_crc: crc(&chunks), details_crc: 0, ..entry }
        };
        self.groups.push(entry);
        Ok(())
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
        self.writer.finish().map_err(encode)?;
        self.writer.sync().map_err(|error| LayerError::Encode(error.to_string()))?;
        let object = Bytes::from(std::mem::take(self.writer.inner_mut()));
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
