//! One value of one key at one LSN.

use crate::key::Key;
use bytes::Bytes;
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::{Lsn, Xid};

/// A value. The variants' numbers in the `kind` column are part of the format.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// 1: a whole page, 8192 bytes; an empty payload stands for a page of zeros.
    Page(Bytes),
    /// 2: a WAL record that needs an older page.
    Record(Bytes),
    /// 3: a WAL record that builds the page from nothing (`will_init`, or an image to apply).
    InitRecord(Bytes),
    /// 4: a native edit (`zenith_redo::native::Edit`), which needs an older page.
    Edit(Bytes),
    /// 5: the whole state of a small key.
    State(Bytes),
    /// 6: the key exists no longer.
    Tombstone,
}

impl Value {
    /// The number in the `kind` column.
    pub fn kind(&self) -> u8 {
        match self {
            Value::Page(_) => 1,
            Value::Record(_) => 2,
            Value::InitRecord(_) => 3,
            Value::Edit(_) => 4,
            Value::State(_) => 5,
            Value::Tombstone => 6,
        }
    }

    /// From the `kind` and `payload` columns; `None` for a kind that this version does not know.
    pub fn from_parts(kind: u8, payload: Bytes) -> Option<Value> {
        Some(match kind {
            1 => Value::Page(payload),
            2 => Value::Record(payload),
            3 => Value::InitRecord(payload),
            4 => Value::Edit(payload),
            5 => Value::State(payload),
            6 if payload.is_empty() => Value::Tombstone,
            _ => return None,
        })
    }

    /// The `payload` column.
    pub fn payload(&self) -> &[u8] {
        match self {
            Value::Page(bytes)
            | Value::Record(bytes)
            | Value::InitRecord(bytes)
            | Value::Edit(bytes)
            | Value::State(bytes) => bytes,
            Value::Tombstone => &[],
        }
    }

    /// The same kind of value with another payload; a tombstone has none and stays.
    #[must_use]
    pub fn map_payload(self, change: impl FnOnce(Bytes) -> Bytes) -> Value {
        match self {
            Value::Page(bytes) => Value::Page(change(bytes)),
            Value::Record(bytes) => Value::Record(change(bytes)),
            Value::InitRecord(bytes) => Value::InitRecord(change(bytes)),
            Value::Edit(bytes) => Value::Edit(change(bytes)),
            Value::State(bytes) => Value::State(change(bytes)),
            Value::Tombstone => Value::Tombstone,
        }
    }

    /// The `payload` column, shared instead of copied.
    pub(crate) fn payload_bytes(&self) -> Bytes {
        match self {
            Value::Page(bytes)
            | Value::Record(bytes)
            | Value::InitRecord(bytes)
            | Value::Edit(bytes)
            | Value::State(bytes) => bytes.clone(),
            Value::Tombstone => Bytes::new(),
        }
    }

    /// Whether nothing older is needed to build the key's value.
    pub fn starts_history(&self) -> bool {
        kind_starts_history(self.kind())
    }
}

/// [`Value::starts_history`] of a number in the `kind` column.
pub(crate) fn kind_starts_history(kind: u8) -> bool {
    !matches!(kind, 2 | 4)
}

/// The highest number that the `kind` column can hold.
pub(crate) const KIND_MAX: u8 = 6;

/// The WAL record that a row comes from, for people who query layers. All zero in a base image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// Resource manager.
    pub rmgr: RmgrId,
    /// `xl_info`.
    pub info: u8,
    /// Transaction.
    pub xid: Xid,
    /// `xl_tot_len` of the whole record, before trimming.
    pub length: u32,
}

impl Source {
    /// For values that no record made.
    pub const NONE: Source = Source { rmgr: RmgrId::XLOG, info: 0, xid: 0, length: 0 };
}

/// One value of one key at one LSN. `(key, lsn)` is unique in a timeline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// What it is the value of.
    pub key: Key,
    /// End of the record that made it; for an image the LSN of the image.
    pub lsn: Lsn,
    /// The value.
    pub value: Value,
    /// Where it comes from.
    pub source: Source,
}

/// CRC-32C over key bytes, LSN (big-endian), kind and payload: the `crc` column.
pub(crate) fn row_crc(key: &Key, lsn: Lsn, kind: u8, payload: &[u8]) -> u32 {
    let mut head = [0; 27];
    head[..18].copy_from_slice(&key.to_bytes().0);
    head[18..26].copy_from_slice(&lsn.0.to_be_bytes());
    head[26] = kind;
    crc32c::crc32c_append(crc32c::crc32c(&head), payload)
}
