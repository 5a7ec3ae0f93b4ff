//! A primary whose history is in a store.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use zenith_testkit::oracle::dump;
use zenith_testkit::outcome::succeeds;
use zenith_testkit::pg::{Pg, PgOptions, StopMode, command, run, server_dir};
use zenith_testkit::store::TestStore;

/// What a primary held when it was stopped, and its store.
pub(crate) struct Recorded {
    pub(crate) store: TestStore,
    pub(crate) dump: String,
    /// Of table `t`.
    pub(crate) sum: String,
}

pub(crate) fn zenith(store: &TestStore, program: &str, arguments: &[&str]) -> Command {
    let mut ours = command(program);
    for name in ["ZENITH_CLUSTER", "ZENITH_TIMELINE", "ZENITH_CONFIG"] {
        ours.env_remove(name);
    }
    ours.args(arguments).envs(store.env());
    ours
}

const WORKLOAD: &str = "
CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g;
CREATE UNIQUE INDEX ON t (g);
CREATE INDEX ON t USING hash (md5);
CREATE TABLE dropped (g int PRIMARY KEY, tags int[], long text);
INSERT INTO dropped SELECT g, ARRAY[g, g % 7], NULL FROM generate_series(1, 5000) g;
CREATE INDEX ON dropped USING gin (tags);
UPDATE dropped SET long = (SELECT string_agg(md5(i::text), '') FROM generate_series(g, g + 300) i) WHERE g < 20;
CREATE TABLE waits AS SELECT generate_series(1, 3000) AS g;
CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS x;
CREATE SEQUENCE numbers; SELECT nextval('numbers') FROM generate_series(1, 33);
VACUUM;
CREATE DATABASE second;
\\c second
CREATE TABLE s AS SELECT generate_series(1, 1000) AS x;
";

impl Recorded {
    pub(crate) fn new(store: TestStore) -> Recorded {
        let recorded = Recorded::unsliced(store);
        recorded.slice();
        recorded
    }

    /// Without checksums: pages that only hint bits have changed are logged for the lazy server's sake. Its end is archived, and
    /// not sliced.
    pub(crate) fn unsliced(store: TestStore) -> Recorded {
        Recorded::of(store, PgOptions::default())
    }

    /// With data checksums.
    pub(crate) fn with_checksums(store: TestStore) -> Recorded {
        let recorded = Recorded::of(store, PgOptions::default().initdb("--data-checksums"));
        recorded.slice();
        recorded
    }

    fn of(store: TestStore, options: PgOptions) -> Recorded {
        let push = env!("CARGO_BIN_EXE_zenith_push");
        let archive = format!("archive_command = '{push} wal --store {} %p'", store.url());
        let mut options = options.conf("archive_mode = on").conf("autovacuum = off").conf(&archive);
        for (name, value) in store.credentials() {
            options = options.env(&name, &value);
        }
        let pg = Pg::start_new(&options);
        let mut base = zenith(&store, push, &["base", "--checkpoint=fast", "-w"]);
        run(base.env("PGHOST", pg.socket()).env("PGUSER", "postgres"));
        pg.script("postgres", WORKLOAD);
        run(pg.client("pgbench").args(["-i", "-q", "-s", "1"]));
        pg.sql(
            "UPDATE t SET md5 = md5(md5) WHERE g % 7 = 0; UPDATE t SET md5 = md5(g::text) WHERE g % 7 = 0",
        );
        let (dump, sum) = (dump(&pg, &[]), pg.sql("SELECT count(*), sum(hashtext(md5)::bigint) FROM t"));
        let last = pg.sql("SELECT pg_walfile_name(pg_switch_wal())");
        pg.wait_for(&format!("(SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver)"));
        pg.stop(StopMode::Fast);
        Recorded { store, dump, sum }
    }

    pub(crate) fn slice(&self) {
        succeeds(
            &zenith(&self.store, env!("CARGO_BIN_EXE_zenith_slicedice"), &[]).output().expect("started"),
        );
    }

    /// `zenith_restore --lazy`
    pub(crate) fn restore(&self, data: &Path, arguments: &[&str]) -> Output {
        let mut restore = zenith(&self.store, env!("CARGO_BIN_EXE_zenith_restore"), &["--lazy", "-D"]);
        restore.arg(data).args(arguments).output().expect("started")
    }

    /// A lazy copy of what was recorded, not started.
    pub(crate) fn lazy(&self) -> Pg {
        let home = server_dir();
        let data = home.path().join("data");
        succeeds(&self.restore(&data, &[]));
        let pg = Pg::adopt(home, data).with_env(self.store.credentials());
        let socket = format!("unix_socket_directories = '{}'", pg.socket().display());
        pg.configure(&["listen_addresses = ''", &socket]);
        pg
    }

    /// Where a folder store lies.
    pub(crate) fn folder(&self) -> PathBuf {
        PathBuf::from(self.store.url().trim_start_matches("file://"))
    }
}

/// Of every file below a directory.
pub(crate) fn checksums_of(directory: &Path) -> BTreeMap<PathBuf, u32> {
    let mut sums = BTreeMap::new();
    let mut next = vec![directory.to_path_buf()];
    while let Some(directory) = next.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                next.push(path);
            } else {
                // Its own command line; every start writes it.
                let is_sum = !path.ends_with("postmaster.opts");
                is_sum
                    .then(|| sums.insert(path.clone(), crc32c::crc32c(&std::fs::read(&path).expect("read"))));
            }
        }
    }
    sums
}
