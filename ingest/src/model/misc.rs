//! Small states that stand alone: SLRU segments, the next transaction id, settings, replication origins.

use super::codec::{ModelError, Reader, Writer};
use bytes::Bytes;
use zenith_pgformat::slru::{FIRST_NORMAL_XID, PAGES_PER_SEGMENT, xid_advance};
use zenith_pgformat::{Lsn, Xid};

/// The value of `KeyClass::SlruSize`: the segment file exists with this many pages. A tombstone says that the file
/// is gone, and its pages with it.
///
/// A page that a base image did not store is zeros; a page that came later begins with a whole page
/// (`Value::Page`), pages that growth skipped included, so nothing older than the file shows through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlruSize {
    /// 0 to 32.
    pub pages: u32,
}

impl SlruSize {
    /// Version 1: pages in LEB128.
    pub fn encode(&self) -> Bytes {
        Writer::new(1).varint(u64::from(self.pages)).finish()
    }

    /// Reads what [`SlruSize::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<SlruSize, ModelError> {
        let mut reader = Reader::new("SLRU segment size", 1, bytes)?;
        let pages = reader.varint32()?;
        if pages > PAGES_PER_SEGMENT {
            return Err(reader.malformed("more pages than a segment has"));
        }
        reader.finish()?;
        Ok(SlruSize { pages })
    }
}

/// The value of `KeyClass::NextXid`: the next transaction id with its epoch (`FullTransactionId`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NextXid(pub u64);

impl NextXid {
    /// Version 1: the 64-bit id, little endian.
    pub fn encode(&self) -> Bytes {
        Writer::new(1).tail(&self.0.to_le_bytes()).finish()
    }

    /// Reads what [`NextXid::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<NextXid, ModelError> {
        let mut reader = Reader::new("next transaction id", 1, bytes)?;
        match reader.tail().try_into() {
            Ok(bytes) => Ok(NextXid(u64::from_le_bytes(bytes))),
            Err(_) => Err(reader.malformed("not 8 bytes")),
        }
    }

    /// Without its epoch.
    pub fn xid(self) -> Xid {
        self.0 as u32
    }

    /// The next id after `xid` was seen (`AdvanceNextFullTransactionIdPastXid`, varsup.c): unchanged unless
    /// `xid` is normal and at or after it in the circular order; a lower number then begins a new epoch.
    #[must_use]
    pub fn past(self, xid: Xid) -> NextXid {
        let next = self.xid();
        if xid < FIRST_NORMAL_XID || (xid.wrapping_sub(next) as i32) < 0 {
            return self;
        }
        let advanced = xid_advance(xid);
        let epoch = (self.0 >> 32).wrapping_add(u64::from(advanced < next));
        NextXid(epoch << 32 | u64::from(advanced))
    }
}

/// The value of `KeyClass::Parameters`: settings that recovery and redo depend on, as pg_control and
/// `xl_parameter_change` (access/xlog_internal.h) carry them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parameters {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// `wal_level` (`WalLevel`, access/xlog.h): 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
    /// `wal_log_hints`; decides page LSNs in redo.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`; decides whether `pg_commit_ts` is written.
    pub track_commit_timestamp: bool,
}

impl Parameters {
    /// Version 1: six 32-bit integers, little endian, in the order of the fields, and two flags.
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::new(1);
        for number in self.numbers() {
            writer = writer.tail(&number.to_le_bytes());
        }
        writer.byte(u8::from(self.wal_log_hints)).byte(u8::from(self.track_commit_timestamp)).finish()
    }

    /// Reads what [`Parameters::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Parameters, ModelError> {
        let mut reader = Reader::new("parameters", 1, bytes)?;
        let mut numbers = [0i32; 6];
        for number in &mut numbers {
            let mut bytes = [0u8; 4];
            for byte in &mut bytes {
                *byte = reader.byte()?;
            }
            *number = i32::from_le_bytes(bytes);
        }
        let [connections, workers, senders, prepared, locks, wal_level] = numbers;
        let value = Parameters {
            max_connections: connections,
            max_worker_processes: workers,
            max_wal_senders: senders,
            max_prepared_transactions: prepared,
            max_locks_per_transaction: locks,
            wal_level,
            wal_log_hints: reader.boolean()?,
            track_commit_timestamp: reader.boolean()?,
        };
        reader.finish()?;
        Ok(value)
    }

    fn numbers(&self) -> [i32; 6] {
        [
            self.max_connections,
            self.max_worker_processes,
            self.max_wal_senders,
            self.max_prepared_transactions,
            self.max_locks_per_transaction,
            self.wal_level,
        ]
    }
}

/// The value of `KeyClass::ReplOrigin`: how far a replication origin was replayed (`ReplicationState`,
/// replication/logical/origin.c).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplOrigin {
    /// Position at the origin.
    pub remote_lsn: Lsn,
    /// End of the local record that said so; 0/0 where the record carries none (`XLOG_REPLORIGIN_SET`).
    pub local_lsn: Lsn,
}

impl ReplOrigin {
    /// Version 1: the remote and the local LSN in LEB128.
    pub fn encode(&self) -> Bytes {
        Writer::new(1).lsn(self.remote_lsn).lsn(self.local_lsn).finish()
    }

    /// Reads what [`ReplOrigin::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<ReplOrigin, ModelError> {
        let mut reader = Reader::new("replication origin", 1, bytes)?;
        let value = ReplOrigin { remote_lsn: reader.lsn()?, local_lsn: reader.lsn()? };
        reader.finish()?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn small_states_read_back(pages in 0u32..=32, xid: u64, remote: u64, local: u64) {
            let slru = SlruSize { pages };
            prop_assert_eq!(SlruSize::decode(&slru.encode()), Ok(slru));
            let next = NextXid(xid);
            prop_assert_eq!(NextXid::decode(&next.encode()), Ok(next));
            let origin = ReplOrigin { remote_lsn: Lsn(remote), local_lsn: Lsn(local) };
            prop_assert_eq!(ReplOrigin::decode(&origin.encode()), Ok(origin));
        }

        #[test]
        fn parameters_read_back(numbers: [i32; 6], hints: bool, track: bool) {
            let [connections, workers, senders, prepared, locks, level] = numbers;
            let parameters = Parameters {
                max_connections: connections,
                max_worker_processes: workers,
                max_wal_senders: senders,
                max_prepared_transactions: prepared,
                max_locks_per_transaction: locks,
                wal_level: level,
                wal_log_hints: hints,
                track_commit_timestamp: track,
            };
            prop_assert_eq!(Parameters::decode(&parameters.encode()), Ok(parameters));
        }

        #[test]
        fn hostile_bytes_are_refused_or_read_but_never_panic(bytes: Vec<u8>) {
            let _ = SlruSize::decode(&bytes);
            let _ = NextXid::decode(&bytes);
            let _ = Parameters::decode(&bytes);
            let _ = ReplOrigin::decode(&bytes);
        }

        #[test]
        fn the_next_xid_never_goes_back(next: u64, xid: u32) {
            // The last epoch of all is out of reach: 2^64 transactions.
            let next = NextXid(next >> 1);
            prop_assert!(next.past(xid) >= next);
        }
    }

    #[test]
    fn the_next_xid_advances_past_what_was_seen_and_counts_epochs() {
        assert_eq!(NextXid(100).past(0), NextXid(100), "no transaction");
        assert_eq!(NextXid(100).past(99), NextXid(100));
        assert_eq!(NextXid(100).past(100), NextXid(101));
        assert_eq!(NextXid(100).past(200), NextXid(201));
        let high = NextXid(0xFFFF_FFFF);
        assert_eq!(high.past(0xFFFF_FFFF), NextXid(1 << 32 | 3), "special ids are skipped");
        assert_eq!(high.past(5), NextXid(1 << 32 | 6), "a wrapped id begins an epoch");
        let second = NextXid(1 << 32 | 0x8000_0001);
        assert_eq!(second.past(0), second, "id 0 past 2^31 is no transaction either");
    }
}
