//! What standbys need to know (storage/standbydefs.h, storage/lockdefs.h; `standby_redo`, standby.c).

use super::fields::Fields;
use super::{Record, RmgrId, WalError};
use crate::{Oid, Xid};

const XLOG_STANDBY_LOCK: u8 = 0x00;
const XLOG_RUNNING_XACTS: u8 = 0x10;
const XLOG_INVALIDATIONS: u8 = 0x20;
/// `sizeof(SharedInvalidationMessage)` (storage/sinval.h).
pub(crate) const INVALIDATION_LEN: usize = 16;

/// A standby record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StandbyRecord {
    /// Access exclusive locks that are held.
    Locks(Vec<Lock>),
    /// Transactions that run at this moment.
    RunningXacts(RunningXacts),
    /// Cache invalidations of a transaction without an id.
    Invalidations(Invalidations),
}

/// `xl_standby_lock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The holder.
    pub xid: Xid,
    /// The relation's database, 0 for shared ones.
    pub db: Oid,
    /// The relation.
    pub rel: Oid,
}

/// `xl_running_xacts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningXacts {
    /// Some subtransactions are missing from `subxids`.
    pub subxid_overflow: bool,
    /// The next transaction id to be assigned.
    pub next_xid: Xid,
    /// The oldest one that runs.
    pub oldest_running_xid: Xid,
    /// The latest one that ended.
    pub latest_completed_xid: Xid,
    /// Running top-level transactions.
    pub xids: Vec<Xid>,
    /// Running subtransactions.
    pub subxids: Vec<Xid>,
}

/// `xl_invalidations`; the messages say nothing about files or pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidations {
    /// The database.
    pub db: Oid,
    /// Its tablespace.
    pub spc: Oid,
    /// The relation cache's start-up file is stale.
    pub relcache_init_file: bool,
    /// How many messages there are.
    pub messages: usize,
}

/// Parses a standby record.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<StandbyRecord, WalError> {
    record.expect_rmgr(RmgrId::STANDBY)?;
    let mut fields = Fields::new(&record.main_data, record.lsn, "standby record");
    let parsed = match record.op() {
        XLOG_STANDBY_LOCK => {
            let count = fields.count()?;
            let lock = |f: &mut Fields<'_>| Ok(Lock { xid: f.u32()?, db: f.u32()?, rel: f.u32()? });
            StandbyRecord::Locks(fields.array_of(count, 12, lock)?)
        }
        XLOG_RUNNING_XACTS => StandbyRecord::RunningXacts(running_xacts(&mut fields)?),
        XLOG_INVALIDATIONS => StandbyRecord::Invalidations(invalidations(&mut fields)?),
        _ => return Err(record.unknown()),
    };
    fields.end()?;
    Ok(parsed)
}

fn running_xacts(fields: &mut Fields<'_>) -> Result<RunningXacts, WalError> {
    let (xids, subxids) = (fields.count()?, fields.count()?);
    let subxid_overflow = fields.bool()?;
    fields.take(3)?;
    Ok(RunningXacts {
        subxid_overflow,
        next_xid: fields.u32()?,
        oldest_running_xid: fields.u32()?,
        latest_completed_xid: fields.u32()?,
        xids: fields.array_of(xids, 4, Fields::u32)?,
        subxids: fields.array_of(subxids, 4, Fields::u32)?,
    })
}

fn invalidations(fields: &mut Fields<'_>) -> Result<Invalidations, WalError> {
    let (db, spc, relcache_init_file) = (fields.u32()?, fields.u32()?, fields.bool()?);
    fields.take(3)?;
    let messages = fields.count()?;
    fields.skip_array(messages, INVALIDATION_LEN)?;
    Ok(Invalidations { db, spc, relcache_init_file, messages })
}
