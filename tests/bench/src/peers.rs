//! The tools beside which Zenith is measured: pgBackRest as Debian packages it, and what costs least: zstd, cp and sync.

use crate::data::Primary;
use crate::measure::{Took, time};
use crate::stores::Reached;
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use zenith_testkit::pg;

/// pgBackRest on one store, with a stanza of the primary.
pub(crate) struct PgBackRest {
    files: TempDir,
    /// The primary's data directory.
    primary: PathBuf,
}

impl PgBackRest {
    /// The version, where it is installed.
    pub(crate) fn version() -> anyhow::Result<String> {
        let output = Command::new("pgbackrest").arg("version").output();
        let output = output.context("pgbackrest: apt-get install pgbackrest")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Configures it, as its manual says for speed (zstd at its default level, bundles, several processes), and makes the stanza.
    pub(crate) fn new(store: &Reached, primary: &Primary) -> anyhow::Result<PgBackRest> {
        let peer = PgBackRest { files: pg::server_dir(), primary: primary.server.data().to_owned() };
        let files = peer.files.path().display();
        let mut lines = vec!["[global]".to_owned()];
        lines.extend(store.pgbackrest());
        lines.extend([
            "repo1-bundle=y".to_owned(),
            "compress-type=zst".to_owned(),
            format!("process-max={}", store.processes()),
            "start-fast=y".to_owned(),
            "archive-check=n".to_owned(),
            "archive-mode-check=n".to_owned(),
            "log-level-file=off".to_owned(),
            "log-level-console=error".to_owned(),
            format!("lock-path={files}"),
            format!("spool-path={files}"),
            "[main]".to_owned(),
            format!("pg1-path={}", primary.server.data().display()),
            format!("pg1-socket-path={}", primary.server.socket().display()),
            "pg1-user=postgres".to_owned(),
        ]);
        std::fs::write(peer.config(), lines.join("\n") + "\n").context("pgbackrest.conf")?;
        time(peer.command().arg("stanza-create"))?;
        Ok(peer)
    }

    fn config(&self) -> PathBuf {
        self.files.path().join("pgbackrest.conf")
    }

    /// A command of it.
    pub(crate) fn command(&self) -> Command {
        let mut command = pg::command("pgbackrest");
        command.arg(format!("--config={}", self.config().display())).arg("--stanza=main");
        command
    }

    /// Archives segments, one process each, as PostgreSQL does.
    pub(crate) fn push(&self, segments: &[PathBuf]) -> anyhow::Result<Took> {
        each(segments, |segment| {
            let mut command = self.command();
            command.arg("archive-push").arg(segment);
            Ok(command)
        })
    }

    /// The same with processes of its own that push what is ready.
    pub(crate) fn push_asynchronously(&self, segments: &[PathBuf]) -> anyhow::Result<Took> {
        let data = self.files.path().join("data");
        let wal = waiting(&self.primary, segments, &data)?;
        let begun = crate::measure::now();
        each(segments, |segment| {
            let mut command = self.command();
            command.arg(format!("--pg1-path={}", data.display())).args(["--archive-async", "archive-push"]);
            command.arg(wal.join(segment.file_name().context("a segment")?));
            Ok(command)
        })?;
        // Its processes are no children of this one, so that what they use is not known.
        Ok(Took { wall: begun.elapsed(), ..Took::default() })
    }
}

/// Makes `data` a directory in which these segments wait to be archived, as in the primary's own, and answers with its WAL
/// directory: pgBackRest's processes look nowhere else for what is ready, and neither does `zenith_push wal --ahead`.
pub(crate) fn waiting(primary: &Path, segments: &[PathBuf], data: &Path) -> anyhow::Result<PathBuf> {
    let script = "mkdir -p \"$1/global\" \"$1/pg_wal/archive_status\" && cp \"$2/PG_VERSION\" \"$1/\" && \
                  cp \"$2/global/pg_control\" \"$1/global/\" && to=$1 && shift 2 && \
                  for file; do ln \"$file\" \"$to/pg_wal/\" && touch \"$to/pg_wal/archive_status/${file##*/}.ready\" || exit 1; done";
    let mut command = pg::command("sh");
    command.args(["-c", script, "sh"]).arg(data).arg(primary).args(segments);
    time(&mut command)?;
    Ok(data.join("pg_wal"))
}

/// Runs a command for each of these files, one after the other.
pub(crate) fn each(
    files: &[PathBuf],
    command: impl Fn(&Path) -> anyhow::Result<Command>,
) -> anyhow::Result<Took> {
    let mut all = Took::default();
    for file in files {
        all = all.and_then(time(&mut command(file)?)?);
    }
    Ok(all)
}

/// The least that durable archiving of a segment costs: compress, write, sync.
pub(crate) fn zstd_and_sync(segments: &[PathBuf], to: &Path) -> anyhow::Result<Took> {
    each(segments, |segment| {
        let mut command = pg::command("sh");
        let name = segment.file_name().context("a segment")?;
        command.args(["-c", "zstd -1 -q --single-thread -c \"$1\" > \"$2\" && sync \"$2\"", "sh"]);
        command.arg(segment).arg(to.join(name));
        Ok(command)
    })
}
