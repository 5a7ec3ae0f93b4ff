//! Transactions (access/xact.h `xl_xact_*`; `ParseCommitRecord`, `ParseAbortRecord`, `ParsePrepareRecord`, xactdesc.c).

use super::fields::Fields;
use super::standby::INVALIDATION_LEN;
use super::{Record, RmgrId, WalError};
use crate::{Lsn, Oid, RelNode, Xid};
use bytes::Bytes;

const XLOG_XACT_COMMIT: u8 = 0x00;
const XLOG_XACT_PREPARE: u8 = 0x10;
const XLOG_XACT_ABORT: u8 = 0x20;
const XLOG_XACT_COMMIT_PREPARED: u8 = 0x30;
const XLOG_XACT_ABORT_PREPARED: u8 = 0x40;
const XLOG_XACT_ASSIGNMENT: u8 = 0x50;
const XLOG_XACT_INVALIDATIONS: u8 = 0x60;
/// `XLOG_XACT_OPMASK`.
pub(crate) const XLOG_XACT_OPMASK: u8 = 0x70;
const XLOG_XACT_HAS_INFO: u8 = 0x80;

const XINFO_HAS_DBINFO: u32 = 1 << 0;
const XINFO_HAS_SUBXACTS: u32 = 1 << 1;
const XINFO_HAS_RELFILENODES: u32 = 1 << 2;
const XINFO_HAS_INVALS: u32 = 1 << 3;
const XINFO_HAS_TWOPHASE: u32 = 1 << 4;
const XINFO_HAS_ORIGIN: u32 = 1 << 5;
const XINFO_HAS_AE_LOCKS: u32 = 1 << 6;
const XINFO_HAS_GID: u32 = 1 << 7;
const XINFO_HAS_DROPPED_STATS: u32 = 1 << 8;
const COMPLETION_APPLY_FEEDBACK: u32 = 1 << 29;
const COMPLETION_UPDATE_RELCACHE_FILE: u32 = 1 << 30;
const COMPLETION_FORCE_SYNC_COMMIT: u32 = 1 << 31;
const XINFO_ALL: u32 = XINFO_HAS_DBINFO
    | XINFO_HAS_SUBXACTS
    | XINFO_HAS_RELFILENODES
    | XINFO_HAS_INVALS
    | XINFO_HAS_TWOPHASE
    | XINFO_HAS_ORIGIN
    | XINFO_HAS_AE_LOCKS
    | XINFO_HAS_GID
    | XINFO_HAS_DROPPED_STATS
    | COMPLETION_APPLY_FEEDBACK
    | COMPLETION_UPDATE_RELCACHE_FILE
    | COMPLETION_FORCE_SYNC_COMMIT;

/// `TWOPHASE_MAGIC` (twophase.c): PostgreSQL 15's two-phase state.
const TWOPHASE_MAGIC: u32 = 0x57F9_4534;
/// `sizeof(pg_crc32c)`: what a two-phase file has after the state that the WAL carries.
const CRC_LEN: usize = 4;

/// A transaction record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XactRecord {
    /// Committed; [`Completion::two_phase`] tells `COMMIT PREPARED`.
    Commit(Completion),
    /// Aborted; [`Completion::two_phase`] tells `ROLLBACK PREPARED`.
    Abort(Completion),
    /// Prepared to be ended later.
    Prepare(Prepare),
    /// Subtransactions of a running transaction.
    Assignment {
        /// The top-level transaction.
        top_xid: Xid,
        /// Its subtransactions.
        subxacts: Vec<Xid>,
    },
    /// Cache invalidations of a command, for logical decoding.
    Invalidations {
        /// How many messages there are.
        messages: usize,
    },
}

/// How a transaction ended (`xl_xact_parsed_commit`, `xl_xact_parsed_abort`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The transaction that ended: the record's own, or the prepared one.
    pub xid: Xid,
    /// When (`TimestampTz`).
    pub time: i64,
    /// Database and its tablespace, where the record names them.
    pub database: Option<(Oid, Oid)>,
    /// Its committed, or all its aborted, subtransactions.
    pub subxacts: Vec<Xid>,
    /// Relations whose files are removed, all forks.
    pub dropped: Vec<RelNode>,
    /// Statistics that are dropped.
    pub dropped_stats: Vec<StatsItem>,
    /// How many cache invalidation messages there are.
    pub invalidations: usize,
    /// A prepared transaction ended: its state file goes.
    pub two_phase: bool,
    /// The prepared transaction's name, where the record has it (`wal_level = logical`).
    pub gid: Option<Vec<u8>>,
    /// Progress of the replication origin that [`Record::origin`] names.
    pub origin: Option<Origin>,
    /// The relation cache's start-up file is stale.
    pub relcache_init_file: bool,
}

/// `xl_xact_stats_item`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsItem {
    /// Kind of statistics.
    pub kind: i32,
    /// Database.
    pub db: Oid,
    /// Object.
    pub object: Oid,
}

/// `xl_xact_origin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Position on the origin's side.
    pub lsn: Lsn,
    /// The transaction's time there (`TimestampTz`).
    pub time: i64,
}

/// A prepared transaction (`xl_xact_prepare` and what follows it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// The transaction.
    pub xid: Xid,
    /// Its database.
    pub database: Oid,
    /// When it was prepared (`TimestampTz`).
    pub prepared_at: i64,
    /// The role that prepared it.
    pub owner: Oid,
    /// Its name, in the server's encoding.
    pub gid: Vec<u8>,
    /// Its subtransactions.
    pub subxacts: Vec<Xid>,
    /// Relations to remove when it commits.
    pub drop_on_commit: Vec<RelNode>,
    /// Relations to remove when it aborts.
    pub drop_on_abort: Vec<RelNode>,
    /// Progress of the replication origin; LSN 0 when there is none.
    pub origin: Origin,
    /// The state that redo writes into `pg_twophase/`, without the CRC-32C that a file ends with.
    pub state: Bytes,
}

/// Parses a transaction record.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<XactRecord, WalError> {
    record.expect_rmgr(RmgrId::XACT)?;
    let mut fields = Fields::new(&record.main_data, record.lsn, "transaction record");
    let op = record.info & XLOG_XACT_OPMASK;
    let parsed = match op {
        XLOG_XACT_COMMIT | XLOG_XACT_COMMIT_PREPARED => {
            XactRecord::Commit(completion(record, &mut fields, true)?)
        }
        XLOG_XACT_ABORT | XLOG_XACT_ABORT_PREPARED => {
            XactRecord::Abort(completion(record, &mut fields, false)?)
        }
        // The rest of the state belongs to the resource managers of prepared transactions.
        XLOG_XACT_PREPARE => return prepare(record, &mut fields).map(XactRecord::Prepare),
        XLOG_XACT_ASSIGNMENT => {
            let (top_xid, count) = (fields.u32()?, fields.count()?);
            XactRecord::Assignment { top_xid, subxacts: fields.array_of(count, 4, Fields::u32)? }
        }
        XLOG_XACT_INVALIDATIONS => XactRecord::Invalidations { messages: invalidations(&mut fields)? },
        _ => return Err(record.unknown()),
    };
    fields.end()?;
    Ok(parsed)
}

fn completion(record: &Record, fields: &mut Fields<'_>, commit: bool) -> Result<Completion, WalError> {
    let time = fields.i64()?;
    let xinfo = if record.info & XLOG_XACT_HAS_INFO != 0 { fields.u32()? } else { 0 };
    let prepared =
        matches!(record.info & XLOG_XACT_OPMASK, XLOG_XACT_COMMIT_PREPARED | XLOG_XACT_ABORT_PREPARED);
    let has = |flag: u32| xinfo & flag != 0;
    if xinfo & !XINFO_ALL != 0
        || has(XINFO_HAS_TWOPHASE) != prepared
        || has(XINFO_HAS_GID) && !prepared
        || has(XINFO_HAS_INVALS) && !commit
    {
        return Err(fields.wrong(format_args!("xinfo {xinfo:X} with info {:02X}", record.info)));
    }
    let database = if has(XINFO_HAS_DBINFO) { Some((fields.u32()?, fields.u32()?)) } else { None };
    let subxacts = list(fields, has(XINFO_HAS_SUBXACTS), 4, Fields::u32)?;
    let dropped = list(fields, has(XINFO_HAS_RELFILENODES), 12, Fields::rel_node)?;
    let dropped_stats = list(fields, has(XINFO_HAS_DROPPED_STATS), STATS_ITEM_LEN, stats_item)?;
    let invalidations = if has(XINFO_HAS_INVALS) { invalidations(fields)? } else { 0 };
    let xid = if prepared { fields.u32()? } else { record.xid };
    let gid = if has(XINFO_HAS_GID) { Some(fields.c_string()?.to_vec()) } else { None };
    let origin =
        if has(XINFO_HAS_ORIGIN) { Some(Origin { lsn: fields.lsn()?, time: fields.i64()? }) } else { None };
    Ok(Completion {
        xid,
        time,
        database,
        subxacts,
        dropped,
        dropped_stats,
        invalidations,
        two_phase: prepared,
        gid,
        origin,
        relcache_init_file: has(COMPLETION_UPDATE_RELCACHE_FILE),
    })
}

/// A count and so many elements, if the list is there at all.
fn list<'a, T>(
    fields: &mut Fields<'a>,
    present: bool,
    width: usize,
    read: impl Fn(&mut Fields<'a>) -> Result<T, WalError>,
) -> Result<Vec<T>, WalError> {
    if !present {
        return Ok(Vec::new());
    }
    let count = fields.count()?;
    fields.array_of(count, width, read)
}

const STATS_ITEM_LEN: usize = 12;

fn stats_item(fields: &mut Fields<'_>) -> Result<StatsItem, WalError> {
    Ok(StatsItem { kind: fields.i32()?, db: fields.u32()?, object: fields.u32()? })
}

/// Skips `xl_xact_invals` and tells how many messages it held.
fn invalidations(fields: &mut Fields<'_>) -> Result<usize, WalError> {
    let count = fields.count()?;
    fields.skip_array(count, INVALIDATION_LEN)?;
    Ok(count)
}

fn prepare(record: &Record, fields: &mut Fields<'_>) -> Result<Prepare, WalError> {
    let (magic, total_len) = (fields.u32()?, fields.u32()?);
    if magic != TWOPHASE_MAGIC || total_len as usize != record.main_data.len() + CRC_LEN {
        return Err(fields.wrong(format_args!("two-phase state with magic {magic:08X} of {total_len} bytes")));
    }
    let (xid, database, prepared_at, owner) = (fields.u32()?, fields.u32()?, fields.i64()?, fields.u32()?);
    let subxacts = fields.count()?;
    let (commit_rels, abort_rels) = (fields.count()?, fields.count()?);
    // Dropped statistics of both outcomes, invalidation messages, `initfileinval` and a byte of padding.
    fields.take(3 * 4 + 2)?;
    let gid_len = usize::from(fields.u16()?);
    let origin = Origin { lsn: fields.lsn()?, time: fields.i64()? };
    let gid = fields.take(gid_len)?;
    fields.align_after(gid_len)?;
    let gid = gid.strip_suffix(&[0]).unwrap_or(gid).to_vec();
    Ok(Prepare {
        xid,
        database,
        prepared_at,
        owner,
        gid,
        subxacts: aligned(fields, subxacts, 4, Fields::u32)?,
        drop_on_commit: aligned(fields, commit_rels, 12, Fields::rel_node)?,
        drop_on_abort: aligned(fields, abort_rels, 12, Fields::rel_node)?,
        origin,
        state: record.main_data.clone(),
    })
}

/// One part of the two-phase state, which the next one follows aligned.
fn aligned<'a, T>(
    fields: &mut Fields<'a>,
    count: usize,
    width: usize,
    read: impl Fn(&mut Fields<'a>) -> Result<T, WalError>,
) -> Result<Vec<T>, WalError> {
    let elements = fields.array_of(count, width, read)?;
    fields.align_after(count * width)?;
    Ok(elements)
}

#[cfg(test)]
mod tests {
    use super::super::record::test::{record as any_record, words};
    use super::*;

    fn record(info: u8, main_data: &[u8]) -> Record {
        any_record(RmgrId::XACT, info, main_data)
    }

    #[test]
    fn a_commit_with_every_part_is_read_in_order() {
        let xinfo = XINFO_ALL;
        let mut data = 5_i64.to_le_bytes().to_vec();
        data.extend(words(&[xinfo, 16384, 1663, 2, 701, 702, 1, 1663, 16384, 20000, 1, 2, 16384, 20000]));
        data.extend(words(&[1, 0, 0, 0, 0, 650]));
        data.extend(b"name\0");
        data.extend(0x99_u64.to_le_bytes());
        data.extend(77_i64.to_le_bytes());
        let parsed = parse(&record(XLOG_XACT_COMMIT_PREPARED | XLOG_XACT_HAS_INFO, &data));
        let Ok(XactRecord::Commit(commit)) = parsed else { panic!("{parsed:?}") };
        assert_eq!((commit.xid, commit.time, commit.two_phase), (650, 5, true));
        assert_eq!(commit.database, Some((16384, 1663)));
        assert_eq!(commit.subxacts, [701, 702]);
        assert_eq!(commit.dropped, [RelNode { spc: 1663, db: 16384, rel: 20000 }]);
        assert_eq!(commit.dropped_stats, [StatsItem { kind: 2, db: 16384, object: 20000 }]);
        assert_eq!((commit.invalidations, commit.gid.as_deref()), (1, Some(&b"name"[..])));
        assert_eq!(commit.origin, Some(Origin { lsn: Lsn(0x99), time: 77 }));
        for cut in 0..data.len() {
            assert!(parse(&record(XLOG_XACT_COMMIT_PREPARED | XLOG_XACT_HAS_INFO, &data[..cut])).is_err());
        }
    }

    #[test]
    fn a_minimal_commit_or_abort_is_its_records_own() {
        let parsed = parse(&record(XLOG_XACT_ABORT, &5_i64.to_le_bytes()));
        let Ok(XactRecord::Abort(abort)) = parsed else { panic!("{parsed:?}") };
        assert_eq!((abort.xid, abort.time, abort.two_phase), (700, 5, false));
    }

    #[test]
    fn unknown_parts_and_types_stop_with_the_lsn() {
        let mut data = 5_i64.to_le_bytes().to_vec();
        data.extend(words(&[1 << 12]));
        let error = parse(&record(XLOG_XACT_COMMIT | XLOG_XACT_HAS_INFO, &data)).unwrap_err();
        assert!(error.to_string().contains("0/40"), "{error}");
        let unknown = parse(&record(0x70, &data));
        assert!(matches!(unknown, Err(WalError::UnknownRecord { lsn: Lsn(64), .. })), "{unknown:?}");
    }

    #[test]
    fn counts_are_checked_before_anything_is_stored() {
        for count in [u32::MAX, 0x7FFF_FFFF, 3] {
            assert!(parse(&record(XLOG_XACT_ASSIGNMENT, &words(&[700, count, 1, 2]))).is_err());
        }
    }
}
