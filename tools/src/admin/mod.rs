//! `zenith`: looks into a store, makes branches, and ends pins.

pub mod branch;
pub mod check;
pub mod hex;
pub mod layers;
pub mod log;
pub mod page;
pub mod pin;
pub mod relation;
pub mod status;

use crate::cli::interrupt::{self, Interruptible};
use crate::cli::options::SOURCES;
use crate::cli::{StoreOptions, exit};
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use zenith_store::Env;

/// Looks into a store: what it holds, which objects, what was lost and when, single pages; proves it; makes branches.
#[derive(Parser, Debug)]
#[command(
    name = "zenith",
    version,
    after_help = format!("\
Examples:
  zenith status --store file:///srv/zenith
  zenith page --rel 5/16384 --block 0 --lsn 0/3000148

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
    /// Shows clusters, timelines, base images, how far WAL is archived and sliced, and what cannot be restored
    #[command(after_help = "\
Examples:
  zenith status --store file:///srv/zenith
  zenith status --json | jq '.clusters[].timelines[].sliced'
  zenith status --prometheus > /var/lib/prometheus/node-exporter/zenith.prom
  zenith status --max-age 10min || mail -s 'archiving has stopped' dba

A negative zenith_archive_age_seconds means that this machine's clock is behind the store's; --max-age tells that, too.

Without --cluster and --timeline everything in the store is shown.")]
    Status(status::StatusArgs),
    /// Makes, lists, deletes and renames branches
    #[command(after_help = "\
Examples:
  zenith branch
  zenith branch create test --from main --at '2026-11-22 14:02:59+01'
  zenith branch rename test prod2
  zenith branch delete prod2")]
    Branch(branch::BranchArgs),
    /// Shows and removes what keeps history for lazily restored servers
    #[command(after_help = "\
Examples:
  zenith pin list
  zenith pin end 0195c1f87e5d7c9a8a4b3f1b6c0d2e11")]
    Pin(pin::PinArgs),
    /// Lists exactly the layer objects that a manifest version names
    #[command(after_help = "\
Examples:
  zenith layers
  zenith layers --version 12 --json")]
    Layers(layers::LayersArgs),
    /// Lists what was dropped or truncated, when, and the LSN just before
    #[command(after_help = "\
Examples:
  zenith log --drops
  zenith log --drops --rel orders
  zenith_restore -D back --lsn $(zenith log --drops --rel public.orders --limit 1 --json | jq -r '.[0].before')

Tables, materialized views, sequences and databases that a committed transaction removed. \"truncated\": the relation is
there and was empty at the commit. \"rewritten\": its rows were written anew or replaced (TRUNCATE and new rows in one
transaction, VACUUM FULL, CLUSTER, REFRESH MATERIALIZED VIEW, an ALTER TABLE that rewrites); files do not tell which. Rows
that were deleted are not listed. Names are those of the moment before. The LSN before a COMMIT PREPARED lies behind the
PREPARE: a server that is restored there holds the transaction's locks until ROLLBACK PREPARED.

WAL that is not sliced yet is sliced into a temporary folder (TMPDIR), which is removed at the end, and also when SIGINT
(Ctrl-C) or SIGTERM ends the command, with exit status 1.")]
    Log(log::LogArgs),
    /// Gives one page as it was at an LSN
    #[command(after_help = "\
Examples:
  zenith page --rel 5/16384 --block 0 --lsn 0/3000148
  zenith page --rel base/5/16384 --block 7 --lsn 0/3000148 -o page.bin
  zenith page --rel 16400/5/2619/vm --block 0 --lsn 0/3000148 --explain

WAL that is not sliced yet is sliced into a temporary folder (TMPDIR), which is removed at the end, and also when SIGINT
(Ctrl-C) or SIGTERM ends the command, with exit status 1.")]
    Page(page::PageArgs),
    /// Proves that redo of the archived WAL gives the pages that the server had
    #[command(after_help = "\
Examples:
  zenith check --wal
  zenith check --wal --from 0/3000148 --to 0/5000000
  zenith check --wal --json | jq '.differences, .types'

Every record behind the end of a base image is redone for each block that it refers to: whole, as it is archived, and by
the value that the layers hold. Both must give the same page; read from the store, the page must be that page; and where
the server logged the page after the record (wal_consistency_checking), it must be the server's, but for what redo may
change (hint bits, unused space). The first differences are listed by LSN, relation and block.

Exit status: 0 no differences, 1 differences, an error, SIGINT (Ctrl-C) or SIGTERM, 2 wrong usage. No temporary files
(TMPDIR) stay behind.")]
    Check(check::CheckArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match exit::parse::<Cli>() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    exit::run("zenith", exit::FAILED, || {
        let settings = cli.store.resolve()?;
        let env = Env::system();
        match cli.command {
            Command::Status(args) => exit::runtime(2)?.block_on(status::run(&env, &settings, &args)),
            Command::Branch(args) => interrupt::run(2, async |work: &Interruptible| {
                branch::run(&env, &settings, &args, work).await
            })
            .map(|()| exit::DONE),
            Command::Pin(args) => {
                exit::runtime(2)?.block_on(pin::run(&env, &settings, &args)).map(|()| exit::DONE)
            }
            Command::Layers(args) => {
                exit::runtime(2)?.block_on(layers::run(&env, &settings, &args)).map(|()| exit::DONE)
            }
            Command::Log(args) => interrupt::run(2, async |work: &Interruptible| {
                work.unless_interrupted(log::run(&env, &settings, &args, work.scratch())).await
            })
            .map(|()| exit::DONE),
            Command::Page(args) => interrupt::run(2, async |work: &Interruptible| {
                work.unless_interrupted(page::run(&env, &settings, &args, work.scratch())).await
            })
            .map(|()| exit::DONE),
            Command::Check(args) => interrupt::run(2, async |work: &Interruptible| {
                work.unless_interrupted(check::run(&env, &settings, &args, work.scratch())).await
            }),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_the_store_stand_anywhere_around_what_is_done_with_branches() {
        for arguments in
            ["branch", "--json branch list", "branch --store file:///s create x", "branch create x --json"]
        {
            let arguments = ["zenith"].into_iter().chain(arguments.split(' '));
            assert!(Cli::try_parse_from(arguments).is_ok());
        }
    }

    #[test]
    fn a_page_needs_relation_block_and_lsn() {
        let parse = |arguments: &[&str]| Cli::try_parse_from([&["zenith", "page"], arguments].concat());
        assert!(parse(&["--rel", "5/1259", "--block", "0", "--lsn", "0/1"]).is_ok());
        assert!(parse(&["--rel", "5/1259", "--block", "0", "--lsn", "x"]).is_err());
        assert!(parse(&["--rel", "5/1259", "--lsn", "0/1"]).is_err());
        assert!(parse(&["--rel", "pg_class", "--block", "0", "--lsn", "0/1"]).is_err());
    }
}
