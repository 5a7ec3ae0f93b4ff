//! `zenith_reader`: the page service on a Unix socket.

mod postmaster;
mod socket;

use crate::cli::options::SOURCES;
use crate::cli::{Settings, StoreOptions, exit, interrupt, output};
use anyhow::{Context, bail};
use clap::Parser;
use postmaster::Postmaster;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket::Socket;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::watch;
use zenith_reader::ReaderOptions;
use zenith_reader::service::source::Source;
use zenith_reader::service::{GRACE, Limits, serve};
use zenith_store::Env;

const PROGRAM: &str = "zenith_reader";

/// Serves pages of relations at any LSN.
#[derive(Parser, Debug)]
#[command(
    name = PROGRAM,
    version,
    after_help = format!("\
Examples:
  zenith_reader --store s3://bucket/prefix -k /run/zenith
  psql -h /run/zenith -c 'SHOW timelines'

It listens on DIR/.s.PGSQL.PORT, as PostgreSQL does, and lets in who may open that socket: its own user. One service
serves every timeline of a cluster, and only reads. WAL that is not sliced yet is not served: run zenith_slicedice
--follow beside it. SIGTERM and SIGINT end it: what was asked for is still answered, for ten seconds at most (exit status 1
tells that somebody did not take it in that time). docs/page-service.md has the protocol.

{SOURCES}")
)]
struct Cli {
    #[command(flatten)]
    store: StoreOptions,
    /// The directory of the socket
    #[arg(short = 'k', long = "socket-dir", value_name = "DIR")]
    directory: PathBuf,
    /// The number in the socket's name
    #[arg(short, long, value_name = "PORT", default_value_t = 5432)]
    port: u16,
    /// End when the PostgreSQL server that runs on this data directory does
    #[arg(long, value_name = "DIR")]
    postmaster: Option<PathBuf>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match exit::parse::<Cli>() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    exit::run(PROGRAM, exit::FAILED, || {
        open_many_files();
        let settings = cli.store.resolve()?;
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let runtime = exit::runtime(threads)?;
        let served = runtime.block_on(run(&settings, &cli));
        runtime.shutdown_background();
        served.map(|()| exit::DONE)
    })
}

/// Each connection is a file. What many systems let a process have without asking is less than there may be connections.
fn open_many_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "as many files as before may be open");
    }
}

async fn run(settings: &Settings, cli: &Cli) -> anyhow::Result<()> {
    // From here on a signal, or the server's end, ends it in order.
    let signals = interrupt::Signals::listen().context("cannot listen to signals")?;
    let postmaster = cli.postmaster.as_deref().map(Postmaster::of).transpose()?;
    let store = settings.open_store(false)?;
    let options = ReaderOptions { env: Env::system(), ..ReaderOptions::new(std::env::temp_dir()) };
    let source = Arc::new(Source::new(store, &settings.cluster, options));
    // A store that cannot be reached, or holds no such cluster, is told now.
    if source.names().list().await?.is_empty() {
        bail!("cluster \"{}\" of {} has no timelines", settings.cluster, settings.store);
    }
    let (socket, listener) = Socket::listen(&cli.directory, cli.port).await?;
    let (stop, stopped) = watch::channel(false);
    output::say(&format!("{PROGRAM}: listening on {}", socket.path().display()));
    tokio::spawn(stop_at_end(signals, postmaster, socket, stop));
    match serve(listener, source, Limits::default(), stopped).await {
        0 => Ok(()),
        left => bail!(
            "{left} clients had not taken their answers after {} seconds and were cut off",
            GRACE.as_secs()
        ),
    }
}

/// Stops the service once a signal comes or the server that it is for ends.
async fn stop_at_end(
    mut signals: interrupt::Signals,
    postmaster: Option<Postmaster>,
    socket: Socket,
    stop: watch::Sender<bool>,
) {
    let server_ends = async {
        match &postmaster {
            Some(postmaster) => postmaster.ended().await,
            None => std::future::pending().await,
        }
    };
    let why = tokio::select! {
        interrupted = signals.next() => interrupted.signal,
        () = server_ends => "the server has ended",
    };
    output::say(&format!("{PROGRAM}: {why}: answering what was asked for"));
    // Before anybody stops listening: a successor's socket is never taken away.
    drop(socket);
    stop.send_replace(true);
    // Whoever listens holds a copy.
    stop.closed().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
