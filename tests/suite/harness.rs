//! A primary that archives to a store through Zenith's commands. The same segments are also copied to a plain folder,
//! for PostgreSQL's own recovery.

use std::path::Path;
use std::process::Command;
use tempfile::TempDir;
pub(crate) use zenith_testkit::commands::zenith_bin;
use zenith_testkit::pg::{self, Pg, PgOptions};
pub(crate) use zenith_testkit::store::TestStore;

/// A primary, its store, and the plain archive for the oracle.
pub(crate) struct Chain {
    /// The store.
    pub(crate) store: TestStore,
    /// A store that gets the same.
    pub(crate) mirror: Option<TestStore>,
    /// The primary.
    pub(crate) primary: Pg,
    plain: TempDir,
}

impl Chain {
    /// A running primary that archives to an empty store.
    pub(crate) fn start(store: TestStore, options: PgOptions) -> Chain {
        Chain::start_with_mirror(store, None, options)
    }

    /// A running primary that archives to two empty stores at once.
    pub(crate) fn start_with_mirror(
        store: TestStore,
        mirror: Option<TestStore>,
        options: PgOptions,
    ) -> Chain {
        let chain = Chain::create(store, mirror, options);
        chain.primary.start();
        chain
    }

    /// A primary that was never started and will archive to one or two empty stores.
    pub(crate) fn create(store: TestStore, mirror: Option<TestStore>, options: PgOptions) -> Chain {
        let plain = pg::server_dir();
        let push = zenith_bin("zenith_push");
        let stores = [Some(&store), mirror.as_ref()];
        let mut archive_command = String::new();
        for store in stores.iter().flatten() {
            archive_command.push_str(&format!("{} wal --store {} %p && ", push.display(), store.url()));
        }
        // A standby that archives too may copy the same file at the same moment, of which cp makes an error.
        archive_command.push_str(&format!("cat %p > {}/%f", plain.path().display()));
        let mut options = options
            .conf("archive_mode = on")
            .conf(&format!("archive_command = '{archive_command}'"))
            .conf("max_prepared_transactions = 10")
            .conf("wal_level = replica");
        for (name, value) in stores.iter().flatten().flat_map(|store| store.credentials()) {
            options = options.env(&name, &value);
        }
        let primary = Pg::create(&options);
        Chain { store, mirror, primary, plain }
    }

    /// The plain archive: every archived file as it is.
    pub(crate) fn plain(&self) -> &Path {
        self.plain.path()
    }

    /// The store, and its mirror if there is one.
    pub(crate) fn stores(&self) -> impl Iterator<Item = &TestStore> {
        [Some(&self.store), self.mirror.as_ref()].into_iter().flatten()
    }

    /// One of Zenith's commands, as the server's user.
    pub(crate) fn zenith(&self, program: &str, arguments: &[&str]) -> Command {
        self.zenith_on(&self.store, program, arguments)
    }

    /// [`Chain::zenith`] on one of the stores.
    pub(crate) fn zenith_on(&self, store: &TestStore, program: &str, arguments: &[&str]) -> Command {
        let mut command = pg::command(zenith_bin(program));
        command.args(arguments).envs(store.env()).env("RUST_BACKTRACE", "1");
        command.env("PGHOST", self.primary.socket()).env("PGUSER", "postgres");
        command
    }

    /// Runs a command that must succeed.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = pg::run(&mut self.zenith(program, arguments));
        println!("{program} {arguments:?}\n{output}");
        output
    }

    /// Runs a command that must succeed on every store.
    pub(crate) fn run_on_all(&self, program: &str, arguments: &[&str]) {
        for store in self.stores() {
            let output = pg::run(&mut self.zenith_on(store, program, arguments));
            println!("{:?}: {program} {arguments:?}\n{output}", store.kind());
        }
    }

    /// Archives everything written so far.
    pub(crate) fn archive(&self) {
        archive(&self.primary);
    }

    /// Restores with Zenith into a new directory of its own.
    pub(crate) fn restore(&self, target: &[&str]) -> Pg {
        self.restore_from(&self.store, pg::server_dir(), target)
    }

    /// [`Chain::restore`] from one of the stores, into `data` below `home`. Its server can reach that store.
    pub(crate) fn restore_from(&self, store: &TestStore, home: TempDir, arguments: &[&str]) -> Pg {
        let data = home.path().join("data");
        let output = pg::run(self.zenith_on(store, "zenith_restore", arguments).arg("-D").arg(&data));
        println!("{:?}: zenith_restore {arguments:?}\n{output}", store.kind());
        Pg::adopt(home, data).with_env(store.credentials())
    }
}

/// Has a server archive everything that it has written so far.
pub(crate) fn archive(primary: &Pg) {
    let end = primary.sql("SELECT pg_walfile_name(pg_switch_wal())");
    primary.wait_for(&format!("(SELECT coalesce(last_archived_wal, '') >= '{end}' FROM pg_stat_archiver)"));
}
