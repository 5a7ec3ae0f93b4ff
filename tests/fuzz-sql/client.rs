//! Sessions that say what a plan tells them to, whether the server likes it or not.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use zenith_testkit::pg::{self, Pg};

/// What psql prints after each piece of SQL; no row looks like it.
const END_OF_ANSWER: &str = "-- end of answer --";
/// A session that waits for another one of the same plan would wait for ever.
const OPTIONS: &str = "-c lock_timeout=100ms -c statement_timeout=20s -c client_min_messages=error";

/// Where the errors of all sessions of a run go.
pub(crate) struct Errors(PathBuf);

impl Errors {
    /// A file in the server's scratch directory.
    pub(crate) fn new(server: &Pg) -> Errors {
        Errors(server.home().join("errors.log"))
    }

    fn open(&self) -> Stdio {
        OpenOptions::new().create(true).append(true).open(&self.0).expect("a file for errors").into()
    }

    /// Errors so far, and all of them.
    pub(crate) fn read(&self) -> (usize, String) {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        (text.lines().filter(|line| line.contains("ERROR:")).count(), text)
    }
}

fn psql(server: &Pg, database: &str, errors: &Errors) -> std::process::Command {
    let mut psql = server.client("psql");
    psql.args(["-XAtq", "-d", database]).env("PGOPTIONS", OPTIONS).stderr(errors.open());
    psql
}

/// Runs SQL in a session of its own; errors do not matter.
pub(crate) fn once(server: &Pg, database: &str, errors: &Errors, sql: &str) {
    let mut all = psql(server, database, errors);
    for piece in sql.split("; ") {
        all.args(["-c", piece]);
    }
    all.stdout(Stdio::null()).status().expect("psql exists");
}

/// An open session.
pub(crate) struct Client {
    psql: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    /// A session of the database `postgres`; with `resilient`, an error within a transaction undoes one statement only.
    pub(crate) fn open(server: &Pg, errors: &Errors, resilient: bool, name: &str) -> Client {
        let mut psql = psql(server, "postgres", errors);
        psql.env("PGAPPNAME", name);
        if resilient {
            psql.args(["-v", "ON_ERROR_ROLLBACK=on"]);
        }
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql exists");
        let input = psql.stdin.take().expect("its standard input");
        let output = BufReader::new(psql.stdout.take().expect("its standard output"));
        Client { psql, input, output }
    }

    /// Says it and waits for its end; `false` once the session has ended.
    pub(crate) fn says(&mut self, sql: &str) -> bool {
        self.say(sql);
        self.wait()
    }

    /// Says it and does not wait, nor find out whether the session still lives.
    pub(crate) fn say(&mut self, sql: &str) {
        drop(writeln!(self.input, "{sql};\n\\echo '{END_OF_ANSWER}'"));
    }

    fn wait(&mut self) -> bool {
        let mut line = String::new();
        loop {
            line.clear();
            match self.output.read_line(&mut line) {
                Ok(0) | Err(_) => return false,
                Ok(_) if line.trim_end() == END_OF_ANSWER => return true,
                Ok(_) => {}
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.psql.kill());
        drop(self.psql.wait());
    }
}

/// SIGKILL for a process of the server's user.
pub(crate) fn kill(pid: &str) {
    pg::command("kill").args(["-9", pid]).status().expect("kill exists");
}

/// The postmaster's process id.
pub(crate) fn postmaster(data: &Path) -> String {
    let file = std::fs::read_to_string(data.join("postmaster.pid")).expect("a server that runs");
    file.lines().next().expect("its first line").trim().to_owned()
}
