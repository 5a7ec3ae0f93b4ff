//! The command line of `zenith_restore`.

mod child;
pub(crate) mod describe;
mod lazy;

use crate::cli::interrupt::{self, Interruptible};
use crate::cli::options::SOURCES;
use crate::cli::{Session, Settings, StoreOptions, exit, output, progress, reading, time};
use crate::replay::{self, ReplayOptions, ReplayReport};
use crate::restore::config::{Host, ThisHost};
use crate::restore::layout::Owner;
use crate::restore::snapshot::SnapshotSource;
use crate::restore::tablespaces::TablespaceMapping;
use crate::restore::{self, Options, Progress, Report};
use crate::restore_wal;
use anyhow::{Context, bail};
use child::Child;
use clap::{Args, Parser, Subcommand};
use indicatif::ProgressBar;
use jiff::tz::TimeZone;
use lazy::{Keeping, Machine};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use zenith_compute_dir::Reader;
use zenith_manifest::Names;
use zenith_pgformat::{Lsn, Xid};
use zenith_reader::{Resolved, Target};
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
  zenith_restore -D data --time '2026-11-22 14:02:59+01' --lazy
  restore_command = 'zenith_restore wal --store file:///srv/zenith %f \"%p\"'

Every page is written as it was at the target, so that the server starts with pg_ctl start and replays nothing. The
directory is on a PostgreSQL timeline of its own and archives nowhere, unless --as gives it a timeline to archive to.
A restore that fails, or is ended by SIGINT (Ctrl-C) or SIGTERM, exits with 1 and leaves nothing behind: no directory,
no temporary files, no name of --as.

With --lazy relations are sparse files, however large they are, and the server asks a zenith_reader for a page when it is
touched, and for all others in the background. The LSN must be sliced. A pin in the store keeps its history: zenith pin end,
once all pages are there, which the server's log tells, or the server is gone.

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
    /// Write no pages of relations: the server fetches each from the store when it is touched
    #[arg(long, conflicts_with = "replay")]
    pub lazy: bool,
    /// With --lazy: the page service to fetch from [default: one of the server's own, which it starts]
    #[arg(long, value_name = "URL", requires = "lazy", value_parser = lazy::parse_reader)]
    pub reader: Option<Reader>,
    /// With --lazy: do not keep the LSN's history in the store; it may be collected before all pages are fetched
    #[arg(long, requires = "lazy")]
    pub no_pin: bool,
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
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    if args.replay {
        let replay = async |work: &Interruptible| replay(&env, &settings, args, work).await;
        let (directory, report) = interrupt::run(threads, replay)?;
        return if settings.json {
            output::json(&report)
        } else {
            output::line(describe::replayed(&directory, &report).trim_end())
        };
    }
    let restore = async |work: &Interruptible| restore(&env, &settings, args, work).await;
    let restored = interrupt::run(threads, restore)?;
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

/// Finds the target, says what it is, and writes the directory. Ended by a signal or by a failure, it leaves nothing behind.
pub async fn restore(
    env: &Env,
    settings: &Settings,
    args: &RestoreArgs,
    interruptible: &Interruptible,
) -> anyhow::Result<Restored> {
    let started = env.clock.elapsed();
    let place = Place::of(args)?;
    let machine = args.lazy.then(|| Machine::find(settings, args.reader.as_ref())).transpose()?;
    let session = Session::open(env, settings, false)?;
    let keeping = (args.lazy && !args.no_pin).then(|| Keeping::new(&session));
    let bar = progress::bytes("restoring", 0);
    let child = match &args.as_name {
        Some(name) => Some(interruptible.unless_interrupted(Child::new(&session, name)).await?),
        None => None,
    };
    let scratch = interruptible.scratch();
    let how =
        How { place: &place, child: child.as_ref(), machine: machine.as_ref(), keeping: keeping.as_ref() };
    let work = restore_to(&how, &session, settings, args, scratch, &bar);
    let done = interruptible.unless_interrupted(work).await;
    bar.finish_and_clear();
    let (resolved, report) = match done {
        Ok(done) => done,
        Err(failure) => return Err(how.give_up(interruptible, &session.names, failure).await),
    };
    let seconds = env.clock.elapsed().saturating_sub(started).as_secs_f64();
    let timeline = child.map(|child| (child.name, child.id));
    Ok(Restored { directory: place.directory, resolved, report, timeline, seconds })
}

/// What a restore writes, and what it makes in the store.
struct How<'a> {
    place: &'a Place,
    child: Option<&'a Child>,
    machine: Option<&'a Machine>,
    keeping: Option<&'a Keeping>,
}

impl How<'_> {
    /// Takes back what was made in the store.
    async fn give_up(&self, work: &Interruptible, names: &Names, failure: anyhow::Error) -> anyhow::Error {
        let failure = match self.keeping {
            Some(keeping) => keeping.give_up(work, names, failure).await,
            None => failure,
        };
        match self.child {
            Some(child) => child.give_up(work, names, failure).await,
            None => failure,
        }
    }
}

/// Where a restore goes: known, and found free, before anything is read from the store.
struct Place {
    directory: PathBuf,
    tablespaces: Vec<TablespaceMapping>,
    owner: Option<Owner>,
}

impl Place {
    fn of(args: &RestoreArgs) -> anyhow::Result<Place> {
        let directory = args.directory.clone().context("-D is missing")?;
        let mappings = args.tablespace_mapping.iter().map(|text| TablespaceMapping::parse(text));
        let tablespaces =
            mappings.collect::<anyhow::Result<Vec<_>>>().map_err(|error| exit::Usage(error.to_string()))?;
        let owner = Owner::for_process(&args.owner)?;
        must_be_empty(&directory)?;
        Ok(Place { directory, tablespaces, owner })
    }
}

async fn restore_to(
    how: &How<'_>,
    session: &Session,
    settings: &Settings,
    args: &RestoreArgs,
    scratch: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<(Resolved, Report)> {
    let mut timeline = reading::open_whole(session, settings, scratch).await?;
    let target = target(args);
    let up_to = if let Target::Lsn(lsn) = target { Some(lsn) } else { None };
    let stored = timeline.clone();
    let warmed = stored.warm(up_to);
    let resolved = async {
        reading::slice_what_is_not(&mut timeline, up_to).await?;
        anyhow::Ok(timeline.resolve(&target).await?)
    };
    let (resolved, warmed) = futures::join!(resolved, warmed);
    if let Err(error) = warmed {
        tracing::debug!(%error, "reading ahead failed");
    }
    let resolved = resolved?;
    output::say(&describe::target(&resolved));
    let snapshot = timeline.snapshot(resolved.lsn).await?;
    let source = SnapshotSource::new(snapshot.clone(), resolved.last_record).await?;
    let lazy = match how.machine {
        Some(machine) => Some(lazy::lazy(machine, how.keeping, session, &stored, resolved.lsn).await?),
        None => None,
    };
    let now = session.env.clock.now().duration_since(UNIX_EPOCH);
    let options = Options {
        target: how.place.directory.clone(),
        tablespaces: how.place.tablespaces.clone(),
        owner: how.place.owner,
        sync: true,
        parallel: PARALLEL,
        tli: None,
        reason: format!("restored by zenith from timeline {}", timeline.id()),
        archive_command: how.child.map(|child| archive_command(settings, child.id)).transpose()?,
        lazy,
        host: Arc::new(ThisHost::new(crate::cli::postgres::library_directory())) as Arc<dyn Host>,
        now: now.map_or(0, |time| time.as_secs().cast_signed()),
    };
    let shown = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    if let Some(child) = how.child {
        child.make(&session.names, &snapshot, &resolved).await?;
    }
    let report = restore::write_directory(&source, &options, &shown).await?;
    Ok((resolved, report))
}

/// Finds the target and writes the newest base image before it, with recovery set up to end there. Ended by a signal or by a
/// failure, it leaves nothing behind.
pub async fn replay(
    env: &Env,
    settings: &Settings,
    args: &RestoreArgs,
    interruptible: &Interruptible,
) -> anyhow::Result<(PathBuf, ReplayReport)> {
    let place = Place::of(args)?;
    let session = Session::open(env, settings, false)?;
    let bar = progress::bytes("writing the base image", 0);
    let work = replay_to(&place, &session, settings, args, interruptible.scratch(), &bar);
    let done = interruptible.unless_interrupted(work).await;
    bar.finish_and_clear();
    Ok((place.directory, done?))
}

async fn replay_to(
    place: &Place,
    session: &Session,
    settings: &Settings,
    args: &RestoreArgs,
    scratch: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<ReplayReport> {
    let mut timeline = reading::open_in(session, settings, scratch).await?;
    let target = target(args);
    let up_to = if let Target::Lsn(lsn) = target { Some(lsn) } else { None };
    reading::slice_what_is_not(&mut timeline, up_to).await?;
    let resolved = timeline.resolve(&target).await?;
    output::say(&describe::target(&resolved));
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
        target: place.directory.clone(),
        tablespaces: place.tablespaces.clone(),
        owner: place.owner,
        host: Arc::new(ThisHost::new(crate::cli::postgres::library_directory())) as Arc<dyn Host>,
        restore_command: command_line("zenith_restore", settings, timeline.id(), "%f \"%p\"")?,
        recovery_target,
    };
    let shown = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    replay::write_base_image(Arc::clone(&session.store.objects), &home, &base, &options, &shown).await
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
