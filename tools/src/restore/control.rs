//! The fabricated shutdown checkpoint and the control file that points to it.

use super::source::Facts;
use anyhow::{Result, bail};
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::control::{ControlFile, DbState, WalLevel};
use zenith_pgformat::slru::FIRST_NORMAL_XID;
use zenith_pgformat::{Lsn, Tli, Xid};

/// The shutdown checkpoint at `at` that begins timeline `tli`.
///
/// # Errors
/// Counters that no running cluster can have: with them a server would damage data.
pub(crate) fn checkpoint(facts: &Facts, at: Lsn, tli: Tli, now: i64) -> Result<CheckPoint> {
    let counters = &facts.checkpoint;
    if facts.next_xid < u64::from(FIRST_NORMAL_XID) || facts.next_xid < counters.next_xid {
        bail!(
            "at {} the next transaction id is {}, below the {} of an earlier checkpoint: the store's state is damaged",
            facts.lsn,
            facts.next_xid,
            counters.next_xid
        );
    }
    // The next multixact may be 0: right behind the last number of all, until one is made (`GetNewMultiXactId`).
    if counters.oldest_xid < FIRST_NORMAL_XID || counters.oldest_multi == 0 {
        bail!(
            "at {} the oldest transaction is {}, the oldest multixact {}: not a valid checkpoint",
            facts.lsn,
            counters.oldest_xid,
            counters.oldest_multi
        );
    }
    Ok(CheckPoint {
        redo: at,
        tli,
        prev_tli: facts.tli,
        next_xid: facts.next_xid,
        time: now,
        // A shutdown checkpoint says 0: only transactions that are prepared are running, and they have files.
        oldest_active_xid: 0,
        ..commit_ts_range(facts, *counters)
    })
}

/// The range of commit timestamps: nothing when they are not tracked, as after a start without them.
fn commit_ts_range(facts: &Facts, counters: CheckPoint) -> CheckPoint {
    let (oldest, newest): (Xid, Xid) = if facts.parameters.track_commit_timestamp {
        (counters.oldest_commit_ts_xid, counters.newest_commit_ts_xid)
    } else {
        (0, 0)
    };
    CheckPoint { oldest_commit_ts_xid: oldest, newest_commit_ts_xid: newest, ..counters }
}

/// The control file of a server that was shut down cleanly at that checkpoint.
pub(crate) fn control_file(facts: &Facts, checkpoint: CheckPoint) -> Result<ControlFile> {
    let parameters = &facts.parameters;
    let level = u32::try_from(parameters.wal_level).ok().and_then(WalLevel::from_number);
    let Some(wal_level) = level else {
        bail!("wal_level is {} at {}: not one of PostgreSQL 15's", parameters.wal_level, facts.lsn);
    };
    Ok(ControlFile {
        state: DbState::Shutdowned,
        time: checkpoint.time,
        checkpoint: checkpoint.redo,
        checkpoint_copy: checkpoint,
        min_recovery_point: Lsn::INVALID,
        min_recovery_point_tli: 0,
        backup_start_point: Lsn::INVALID,
        backup_end_point: Lsn::INVALID,
        backup_end_required: false,
        wal_level,
        wal_log_hints: parameters.wal_log_hints,
        max_connections: parameters.max_connections,
        max_worker_processes: parameters.max_worker_processes,
        max_wal_senders: parameters.max_wal_senders,
        max_prepared_xacts: parameters.max_prepared_transactions,
        max_locks_per_xact: parameters.max_locks_per_transaction,
        track_commit_timestamp: parameters.track_commit_timestamp,
        ..facts.control.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::facts;
    use super::*;

    #[test]
    fn the_checkpoint_begins_the_new_timeline_where_it_stands() {
        let facts = facts();
        let checkpoint = checkpoint(&facts, Lsn(0x300_0028), 2, 42).expect("valid");
        assert_eq!(checkpoint.redo, Lsn(0x300_0028));
        assert_eq!((checkpoint.tli, checkpoint.prev_tli), (2, 1));
        assert_eq!((checkpoint.next_xid, checkpoint.oldest_active_xid, checkpoint.time), (800, 0, 42));
        assert_eq!(checkpoint.next_oid, facts.checkpoint.next_oid);
    }

    #[test]
    fn a_server_that_was_never_shut_down_is_told_that_it_was() {
        let mut facts = facts();
        facts.control.state = DbState::InProduction;
        facts.control.min_recovery_point = Lsn(5);
        facts.control.backup_start_point = Lsn(6);
        facts.control.backup_end_required = true;
        facts.parameters.max_connections = 321;
        let checkpoint = checkpoint(&facts, Lsn(0x300_0028), 2, 42).expect("valid");
        let control = control_file(&facts, checkpoint).expect("valid");
        assert_eq!(control.state, DbState::Shutdowned);
        assert_eq!(control.checkpoint, Lsn(0x300_0028));
        assert_eq!((control.min_recovery_point, control.backup_start_point), (Lsn(0), Lsn(0)));
        assert!(!control.backup_end_required);
        assert_eq!(control.max_connections, 321);
        assert_eq!(control.system_identifier, facts.control.system_identifier);
    }

    #[test]
    fn counters_that_would_damage_data_are_refused() {
        for change in [
            (|facts: &mut Facts| facts.next_xid = 2) as fn(&mut Facts),
            |facts| facts.checkpoint.next_xid = 801,
            |facts| facts.checkpoint.oldest_xid = 0,
            |facts| facts.checkpoint.oldest_multi = 0,
        ] {
            let mut facts = facts();
            change(&mut facts);
            assert!(checkpoint(&facts, Lsn(0x300_0028), 2, 42).is_err());
        }
    }

    #[test]
    fn the_next_multixact_may_be_none_right_behind_the_last_number() {
        let mut facts = facts();
        facts.checkpoint.next_multi = 0;
        assert_eq!(checkpoint(&facts, Lsn(0x300_0028), 2, 42).expect("valid").next_multi, 0);
    }

    #[test]
    fn commit_timestamps_that_are_not_tracked_are_not_claimed() {
        let mut facts = facts();
        facts.checkpoint.oldest_commit_ts_xid = 700;
        facts.checkpoint.newest_commit_ts_xid = 790;
        let at = Lsn(0x300_0028);
        assert_eq!(checkpoint(&facts, at, 2, 42).expect("valid").oldest_commit_ts_xid, 0);
        facts.parameters.track_commit_timestamp = true;
        assert_eq!(checkpoint(&facts, at, 2, 42).expect("valid").oldest_commit_ts_xid, 700);
    }
}
