//! A primary that archives with Zenith into a folder store, and every file also as it is into a plain folder.

use std::path::Path;
use std::process::Command;
use tempfile::TempDir;
use zenith_pgformat::Lsn;
use zenith_testkit::commands::zenith_bin;
use zenith_testkit::pg::{self, Pg, PgOptions};

/// See the module.
pub(crate) struct Primary {
    /// The server.
    pub(crate) server: Pg,
    store: TempDir,
    plain: TempDir,
}

impl Primary {
    /// A primary that was never started and an empty store.
    pub(crate) fn create(options: PgOptions) -> Primary {
        let (store, plain) = (pg::server_dir(), pg::server_dir());
        let push = zenith_bin("zenith_push");
        let options = options
            .conf("archive_mode = on")
            .conf(&format!(
                "archive_command = '{} wal %p && cp %p {}/%f'",
                push.display(),
                plain.path().display()
            ))
            .conf("max_prepared_transactions = 10")
            .env("ZENITH_STORE", &format!("file://{}/store", store.path().display()));
        Primary { server: Pg::create(&options), store, plain }
    }

    /// The plain archive.
    pub(crate) fn plain(&self) -> &Path {
        self.plain.path()
    }

    /// Where the store lies.
    pub(crate) fn store(&self) -> &Path {
        self.store.path()
    }

    /// One of Zenith's commands, as the server's user.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command: Command = pg::command(zenith_bin(program));
        command.args(arguments).env("ZENITH_STORE", format!("file://{}/store", self.store.path().display()));
        command.env("PGHOST", self.server.socket()).env("PGUSER", "postgres");
        command
    }

    /// Runs one of Zenith's commands; its output.
    pub(crate) fn zenith(&self, program: &str, arguments: &[&str]) -> String {
        pg::run(&mut self.command(program, arguments))
    }

    /// What `zenith check --wal` says of all WAL, whether it found differences or not.
    pub(crate) fn check_wal(&self) -> serde_json::Value {
        let output = self.command("zenith", &["--json", "check", "--wal"]).output().expect("zenith exists");
        let said = serde_json::from_slice(&output.stdout);
        said.unwrap_or_else(|_| panic!("zenith check: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Restores with Zenith into a directory of its own.
    pub(crate) fn restore(&self, lsn: Lsn) -> Pg {
        let home = pg::server_dir();
        let data = home.path().join("data");
        self.zenith("zenith_restore", &["-D", &data.display().to_string(), "--lsn", &lsn.to_string()]);
        Pg::adopt(home, data)
    }

    /// Archives everything written so far. The archiver may be minutes behind a suite.
    pub(crate) fn archive(&self) {
        let last = self.server.sql("SELECT pg_walfile_name(pg_switch_wal())");
        let newest = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver";
        while self.server.sql(newest) < last {
            self.server.sql("SELECT pg_sleep(0.5)");
        }
    }
}
