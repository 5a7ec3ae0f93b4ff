//! The control file and checkpoint of a small cluster with PostgreSQL's defaults, for tests that need no server.

use zenith_pgformat::Lsn;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::control::{BuildSizes, ControlFile, DbState, WalLevel};
use zenith_pgformat::wal_name::WalSegSize;

/// What `sysidentifier` is in [`control_file`].
pub const SYSTEM_IDENTIFIER: u64 = 77;

/// The counters of a cluster that has just been made, on TLI 1, at no LSN.
pub fn checkpoint() -> CheckPoint {
    CheckPoint {
        tli: 1,
        prev_tli: 1,
        full_page_writes: true,
        next_xid: 1000,
        next_oid: 20_000,
        next_multi: 1,
        oldest_xid: 717,
        oldest_multi: 1,
        ..CheckPoint::default()
    }
}

/// Shut down, with the settings that `initdb` leaves, checksums off, and [`checkpoint`].
pub fn control_file() -> ControlFile {
    ControlFile {
        system_identifier: SYSTEM_IDENTIFIER,
        state: DbState::Shutdowned,
        time: 0,
        checkpoint: Lsn(0),
        checkpoint_copy: checkpoint(),
        unlogged_lsn: Lsn(1000),
        min_recovery_point: Lsn(0),
        min_recovery_point_tli: 0,
        backup_start_point: Lsn(0),
        backup_end_point: Lsn(0),
        backup_end_required: false,
        wal_level: WalLevel::Replica,
        wal_log_hints: false,
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_xacts: 0,
        max_locks_per_xact: 64,
        track_commit_timestamp: false,
        wal_segment_size: WalSegSize::DEFAULT,
        build: BuildSizes {
            max_align: 8,
            name_data_len: 64,
            index_max_keys: 32,
            toast_max_chunk_size: 1996,
            large_object_block: 2048,
            float8_by_val: true,
        },
        data_checksum_version: 0,
        mock_authentication_nonce: [0; 32],
    }
}
