//! The primary whose WAL is archived, whose base image is taken, and whose lost data is restored.

use crate::measure::{Took, time};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use zenith_testkit::pg::{self, Pg, PgOptions, StopMode};

/// Lines of every primary: PostgreSQL's defaults, but for what a benchmark would wait for.
const CONF: &[&str] = &[
    "fsync = on",
    "synchronous_commit = off",
    "shared_buffers = 1GB",
    "max_wal_size = 1GB",
    "wal_compression = off",
    "archive_mode = on",
    "autovacuum = off",
];

/// Lines of a primary that makes no checkpoint of its own: after the one that a base image begins with, a page's image is
/// logged once.
const ONE_CHECKPOINT: &[&str] = &["max_wal_size = 1TB", "checkpoint_timeout = 1d"];

/// A primary with pgbench's tables, which copies its WAL to a plain directory.
pub(crate) struct Primary {
    /// The server, running.
    pub(crate) server: Pg,
    archive: TempDir,
}

impl Primary {
    /// One with pgbench's tables at this scale; a checkpoint and a switch of segments come last.
    pub(crate) fn new(scale: u32) -> anyhow::Result<Primary> {
        Primary::configured(scale, &[])
    }

    /// The same, without checkpoints while it works.
    pub(crate) fn without_checkpoints(scale: u32) -> anyhow::Result<Primary> {
        Primary::configured(scale, ONE_CHECKPOINT)
    }

    fn configured(scale: u32, conf: &[&str]) -> anyhow::Result<Primary> {
        let archive = pg::server_dir();
        let mut options = PgOptions::default().initdb("--data-checksums");
        options.conf = CONF.iter().chain(conf).map(|line| (*line).to_owned()).collect();
        let options = options.conf(&format!("archive_command = 'cp %p {}/%f'", archive.path().display()));
        let server = Pg::start_new(&options);
        let primary = Primary { server, archive };
        time(primary.server.client("pgbench").args(["-i", "-q", "-I", "dtGvp", "-s", &scale.to_string()]))?;
        primary.server.sql("CHECKPOINT");
        primary.switch()?;
        // How the tables were filled is no part of any row.
        for segment in primary.archived()? {
            std::fs::remove_file(&segment).with_context(|| segment.display().to_string())?;
        }
        Ok(primary)
    }

    /// Ends the current segment and waits until it is archived.
    pub(crate) fn switch(&self) -> anyhow::Result<()> {
        let write =
            "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'bench', 'x')";
        let segment = self.server.sql(write);
        self.server.wait_for(&format!(
            "SELECT last_archived_wal COLLATE \"C\" >= '{segment}' FROM pg_stat_archiver"
        ));
        Ok(())
    }

    /// Runs TPC-B transactions until this many more segments are archived. Answers with their names, in order.
    pub(crate) fn load(&self, segments: usize) -> anyhow::Result<Vec<PathBuf>> {
        let before = self.archived()?;
        loop {
            let new: Vec<PathBuf> =
                self.archived()?.into_iter().filter(|file| !before.contains(file)).collect();
            if new.len() >= segments {
                self.switch()?;
                return Ok(self.archived()?.into_iter().filter(|file| !before.contains(file)).collect());
            }
            time(self.server.client("pgbench").args(["-n", "-c", "8", "-t", "2500"]))?;
        }
    }

    /// The segments that this work fills, in order.
    pub(crate) fn segments_of(&self, work: impl FnOnce(&Pg)) -> anyhow::Result<Vec<PathBuf>> {
        let before = self.archived()?;
        work(&self.server);
        self.switch()?;
        Ok(self.archived()?.into_iter().filter(|file| !before.contains(file)).collect())
    }

    /// All archived segments.
    pub(crate) fn archived(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.archive.path()).context("the plain archive")? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.len() == 24) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        self.server.stop(StopMode::Immediate);
    }
}

/// A restored data directory: started, asked for a row once recovery has ended, and stopped. What that took; the server's
/// CPU is not known.
pub(crate) fn first_answer(data: &Path, home: TempDir) -> anyhow::Result<Took> {
    let server = Pg::adopt(home, data.to_owned());
    server.configure(&["archive_mode = off", "shared_buffers = 1GB", "max_wal_size = 1GB"]);
    let begun = crate::measure::now();
    if let Err(log) = server.try_start() {
        bail!("a restored directory does not start:\n{log}");
    }
    while server.sql("SELECT pg_is_in_recovery()") == "t" {
        server.sql("SELECT pg_sleep(0.02)");
    }
    server.sql("SELECT abalance FROM pgbench_accounts WHERE aid = 1");
    let wall = begun.elapsed();
    server.stop(StopMode::Immediate);
    Ok(Took { wall, ..Took::default() })
}
