//! Records of the WAL machinery itself (catalog/pg_control.h `XLOG_*`, access/xlog_internal.h; `xlog_redo`, xlog.c).

use super::fields::Fields;
use super::{Record, RmgrId, WalError};
use crate::{Lsn, Oid, Tli};
use bytes::Bytes;

pub(crate) const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
pub(crate) const XLOG_CHECKPOINT_ONLINE: u8 = 0x10;
pub(crate) const XLOG_NOOP: u8 = 0x20;
pub(crate) const XLOG_NEXTOID: u8 = 0x30;
pub(crate) const XLOG_SWITCH: u8 = 0x40;
pub(crate) const XLOG_BACKUP_END: u8 = 0x50;
pub(crate) const XLOG_PARAMETER_CHANGE: u8 = 0x60;
pub(crate) const XLOG_RESTORE_POINT: u8 = 0x70;
pub(crate) const XLOG_FPW_CHANGE: u8 = 0x80;
pub(crate) const XLOG_END_OF_RECOVERY: u8 = 0x90;
pub(crate) const XLOG_FPI_FOR_HINT: u8 = 0xA0;
pub(crate) const XLOG_FPI: u8 = 0xB0;
pub(crate) const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;

/// `sizeof(CheckPoint)`.
pub const CHECKPOINT_LEN: usize = 88;
/// `MAXFNAMELEN`: the space of a restore point's name, its terminator included.
pub const RESTORE_POINT_NAME_LEN: usize = 64;

/// A record of the XLOG resource manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XlogRecord {
    /// A checkpoint at shutdown: nothing happened between its redo position and the record. The `CheckPoint` struct,
    /// [`CHECKPOINT_LEN`] bytes as they stand.
    CheckpointShutdown(Bytes),
    /// A checkpoint while the server runs; the struct as above.
    CheckpointOnline(Bytes),
    /// Nothing.
    Noop,
    /// OIDs below this one may be in use.
    NextOid(Oid),
    /// The rest of the segment is empty.
    Switch,
    /// The backup that started at this LSN is consistent from here on.
    BackupEnd(Lsn),
    /// Settings that standbys need to know have changed.
    ParameterChange(ParameterChange),
    /// A named recovery target.
    RestorePoint(RestorePoint),
    /// `full_page_writes` is now this.
    FpwChange(bool),
    /// Recovery ended without a checkpoint: a timeline begins.
    EndOfRecovery(EndOfRecovery),
    /// Images because of a hint bit; a block without one is nothing.
    FpiForHint,
    /// Images of pages written whole.
    Fpi,
    /// The WAL's last record was lost in part; this record stands where its rest would be.
    OverwriteContrecord(OverwriteContrecord),
}

/// `xl_parameter_change`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterChange {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_xacts: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_xact: i32,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

/// `xl_restore_point`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePoint {
    /// When it was made (`TimestampTz`).
    pub time: i64,
    /// Its name, in the server's encoding, without the terminator.
    pub name: Vec<u8>,
}

/// `xl_end_of_recovery`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndOfRecovery {
    /// When (`TimestampTz`).
    pub time: i64,
    /// The timeline that begins.
    pub this_tli: Tli,
    /// The timeline it left.
    pub prev_tli: Tli,
}

/// `xl_overwrite_contrecord`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverwriteContrecord {
    /// Start of the lost record.
    pub overwritten_lsn: Lsn,
    /// When (`TimestampTz`).
    pub time: i64,
}

/// Parses an XLOG record.
///
/// # Errors
/// [`WalError::UnknownRecord`] for a type that PostgreSQL 15 has not, [`WalError::Invalid`] for one of another layout.
pub fn parse(record: &Record) -> Result<XlogRecord, WalError> {
    record.expect_rmgr(RmgrId::XLOG)?;
    let mut fields = Fields::new(&record.main_data, record.lsn, "XLOG record");
    let parsed = match record.op() {
        XLOG_CHECKPOINT_SHUTDOWN => {
            fields.take(CHECKPOINT_LEN)?;
            XlogRecord::CheckpointShutdown(record.main_data.clone())
        }
        XLOG_CHECKPOINT_ONLINE => {
            fields.take(CHECKPOINT_LEN)?;
            XlogRecord::CheckpointOnline(record.main_data.clone())
        }
        // Its data means nothing and may be of any length.
        XLOG_NOOP => return Ok(XlogRecord::Noop),
        XLOG_NEXTOID => XlogRecord::NextOid(fields.u32()?),
        XLOG_SWITCH => XlogRecord::Switch,
        XLOG_BACKUP_END => XlogRecord::BackupEnd(fields.lsn()?),
        XLOG_PARAMETER_CHANGE => XlogRecord::ParameterChange(parameter_change(&mut fields)?),
        XLOG_RESTORE_POINT => XlogRecord::RestorePoint(restore_point(&mut fields)?),
        XLOG_FPW_CHANGE => XlogRecord::FpwChange(fields.bool()?),
        XLOG_END_OF_RECOVERY => XlogRecord::EndOfRecovery(EndOfRecovery {
            time: fields.i64()?,
            this_tli: fields.u32()?,
            prev_tli: fields.u32()?,
        }),
        XLOG_FPI_FOR_HINT => XlogRecord::FpiForHint,
        XLOG_FPI => XlogRecord::Fpi,
        XLOG_OVERWRITE_CONTRECORD => XlogRecord::OverwriteContrecord(OverwriteContrecord {
            overwritten_lsn: fields.lsn()?,
            time: fields.i64()?,
        }),
        _ => return Err(record.unknown()),
    };
    fields.end()?;
    Ok(parsed)
}

fn parameter_change(fields: &mut Fields<'_>) -> Result<ParameterChange, WalError> {
    let change = ParameterChange {
        max_connections: fields.i32()?,
        max_worker_processes: fields.i32()?,
        max_wal_senders: fields.i32()?,
        max_prepared_xacts: fields.i32()?,
        max_locks_per_xact: fields.i32()?,
        wal_level: fields.i32()?,
        wal_log_hints: fields.bool()?,
        track_commit_timestamp: fields.bool()?,
    };
    fields.take(2)?;
    Ok(change)
}

fn restore_point(fields: &mut Fields<'_>) -> Result<RestorePoint, WalError> {
    let time = fields.i64()?;
    let padded = fields.take(RESTORE_POINT_NAME_LEN)?;
    let name = padded.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(RestorePoint { time, name: name.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::super::record::test::{record, words};
    use super::*;

    #[test]
    fn records_that_a_promotion_writes_are_read() {
        let mut data = 77_i64.to_le_bytes().to_vec();
        data.extend(words(&[2, 1]));
        let end = EndOfRecovery { time: 77, this_tli: 2, prev_tli: 1 };
        let parsed = |data: &[u8]| parse(&record(RmgrId::XLOG, XLOG_END_OF_RECOVERY, data));
        assert_eq!(parsed(&data), Ok(XlogRecord::EndOfRecovery(end)));
        assert!(parsed(&data[..12]).is_err());
        assert!(matches!(
            parse(&record(RmgrId::XLOG, 0xC0, &data)),
            Err(WalError::UnknownRecord { info: 0xC0, .. })
        ));
    }

    #[test]
    fn a_restore_points_name_ends_at_its_terminator() {
        let mut data = 5_i64.to_le_bytes().to_vec();
        data.extend(b"before the release\0");
        data.resize(8 + RESTORE_POINT_NAME_LEN, b'x');
        let Ok(XlogRecord::RestorePoint(point)) = parse(&record(RmgrId::XLOG, XLOG_RESTORE_POINT, &data))
        else {
            panic!("a restore point");
        };
        assert_eq!((point.time, point.name.as_slice()), (5, &b"before the release"[..]));
    }
}
