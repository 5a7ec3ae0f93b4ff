//! PostgreSQL's own recovery of a plain base backup, from one LSN to the next.
//!
//! A copy that is shut down in recovery goes forward from its last restart point; what is compared is a copy of that copy,
//! promoted, so that each LSN costs the WAL since the last checkpoint before it and not all of it.

use std::path::{Path, PathBuf};
use tempfile::TempDir;
use zenith_pgformat::Lsn;
use zenith_pgformat::control::ControlFile;
use zenith_testkit::pg::{self, Pg, StopMode};

/// A data directory that follows the archive.
pub(crate) struct Oracle {
    home: TempDir,
    archive: PathBuf,
}

impl Oracle {
    /// Takes over a plain base backup, in `data` below `home`.
    pub(crate) fn new(home: TempDir, archive: &Path) -> Oracle {
        Oracle { home, archive: archive.to_path_buf() }
    }

    /// A server as PostgreSQL recovers it up to `lsn`, promoted and stopped. LSNs must rise.
    pub(crate) fn at(&mut self, lsn: Lsn) -> Pg {
        let follower = self.home.path().join("data");
        std::fs::write(follower.join("recovery.signal"), "").expect("a signal file");
        pg::give_to_server(&follower.join("recovery.signal"));
        let output = pg::command(pg::bin_dir().join("postgres"))
            .arg("-D")
            .arg(&follower)
            .args(
                self.settings(self.home.path(), lsn, "shutdown")
                    .map(|(name, value)| format!("--{name}={value}")),
            )
            .output()
            .expect("postgres exists");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(log.contains("shutdown at recovery target"), "{lsn}: {log}");

        let home = pg::server_dir();
        let data = home.path().join("data");
        pg::run(pg::command("cp").arg("-a").arg(&follower).arg(&data));
        let server = Pg::adopt(home, data.clone());
        let settings =
            self.settings(server.home(), lsn, "promote").into_iter().chain(primary_settings(&data));
        let lines: Vec<String> = settings.map(|(name, value)| format!("{name} = '{value}'")).collect();
        server.configure(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        server.start();
        wait_until_promoted(&server);
        server.stop(StopMode::Fast);
        server
    }

    fn settings(&self, socket: &Path, lsn: Lsn, action: &str) -> [(&'static str, String); 10] {
        [
            ("restore_command", format!("cp {}/%f %p", self.archive.display())),
            ("recovery_target_lsn", lsn.to_string()),
            ("recovery_target_inclusive", "off".to_owned()),
            ("recovery_target_action", action.to_owned()),
            ("archive_mode", "off".to_owned()),
            ("hot_standby", "off".to_owned()),
            ("autovacuum", "off".to_owned()),
            ("max_logical_replication_workers", "0".to_owned()),
            ("listen_addresses", String::new()),
            ("unix_socket_directories", socket.display().to_string()),
        ]
    }
}

/// What the primary last said of its settings (`XLOG_PARAMETER_CHANGE`), as recovery left it in pg_control. A server that
/// is promoted writes its own there, and forgets commit timestamps where it does not track them.
fn primary_settings(data: &Path) -> impl Iterator<Item = (&'static str, String)> {
    let bytes = std::fs::read(data.join("global/pg_control")).expect("pg_control");
    let control = ControlFile::decode(&bytes).expect("a control file");
    [
        ("wal_level", format!("{:?}", control.wal_level).to_lowercase()),
        ("wal_log_hints", control.wal_log_hints.to_string()),
        ("track_commit_timestamp", control.track_commit_timestamp.to_string()),
        ("max_connections", control.max_connections.to_string()),
        ("max_worker_processes", control.max_worker_processes.to_string()),
        ("max_wal_senders", control.max_wal_senders.to_string()),
        ("max_prepared_transactions", control.max_prepared_xacts.to_string()),
        ("max_locks_per_transaction", control.max_locks_per_xact.to_string()),
    ]
    .into_iter()
}

/// Waits for the end of recovery by what the postmaster writes (miscinit.c, `PM_STATUS_READY`): a connection, even one
/// that only asks whether there is a server, reads catalogs and prunes their pages.
fn wait_until_promoted(server: &Pg) {
    let looks = "for i in $(seq 12000); do grep -q '^ready' \"$0\" && exit 0; sleep 0.05; [ -e \"$0\" ] || exit 1; done; exit 1";
    let waited = pg::command("sh").args(["-c", looks]).arg(server.data().join("postmaster.pid")).status();
    assert!(waited.expect("sh exists").success(), "it did not come up:\n{}", server.log());
}
