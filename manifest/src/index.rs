//! Index pages: immutable Parquet objects of layer entries, so that any Parquet tool can list what a manifest
//! version names. The root keeps each page's length and CRC-32C; the bytes are checked before they are decoded.

use crate::entry::{BaseId, KeyBytes, LayerEntry, LayerKind};
use crate::error::ManifestError;
use crate::parquet_pages::{decode_foreign, footer_is_sound, pages_within};
use crate::root::IndexPageRef;
use arrow_array::{
    Array, ArrayRef, FixedSizeBinaryArray, Int64Array, RecordBatch, StringArray, UInt32Array, UInt64Array,
};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{KeyValue, RowGroupMetaData};
use parquet::file::properties::WriterProperties;
use std::sync::Arc;
use uuid::Uuid;
use zenith_pgformat::Lsn;

/// The most entries of one page; larger histories have more pages.
pub const PAGE_ENTRIES_MAX: usize = 131_072;
/// The largest page that is read.
pub(crate) const PAGE_BYTES_MAX: u64 = 64 << 20;
/// Format of the pages, in their key-value metadata as `zenith.format`.
const FORMAT: &str = "1";

/// The columns, one row per layer. `base` and `max_time` may be null.
fn schema() -> Schema {
    let column = |name: &str, kind: DataType, nullable: bool| Field::new(name, kind, nullable);
    Schema::new(vec![
        // The object is layers/<id>.parquet.
        column("id", DataType::Utf8, false),
        // image, delta or events.
        column("kind", DataType::Utf8, false),
        column("tli", DataType::UInt32, false),
        column("key_min", DataType::FixedSizeBinary(18), false),
        column("key_max", DataType::FixedSizeBinary(18), false),
        column("lsn_from", DataType::UInt64, false),
        column("lsn_to", DataType::UInt64, false),
        column("serves_from", DataType::UInt64, false),
        column("base", DataType::Utf8, true),
        column("rows", DataType::UInt64, false),
        column("bytes", DataType::UInt64, false),
        column("meta_offset", DataType::UInt64, false),
        column("meta_crc", DataType::UInt32, false),
        // Microseconds since 2000-01-01 UTC.
        column("max_time", DataType::Int64, true),
    ])
}

fn kind_name(kind: LayerKind) -> &'static str {
    match kind {
        LayerKind::Image => "image",
        LayerKind::Delta => "delta",
        LayerKind::Events => "events",
    }
}

/// The bytes of a page and the root's reference to it.
pub(crate) fn encode_page(id: Uuid, entries: &[LayerEntry]) -> Result<(IndexPageRef, Bytes), String> {
    let text = |value: &dyn Fn(&LayerEntry) -> String| -> ArrayRef {
        Arc::new(entries.iter().map(|e| Some(value(e))).collect::<StringArray>())
    };
    let long = |value: &dyn Fn(&LayerEntry) -> u64| -> ArrayRef {
        Arc::new(entries.iter().map(value).collect::<UInt64Array>())
    };
    let int = |value: &dyn Fn(&LayerEntry) -> u32| -> ArrayRef {
        Arc::new(entries.iter().map(value).collect::<UInt32Array>())
    };
    let key = |value: &dyn Fn(&LayerEntry) -> KeyBytes| -> Result<ArrayRef, String> {
        let keys = entries.iter().map(|e| value(e).0);
        // An empty page has no width to take from its values.
        let array = if entries.is_empty() {
            Ok(FixedSizeBinaryArray::new_null(18, 0))
        } else {
            FixedSizeBinaryArray::try_from_iter(keys)
        };
        Ok(Arc::new(array.map_err(|e| e.to_string())?))
    };
    let columns: Vec<ArrayRef> = vec![
        text(&|e| e.id.simple().to_string()),
        text(&|e| kind_name(e.kind).to_owned()),
        int(&|e| e.tli),
        key(&|e| e.key_min)?,
        key(&|e| e.key_max)?,
        long(&|e| e.lsn_from.0),
        long(&|e| e.lsn_to.0),
        long(&|e| e.serves_from.0),
        Arc::new(entries.iter().map(|e| e.base.map(|b| b.0.simple().to_string())).collect::<StringArray>()),
        long(&|e| e.rows),
        long(&|e| e.bytes),
        long(&|e| e.meta_offset),
        int(&|e| e.meta_crc),
        Arc::new(entries.iter().map(|e| e.max_time).collect::<Int64Array>()),
    ];
    let bytes = write(columns).map_err(|e| e.to_string())?;
    let page = IndexPageRef {
        id,
        entries: entries.len() as u64,
        bytes: bytes.len() as u64,
        crc: crc32c::crc32c(&bytes),
    };
    Ok((page, bytes.into()))
}

fn write(columns: Vec<ArrayRef>) -> parquet::errors::Result<Vec<u8>> {
    let schema = Arc::new(schema());
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_key_value_metadata(Some(vec![
            KeyValue::new("zenith.object".to_owned(), "layer-index".to_owned()),
            KeyValue::new("zenith.format".to_owned(), FORMAT.to_owned()),
            KeyValue::new("zenith.encryption".to_owned(), "none".to_owned()),
        ]))
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(bytes)
}

/// The entries of the page stored as `object`.
pub(crate) fn decode_page(
    object: &Path,
    page: &IndexPageRef,
    bytes: &Bytes,
) -> Result<Vec<LayerEntry>, ManifestError> {
    let damaged = |reason: String| ManifestError::Damaged { object: object.to_string(), reason };
    if bytes.len() as u64 != page.bytes {
        return Err(damaged(format!("it has {} bytes instead of {}", bytes.len(), page.bytes)));
    }
    if crc32c::crc32c(bytes) != page.crc {
        return Err(damaged("its checksum does not match the manifest's".to_owned()));
    }
    if page.entries > PAGE_ENTRIES_MAX as u64 {
        return Err(damaged(format!("the manifest says that it has {} entries", page.entries)));
    }
    let entries = decode_foreign(|| read(bytes, page.entries)).map_err(damaged)?;
    if entries.len() as u64 != page.entries {
        return Err(damaged(format!("it has {} entries instead of {}", entries.len(), page.entries)));
    }
    Ok(entries)
}

/// The most that the pages of `entries` entries take, decompressed: twice what the widest values do.
fn decoded_max(entries: u64) -> u64 {
    entries * 512 + (64 << 10)
}

fn read(bytes: &Bytes, entries: u64) -> Result<Vec<LayerEntry>, String> {
    footer_is_sound(bytes)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).map_err(|e| e.to_string())?;
    let metadata = builder.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    let value = |name: &str| {
        metadata.iter().find(|pair| pair.key == name).and_then(|pair| pair.value.as_deref()).unwrap_or("none")
    };
    if value("zenith.format") != FORMAT || value("zenith.encryption") != "none" {
        return Err(format!(
            "format {} with encryption {}: written by a newer program",
            value("zenith.format"),
            value("zenith.encryption")
        ));
    }
    let mut left = decoded_max(entries);
    for column in builder.metadata().row_groups().iter().flat_map(RowGroupMetaData::columns) {
        let (start, length) = column.byte_range();
        let range = usize::try_from(start).ok().zip(usize::try_from(start.saturating_add(length)).ok());
        let chunk = range.and_then(|(start, end)| bytes.get(start..end)).ok_or("a column is cut off")?;
        left -= pages_within(left, chunk)?;
    }
    let reader = builder.build().map_err(|e| e.to_string())?;
    let mut entries = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|e| e.to_string())?;
        let columns = Columns::of(&batch)?;
        for row in 0..batch.num_rows() {
            entries.push(columns.entry(row)?);
        }
    }
    Ok(entries)
}

struct Columns<'a> {
    layer: &'a StringArray,
    kind: &'a StringArray,
    tli: &'a UInt32Array,
    key_min: &'a FixedSizeBinaryArray,
    key_max: &'a FixedSizeBinaryArray,
    lsn_from: &'a UInt64Array,
    lsn_to: &'a UInt64Array,
    serves_from: &'a UInt64Array,
    base: &'a StringArray,
    rows: &'a UInt64Array,
    bytes: &'a UInt64Array,
    meta_offset: &'a UInt64Array,
    meta_crc: &'a UInt32Array,
    max_time: &'a Int64Array,
}

fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, String> {
    let column = batch.column_by_name(name).ok_or_else(|| format!("column {name} is missing"))?;
    column.as_any().downcast_ref::<A>().ok_or_else(|| format!("column {name} has another type"))
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Columns<'a>, String> {
        Ok(Columns {
            layer: column(batch, "id")?,
            kind: column(batch, "kind")?,
            tli: column(batch, "tli")?,
            key_min: column(batch, "key_min")?,
            key_max: column(batch, "key_max")?,
            lsn_from: column(batch, "lsn_from")?,
            lsn_to: column(batch, "lsn_to")?,
            serves_from: column(batch, "serves_from")?,
            base: column(batch, "base")?,
            rows: column(batch, "rows")?,
            bytes: column(batch, "bytes")?,
            meta_offset: column(batch, "meta_offset")?,
            meta_crc: column(batch, "meta_crc")?,
            max_time: column(batch, "max_time")?,
        })
    }

    /// `row` is below the batch's number of rows, which all columns have.
    fn entry(&self, row: usize) -> Result<LayerEntry, String> {
        let id = |text: &str| Uuid::try_parse(text).map_err(|e| format!("\"{text}\" is no id: {e}"));
        let key = |array: &FixedSizeBinaryArray| {
            let bytes = <[u8; 18]>::try_from(array.value(row));
            bytes.map(KeyBytes).map_err(|_| "a key has another width".to_owned())
        };
        Ok(LayerEntry {
            id: id(self.layer.value(row))?,
            kind: match self.kind.value(row) {
                "image" => LayerKind::Image,
                "delta" => LayerKind::Delta,
                "events" => LayerKind::Events,
                other => return Err(format!("\"{other}\" is no kind of layer")),
            },
            tli: self.tli.value(row),
            key_min: key(self.key_min)?,
            key_max: key(self.key_max)?,
            lsn_from: Lsn(self.lsn_from.value(row)),
            lsn_to: Lsn(self.lsn_to.value(row)),
            serves_from: Lsn(self.serves_from.value(row)),
            base: if self.base.is_null(row) { None } else { Some(BaseId(id(self.base.value(row))?)) },
            rows: self.rows.value(row),
            bytes: self.bytes.value(row),
            meta_offset: self.meta_offset.value(row),
            meta_crc: self.meta_crc.value(row),
            max_time: (!self.max_time.is_null(row)).then(|| self.max_time.value(row)),
        })
    }
}
