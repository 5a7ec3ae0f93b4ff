//! A primary that archives, and what a plan does to it.

use crate::client::{self, Client, Errors};
use crate::plan::{CLIENTS, Crash, Plan, Step};
use crate::settings::Settings;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use zenith_pgformat::Lsn;
use zenith_testkit::commands::zenith_bin;
use zenith_testkit::oracle::{moved, plain_copy};
use zenith_testkit::pg::{self, Pg, StopMode};
use zenith_testkit::store::TestStore;

/// How the primary archives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Archiving {
    /// Into the store and into the plain folder.
    Zenith,
    /// Into the plain folder only.
    Plain,
}

/// See the module.
pub(crate) struct Primary {
    /// The server.
    pub(crate) server: Pg,
    /// The store.
    pub(crate) store: TestStore,
    plain: TempDir,
    /// The location of the tablespace `spread`, if there is one.
    tablespace: Option<PathBuf>,
    clients: Vec<Client>,
    errors: Errors,
    /// Names of restore points that the server has made.
    pub(crate) names: Vec<(String, Lsn)>,
    /// How many statements were said.
    pub(crate) said: usize,
}

impl Primary {
    /// A running primary and an empty store.
    pub(crate) fn start(settings: &Settings, archiving: Archiving) -> Primary {
        let (store, plain) = (TestStore::new(settings.store), pg::server_dir());
        let copy = format!("cp %p {}/%f", plain.path().display());
        let command = match archiving {
            Archiving::Zenith => format!("{} wal %p && {copy}", zenith_bin("zenith_push").display()),
            Archiving::Plain => copy,
        };
        let mut options = settings.options().conf("archive_mode = on");
        options = options.conf(&format!("archive_command = '{command}'"));
        options.env = store.env();
        let server = Pg::create(&options);
        if !settings.counters.is_empty() {
            let mut reset = pg::command(pg::bin_dir().join("pg_resetwal"));
            pg::run(reset.args(&settings.counters).arg("-D").arg(server.data()));
        }
        server.start();
        let tablespace = settings.tablespace.then(|| {
            let location = server.home().join("spread");
            pg::run(pg::command("mkdir").arg(&location));
            server.sql(&format!("CREATE TABLESPACE spread LOCATION '{}'", location.display()));
            location
        });
        let errors = Errors::new(&server);
        let mut primary = Primary {
            server,
            store,
            plain,
            tablespace,
            clients: Vec::new(),
            errors,
            names: Vec::new(),
            said: 0,
        };
        primary.connect();
        primary
    }

    /// New sessions instead of those that a crash has ended. Errors undo a whole transaction in some of them.
    fn connect(&mut self) {
        self.clients.clear();
        for number in 0..CLIENTS {
            let name = format!("client {number}");
            self.clients.push(Client::open(&self.server, &self.errors, number > 0, &name));
        }
    }

    /// What is there before the first base image; nothing of it may fail.
    pub(crate) fn set_up(&self, plan: &Plan) {
        for sql in &plan.setup {
            self.server.script("postgres", &format!("{sql};"));
        }
    }

    /// The plain archive.
    pub(crate) fn plain(&self) -> &Path {
        self.plain.path()
    }

    /// Errors of the sessions, and the text of all of them.
    pub(crate) fn errors(&self) -> (usize, String) {
        self.errors.read()
    }

    /// One of Zenith's commands, as the server's user.
    pub(crate) fn zenith(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = pg::command(zenith_bin(program));
        command.args(arguments).envs(self.store.env()).env("RUST_BACKTRACE", "1");
        command.env("PGHOST", self.server.socket()).env("PGUSER", "postgres");
        // What a killed command leaves there goes with the server.
        command.env("TMPDIR", self.server.home());
        command
    }

    /// `-T` for the tablespace, if there is one, into this directory.
    pub(crate) fn mapping(&self, home: &Path) -> Vec<String> {
        self.tablespace.iter().flat_map(|place| ["-T".to_owned(), moved(place, home)]).collect()
    }

    /// A plain copy, in `data` below the answer.
    pub(crate) fn plain_base(&self) -> TempDir {
        let tablespaces: Vec<&Path> = self.tablespace.iter().map(PathBuf::as_path).collect();
        plain_copy(&self.server, &tablespaces)
    }

    /// Archives everything written so far. A switch right after another one would do nothing.
    pub(crate) fn archive(&self) {
        let end = self.server.sql(
            "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'fuzz', 'something')",
        );
        let newest = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver, pg_sleep(0.05)";
        // Each time a new connection: after a crash the archiver starts only when the postmaster wakes up for something.
        let archived = (0..3000).any(|_| self.server.sql(newest) >= end);
        assert!(archived, "{end} is not archived:\n{}", self.server.log());
    }

    /// What the archiver said before a file was refused. One that a crash has ended was not.
    pub(crate) fn refused_to_archive(&self) -> String {
        let log = self.server.log();
        let lines: Vec<&str> = log.lines().collect();
        let refused =
            (0..lines.len()).filter(|at| lines[*at].contains("archive command failed with exit code"));
        refused
            .flat_map(|at| &lines[at.saturating_sub(3)..=at])
            .fold(String::new(), |all, line| all + line + "\n")
    }

    /// Does one step of a plan.
    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Client(number, sql) => {
                self.said += sql.split("; ").count();
                let client = &mut self.clients[*number];
                assert!(client.says(sql), "the session has ended at: {sql}\n{}", self.server.log());
            }
            Step::Database(database, sql) => {
                self.said += sql.split("; ").count();
                client::once(&self.server, database, &self.errors, sql);
            }
            Step::Name(name) => {
                let lsn = self.server.sql(&format!("SELECT pg_create_restore_point('{name}')"));
                self.names.push((name.clone(), lsn.parse().expect("an LSN")));
            }
            Step::Base(load) => {
                let load = self.start_load(load);
                pg::run(&mut self.zenith("zenith_push", &["base", "--checkpoint=fast"]));
                self.stop_load(load);
            }
            Step::Slice => {
                self.archive();
                pg::run(&mut self.zenith("zenith_slicedice", &[]));
            }
            Step::Crash(how, load) => self.crash(*how, load),
            Step::Restart(lines) => {
                self.server.stop(StopMode::Fast);
                self.server.configure(&lines.iter().map(String::as_str).collect::<Vec<_>>());
                self.server.start();
                self.connect();
            }
        }
    }

    /// A session that writes all the time; it has committed something when this returns.
    pub(crate) fn start_load(&self, load: &str) -> Client {
        let before = self.server.sql("SELECT coalesce(max(id), 0) FROM load");
        let mut client = Client::open(&self.server, &self.errors, false, "load");
        client.say(load);
        self.server.wait_for(&format!("(SELECT max(id) > {before} + 10 FROM load)"));
        client
    }

    /// Ends it, with its transaction.
    pub(crate) fn stop_load(&self, client: Client) {
        self.server.sql(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = 'load'",
        );
        drop(client);
    }

    fn crash(&mut self, how: Crash, load: &str) {
        let load = self.start_load(load);
        match how {
            Crash::Immediate => {
                self.server.stop(StopMode::Immediate);
                self.server.start();
            }
            Crash::Postmaster => {
                client::kill(&client::postmaster(self.server.data()));
                self.start_again();
            }
            Crash::Backend => {
                let mut watch = Client::open(&self.server, &self.errors, false, "watch");
                assert!(watch.says("SELECT 1"), "a session");
                let pid = self.server.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'load'");
                client::kill(&pid);
                // The postmaster ends every session before it starts anew.
                while watch.says("SELECT pg_sleep(0.02)") {}
                self.server.wait_until_it_answers();
            }
        }
        drop(load);
        self.connect();
    }

    /// What the postmaster had started notices its end one by one, and until then the memory they share is in use.
    fn start_again(&self) {
        let mut said = String::new();
        for _ in 0..200 {
            match self.server.try_start() {
                Ok(()) => return,
                Err(error) => said = error,
            }
            pg::run(pg::command("sleep").arg("0.1"));
        }
        panic!("it does not start again: {said}");
    }
}
