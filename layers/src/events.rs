//! The events layer: what happened when. Commits, aborts, restore points and checkpoints, for targets given as a
//! time, a name or a transaction, and for people who ask "commits by minute".

use crate::columns::{Column, Columns};
use crate::error::LayerError;
use crate::group::{GroupWriter, Line};
use crate::object::About;
use crate::schema::properties;
use crate::writer::FinishedLayer;
use arrow_array::cast::AsArray;
use arrow_array::types::{TimestampMicrosecondType, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use parquet::basic::Encoding;
use parquet::data_type::ByteArray;
use parquet::file::metadata::{RowGroupMetaData, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnPath;
use std::sync::Arc;
use zenith_manifest::{KeyBytes, LayerKind};
use zenith_pgformat::{Lsn, Tli, Xid};

/// Microseconds from 1970-01-01 to 2000-01-01 UTC (`POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE`,
/// datatype/timestamp.h).
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EventKind {
    /// `COMMIT`.
    Commit,
    /// `ROLLBACK` of a transaction that had an id.
    Abort,
    /// `COMMIT PREPARED`.
    CommitPrepared,
    /// `ROLLBACK PREPARED`.
    AbortPrepared,
    /// `pg_create_restore_point`.
    RestorePoint,
    /// A checkpoint, online or at a shutdown.
    Checkpoint,
}

impl EventKind {
    /// All of them.
    pub const ALL: [EventKind; 6] = [
        EventKind::Commit,
        EventKind::Abort,
        EventKind::CommitPrepared,
        EventKind::AbortPrepared,
        EventKind::RestorePoint,
        EventKind::Checkpoint,
    ];

    /// Whether a transaction committed.
    pub fn is_commit(self) -> bool {
        matches!(self, EventKind::Commit | EventKind::CommitPrepared)
    }

    /// What stands in the `kind` column.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Commit => "commit",
            EventKind::Abort => "abort",
            EventKind::CommitPrepared => "commit_prepared",
            EventKind::AbortPrepared => "abort_prepared",
            EventKind::RestorePoint => "restore_point",
            EventKind::Checkpoint => "checkpoint",
        }
    }
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Where its record starts: a target "just before it" is this LSN.
    pub start: Lsn,
    /// Where its record ends: a target "with it" is this LSN.
    pub lsn: Lsn,
    /// What happened.
    pub kind: EventKind,
    /// The transaction (of a prepared one its own, not that of the record); 0 if none.
    pub xid: Xid,
    /// When, in microseconds since 2000-01-01 UTC (`TimestampTz`).
    pub time: i64,
    /// The restore point's name, or the prepared transaction's `gid`; otherwise empty.
    pub name: String,
    /// How many subtransactions ended with it.
    pub subxacts: u32,
}

/// Which events are looked for. Row groups whose statistics rule them out are not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventFilter<'a> {
    /// All.
    Any,
    /// Those of a transaction.
    Xid(Xid),
    /// Restore points.
    RestorePoint,
    /// Restore points of this name.
    Named(&'a str),
}

impl EventFilter<'_> {
    /// Whether an event is one of them.
    pub fn takes(&self, event: &Event) -> bool {
        let restore_point = event.kind == EventKind::RestorePoint;
        match self {
            EventFilter::Any => true,
            EventFilter::Xid(xid) => event.xid == *xid,
            EventFilter::RestorePoint => restore_point,
            EventFilter::Named(name) => restore_point && event.name == *name,
        }
    }

    /// Whether a row group may hold one, by the lowest and highest value of its columns.
    pub(crate) fn may_be_in(&self, group: &RowGroupMetaData) -> bool {
        let restore_point = || may_hold(group, KIND, EventKind::RestorePoint.name().as_bytes());
        match self {
            EventFilter::Any => true,
            EventFilter::Xid(xid) => may_hold_number(group, XID, *xid),
            EventFilter::RestorePoint => restore_point(),
            EventFilter::Named(name) => restore_point() && may_hold(group, NAME, name.as_bytes()),
        }
    }
}

/// Positions of columns.
const KIND: usize = 2;
const XID: usize = 3;
const NAME: usize = 5;

/// Statistics of text are cut to 64 bytes, the highest upwards, so that they remain bounds; without any, anything may be there.
fn may_hold(group: &RowGroupMetaData, column: usize, wanted: &[u8]) -> bool {
    let statistics = group.columns().get(column).and_then(|column| column.statistics());
    let lowest = statistics.and_then(Statistics::min_bytes_opt);
    let highest = statistics.and_then(Statistics::max_bytes_opt);
    lowest.is_none_or(|lowest| lowest <= wanted) && highest.is_none_or(|highest| wanted <= highest)
}

/// Parquet keeps 32-bit numbers without sign as such with one, and orders them as what they are.
fn may_hold_number(group: &RowGroupMetaData, column: usize, wanted: u32) -> bool {
    let Some(Statistics::Int32(statistics)) =
        group.columns().get(column).and_then(|column| column.statistics())
    else {
        return true;
    };
    let (lowest, highest) = (statistics.min_opt(), statistics.max_opt());
    lowest.is_none_or(|lowest| lowest.cast_unsigned() <= wanted)
        && highest.is_none_or(|highest| wanted <= highest.cast_unsigned())
}

fn event_schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let field = |name: &str, data_type: DataType| Field::new(name, data_type, false);
    Arc::new(Schema::new(vec![
        field("start", DataType::UInt64),
        field("lsn", DataType::UInt64),
        field("kind", DataType::Utf8),
        field("xid", DataType::UInt32),
        field("time", time),
        field("name", DataType::Utf8),
        field("subxacts", DataType::UInt32),
    ]))
}

fn event_properties() -> Result<WriterProperties, LayerError> {
    let by_lsn = SortingColumn { column_idx: 1, descending: false, nulls_first: false };
    let mut builder = properties()?
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_sorting_columns(Some(vec![by_lsn]));
    for name in ["start", "lsn", "xid", "time", "subxacts"] {
        builder = builder.set_column_encoding(ColumnPath::from(name), Encoding::DELTA_BINARY_PACKED);
    }
    Ok(builder.set_column_dictionary_enabled(ColumnPath::from("kind"), true).build())
}

/// Writes an events layer into memory.
#[derive(Debug)]
pub struct EventWriter {
    groups: GroupWriter<Event>,
    last: Lsn,
    max_time: Option<i64>,
}

impl EventWriter {
    /// For events with `lsn_from < lsn <= lsn_to`.
    pub fn new(tli: Tli, lsn_from: Lsn, lsn_to: Lsn) -> Result<EventWriter, LayerError> {
        if lsn_from >= lsn_to {
            return Err(LayerError::Refused(format!("no event can lie above {lsn_from} and up to {lsn_to}")));
        }
        let about = About { kind: LayerKind::Events, tli, lsn_from, lsn_to };
        let groups = GroupWriter::new(about, &event_schema(), event_properties()?)?;
        Ok(EventWriter { groups, last: lsn_from, max_time: None })
    }

    /// Adds an event; LSNs ascend strictly. A time that no Parquet timestamp can say is refused.
    pub fn push(&mut self, event: &Event) -> Result<(), LayerError> {
        let About { lsn_from, lsn_to, .. } = self.groups.about();
        let (kind, lsn) = (event.kind.name(), event.lsn);
        if lsn <= self.last || lsn > lsn_to {
            let last = self.last;
            return Err(LayerError::Refused(format!(
                "{kind} at {lsn}: the layer holds {lsn_from} to {lsn_to} and stands at {last}"
            )));
        }
        if event.time.checked_add(POSTGRES_EPOCH).is_none() {
            return Err(LayerError::Refused(format!("the time of {kind} at {lsn}")));
        }
        self.groups.push(event)?;
        self.last = lsn;
        self.max_time = self.max_time.max(Some(event.time));
        Ok(())
    }

    /// Number of events so far.
    pub fn rows(&self) -> u64 {
        self.groups.rows()
    }

    /// About how large the object would be if it were finished now.
    pub fn estimated_bytes(&self) -> u64 {
        self.groups.estimated_bytes()
    }

    /// Ends the layer. A layer without events is refused: ask [`EventWriter::rows`].
    pub fn finish(self) -> Result<FinishedLayer, LayerError> {
        let mut layer = self.groups.finish()?;
        layer.entry.max_time = self.max_time;
        Ok(layer)
    }
}

impl Line for Event {
    type Columns = EventColumns;

    fn key(&self) -> KeyBytes {
        KeyBytes([0; 18])
    }

    fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Its name, and about what the numbers take when they are packed.
    fn payload_bytes(&self) -> usize {
        8 + self.name.len()
    }
}

/// The columns of [`event_schema`].
#[derive(Debug, Default)]
pub(crate) struct EventColumns {
    start: Vec<i64>,
    lsn: Vec<i64>,
    kind: Vec<ByteArray>,
    xid: Vec<i32>,
    time: Vec<i64>,
    name: Vec<ByteArray>,
    subxacts: Vec<i32>,
}

impl Columns for EventColumns {
    type Line = Event;

    fn push(&mut self, event: &Event) {
        self.start.push(event.start.0.cast_signed());
        self.lsn.push(event.lsn.0.cast_signed());
        self.kind.push(ByteArray::from(Bytes::from_static(event.kind.name().as_bytes())));
        self.xid.push(event.xid.cast_signed());
        self.time.push(event.time.saturating_add(POSTGRES_EPOCH));
        self.name.push(ByteArray::from(event.name.as_str()));
        self.subxacts.push(event.subxacts.cast_signed());
    }

    fn list(&self) -> Vec<Column<'_>> {
        vec![
            Column::Int64(&self.start),
            Column::Int64(&self.lsn),
            Column::Bytes(&self.kind),
            Column::Int32(&self.xid),
            Column::Int64(&self.time),
            Column::Bytes(&self.name),
            Column::Int32(&self.subxacts),
        ]
    }

    fn clear(&mut self) {
        for column in [&mut self.start, &mut self.lsn, &mut self.time] {
            column.clear();
        }
        self.kind.clear();
        self.name.clear();
        self.xid.clear();
        self.subxacts.clear();
    }
}

/// The events of a row group; `Err` says what is wrong with its columns.
pub(crate) fn from_batch(batch: &RecordBatch) -> Result<Vec<Event>, String> {
    let column = |index: usize| {
        let array = batch.columns().get(index).ok_or_else(|| format!("column {index} is missing"))?;
        if array.null_count() > 0 { Err(format!("column {index} has nulls")) } else { Ok(array) }
    };
    let other_type = || "a column has another type".to_owned();
    let starts = column(0)?.as_primitive_opt::<UInt64Type>().ok_or_else(other_type)?;
    let lsns = column(1)?.as_primitive_opt::<UInt64Type>().ok_or_else(other_type)?;
    let kinds = column(2)?.as_string_opt::<i32>().ok_or_else(other_type)?;
    let xids = column(3)?.as_primitive_opt::<UInt32Type>().ok_or_else(other_type)?;
    let times = column(4)?.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(other_type)?;
    let names = column(5)?.as_string_opt::<i32>().ok_or_else(other_type)?;
    let subxacts = column(6)?.as_primitive_opt::<UInt32Type>().ok_or_else(other_type)?;
    let mut events = Vec::with_capacity(batch.num_rows());
    let numbers = starts.values().iter().zip(lsns.values()).zip(xids.values()).zip(times.values());
    let rows = numbers.zip(subxacts.values()).zip(kinds.iter()).zip(names.iter());
    for ((((((start, lsn), xid), time), subxacts), kind), name) in rows {
        let kind = kind.unwrap_or_default();
        let kind = EventKind::ALL.into_iter().find(|known| known.name() == kind);
        events.push(Event {
            start: Lsn(*start),
            lsn: Lsn(*lsn),
            kind: kind.ok_or("unknown kind of event")?,
            xid: *xid,
            time: time.checked_sub(POSTGRES_EPOCH).ok_or("a time is out of range")?,
            name: name.unwrap_or_default().to_owned(),
            subxacts: *subxacts,
        });
    }
    Ok(events)
}
