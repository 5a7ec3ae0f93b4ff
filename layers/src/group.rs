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

/// Lines are handed to the encoder this many at a time ...
const BATCH_ROWS: usize = 4096;
/// ... or this many bytes of payload.
const BATCH_PAYLOAD_BYTES: usize = 1 << 20;

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
    batch: L::Columns,
    batch_rows: usize,
    batch_bytes: usize,
    group: OpenGroup,
    rows: u64,
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
            batch: L::Columns::default(),
            batch_rows: 0,
            batch_bytes: 0,
            group: OpenGroup::EMPTY,
            rows: 0,
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
        self.batch.push(line);
        self.batch_rows += 1;
        self.batch_bytes = self.batch_bytes.saturating_add(bytes);
        self.group.add(line.key(), line.lsn(), bytes);
        self.rows += 1;
        if self.batch_rows >= BATCH_ROWS || self.batch_bytes >= BATCH_PAYLOAD_BYTES {
            self.write_batch()?;
        }
        Ok(())
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// About how large the object would be if it were finished now.
    pub(crate) fn estimated_bytes(&self) -> u64 {
        self.encoder.estimated_bytes().saturating_add(self.batch_bytes as u64)
    }

    fn write_batch(&mut self) -> Result<(), LayerError> {
        self.encoder.write(&self.batch.list())?;
        self.batch.clear();
        self.batch_rows = 0;
        self.batch_bytes = 0;
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), LayerError> {
        self.write_batch()?;
        self.encoder.end_group(self.group.entry())?;
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
