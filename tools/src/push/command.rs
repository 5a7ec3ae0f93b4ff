//! The command line of `zenith_push`.

use super::ahead::AHEAD_MAX;
use super::{base, wal};
use crate::cli::options::SOURCES;
use crate::cli::{Settings, StoreOptions, exit, units};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use zenith_store::Env;

/// Puts WAL files and base images of a PostgreSQL 15 server into the store.
#[derive(Parser, Debug)]
#[command(
    name = "zenith_push",
    version,
    after_help = format!("\
Examples:
  archive_command = 'zenith_push wal --store file:///srv/zenith \"%p\"'      in postgresql.conf
  zenith_push base --store file:///srv/zenith --checkpoint=fast

{SOURCES}"),
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    store: StoreOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Archives one WAL file: PostgreSQL's archive_command
    #[command(after_help = "\
Examples:
  archive_command = 'zenith_push wal --store file:///srv/zenith \"%p\"'      in postgresql.conf
  zenith_push wal --store s3://backup/pg pg_wal/000000010000000000000001

The same file again succeeds, other bytes under the same name fail and change nothing; that holds for .history,
.backup and .partial files too. History and backup files do not say which cluster they are of: global/pg_control of
the data directory around them, or of the current directory, must be of the timeline's cluster. Every failure exits with 1 within a minute and says why: PostgreSQL keeps the file
and tries again.

With --ahead N a push goes on, for 5 seconds, with up to N further segments that PostgreSQL has marked as ready,
several at a time; when their turn comes, there is nothing left to do. That is for stores that are far away, and for working
off a backlog. A record of each lies in pg_wal/archive_status until its turn; without it the segment is pushed again.")]
    Wal {
        /// Archive up to N further segments that are ready
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=AHEAD_MAX as i64))]
        ahead: u16,
        /// The file, relative to the data directory or absolute: %p
        path: PathBuf,
    },
    /// Takes a base image of a running server, or of a cleanly stopped data directory
    #[command(
        disable_help_flag = true,
        after_help = "\
Examples:
  zenith_push base --store file:///srv/zenith --checkpoint=fast
  zenith_push base --store s3://backup/pg -d 'host=db1 user=backup' --max-rate 50M
  zenith_push base --store s3://backup/pg --timeline test2 --create -h db2
  zenith_push base --store s3://backup/pg --from-dir /var/lib/postgresql/15/main

Connection options and PG* variables mean what they mean in pg_basebackup; the role needs REPLICATION. A run that
was interrupted leaves nothing that anybody reads: run it again.

Run as root with a folder store, what it makes there belongs to the folder's owner, and a folder that it creates to
--owner: archive_command writes there as the server's user."
    )]
    Base(BaseArgs),
}

/// Options of `zenith_push base`.
#[derive(Args, Debug, Clone, Default)]
pub struct BaseArgs {
    /// Connection string, as in pg_basebackup
    #[arg(short = 'd', long = "dbname", value_name = "CONNSTR")]
    pub dbname: Option<String>,
    /// Host name or directory of the server's socket
    #[arg(short = 'h', long, value_name = "HOSTNAME")]
    pub host: Option<String>,
    /// Port
    #[arg(short = 'p', long, value_name = "PORT")]
    pub port: Option<String>,
    /// Role to connect as
    #[arg(short = 'U', long, value_name = "NAME")]
    pub username: Option<String>,
    /// Never ask for a password
    #[arg(short = 'w', long, conflicts_with = "password")]
    pub no_password: bool,
    /// Ask for a password before connecting
    #[arg(short = 'W', long)]
    pub password: bool,
    /// How the server makes its starting checkpoint
    #[arg(short = 'c', long, value_enum, default_value_t = Checkpoint::Spread, value_name = "fast|spread")]
    pub checkpoint: Checkpoint,
    /// Limit the server's sending rate: kilobytes a second, or with k or M
    #[arg(short = 'r', long, value_name = "RATE", value_parser = units::parse_rate)]
    pub max_rate: Option<u32>,
    /// Read a cleanly stopped data directory instead of a server
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["dbname", "host", "port", "username", "checkpoint", "max_rate"]
    )]
    pub from_dir: Option<PathBuf>,
    /// Create the timeline that --timeline names
    #[arg(long)]
    pub create: bool,
    /// Run as root: the user that a new folder store is for [default: postgres]
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
}

/// `--checkpoint`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Checkpoint {
    /// At once.
    Fast,
    /// Over checkpoint_completion_target, PostgreSQL's default.
    #[default]
    Spread,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match exit::parse::<Cli>() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    exit::run("zenith_push", exit::FAILED, || {
        let env = Env::system();
        match cli.command {
            Command::Wal { path, ahead } => wal::run(&env, &cli.store, &path, usize::from(ahead)),
            Command::Base(args) => {
                let settings = Settings { owner: args.owner.clone(), ..cli.store.resolve()? };
                base::run(&env, &settings, &args)
            }
        }
        .map(|()| exit::DONE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["zenith_push"], arguments].concat())
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn store_options_may_stand_before_and_behind_the_command() {
        for arguments in [
            ["--store", "file:///s", "wal", "pg_wal/x"],
            ["wal", "--store", "file:///s", "pg_wal/x"],
            ["wal", "pg_wal/x", "--store", "file:///s"],
        ] {
            let cli = parse(&arguments).expect("valid");
            assert_eq!(cli.store.store.as_deref(), Some("file:///s"));
        }
    }

    #[test]
    fn base_takes_pg_basebackups_options() {
        let cli = parse(&["base", "-h", "db1", "-p", "5433", "-U", "me", "-w", "-c", "fast", "-r", "2M"]);
        let Command::Base(args) = cli.expect("valid").command else { panic!("base") };
        assert_eq!(args.host.as_deref(), Some("db1"));
        assert_eq!(args.checkpoint, Checkpoint::Fast);
        assert_eq!(args.max_rate, Some(2048));
    }

    #[test]
    fn options_that_contradict_one_another_are_wrong_usage() {
        assert!(parse(&["base", "--from-dir", "/data", "-h", "db1"]).is_err());
        assert!(parse(&["base", "-w", "-W"]).is_err());
        assert!(parse(&["base", "--max-rate", "1"]).is_err());
        assert!(parse(&["wal"]).is_err());
    }
}
