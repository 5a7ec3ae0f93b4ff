//! Rows or events into the row groups of an object, and when a group ends.

use crate::columns::Columns;
use crate::error::LayerError;
use crate::object::{About, ObjectEncoder};
use crate::schema::{GROUP_PAYLOAD_BYTES_MAX, GROUP_ROWS_MAX, GroupEntry};
use crate::writer::FinishedLayer;
use arrow_schema::SchemaRef;
use parquet::file::properties::WriterProperties;
use zenith_manifest::KeyBytes;
use zenith_pgformat::Lsn;

/// One line of a layer's table: a row, or an event.
pub(crate) trait Line: Sized {
    /// What it is written as.
    type Columns: Columns<Line = Self>;
    /// What a search finds it by; zeros where the layer is not searched by key.
    fn key(&self) -> KeyBytes;
    /// What it is stamped with.
    fn lsn(&self) -> Lsn;
    /// About the bytes that it adds to a group.
    fn payload_bytes(&self) -> usize;
}

/// Writes lines into the row groups of one object. What may be written, and in which order, its owner checks.
pub(crate) struct GroupWriter<L: Line> {
    about: About,
    encoder: ObjectEncoder,
    columns: L::Columns,
    group: OpenGroup,
    rows: u64,
    /// Bytes of payload in the groups that are encoded.
    encoded_payload: u64,
}

impl<L: Line> std::fmt::Debug for GroupWriter<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupWriter").field("about", &self.about).field("rows", &self.rows).finish()
    }
}

impl<L: Line> GroupWriter<L> {
    pub(crate) fn new(
        about: About,
        schema: &SchemaRef,
        properties: WriterProperties,
    ) -> Result<GroupWriter<L>, LayerError> {
        Ok(GroupWriter {
            about,
            encoder: ObjectEncoder::new(schema, properties)?,
            columns: L::Columns::default(),
            group: OpenGroup::EMPTY,
            rows: 0,
            encoded_payload: 0,
        })
    }

    /// What the layer is to hold.
    pub(crate) fn about(&self) -> About {
        self.about
    }

    pub(crate) fn push(&mut self, line: &L) -> Result<(), LayerError> {
        let bytes = line.payload_bytes();
        if self.group.is_full_before(bytes) {
            self.end_group()?;
        }
        self.columns.push(line);
        self.group.add(line.key(), line.lsn(), bytes);
        self.rows += 1;
        Ok(())
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// About how large the object would be if it were finished now: what is encoded, and the open group as if it were to
    /// shrink as much as those before it.
    pub(crate) fn estimated_bytes(&self) -> u64 {
        let (encoded, open) = (self.encoder.bytes_written(), self.group.payload_bytes as u64);
        let shrunk = match u128::from(self.encoded_payload) {
            0 => open,
            before => (u128::from(open) * u128::from(encoded) / before) as u64,
        };
        encoded.saturating_add(shrunk.min(open))
    }

    fn end_group(&mut self) -> Result<(), LayerError> {
        self.encoder.write_group(&self.columns.list(), self.group.entry())?;
        self.encoded_payload += self.group.payload_bytes as u64;
        self.columns.clear();
        self.group = OpenGroup::EMPTY;
        Ok(())
    }

    /// Ends the object; one without lines is refused.
    pub(crate) fn finish(mut self) -> Result<FinishedLayer, LayerError> {
        if self.group.rows > 0 {
            self.end_group()?;
        }
        self.encoder.finish(self.about)
    }
}

/// The open row group, as it grows.
#[derive(Clone, Copy, Debug)]
struct OpenGroup {
    first: KeyBytes,
    last: KeyBytes,
    lsn_min: Lsn,
    lsn_max: Lsn,
    rows: usize,
    payload_bytes: usize,
}

impl OpenGroup {
    const EMPTY: OpenGroup = OpenGroup {
        first: KeyBytes([0; 18]),
        last: KeyBytes([0; 18]),
        lsn_min: Lsn::MAX,
        lsn_max: Lsn::INVALID,
        rows: 0,
        payload_bytes: 0,
    };

    /// Whether a line of so many bytes begins the next group. A longer one than any group may hold has one of its own.
    fn is_full_before(&self, bytes: usize) -> bool {
        self.rows >= GROUP_ROWS_MAX
            || (self.rows > 0 && self.payload_bytes.saturating_add(bytes) > GROUP_PAYLOAD_BYTES_MAX)
    }

    fn add(&mut self, key: KeyBytes, lsn: Lsn, payload_bytes: usize) {
        if self.rows == 0 {
            self.first = key;
        }
        self.last = key;
        self.lsn_min = self.lsn_min.min(lsn);
        self.lsn_max = self.lsn_max.max(lsn);
        self.rows += 1;
        self.payload_bytes = self.payload_bytes.saturating_add(payload_bytes);
    }

    fn entry(&self) -> GroupEntry {
        GroupEntry {
            first: self.first,
            last: self.last,
            lsn_min: self.lsn_min,
            lsn_max: self.lsn_max,
            rows: u32::try_from(self.rows).unwrap_or(u32::MAX),
            keys_crc: 0,
            details_crc: 0,
        }
    }
}
