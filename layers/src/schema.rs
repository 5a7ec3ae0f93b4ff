//! The columns of a layer object, and what its footer says of itself. `docs/formats.md` describes them to
//! people.

use crate::error::LayerError;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use std::collections::HashMap;
use std::sync::Arc;
use zenith_manifest::{KeyBytes, LayerKind};
use zenith_pgformat::Lsn;

/// The version of the format that this program writes and reads.
pub const FORMAT: u16 = 1;
/// A data page ends once it holds this many bytes before compression.
pub const DATA_PAGE_BYTES: usize = 64 << 10;
/// A row group ends once it holds this many rows ...
pub const GROUP_ROWS_MAX: usize = 64 << 10;
/// ... or this many bytes of payload.
pub const GROUP_PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// zstd's level.
const LEVEL: i32 = 1;
/// The same for pages.
const IMAGE_LEVEL: i32 = 2;

/// Columns that a search needs: the key, LSN and kind. They come first and lie together.
pub(crate) const KEY_COLUMNS: [&str; 8] =
    ["class", "spcnode", "dbnode", "relnode", "fork", "block", "lsn", "kind"];
/// Columns that only a row that was found needs, apart from its payload. They follow and lie together.
pub(crate) const DETAIL_COLUMNS: [&str; 5] = ["rmgr", "info", "xid", "length", "crc"];
/// Position of the `crc` column, the last of the details.
pub(crate) const CRC_COLUMN: usize = PAYLOAD_COLUMN - 1;
/// Position of the `payload` column, the last.
pub(crate) const PAYLOAD_COLUMN: usize = KEY_COLUMNS.len() + DETAIL_COLUMNS.len();
/// The columns that rows are sorted by: key and LSN.
const SORTED_COLUMNS: usize = 7;

/// Columns of an image or delta layer.
pub(crate) fn row_schema() -> SchemaRef {
    let types = [
        DataType::UInt8,
        DataType::UInt32,
        DataType::UInt32,
        DataType::UInt32,
        DataType::UInt8,
        DataType::UInt32,
        DataType::UInt64,
        DataType::UInt8,
        DataType::UInt8,
        DataType::UInt8,
        DataType::UInt32,
        DataType::UInt32,
        DataType::UInt32,
    ];
    let names = KEY_COLUMNS.into_iter().chain(DETAIL_COLUMNS);
    let mut fields: Vec<Field> =
        names.zip(types).map(|(name, data_type)| Field::new(name, data_type, false)).collect();
    fields.push(Field::new("payload", DataType::Binary, false));
    Arc::new(Schema::new(fields))
}

/// How the columns of an image or delta layer are encoded.
///
/// Pages of relations are stored once and kept long: at level 2 those of an index take a quarter less than at level 1, in
/// about the same time; level 3 and above take more time and little less space (measured).
pub(crate) fn row_properties(kind: LayerKind) -> Result<WriterProperties, LayerError> {
    let sorting = (0..SORTED_COLUMNS).filter_map(|column| i32::try_from(column).ok());
    let sorting =
        sorting.map(|column_idx| SortingColumn { column_idx, descending: false, nulls_first: false });
    let level = if kind == LayerKind::Image { IMAGE_LEVEL } else { LEVEL };
    let mut properties = properties()?
        .set_compression(zstd(level)?)
        .set_dictionary_enabled(false)
        .set_encoding(Encoding::DELTA_BINARY_PACKED)
        .set_statistics_enabled(EnabledStatistics::None)
        // DELTA_LENGTH_BYTE_ARRAY saves 0.2 % on pages and 2 % on records (measured), but a reader then has to unpack
        // all lengths before the first value.
        .set_column_encoding(ColumnPath::from("payload"), Encoding::PLAIN)
        // Random numbers: packing them costs time and gains nothing.
        .set_column_encoding(ColumnPath::from("crc"), Encoding::PLAIN)
        .set_column_compression(ColumnPath::from("crc"), Compression::UNCOMPRESSED)
        .set_sorting_columns(Some(sorting.collect()));
    for name in KEY_COLUMNS {
        properties =
            properties.set_column_statistics_enabled(ColumnPath::from(name), EnabledStatistics::Page);
    }
    Ok(properties.build())
}

/// What all layers share.
pub(crate) fn properties() -> Result<WriterPropertiesBuilder, LayerError> {
    Ok(WriterProperties::builder()
        .set_created_by(concat!("zenith ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(zstd(LEVEL)?)
        .set_data_page_size_limit(DATA_PAGE_BYTES)
        .set_data_page_row_count_limit(GROUP_ROWS_MAX)
        .set_max_row_group_row_count(None))
}

fn zstd(level: i32) -> Result<Compression, LayerError> {
    let level = ZstdLevel::try_new(level).map_err(|error| LayerError::Encode(error.to_string()))?;
    Ok(Compression::ZSTD(level))
}

/// The name of a kind in a footer.
pub(crate) fn kind_name(kind: LayerKind) -> &'static str {
    match kind {
        LayerKind::Image => "image",
        LayerKind::Delta => "delta",
        LayerKind::Events => "events",
    }
}

/// What the footer says of one row group: 64 bytes, big-endian, as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GroupEntry {
    /// Key of its first row; zeros in an events layer.
    pub(crate) first: KeyBytes,
    /// Key of its last row.
    pub(crate) last: KeyBytes,
    /// Lowest LSN in it.
    pub(crate) lsn_min: Lsn,
    /// Highest LSN in it.
    pub(crate) lsn_max: Lsn,
    /// Number of rows.
    pub(crate) rows: u32,
    /// CRC-32C of the stored bytes of its key columns; in an events layer of all its columns.
    pub(crate) keys_crc: u32,
    /// CRC-32C of the stored bytes of its detail columns; 0 in an events layer.
    pub(crate) details_crc: u32,
}

const GROUP_ENTRY_BYTES: usize = 64;

impl GroupEntry {
    fn encode(&self) -> [u8; GROUP_ENTRY_BYTES] {
        let mut bytes = [0; GROUP_ENTRY_BYTES];
        bytes[..18].copy_from_slice(&self.first.0);
        bytes[18..36].copy_from_slice(&self.last.0);
        bytes[36..44].copy_from_slice(&self.lsn_min.0.to_be_bytes());
        bytes[44..52].copy_from_slice(&self.lsn_max.0.to_be_bytes());
        bytes[52..56].copy_from_slice(&self.rows.to_be_bytes());
        bytes[56..60].copy_from_slice(&self.keys_crc.to_be_bytes());
        bytes[60..].copy_from_slice(&self.details_crc.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; GROUP_ENTRY_BYTES]) -> GroupEntry {
        let (first, rest) = split::<18>(bytes);
        let (last, rest) = split::<18>(rest);
        let (lsn_min, rest) = split::<8>(rest);
        let (lsn_max, rest) = split::<8>(rest);
        let (rows, rest) = split::<4>(rest);
        let (keys_crc, rest) = split::<4>(rest);
        let (details_crc, _) = split::<4>(rest);
        GroupEntry {
            first: KeyBytes(first),
            last: KeyBytes(last),
            lsn_min: Lsn(u64::from_be_bytes(lsn_min)),
            lsn_max: Lsn(u64::from_be_bytes(lsn_max)),
            rows: u32::from_be_bytes(rows),
            keys_crc: u32::from_be_bytes(keys_crc),
            details_crc: u32::from_be_bytes(details_crc),
        }
    }
}

/// The first `N` bytes and the rest; zeros if there are fewer, which the fixed size of an entry rules out.
fn split<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    bytes.split_first_chunk().map_or(([0; N], &[]), |(head, rest)| (*head, rest))
}

/// What a footer says of its layer: the file's key-value metadata.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Properties {
    pub(crate) kind: LayerKind,
    pub(crate) tli: u32,
    pub(crate) key_min: KeyBytes,
    pub(crate) key_max: KeyBytes,
    pub(crate) lsn_from: Lsn,
    pub(crate) lsn_to: Lsn,
    pub(crate) rows: u64,
    pub(crate) groups: Vec<GroupEntry>,
}

impl Properties {
    pub(crate) fn to_key_values(&self) -> Vec<KeyValue> {
        let groups: Vec<u8> = self.groups.iter().flat_map(GroupEntry::encode).collect();
        let pairs = [
            ("zenith.format", FORMAT.to_string()),
            ("zenith.encryption", "none".to_owned()),
            ("zenith.kind", kind_name(self.kind).to_owned()),
            ("zenith.tli", self.tli.to_string()),
            ("zenith.key_min", to_hex(&self.key_min.0)),
            ("zenith.key_max", to_hex(&self.key_max.0)),
            ("zenith.lsn_from", self.lsn_from.to_string()),
            ("zenith.lsn_to", self.lsn_to.to_string()),
            ("zenith.rows", self.rows.to_string()),
            ("zenith.row_groups", to_hex(&groups)),
        ];
        pairs.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect()
    }

    /// Of the object `object`, whose bytes were verified.
    pub(crate) fn from_key_values(object: &str, pairs: &[KeyValue]) -> Result<Properties, LayerError> {
        let pairs: HashMap<&str, &str> =
            pairs.iter().filter_map(|pair| Some((pair.key.as_str(), pair.value.as_deref()?))).collect();
        let unknown =
            |found: String| LayerError::UnknownFormat { object: object.to_owned(), found, known: FORMAT };
        match pairs.get("zenith.format") {
            Some(&"1") => {}
            Some(found) => return Err(unknown((*found).to_owned())),
            None => return Err(LayerError::damaged(object, "its footer names no format version")),
        }
        match pairs.get("zenith.encryption") {
            Some(&"none") | None => {}
            Some(found) => return Err(unknown(format!("1 with encryption {found}"))),
        }
        Self::parse(&pairs)
            .ok_or_else(|| LayerError::damaged(object, "its footer's properties are unreadable"))
    }

    fn parse(pairs: &HashMap<&str, &str>) -> Option<Properties> {
        let kind = match *pairs.get("zenith.kind")? {
            "image" => LayerKind::Image,
            "delta" => LayerKind::Delta,
            "events" => LayerKind::Events,
            _ => return None,
        };
        let groups = from_hex(pairs.get("zenith.row_groups")?)?;
        let (groups, []) = groups.as_chunks::<GROUP_ENTRY_BYTES>() else { return None };
        Some(Properties {
            kind,
            tli: pairs.get("zenith.tli")?.parse().ok()?,
            key_min: KeyBytes(from_hex(pairs.get("zenith.key_min")?)?.try_into().ok()?),
            key_max: KeyBytes(from_hex(pairs.get("zenith.key_max")?)?.try_into().ok()?),
            lsn_from: pairs.get("zenith.lsn_from")?.parse().ok()?,
            lsn_to: pairs.get("zenith.lsn_to")?.parse().ok()?,
            rows: pairs.get("zenith.rows")?.parse().ok()?,
            groups: groups.iter().map(GroupEntry::decode).collect(),
        })
    }
}

fn to_hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties() -> Properties {
        let group = GroupEntry {
            first: KeyBytes([1; 18]),
            last: KeyBytes([2; 18]),
            lsn_min: Lsn(3),
            lsn_max: Lsn(4),
            rows: 5,
            keys_crc: 6,
            details_crc: 7,
        };
        Properties {
            kind: LayerKind::Delta,
            tli: 3,
            key_min: KeyBytes([1; 18]),
            key_max: KeyBytes([2; 18]),
            lsn_from: Lsn(2),
            lsn_to: Lsn(0x16_0000_0004),
            rows: 10,
            groups: vec![group, GroupEntry { rows: 50, ..group }],
        }
    }

    #[test]
    fn a_footer_says_what_was_written_into_it() {
        let pairs = properties().to_key_values();
        assert_eq!(Properties::from_key_values("x", &pairs).unwrap(), properties());
    }

    #[test]
    fn an_unknown_format_or_encryption_is_refused_by_name() {
        for (key, value) in [("zenith.format", "2"), ("zenith.encryption", "aes-256-gcm")] {
            let mut pairs = properties().to_key_values();
            pairs.retain(|pair| pair.key != key);
            pairs.push(KeyValue::new(key.to_owned(), value.to_owned()));
            let error = Properties::from_key_values("layers/x", &pairs).unwrap_err();
            assert!(matches!(error, LayerError::UnknownFormat { .. }));
            assert!(error.to_string().contains(value) && error.to_string().contains("layers/x"), "{error}");
        }
    }

    #[test]
    fn a_footer_with_a_property_missing_or_cut_is_damaged() {
        for missing in properties().to_key_values() {
            let mut pairs = properties().to_key_values();
            pairs.retain(|pair| pair.key != missing.key);
            let answer = Properties::from_key_values("x", &pairs);
            assert_eq!(answer.is_ok(), missing.key == "zenith.encryption", "{}", missing.key);
        }
        let mut pairs = properties().to_key_values();
        for pair in &mut pairs {
            if pair.key == "zenith.row_groups" {
                pair.value = pair.value.as_ref().map(|value| value[2..].to_owned());
            }
        }
        assert!(Properties::from_key_values("x", &pairs).is_err());
    }
}
