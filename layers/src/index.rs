//! The key columns of one row group as they stay in memory: about 6 bytes a row, searched in place.

use crate::cache::Weighed;
use crate::key::{Key, KeyClass, KeyRange};
use crate::packed::Packed;
use crate::row::{KIND_MAX, Source, kind_starts_history};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, UInt8Type, UInt32Type, UInt64Type};
use std::ops::Range;
use zenith_pgformat::Lsn;
use zenith_pgformat::wal::RmgrId;

/// Keys that differ in their block only, as one run.
#[derive(Debug)]
struct Run {
    /// Its block is 0.
    key: Key,
    /// Number of its first key.
    first: u32,
}

/// Key, LSN and kind of every row of a row group.
#[derive(Debug)]
pub(crate) struct GroupKeys {
    runs: Box<[Run]>,
    /// By key number.
    blocks: Packed,
    /// First row, by key number; `None` where every key has one row.
    starts: Option<Packed>,
    /// By row number.
    lsns: Packed,
    kinds: Packed,
}

/// A row that a search found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) key: Key,
    pub(crate) lsn: Lsn,
    /// Number in its row group.
    pub(crate) row: u32,
    pub(crate) kind: u8,
}

impl GroupKeys {
    /// From the columns [`crate::schema::KEY_COLUMNS`] of a whole row group. `Err` says what is wrong with them:
    /// an unknown class or kind, or rows out of order.
    pub(crate) fn new(columns: &RecordBatch) -> Result<GroupKeys, String> {
        let class = column::<UInt8Type>(columns, 0)?;
        let spc = column::<UInt32Type>(columns, 1)?;
        let db = column::<UInt32Type>(columns, 2)?;
        let rel = column::<UInt32Type>(columns, 3)?;
        let fork = column::<UInt8Type>(columns, 4)?;
        let block = column::<UInt32Type>(columns, 5)?;
        let lsn = column::<UInt64Type>(columns, 6)?;
        let kind = column::<UInt8Type>(columns, 7)?;
        let (mut runs, mut blocks, mut starts) = (Vec::<Run>::new(), Vec::new(), Vec::new());
        let mut last: Option<(Key, u64)> = None;
        let rows = class.iter().zip(spc).zip(db).zip(rel).zip(fork).zip(block).zip(lsn).zip(kind);
        for (row, (((((((class, spc), db), rel), fork), block), lsn), kind)) in rows.enumerate() {
            let class = KeyClass::from_number(*class).ok_or_else(|| format!("unknown class {class}"))?;
            if !(1..=KIND_MAX).contains(kind) {
                return Err(format!("unknown kind {kind}"));
            }
            let key = Key { class, spc: *spc, db: *db, rel: *rel, fork: *fork, block: *block };
            if last.is_some_and(|last| last >= (key, *lsn)) {
                return Err(format!("row {row} is out of order"));
            }
            if last.is_none_or(|(last, _)| last != key) {
                let unblocked = Key { block: 0, ..key };
                if runs.last().is_none_or(|run| run.key != unblocked) {
                    runs.push(Run { key: unblocked, first: blocks.len() as u32 });
                }
                blocks.push(u64::from(*block));
                starts.push(row as u64);
            }
            last = Some((key, *lsn));
        }
        let starts = (starts.len() < lsn.len()).then(|| Packed::new(&starts));
        let kinds: Vec<u64> = kind.iter().copied().map(u64::from).collect();
        Ok(GroupKeys {
            runs: runs.into(),
            blocks: Packed::new(&blocks),
            starts,
            lsns: Packed::new(lsn),
            kinds: Packed::new(&kinds),
        })
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.lsns.len()
    }

    /// First and last key; `None` without rows.
    pub(crate) fn ends(&self) -> Option<(Key, Key)> {
        let last = self.blocks.len().checked_sub(1)?;
        Some((self.key(0)?, self.key(last)?))
    }

    /// Lowest and highest LSN; `None` without rows.
    pub(crate) fn lsn_ends(&self) -> Option<(Lsn, Lsn)> {
        let lsns = || (0..self.rows()).map(|row| self.lsns.get(row));
        Some((Lsn(lsns().min()?), Lsn(lsns().max()?)))
    }

    /// The run of a key number.
    fn run_of(&self, key: usize) -> Option<&Run> {
        let after = self.runs.partition_point(|run| run.first as usize <= key);
        self.runs.get(after.checked_sub(1)?)
    }

    fn key(&self, number: usize) -> Option<Key> {
        let run = self.run_of(number)?;
        Some(Key { block: self.blocks.get(number) as u32, ..run.key })
    }

    /// Number of the first key that is not below `key`.
    fn seek(&self, key: &Key) -> usize {
        let unblocked = Key { block: 0, ..*key };
        let at = self.runs.partition_point(|run| run.key < unblocked);
        let Some(run) = self.runs.get(at) else { return self.blocks.len() };
        if run.key != unblocked {
            return run.first as usize;
        }
        let (first, end) = (run.first as usize, self.run_end(at));
        first + partition_point(first..end, |number| self.blocks.get(number) < u64::from(key.block))
    }

    /// Number of the first key after a run.
    fn run_end(&self, run: usize) -> usize {
        self.runs.get(run + 1).map_or(self.blocks.len(), |next| next.first as usize)
    }

    fn rows_of(&self, key: usize) -> Range<usize> {
        let Some(starts) = &self.starts else { return key..key + 1 };
        let end = if key + 1 < starts.len() { starts.get(key + 1) as usize } else { self.rows() };
        starts.get(key) as usize..end
    }

    /// Shows `visit` the rows of the keys in `range` with `after < lsn <= upto`: by key, newest first. With
    /// `newest`, older rows of a key than the first that starts a history are left out.
    pub(crate) fn search(
        &self,
        range: &KeyRange,
        after: Lsn,
        upto: Lsn,
        newest: bool,
        mut visit: impl FnMut(Found),
    ) {
        let mut number = self.seek(&range.first);
        while number < self.blocks.len() {
            let Some(key) = self.key(number) else { return };
            if key > range.last {
                return;
            }
            let rows = self.rows_of(number);
            let low = rows.start + partition_point(rows.clone(), |row| self.lsns.get(row) <= after.0);
            let high = rows.start + partition_point(rows, |row| self.lsns.get(row) <= upto.0);
            for row in (low..high).rev() {
                let kind = self.kinds.get(row) as u8;
                visit(Found { key, lsn: Lsn(self.lsns.get(row)), row: row as u32, kind });
                if newest && kind_starts_history(kind) {
                    break;
                }
            }
            number += 1;
        }
    }

    /// All rows in their order.
    pub(crate) fn all(&self) -> Vec<Found> {
        let mut found = Vec::with_capacity(self.rows());
        for number in 0..self.blocks.len() {
            let Some(key) = self.key(number) else { break };
            for row in self.rows_of(number) {
                let (lsn, kind) = (Lsn(self.lsns.get(row)), self.kinds.get(row) as u8);
                found.push(Found { key, lsn, row: row as u32, kind });
            }
        }
        found
    }
}

impl Weighed for GroupKeys {
    fn weight(&self) -> usize {
        let starts = self.starts.as_ref().map_or(0, Packed::heap_bytes);
        let packed = self.blocks.heap_bytes() + self.lsns.heap_bytes() + self.kinds.heap_bytes();
        size_of::<GroupKeys>() + size_of_val(&*self.runs) + starts + packed
    }
}

/// What a found row needs beside its payload: where it comes from, and its CRC.
#[derive(Debug)]
pub(crate) struct GroupDetails {
    rmgrs: Packed,
    infos: Packed,
    xids: Packed,
    lengths: Packed,
    crcs: Box<[u32]>,
}

impl GroupDetails {
    /// From the columns [`crate::schema::DETAIL_COLUMNS`] of a whole row group.
    pub(crate) fn new(columns: &RecordBatch) -> Result<GroupDetails, String> {
        let bytes = |index| Ok::<_, String>(pack(column::<UInt8Type>(columns, index)?));
        let numbers = |index| Ok::<_, String>(pack(column::<UInt32Type>(columns, index)?));
        Ok(GroupDetails {
            rmgrs: bytes(0)?,
            infos: bytes(1)?,
            xids: numbers(2)?,
            lengths: numbers(3)?,
            crcs: column::<UInt32Type>(columns, 4)?.into(),
        })
    }

    /// Source and CRC of a row; `None` past the end.
    pub(crate) fn get(&self, row: u32) -> Option<(Source, u32)> {
        let row = row as usize;
        let crc = *self.crcs.get(row)?;
        let source = Source {
            rmgr: RmgrId(self.rmgrs.get(row) as u8),
            info: self.infos.get(row) as u8,
            xid: self.xids.get(row) as u32,
            length: self.lengths.get(row) as u32,
        };
        Some((source, crc))
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.crcs.len()
    }
}

impl Weighed for GroupDetails {
    fn weight(&self) -> usize {
        let packed = [&self.rmgrs, &self.infos, &self.xids, &self.lengths];
        size_of::<GroupDetails>()
            + packed.into_iter().map(Packed::heap_bytes).sum::<usize>()
            + size_of_val(&*self.crcs)
    }
}

fn pack<T: Copy + Into<u64>>(values: &[T]) -> Packed {
    Packed::new(&values.iter().copied().map(Into::into).collect::<Vec<u64>>())
}

fn column<T: ArrowPrimitiveType>(columns: &RecordBatch, index: usize) -> Result<&[T::Native], String> {
    let array = columns.columns().get(index).and_then(|array| array.as_primitive_opt::<T>());
    array.map(|array| &array.values()[..]).ok_or_else(|| format!("column {index} has another type"))
}

/// How many numbers from the start of `range` satisfy `below`, which holds for none after one it does not hold for.
fn partition_point(range: Range<usize>, below: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low + (high - low) / 2;
        if below(middle) { low = middle + 1 } else { high = middle }
    }
    low - range.start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Row, Value};
    use crate::schema::{DETAIL_COLUMNS, KEY_COLUMNS};
    use crate::test_rows::{any_key_range, rows_of, to_batch};
    use proptest::prelude::*;

    fn keys_of(rows: &[Row]) -> GroupKeys {
        GroupKeys::new(&to_batch(rows).unwrap().project(&(0..KEY_COLUMNS.len()).collect::<Vec<_>>()).unwrap())
            .unwrap()
    }

    proptest! {
        #[test]
        fn a_search_finds_what_a_look_at_every_row_finds(
            rows in rows_of(1..80),
            range in any_key_range(),
            after in 0u64..40,
            upto in 0u64..60,
            newest in any::<bool>(),
        ) {
            let (after, upto) = (Lsn(after * 8), Lsn(upto * 8));
            let keys = keys_of(&rows);
            let mut found = Vec::new();
            keys.search(&range, after, upto, newest, |row| found.push((row.key, row.lsn, row.row, row.kind)));
            let mut expected: Vec<(Key, Lsn, u32, u8)> = Vec::new();
            for (number, row) in rows.iter().enumerate() {
                if range.contains(&row.key) && after < row.lsn && row.lsn <= upto {
                    expected.push((row.key, row.lsn, number as u32, row.value.kind()));
                }
            }
            expected.sort_by_key(|(key, lsn, ..)| (*key, std::cmp::Reverse(*lsn)));
            if newest {
                let mut done = None;
                expected.retain(|(key, _, _, kind)| {
                    let keep = done != Some(*key);
                    if keep && kind_starts_history(*kind) {
                        done = Some(*key);
                    }
                    keep
                });
            }
            prop_assert_eq!(found, expected);
            let all: Vec<(Key, Lsn)> = keys.all().iter().map(|row| (row.key, row.lsn)).collect();
            prop_assert_eq!(all, rows.iter().map(|row| (row.key, row.lsn)).collect::<Vec<_>>());
        }

        #[test]
        fn details_come_back(rows in rows_of(1..80)) {
            let first = KEY_COLUMNS.len();
            let columns: Vec<usize> = (first..first + DETAIL_COLUMNS.len()).collect();
            let details = GroupDetails::new(&to_batch(&rows).unwrap().project(&columns).unwrap()).unwrap();
            for (number, row) in rows.iter().enumerate() {
                prop_assert_eq!(details.get(number as u32).unwrap().0, row.source);
            }
            prop_assert_eq!(details.get(rows.len() as u32), None);
        }
    }

    #[test]
    fn a_row_of_a_delta_layer_costs_few_bytes_of_memory() {
        let node = zenith_pgformat::RelNode { spc: 1663, db: 5, rel: 16384 };
        let rows: Vec<Row> = (0..65_536u32)
            .map(|n| Row {
                key: Key::rel_block(node, zenith_pgformat::Fork::Main, n / 8),
                lsn: Lsn(0x10_0000_0000 + u64::from(n % 8) * 40_000_000 + u64::from(n) * 8),
                value: Value::Tombstone,
                source: Source::NONE,
            })
            .collect();
        let bytes = keys_of(&rows).weight();
        assert!(bytes < rows.len() * 6, "{bytes} bytes for {} rows", rows.len());
    }
}
