//! What standbys are told (`standby_redo`, storage/ipc/standby.c).

use super::draft::Draft;
use crate::error::IngestError;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::slru::FIRST_NORMAL_XID;
use zenith_pgformat::wal::standby::{self, StandbyRecord};

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    match standby::parse(draft.record)? {
        StandbyRecord::RunningXacts(running) => {
            // `ProcArrayApplyRecoveryInfo`: transactions below the next one may run without having written anything.
            let last = running.next_xid.wrapping_sub(1);
            draft.see_xid(if last < FIRST_NORMAL_XID { u32::MAX } else { last });
            let oldest_active_xid = running.oldest_running_xid;
            draft.set_checkpoint(CheckPoint { oldest_active_xid, ..draft.checkpoint() });
        }
        // Locks and invalidations are of a running standby's memory.
        StandbyRecord::Locks(_) | StandbyRecord::Invalidations(_) => {}
    }
    Ok(())
}
