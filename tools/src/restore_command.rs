//! The command line of `zenith_restore`.

use crate::cli::options::SOURCES;
use crate::cli::{Session, Settings, StoreOptions, exit, output, progress, reading, time, units};
use crate::replay::{self, ReplayOptions, ReplayReport};
use crate::restore::config::{Host, ThisHost};
use crate::restore::layout::Owner;
use crate::restore::snapshot::SnapshotSource;
use crate::restore::tablespaces::TablespaceMapping;
use crate::restore::{self, Options, Progress, Report};
use crate::restore_wal;
use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use jiff::tz::TimeZone;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use zenith_manifest::names::NameError;
use zenith_manifest::{Ancestor, Identity, SlicedPosition};
use zenith_pgformat::{Lsn, Xid};
use zenith_reader::{Resolved, Snapshot, Target};
use zenith_store::{Env, TimelineId};

const PROGRAM: &str = "zenith_restore";
/// Batches of pages that are read and written at the same time; each takes about 2 MB.
const PARALLEL: usize = 16;

/// Writes a complete PostgreSQL 15 data directory as it was at an LSN, a name or a time.
#[derive(Parser, Debug)]
#[command(
    name = PROGRAM,
    version,
    subcommand_negates_reqs = true,
    after_help = format!("\
Examples:
  zenith_restore --store file:///srv/zenith -D data
  zenith_restore -D data --time '2026-11-22 14:02:59+01'
  zenith_restore -D data --lsn 0/3000148 -T /srv/ts1=/restore/ts1
  zenith_restore -D data --name before_upgrade --as test2
  zenith_restore -D data --time '2026-11-22 14:02:59+01' --replay
  restore_command = 'zenith_restore wal --store file:///srv/zenith %f \"%p\"'

Every page is written as it was at the target, so that the server starts with pg_ctl start and replays nothing. The
directory is on a PostgreSQL timeline of its own and archives nowhere, unless --as gives it a timeline to archive to.

{SOURCES}")
)]
struct Cli {
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    restore: RestoreArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Fetches one WAL file: PostgreSQL's restore_command
    #[command(after_help = "\
Example, in postgresql.conf:
  restore_command = 'zenith_restore wal --store file:///srv/zenith %f \"%p\"'

Exit status: 0 the file is there; 1 it is certainly not in the archive; 255 anything else, so that PostgreSQL stops
instead of ending recovery when the store cannot be reached.")]
    Wal {
        /// The file that is wanted: %f
        file: String,
        /// Where to put it: %p
        path: PathBuf,
    },
}

/// Options of a restore.
#[derive(Args, Debug, Clone, Default)]
pub struct RestoreArgs {
    /// The data directory to write; must not exist, or be empty
    #[arg(short = 'D', long = "pgdata", value_name = "DIR", required = true)]
    pub directory: Option<PathBuf>,
    /// Up to this LSN: every record that ends at or below it
    #[arg(long, value_name = "LSN", group = "target")]
    pub lsn: Option<Lsn>,
    /// Up to just before the first commit or abort later than this; without an offset local time
    #[arg(long, value_name = "TIME", group = "target", value_parser = parse_time)]
    pub time: Option<i64>,
    /// Up to this restore point
    #[arg(long, value_name = "NAME", group = "target")]
    pub name: Option<String>,
    /// Up to and with the end of this transaction
    #[arg(long, value_name = "XID", group = "target")]
    pub xid: Option<Xid>,
    /// Put a tablespace elsewhere
    #[arg(short = 'T', long = "tablespace-mapping", value_name = "OLD=NEW")]
    pub tablespace_mapping: Vec<String>,
    /// Make a timeline of that name, a child of the one restored, for the new server to archive to
    #[arg(long = "as", value_name = "NAME")]
    pub as_name: Option<String>,
    /// Write the base image for PostgreSQL's own recovery, which replays the WAL by restore_command
    #[arg(long, conflicts_with = "as_name")]
    pub replay: bool,
    /// Run as root: the user that the files are for
    #[arg(long, value_name = "USER", default_value = "postgres")]
    pub owner: String,
}

fn parse_time(text: &str) -> Result<i64, String> {
    time::parse(text, &TimeZone::system())
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // PostgreSQL ends recovery, and promotes, on any status from 1 to 125: the usual 2 for wrong usage is not for
    // restore_command.
    let is_wal = std::env::args_os().skip(1).any(|argument| argument == "wal");
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let status = if error.use_stderr() { exit::USAGE } else { exit::DONE };
            return ExitCode::from(if is_wal && status == exit::USAGE { exit::UNKNOWN } else { status });
        }
    };
    match cli.command {
        Some(Command::Wal { .. }) if cli.restore.directory.is_some() => {
            output::say("zenith_restore: error: wal takes no -D: it fetches one WAL file");
            ExitCode::from(exit::UNKNOWN)
        }
        Some(Command::Wal { file, path }) => exit::run(PROGRAM, exit::UNKNOWN, || {
            Ok(restore_wal::run(PROGRAM, &Env::system(), &cli.store, &file, &path))
        }),
        None => exit::run(PROGRAM, exit::FAILED, || run(&cli.store, &cli.restore).map(|()| exit::DONE)),
    }
}

fn run(store: &StoreOptions, args: &RestoreArgs) -> anyhow::Result<()> {
    let settings = store.resolve()?;
    let env = Env::system();
    let runtime = exit::runtime(std::thread::available_parallelism().map_or(2, std::num::NonZero::get))?;
    if args.replay {
        let replayed = runtime.block_on(replay(&env, &settings, args));
        runtime.shutdown_background();
        let (directory, report) = replayed?;
        return if settings.json {
            output::json(&report)
        } else {
            output::line(describe_replay(&directory, &report).trim_end())
        };
    }
    let restored = runtime.block_on(restore(&env, &settings, args));
    runtime.shutdown_background();
    let restored = restored?;
    if settings.json {
        output::json(&restored.to_json())
    } else {
        output::line(restored.describe().trim_end())
    }
}

/// A data directory that was written.
pub struct Restored {
    directory: PathBuf,
    resolved: Resolved,
    report: Report,
    timeline: Option<(String, TimelineId)>,
    seconds: f64,
}

/// Finds the target, says what it is, and writes the directory.
pub async fn restore(env: &Env, settings: &Settings, args: &RestoreArgs) -> anyhow::Result<Restored> {
    let started = env.clock.elapsed();
    let directory = args.directory.clone().context("-D is missing")?;
    let tablespaces = mappings(args)?;
    must_be_empty(&directory)?;
    let session = Session::open(env, settings, false)?;
    let child = match &args.as_name {
        Some(name) => Some(free_name(&session, name).await?),
        None => None,
    };
    let mut timeline = reading::open(&session, settings).await?;
    let target = target(args);
    let up_to = if let Target::Lsn(lsn) = target { Some(lsn) } else { None };
    reading::slice_what_is_not(&mut timeline, up_to).await?;
    let resolved = timeline.resolve(&target).await?;
    output::say(&describe_target(&resolved));
    let snapshot = timeline.snapshot(resolved.lsn).await?;
    let source = SnapshotSource::new(snapshot.clone(), resolved.last_record).await?;
    let options = Options {
        target: directory.clone(),
        tablespaces,
        owner: Owner::for_process(&args.owner)?,
        sync: true,
        parallel: PARALLEL,
        tli: None,
        reason: format!("restored by zenith from timeline {}", timeline.id()),
        archive_command: child.as_ref().map(|(_, id)| archive_command(settings, *id)).transpose()?,
        host: Arc::new(ThisHost::new(crate::cli::postgres::library_directory())) as Arc<dyn Host>,
        now: env.clock.now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs().cast_signed()),
    };
    let bar = progress::bytes("restoring", 0);
    let shown = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    if let Some((name, id)) = &child {
        create_child(&session, &snapshot, &resolved, timeline.identity(), name, *id).await?;
    }
    let written = tokio::select! {
        written = restore::write_directory(&source, &options, &shown) => written,
        // What was written is removed when the other future is dropped.
        signal = exit::interrupted() => Err(anyhow::anyhow!("ended by {signal}: what was written is removed")),
    };
    bar.finish_and_clear();
    let report = match (written, &child) {
        (Ok(report), _) => report,
        (Err(error), None) => return Err(error),
        (Err(error), Some((name, id))) => {
            // Nothing stays behind: the name may be taken again.
            session
                .names
                .tombstone(name, *id)
                .await
                .with_context(|| format!("giving up the name \"{name}\""))?;
            return Err(error);
        }
    };
    let seconds = env.clock.elapsed().saturating_sub(started).as_secs_f64();
    Ok(Restored { directory, resolved, report, timeline: child, seconds })
}

/// Finds the target and writes the newest base image before it, with recovery set up to end there.
pub async fn replay(
    env: &Env,
    settings: &Settings,
    args: &RestoreArgs,
) -> anyhow::Result<(PathBuf, ReplayReport)> {
    let directory = args.directory.clone().context("-D is missing")?;
    let tablespaces = mappings(args)?;
    must_be_empty(&directory)?;
    let session = Session::open(env, settings, false)?;
    let mut timeline = reading::open(&session, settings).await?;
    reading::slice_what_is_not(&mut timeline, None).await?;
    let target = target(args);
    let resolved = timeline.resolve(&target).await?;
    output::say(&describe_target(&resolved));
    let (home, base) = replay::base_for(&timeline, resolved.lsn)?;
    let recovery_target = match target {
        Target::Latest => Vec::new(),
        // Inclusive: the first record that starts at or after it is the last one that is replayed.
        _ => vec![
            ("recovery_target_lsn", resolved.last_record.start.to_string()),
            ("recovery_target_inclusive", "on".to_owned()),
            ("recovery_target_timeline", resolved.tli.to_string()),
        ],
    };
    let options = ReplayOptions {
        target: directory.clone(),
        tablespaces,
        owner: Owner::for_process(&args.owner)?,
        host: Arc::new(ThisHost::new(crate::cli::postgres::library_directory())) as Arc<dyn Host>,
        restore_command: command_line("zenith_restore", settings, timeline.id(), "%f \"%p\"")?,
        recovery_target,
    };
    let bar = progress::bytes("writing the base image", 0);
    let shown = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let objects = Arc::clone(&session.store.objects);
    let written = tokio::select! {
        written = replay::write_base_image(objects, &home, &base, &options, &shown) => written,
        signal = exit::interrupted() => Err(anyhow::anyhow!("ended by {signal}: what was written is removed")),
    };
    bar.finish_and_clear();
    Ok((directory, written?))
}

fn describe_replay(directory: &Path, report: &ReplayReport) -> String {
    let mut text = format!(
        "{} holds base image {}: {} in {} forks; recovery begins at {} on TLI {} and is consistent at {}\n",
        directory.display(),
        report.base,
        units::size(report.bytes),
        report.forks,
        report.redo,
        report.tli,
        report.end,
    );
    for (name, value) in &report.recovery {
        text.push_str(&format!("  {name} = {value}\n"));
    }
    for change in &report.changes {
        text.push_str(&format!("  {change}\n"));
    }
    text.push_str(&format!(
        "start it, and PostgreSQL recovers it: pg_ctl start -D {}\n",
        directory.display()
    ));
    text
}

fn mappings(args: &RestoreArgs) -> anyhow::Result<Vec<TablespaceMapping>> {
    let mappings = args.tablespace_mapping.iter().map(|text| TablespaceMapping::parse(text));
    Ok(mappings.collect::<Result<Vec<_>, _>>().map_err(|error| exit::Usage(error.to_string()))?)
}

fn target(args: &RestoreArgs) -> Target {
    match args {
        RestoreArgs { lsn: Some(lsn), .. } => Target::Lsn(*lsn),
        RestoreArgs { time: Some(time), .. } => Target::Time(*time),
        RestoreArgs { name: Some(name), .. } => Target::Name(name.clone()),
        RestoreArgs { xid: Some(xid), .. } => Target::Xid(*xid),
        _ => Target::Latest,
    }
}

/// Before anything is read from the store.
fn must_be_empty(directory: &Path) -> anyhow::Result<()> {
    match std::fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => bail!("{} is not empty: choose another directory, or empty it", directory.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot look into {}", directory.display())),
    }
}

/// The name of the new server's timeline, and the id that it will get.
async fn free_name(session: &Session, name: &str) -> anyhow::Result<(String, TimelineId)> {
    match session.names.resolve(name).await {
        Ok(timeline) => bail!("--as {name}: the name belongs to timeline {timeline} already"),
        Err(NameError::NotFound { .. }) => Ok((name.to_owned(), TimelineId(session.env.ids.fresh()))),
        Err(error) => Err(error.into()),
    }
}

/// Makes the child timeline at the target, where the new server's own WAL begins.
async fn create_child(
    session: &Session,
    snapshot: &Snapshot,
    resolved: &Resolved,
    parent: &Identity,
    name: &str,
    id: TimelineId,
) -> anyhow::Result<()> {
    let ancestor = Ancestor { timeline: parent.timeline, lsn: resolved.lsn, tli: snapshot.tli() };
    let identity = Identity { timeline: id, ancestor: Some(ancestor), ..parent.clone() };
    let start = SlicedPosition {
        tli: snapshot.tli().saturating_add(1),
        lsn: resolved.lsn,
        prev: resolved.last_record.start,
        state: serde_json::Value::Null,
    };
    let created = session.names.create_timeline(name, &identity, Some(start)).await;
    created.with_context(|| format!("--as {name}"))
}

/// The `archive_command` of the new server. It names the timeline by its id: a name may be given up and taken again.
fn archive_command(settings: &Settings, id: TimelineId) -> anyhow::Result<String> {
    command_line("zenith_push", settings, id, "\"%p\"")
}

/// One of our programs' `wal` commands with the same store as now, for PostgreSQL's configuration.
fn command_line(program: &str, settings: &Settings, id: TimelineId, files: &str) -> anyhow::Result<String> {
    let beside =
        std::env::current_exe().with_context(|| format!("finding {program}"))?.with_file_name(program);
    let program = if beside.is_file() { beside.display().to_string() } else { program.to_owned() };
    let quote = |text: &str| format!("'{}'", text.replace('\'', "'\\''")).replace('%', "%%");
    let config = match &settings.config {
        Some(config) => format!(" --config {}", quote(&std::path::absolute(config)?.display().to_string())),
        None => String::new(),
    };
    Ok(format!(
        "{} wal{config} --store {} --cluster {} --timeline-id {id} {files}",
        quote(&program),
        quote(&settings.store),
        quote(&settings.cluster)
    ))
}

/// What was chosen, before anything is written.
fn describe_target(resolved: &Resolved) -> String {
    let zone = TimeZone::system();
    let mut text = format!("target: LSN {} on TLI {}", resolved.lsn, resolved.tli);
    if let Some(at) = resolved.time {
        text.push_str(&format!(", {}", time::format(at, &zone)));
    }
    match &resolved.last_commit {
        Some(commit) => text.push_str(&format!(
            "; last transaction in it: {}, committed {}",
            commit.xid,
            time::format(commit.time, &zone)
        )),
        None => text.push_str("; no transaction has committed since the base image"),
    }
    text
}

impl Restored {
    fn to_json(&self) -> serde_json::Value {
        json!({
            "directory": self.directory,
            "report": self.report,
            "time": self.resolved.time.map(|at| time::format(at, &TimeZone::UTC)),
            "last_xid": self.resolved.last_commit.as_ref().map(|commit| commit.xid),
            "timeline": self.timeline.as_ref().map(|(name, id)| json!({ "name": name, "id": id.to_string() })),
            "seconds": self.seconds,
        })
    }

    fn describe(&self) -> String {
        let report = &self.report;
        let mut text = format!(
            "{} holds the state at {}: {} in {} forks, on TLI {} (a child of {}), {}\n",
            self.directory.display(),
            report.lsn,
            units::size(report.bytes),
            report.forks,
            report.tli,
            report.parent_tli,
            units::duration(std::time::Duration::from_secs_f64(self.seconds.max(0.0))),
        );
        for (oid, place) in &report.tablespaces {
            text.push_str(&format!("tablespace {oid}: {}\n", place.display()));
        }
        if report.prepared > 0 {
            text.push_str(&format!("{} prepared transactions wait for their end\n", report.prepared));
        }
        if !report.changes.is_empty() {
            text.push_str("configuration:\n");
        }
        for change in &report.changes {
            text.push_str(&format!("  {change}\n"));
        }
        if let Some((name, id)) = &self.timeline {
            text.push_str(&format!("it archives to its own timeline \"{name}\" ({id})\n"));
        }
        text.push_str(&format!("start it: pg_ctl start -D {}\n", self.directory.display()));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&[PROGRAM], arguments].concat())
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn one_target_at_most_and_a_directory_are_needed() {
        assert!(parse(&["-D", "d"]).is_ok());
        assert!(parse(&["-D", "d", "--lsn", "0/1"]).is_ok());
        assert!(parse(&["-D", "d", "--lsn", "0/1", "--xid", "3"]).is_err());
        assert!(parse(&["--lsn", "0/1"]).is_err());
        assert!(parse(&["-D", "d", "--time", "yesterday"]).is_err());
        assert!(parse(&["wal", "00000002.history", "pg_wal/RECOVERYHISTORY"]).is_ok());
        assert!(parse(&["wal", "00000002.history"]).is_err());
    }

    #[test]
    fn the_archive_command_names_the_timeline_by_its_id_and_survives_the_shell() {
        let settings =
            StoreOptions { store: Some("file:///it's 100%".to_owned()), ..StoreOptions::default() };
        let settings = settings.merge(crate::cli::config::ConfigFile::default()).expect("complete");
        let id = TimelineId(uuid::Uuid::nil());
        let command = archive_command(&settings, id).expect("made");
        assert!(command.contains(r"--store 'file:///it'\''s 100%%'"), "{command}");
        assert!(command.contains(&format!("--timeline-id {id} \"%p\"")), "{command}");
    }

    #[test]
    fn a_directory_that_is_not_empty_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        assert!(must_be_empty(folder.path()).is_ok());
        assert!(must_be_empty(&folder.path().join("new")).is_ok());
        std::fs::write(folder.path().join("x"), "").expect("written");
        assert!(must_be_empty(folder.path()).is_err());
    }
}
