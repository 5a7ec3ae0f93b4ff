//! The body of a checkpoint record, of which pg_control keeps a copy (`CheckPoint`, catalog/pg_control.h).

use crate::{Lsn, Oid, Tli, Xid, le};

/// `sizeof(CheckPoint)`.
pub const CHECKPOINT_LEN: usize = 88;

/// A checkpoint's counters.
///
/// In an *online* checkpoint the transaction and multixact counters are minima and `next_oid` is not used by redo;
/// in a shutdown checkpoint they are exact.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CheckPoint {
    /// Where redo starts; for a shutdown checkpoint the record's own position.
    pub redo: Lsn,
    /// `ThisTimeLineID`.
    pub tli: Tli,
    /// `PrevTimeLineID`: differs from `tli` when the record begins a timeline.
    pub prev_tli: Tli,
    /// `fullPageWrites`.
    pub full_page_writes: bool,
    /// Next transaction id with its epoch (`FullTransactionId`).
    pub next_xid: u64,
    /// Next OID.
    pub next_oid: Oid,
    /// Next multixact.
    pub next_multi: u32,
    /// Next offset in `pg_multixact/members`.
    pub next_multi_offset: u32,
    /// Oldest `datfrozenxid` of the cluster.
    pub oldest_xid: Xid,
    /// The database that has it.
    pub oldest_xid_db: Oid,
    /// Oldest `datminmxid` of the cluster.
    pub oldest_multi: u32,
    /// The database that has it.
    pub oldest_multi_db: Oid,
    /// `pg_time_t`: seconds since 1970-01-01 UTC.
    pub time: i64,
    /// Oldest transaction with a commit timestamp; 0 when none is kept.
    pub oldest_commit_ts_xid: Xid,
    /// Newest transaction with a commit timestamp; 0 when none is kept.
    pub newest_commit_ts_xid: Xid,
    /// Oldest running transaction; 0 in a shutdown checkpoint.
    pub oldest_active_xid: Xid,
}

/// Bytes that are no `CheckPoint`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a checkpoint's data is {CHECKPOINT_LEN} bytes in PostgreSQL 15; these are {found}")]
pub struct CheckPointError {
    /// How many bytes there were.
    pub found: usize,
}

impl CheckPoint {
    /// Decodes exactly [`CHECKPOINT_LEN`] bytes.
    pub fn decode(bytes: &[u8]) -> Result<CheckPoint, CheckPointError> {
        let error = CheckPointError { found: bytes.len() };
        if bytes.len() != CHECKPOINT_LEN {
            return Err(error);
        }
        CheckPoint::fields(bytes).ok_or(error)
    }

    fn fields(bytes: &[u8]) -> Option<CheckPoint> {
        Some(CheckPoint {
            redo: Lsn(le::u64(bytes, 0)?),
            tli: le::u32(bytes, 8)?,
            prev_tli: le::u32(bytes, 12)?,
            full_page_writes: le::bool(bytes, 16)?,
            next_xid: le::u64(bytes, 24)?,
            next_oid: le::u32(bytes, 32)?,
            next_multi: le::u32(bytes, 36)?,
            next_multi_offset: le::u32(bytes, 40)?,
            oldest_xid: le::u32(bytes, 44)?,
            oldest_xid_db: le::u32(bytes, 48)?,
            oldest_multi: le::u32(bytes, 52)?,
            oldest_multi_db: le::u32(bytes, 56)?,
            time: le::u64(bytes, 64)?.cast_signed(),
            oldest_commit_ts_xid: le::u32(bytes, 72)?,
            newest_commit_ts_xid: le::u32(bytes, 76)?,
            oldest_active_xid: le::u32(bytes, 80)?,
        })
    }

    /// The bytes as they stand in the record and in pg_control; padding is zero.
    pub fn encode(&self) -> [u8; CHECKPOINT_LEN] {
        let mut bytes = [0; CHECKPOINT_LEN];
        le::put(&mut bytes, 0, &self.redo.0.to_le_bytes());
        le::put(&mut bytes, 8, &self.tli.to_le_bytes());
        le::put(&mut bytes, 12, &self.prev_tli.to_le_bytes());
        le::put(&mut bytes, 16, &[u8::from(self.full_page_writes)]);
        le::put(&mut bytes, 24, &self.next_xid.to_le_bytes());
        le::put(&mut bytes, 32, &self.next_oid.to_le_bytes());
        le::put(&mut bytes, 36, &self.next_multi.to_le_bytes());
        le::put(&mut bytes, 40, &self.next_multi_offset.to_le_bytes());
        le::put(&mut bytes, 44, &self.oldest_xid.to_le_bytes());
        le::put(&mut bytes, 48, &self.oldest_xid_db.to_le_bytes());
        le::put(&mut bytes, 52, &self.oldest_multi.to_le_bytes());
        le::put(&mut bytes, 56, &self.oldest_multi_db.to_le_bytes());
        le::put(&mut bytes, 64, &self.time.to_le_bytes());
        le::put(&mut bytes, 72, &self.oldest_commit_ts_xid.to_le_bytes());
        le::put(&mut bytes, 76, &self.newest_commit_ts_xid.to_le_bytes());
        le::put(&mut bytes, 80, &self.oldest_active_xid.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_exact_length_is_a_checkpoint() {
        assert!(CheckPoint::decode(&[0; 87]).is_err());
        assert!(CheckPoint::decode(&[0; 89]).is_err());
        assert_eq!(CheckPoint::decode(&[0; 88]), Ok(CheckPoint::default()));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = CheckPoint::decode(&bytes);
        }

        #[test]
        fn what_was_decoded_encodes_to_the_same_fields(bytes in prop::collection::vec(any::<u8>(), 88)) {
            let checkpoint = CheckPoint::decode(&bytes).expect("any 88 bytes");
            prop_assert_eq!(CheckPoint::decode(&checkpoint.encode()), Ok(checkpoint));
        }
    }
}
