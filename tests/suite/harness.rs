//! A primary that archives to a store through Zenith's commands, and PostgreSQL's own recovery beside it as the
//! oracle: the same segments are also copied to a plain folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use zenith_testkit::mask::{Compared, compare_directories};
use zenith_testkit::pg::{self, Pg, PgOptions, StopMode};
pub(crate) use zenith_testkit::store::TestStore;

/// Where cargo put the commands: beside this test's own directory.
pub(crate) fn zenith_bin(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    let target = test.parent().and_then(Path::parent).expect("target directory");
    let path = target.join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace` first", path.display());
    path
}

/// A primary, its store, and the plain archive for the oracle.
pub(crate) struct Chain {
    /// The store.
    pub(crate) store: TestStore,
    /// The primary.
    pub(crate) primary: Pg,
    /// Every archived file as it is.
    pub(crate) plain: TempDir,
}

impl Chain {
    /// A running primary that archives to an empty store.
    pub(crate) fn start(store: TestStore, options: PgOptions) -> Chain {
        let plain = pg::server_dir();
        let push = zenith_bin("zenith_push");
        let archive_command = format!("{} wal %p && cp %p {}/%f", push.display(), plain.path().display());
        let mut options = options
            .conf("archive_mode = on")
            .conf(&format!("archive_command = '{archive_command}'"))
            .conf("max_prepared_transactions = 10")
            .conf("wal_level = replica");
        for (name, value) in store.env() {
            options = options.env(&name, &value);
        }
        Chain { store, primary: Pg::start_new(&options), plain }
    }

    /// One of Zenith's commands, as the server's user.
    pub(crate) fn zenith(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = pg::command(zenith_bin(program));
        command.args(arguments).envs(self.store.env()).env("RUST_BACKTRACE", "1");
        command.env("PGHOST", self.primary.socket()).env("PGUSER", "postgres");
        command
    }

    /// Runs a command that must succeed.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = pg::run(&mut self.zenith(program, arguments));
        println!("{program} {arguments:?}\n{output}");
        output
    }

    /// Runs a command that must fail with exit code 1; its standard error.
    pub(crate) fn refuse(&self, program: &str, arguments: &[&str]) -> String {
        let Output { status, stderr, .. } = self.zenith(program, arguments).output().expect("it starts");
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        assert_eq!(status.code(), Some(1), "{program} {arguments:?}: {stderr}");
        stderr
    }

    /// Archives everything written so far.
    pub(crate) fn archive(&self) {
        let primary = &self.primary;
        let end = primary.sql("SELECT pg_walfile_name(pg_switch_wal())");
        primary
            .wait_for(&format!("(SELECT coalesce(last_archived_wal, '') >= '{end}' FROM pg_stat_archiver)"));
    }

    /// Restores with Zenith into a new directory of its own.
    pub(crate) fn restore(&self, target: &[&str]) -> Pg {
        let home = pg::server_dir();
        let data = home.path().join("data");
        let data_argument = data.display().to_string();
        let mut arguments = vec!["-D", &data_argument];
        arguments.extend_from_slice(target);
        self.run("zenith_restore", &arguments);
        Pg::adopt(home, data)
    }

    /// A plain copy of the primary for the oracle.
    pub(crate) fn base_backup(&self) -> TempDir {
        let home = pg::server_dir();
        pg::run(
            self.primary
                .client("pg_basebackup")
                .args(["-X", "none", "--checkpoint=fast", "--no-sync", "--no-manifest", "-D"])
                .arg(home.path().join("data")),
        );
        home
    }

    /// PostgreSQL's own recovery of a plain copy to a target, promoted and stopped.
    pub(crate) fn recover(&self, backup: &TempDir, target: &[&str]) -> Pg {
        let home = pg::server_dir();
        let data = home.path().join("data");
        pg::run(pg::command("cp").arg("-a").arg(backup.path().join("data")).arg(&data));
        pg::run(pg::command("touch").arg(data.join("recovery.signal")));
        let oracle = Pg::adopt(home, data);
        let restore = format!("restore_command = 'cp {}/%f %p'", self.plain.path().display());
        let mut lines = vec![
            restore.as_str(),
            "archive_mode = off",
            "hot_standby = off",
            "autovacuum = off",
            "recovery_target_action = promote",
        ];
        lines.extend_from_slice(target);
        oracle.configure(&lines);
        oracle.start();
        oracle.wait_until_it_answers();
        oracle
    }

    /// Every page of two stopped servers, masked.
    pub(crate) fn compare(ours: &Pg, theirs: &Pg) -> Compared {
        match compare_directories(ours.data(), theirs.data()) {
            Ok(compared) => compared,
            Err(differences) => panic!("{} differences:\n{}", differences.len(), differences.join("\n")),
        }
    }
}

/// `pg_dumpall` of a running server without what two right recoveries may differ in.
pub(crate) fn dump(server: &Pg) -> String {
    let text =
        pg::run(server.client("pg_dumpall").args(["--no-unlogged-table-data", "-d", "dbname=postgres"]));
    text.lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .filter(|line| !line.starts_with("SELECT pg_catalog.setval"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// What stock tools say of a restored directory: they must accept it, stopped and running, and after a crash.
pub(crate) fn stock_tools_accept(restored: &Pg, databases: &[&str], checksums: bool) {
    pg::run(pg::command(pg::bin_dir().join("pg_controldata")).arg(restored.data()));
    if checksums {
        pg::run(pg::command(pg::bin_dir().join("pg_checksums")).args(["--check", "-D"]).arg(restored.data()));
    }
    restored.start();
    for database in databases {
        restored.sql_in(database, "CREATE EXTENSION IF NOT EXISTS amcheck");
        pg::run(restored.client("pg_amcheck").args(["--heapallindexed", "-d", database]));
    }
    restored.sql("CREATE TABLE after_restore AS SELECT generate_series(1, 1000) AS i");
    restored.stop(StopMode::Immediate);
    restored.start();
    assert_eq!(restored.sql("SELECT count(*) FROM after_restore"), "1000");
}
