//! A private PostgreSQL 15: its own directory, its own socket, no TCP port, gone when dropped.
//!
//! PostgreSQL refuses to run as root; a test that runs as root runs the server as `postgres`.

use std::ffi::{CString, OsStr};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use tempfile::TempDir;

/// Where the server's programs lie; `PG_BIN_DIR` says otherwise.
pub fn bin_dir() -> PathBuf {
    std::env::var_os("PG_BIN_DIR").map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from)
}

/// A command that runs as the user that servers run as.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    // Only what a test sets itself: PG* variables of whoever runs the tests must not leak in.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        if name != "PG_BIN_DIR" {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).current_dir("/");
    if let Some((uid, gid)) = server_user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// The user that servers run as when the test runs as root; `None` when it does not.
pub fn server_user() -> Option<(u32, u32)> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let name = CString::new("postgres").expect("no NUL in the name");
    // SAFETY: the name is NUL-terminated; the result is read before any other call could overwrite it.
    let entry = unsafe { libc::getpwnam(name.as_ptr()).as_ref() };
    let entry = entry.expect("user postgres exists where PostgreSQL is installed");
    Some((entry.pw_uid, entry.pw_gid))
}

/// A temporary directory that the server's user owns and everybody may enter.
pub fn server_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("zenith-").tempdir().expect("a temporary directory");
    give_to_server(dir.path());
    dir
}

/// Makes the server's user the owner of a path.
pub fn give_to_server(path: &Path) {
    if let Some((uid, gid)) = server_user() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown as root");
    }
}

/// Runs a command to its end; panics with its output unless it exits with 0.
pub fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the program exists");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// How to stop a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopMode {
    /// A clean shutdown with a checkpoint.
    Fast,
    /// As a crash.
    Immediate,
}

/// What a cluster is made with.
#[derive(Clone, Debug, Default)]
pub struct PgOptions {
    /// More arguments for `initdb`.
    pub initdb: Vec<String>,
    /// Lines for `postgresql.conf`.
    pub conf: Vec<String>,
    /// Environment of the server, which its `archive_command` inherits.
    pub env: Vec<(String, String)>,
}

impl PgOptions {
    /// One more argument for `initdb`.
    #[must_use]
    pub fn initdb(mut self, argument: &str) -> PgOptions {
        self.initdb.push(argument.to_owned());
        self
    }

    /// One more line of configuration.
    #[must_use]
    pub fn conf(mut self, line: &str) -> PgOptions {
        self.conf.push(line.to_owned());
        self
    }

    /// One more variable of the server's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> PgOptions {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A data directory with its server, running or not.
pub struct Pg {
    home: TempDir,
    data: PathBuf,
    env: Vec<(String, String)>,
    superuser: String,
}

impl Pg {
    /// `initdb`, configuration; not started. The superuser is `postgres`, authentication is trust.
    pub fn create(options: &PgOptions) -> Pg {
        let home = server_dir();
        let data = home.path().join("data");
        run(command(bin_dir().join("initdb"))
            .args(["--username=postgres", "--auth=trust", "--no-sync", "--no-instructions", "-D"])
            .arg(&data)
            .args(&options.initdb));
        let mut pg = Pg::adopt(home, data);
        pg.env.clone_from(&options.env);
        let socket = pg.socket().display().to_string();
        pg.configure(&[
            "listen_addresses = ''",
            &format!("unix_socket_directories = '{socket}'"),
            "fsync = off",
            "max_wal_senders = 5",
        ]);
        pg.configure(&options.conf.iter().map(String::as_str).collect::<Vec<_>>());
        pg
    }

    /// [`Pg::create`] and [`Pg::start`].
    pub fn start_new(options: &PgOptions) -> Pg {
        let pg = Pg::create(options);
        pg.start();
        pg
    }

    /// A data directory that something else has written, at `data` below `home`. Its server listens in `home`.
    pub fn adopt(home: TempDir, data: PathBuf) -> Pg {
        Pg { home, data, env: Vec::new(), superuser: "postgres".to_owned() }
    }

    /// Its superuser has another name than `postgres`.
    #[must_use]
    pub fn with_superuser(mut self, superuser: &str) -> Pg {
        superuser.clone_into(&mut self.superuser);
        self
    }

    /// From its next start on this is in the server's environment, which its commands inherit, and nothing else of what
    /// was given before.
    #[must_use]
    pub fn with_env(mut self, env: Vec<(String, String)>) -> Pg {
        self.env = env;
        self
    }

    /// Appends lines to `postgresql.conf`.
    pub fn configure(&self, lines: &[&str]) {
        let path = self.data.join("postgresql.conf");
        let mut text = std::fs::read_to_string(&path).expect("postgresql.conf");
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        std::fs::write(&path, text).expect("postgresql.conf");
    }

    /// The name of its superuser.
    pub fn superuser(&self) -> &str {
        &self.superuser
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The directory of the server's socket.
    pub fn socket(&self) -> &Path {
        self.home.path()
    }

    /// A scratch directory that goes with the server.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Starts the server and waits until it answers.
    pub fn start(&self) {
        let started = self.try_start();
        assert!(started.is_ok(), "{}", started.unwrap_err());
    }

    /// Starts the server; the end of its log when it does not come up.
    pub fn try_start(&self) -> Result<(), String> {
        let log = self.home.path().join("server.log");
        let options =
            format!("-c listen_addresses='' -c unix_socket_directories={}", self.socket().display());
        let output = command(bin_dir().join("pg_ctl"))
            .args(["-w", "-t", "300", "-o", &options, "-l"])
            .arg(&log)
            .arg("-D")
            .arg(&self.data)
            .arg("start")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .output()
            .expect("pg_ctl exists");
        if output.status.success() {
            return Ok(());
        }
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        Err(tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    /// Stops the server.
    pub fn stop(&self, mode: StopMode) {
        let mode = if mode == StopMode::Fast { "fast" } else { "immediate" };
        run(command(bin_dir().join("pg_ctl"))
            .args(["-w", "-t", "300", "-m", mode, "-D"])
            .arg(&self.data)
            .arg("stop"));
    }

    /// A command with PGHOST and PGUSER set to reach this server.
    pub fn client(&self, program: &str) -> Command {
        let mut client = command(bin_dir().join(program));
        client.env("PGHOST", self.socket()).env("PGUSER", &self.superuser).env("PGDATABASE", "postgres");
        client
    }

    /// Runs SQL in a database; unaligned rows, columns separated by `|`. Panics on any error.
    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        let mut psql = self.client("psql");
        let text = run(psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]));
        text.trim_end().to_owned()
    }

    /// [`Pg::sql_in`] the database `postgres`.
    pub fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    /// Runs a script (several statements, each its own transaction) in a database.
    pub fn script(&self, database: &str, script: &str) -> String {
        let path = self.home.path().join(format!("script-{:?}.sql", std::thread::current().id()));
        std::fs::write(&path, script).expect("script");
        run(self.client("psql").args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-f"]).arg(&path))
    }

    /// A connection that stays open, with whatever its transaction holds.
    pub fn session(&self, database: &str) -> Session {
        let mut psql = self.client("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database]);
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql exists");
        let input = psql.stdin.take().expect("its standard input");
        let output = BufReader::new(psql.stdout.take().expect("its standard output"));
        Session { psql, input, output }
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("server.log")).unwrap_or_default()
    }

    /// Waits until the server takes connections: `pg_ctl` returns earlier while it recovers without hot standby.
    pub fn wait_until_it_answers(&self) {
        let mut waiting = command("sh");
        waiting.env("PGHOST", self.socket());
        let looks = "for i in $(seq 6000); do \"$0\" -q && exit 0; sleep 0.05; done; exit 1";
        let waited = waiting.args(["-c", looks]).arg(bin_dir().join("pg_isready")).status();
        assert!(waited.expect("sh exists").success(), "the server does not answer:\n{}", self.log());
    }

    /// Waits until a condition in SQL holds; panics after five minutes: only a test that fails waits so long.
    pub fn wait_for(&self, condition: &str) {
        let script = format!(
            "DO $$ BEGIN FOR i IN 1..3000 LOOP IF ({condition}) THEN RETURN; END IF; \
             PERFORM pg_sleep(0.1); PERFORM pg_stat_clear_snapshot(); COMMIT; END LOOP; \
             RAISE 'waited for five minutes'; END $$"
        );
        self.sql(&script);
    }
}

/// A server that many tests ask: it is stopped, and all of its files are removed, when this process ends, however that
/// ends.
pub fn shared_by_all_tests(pg: Pg) -> &'static Pg {
    // Its file goes when it ends; a process that nobody reaps does not.
    let stop = "pid=$(head -n 1 \"$1/postmaster.pid\") && kill -QUIT \"$pid\" && \
                while [ -e \"$1/postmaster.pid\" ] && kill -0 \"$pid\"; do sleep 0.1; done; rm -rf \"$2\"";
    let (data, home) = (pg.data.display().to_string(), pg.home.path().display().to_string());
    // While this pipe is open the server lives.
    Box::leak(Box::new(when_gone(stop, &[&data, &home])));
    Box::leak(Box::new(pg))
}

/// Runs `command` with these arguments once this process is gone, whatever ended it: only then does the pipe that
/// it reads come to its end.
#[allow(clippy::zombie_processes, reason = "it outlives this process on purpose")]
pub(crate) fn when_gone(command: &str, arguments: &[&str]) -> ChildStdin {
    let script = format!("cat >/dev/null; {command}");
    let mut reaper = Command::new("setsid")
        .args(["sh", "-c", &script, "sh"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("setsid");
    reaper.stdin.take().expect("its standard input")
}

/// What psql prints after each piece of SQL; no row looks like it.
const END_OF_ANSWER: &str = "-- end of answer --";

/// An open connection. Dropped, it ends as if its client had gone away: an open transaction is rolled back.
#[derive(Debug)]
pub struct Session {
    psql: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    /// Runs SQL and waits for its end; rows as in [`Pg::sql`]. Panics on any error.
    pub fn sql(&mut self, sql: &str) -> String {
        writeln!(self.input, "{sql};\n\\echo '{END_OF_ANSWER}'").expect("psql reads");
        let mut answer = String::new();
        loop {
            let mut line = String::new();
            let length = self.output.read_line(&mut line).expect("psql answers");
            // It said why on standard error.
            assert!(length > 0, "psql ended: {sql}");
            if line.trim_end() == END_OF_ANSWER {
                return answer.trim_end().to_owned();
            }
            answer.push_str(&line);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.psql.kill());
        drop(self.psql.wait());
    }
}

impl Drop for Pg {
    fn drop(&mut self) {
        if self.data.join("postmaster.pid").exists() {
            let stopped = command(bin_dir().join("pg_ctl"))
                .args(["-w", "-m", "immediate", "-D"])
                .arg(&self.data)
                .arg("stop")
                .output();
            drop(stopped);
        }
    }
}
