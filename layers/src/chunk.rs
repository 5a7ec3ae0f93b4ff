//! One column of the open row group, encoded as its lines come.

use crate::columns::Column;
use crate::error::LayerError;
use crate::object::encode;
use bytes::Bytes;
use parquet::column::page::{CompressedPage, PageWriteSpec, PageWriter};
use parquet::column::writer::{ColumnCloseResult, ColumnWriter, get_column_writer};
use parquet::data_type::ByteArray;
use parquet::errors::Result as ParquetResult;
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::properties::WriterPropertiesPtr;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use std::sync::{Arc, Mutex, PoisonError};

/// See the module.
pub(crate) struct ChunkEncoder {
    writer: ColumnWriter<'static>,
    pages: Pages,
    /// Lengths of the values so far, of a column of byte strings.
    lengths: Vec<usize>,
}

impl ChunkEncoder {
    pub(crate) fn new(descriptor: ColumnDescPtr, properties: WriterPropertiesPtr) -> ChunkEncoder {
        let pages = Pages(Arc::new(Mutex::new(TrackedWrite::new(Vec::new()))));
        let writer = get_column_writer(descriptor, properties, Box::new(pages.clone()));
        ChunkEncoder { writer, pages, lengths: Vec::new() }
    }

    /// Size of the pages that are complete.
    pub(crate) fn bytes_written(&self) -> usize {
        self.pages.0.lock().unwrap_or_else(PoisonError::into_inner).bytes_written()
    }

    pub(crate) fn write(&mut self, column: &Column<'_>) -> Result<(), LayerError> {
        let written = match (&mut self.writer, column) {
            (ColumnWriter::Int32ColumnWriter(writer), Column::Int32(values)) => {
                writer.write_batch(values, None, None)
            }
            (ColumnWriter::Int64ColumnWriter(writer), Column::Int64(values)) => {
                writer.write_batch(values, None, None)
            }
            (ColumnWriter::ByteArrayColumnWriter(writer), Column::Bytes(values)) => {
                self.lengths.extend(values.iter().map(ByteArray::len));
                writer.write_batch(values, None, None)
            }
            _ => return Err(LayerError::Encode("a column of another type than the schema's".to_owned())),
        };
        written.map(drop).map_err(encode)
    }

    /// The chunk as it is stored, its offsets counted from its own beginning.
    pub(crate) fn finish(self) -> Result<(Bytes, ColumnCloseResult), LayerError> {
        let mut close = self.writer.close().map_err(encode)?;
        if let Some(index) = close.offset_index.as_mut().filter(|_| !self.lengths.is_empty()) {
            index.unencoded_byte_array_data_bytes = Some(plain_bytes(index.page_locations(), &self.lengths));
        }
        let mut chunk = self.pages.0.lock().unwrap_or_else(PoisonError::into_inner);
        let chunk = std::mem::replace(&mut *chunk, TrackedWrite::new(Vec::new()));
        Ok((Bytes::from(chunk.into_inner().map_err(encode)?), close))
    }
}

/// Bytes of the values of each page. Parquet's writer counts them only where it also keeps the lowest and highest value,
/// which for payloads nobody asks for.
fn plain_bytes(pages: &[PageLocation], lengths: &[usize]) -> Vec<i64> {
    let starts = pages.iter().map(|page| usize::try_from(page.first_row_index).unwrap_or(usize::MAX));
    let ends = starts.clone().skip(1).chain([lengths.len()]);
    let bytes = |(start, end)| lengths.get(start..end).unwrap_or_default().iter().sum();
    starts.zip(ends).map(bytes).map(|bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX)).collect()
}

/// The pages of a chunk in memory, shared by the column's writer and its owner.
#[derive(Clone)]
struct Pages(Arc<Mutex<TrackedWrite<Vec<u8>>>>);

impl PageWriter for Pages {
    fn write_page(&mut self, page: CompressedPage) -> ParquetResult<PageWriteSpec> {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        SerializedPageWriter::new(&mut pages).write_page(page)
    }

    fn close(&mut self) -> ParquetResult<()> {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        SerializedPageWriter::new(&mut pages).close()
    }
}
