//! Random keys and rows for property tests: few enough of each that they meet.

use crate::error::LayerError;
use crate::key::{Key, KeyClass, KeyRange, Slru};
use crate::row::{Row, Source, Value, row_crc};
use crate::schema::row_schema;
use arrow_array::{ArrayRef, BinaryArray, RecordBatch, UInt8Array, UInt32Array, UInt64Array};
use bytes::Bytes;
use proptest::collection::btree_map;
use proptest::prelude::*;
use std::ops::Range;
use std::sync::Arc;
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::{Fork, Lsn, RelNode};

/// A key of any class; relation blocks most often.
pub(crate) fn any_key() -> impl Strategy<Value = Key> {
    let node = (1u32..3, 0u32..2, 1u32..4).prop_map(|(spc, db, rel)| RelNode { spc, db, rel });
    let fork = prop_oneof![Just(Fork::Main), Just(Fork::Vm)];
    prop_oneof![
        1 => (0..KeyClass::ALL.len(), 0u32..3).prop_map(|(class, spc)| Key {
            class: KeyClass::ALL[class],
            spc,
            ..Key::MIN
        }),
        1 => (0u32..3, 0u32..3).prop_map(|(segment, page)| Key::slru_page(Slru::Xact, segment, page)),
        5 => (node, fork, 0u32..8).prop_map(|(node, fork, block)| Key::rel_block(node, fork, block)),
    ]
}

/// A range of such keys; sometimes without any key.
pub(crate) fn any_key_range() -> impl Strategy<Value = KeyRange> {
    (any_key(), any_key(), 0u8..8).prop_map(|(a, b, kind)| match kind {
        0 => KeyRange { first: a.max(b), last: a.min(b) },
        1 => KeyRange::one(a),
        2 => KeyRange::class(a.class),
        3 => KeyRange { first: Key::MIN, last: Key::MAX },
        _ => KeyRange { first: a.min(b), last: a.max(b) },
    })
}

/// A value that may stand in a delta layer.
pub(crate) fn any_value() -> impl Strategy<Value = Value> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    prop_oneof![
        1 => any::<u8>().prop_map(|byte| Value::Page(Bytes::from(vec![byte; 8192]))),
        1 => Just(Value::Page(Bytes::new())),
        4 => bytes.clone().prop_map(Value::Record),
        1 => bytes.clone().prop_map(Value::InitRecord),
        2 => bytes.clone().prop_map(Value::Edit),
        1 => bytes.prop_map(Value::State),
        1 => Just(Value::Tombstone),
    ]
}

/// Where a row comes from.
pub(crate) fn any_source() -> impl Strategy<Value = Source> {
    (any::<u8>(), any::<u8>(), any::<u32>(), any::<u32>()).prop_map(|(rmgr, info, xid, length)| Source {
        rmgr: RmgrId(rmgr),
        info,
        xid,
        length,
    })
}

/// Rows in order, LSNs `8..8 * 50`.
pub(crate) fn rows_of(count: Range<usize>) -> impl Strategy<Value = Vec<Row>> {
    btree_map((any_key(), 1u64..50), (any_value(), any_source()), count).prop_map(|rows| {
        rows.into_iter()
            .map(|((key, lsn), (value, source))| Row { key, lsn: Lsn(lsn * 8), value, source })
            .collect()
    })
}

/// Rows as the columns of [`row_schema`], as a reader of a whole row group gets them.
pub(crate) fn to_batch(rows: &[Row]) -> Result<RecordBatch, LayerError> {
    let bytes = |field: fn(&Row) -> u8| -> ArrayRef {
        Arc::new(UInt8Array::from_iter_values(rows.iter().map(field)))
    };
    let numbers = |field: fn(&Row) -> u32| -> ArrayRef {
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(field)))
    };
    let crc = |row: &Row| row_crc(&row.key, row.lsn, row.value.kind(), row.value.payload());
    let columns: Vec<ArrayRef> = vec![
        bytes(|row| row.key.class as u8),
        numbers(|row| row.key.spc),
        numbers(|row| row.key.db),
        numbers(|row| row.key.rel),
        bytes(|row| row.key.fork),
        numbers(|row| row.key.block),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.lsn.0))),
        bytes(|row| row.value.kind()),
        bytes(|row| row.source.rmgr.0),
        bytes(|row| row.source.info),
        numbers(|row| row.source.xid),
        numbers(|row| row.source.length),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(crc))),
        Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| row.value.payload()))),
    ];
    RecordBatch::try_new(row_schema(), columns).map_err(|error| LayerError::Encode(error.to_string()))
}
