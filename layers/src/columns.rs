//! Lines of a layer's table, turned into columns as Parquet encodes them.

use crate::row::{Row, row_crc};
use parquet::data_type::ByteArray;

/// Part of one column of a row group. Numbers without sign stand in the type of their width that has one, as Parquet
/// keeps them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column<'a> {
    Int32(&'a [i32]),
    Int64(&'a [i64]),
    Bytes(&'a [ByteArray]),
}

/// Lines that are not encoded yet, as columns in the order of the schema.
pub(crate) trait Columns: Default {
    /// What a line of the table is.
    type Line;

    /// Adds a line.
    fn push(&mut self, line: &Self::Line);

    /// All columns, each as long as lines were added.
    fn list(&self) -> Vec<Column<'_>>;

    /// Begins anew.
    fn clear(&mut self);
}

/// The columns of [`crate::schema::row_schema`].
#[derive(Debug, Default)]
pub(crate) struct RowColumns {
    /// `class`, `spcnode`, `dbnode`, `relnode`, `fork`, `block`.
    key: [Vec<i32>; 6],
    lsn: Vec<i64>,
    /// `kind`, `rmgr`, `info`, `xid`, `length`, `crc`.
    details: [Vec<i32>; 6],
    payload: Vec<ByteArray>,
}

impl Columns for RowColumns {
    type Line = Row;

    fn push(&mut self, row: &Row) {
        let Row { key, lsn, value, source } = row;
        let kind = value.kind();
        let crc = row_crc(key, *lsn, kind, value.payload());
        let numbers = [key.spc, key.db, key.rel].map(u32::cast_signed);
        let [spc, db, rel] = numbers;
        let fields = [i32::from(key.class as u8), spc, db, rel, i32::from(key.fork), key.block.cast_signed()];
        self.key.iter_mut().zip(fields).for_each(|(column, field)| column.push(field));
        self.lsn.push(lsn.0.cast_signed());
        let bytes = [kind, source.rmgr.0, source.info].map(i32::from);
        let [kind, rmgr, info] = bytes;
        let [xid, length, crc] = [source.xid, source.length, crc].map(u32::cast_signed);
        let fields = [kind, rmgr, info, xid, length, crc];
        self.details.iter_mut().zip(fields).for_each(|(column, field)| column.push(field));
        self.payload.push(ByteArray::from(value.payload_bytes()));
    }

    fn list(&self) -> Vec<Column<'_>> {
        let key = self.key.iter().map(|column| Column::Int32(column));
        let details = self.details.iter().map(|column| Column::Int32(column));
        key.chain([Column::Int64(&self.lsn)]).chain(details).chain([Column::Bytes(&self.payload)]).collect()
    }

    fn clear(&mut self) {
        self.key.iter_mut().chain(&mut self.details).for_each(Vec::clear);
        self.lsn.clear();
        self.payload.clear();
    }
}
