//! `zenith_reader`: the page service on a Unix socket and on the network.

mod monitor;
mod network;
mod postmaster;
mod secret;
mod socket;
mod tcp;

use crate::cli::exit::Usage;
use crate::cli::options::SOURCES;
use crate::cli::{Settings, StoreOptions, exit, interrupt, output};
use anyhow::{Context, bail};
use clap::Parser;
use network::NetworkOptions;
use postmaster::Postmaster;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket::Socket;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::watch;
use zenith_reader::ReaderOptions;
use zenith_reader::service::source::Source;
use zenith_reader::service::{Door, GRACE, Limits, serve};
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
  zenith_reader --store s3://bucket/prefix --listen-addresses '*' \\
      --ssl-cert-file server.crt --ssl-key-file server.key --token-file tokens
  psql -d 'host=pages.example.com sslmode=verify-full sslrootcert=ca.crt' -c 'SHOW timelines'

On a Unix socket it listens on DIR/.s.PGSQL.PORT, as PostgreSQL does, and lets in who may open that: its own user.
TCP clients use TLS and give a token as their password, unless the options say otherwise. The token file has one line
for each token: TOKEN CLUSTER, or TOKEN CLUSTER TIMELINE where it opens one timeline only, by its name or id; openssl
rand -hex 32 makes tokens. Like the key it must be readable by its owner alone (0600; 0640 if that is root). SIGHUP
reads certificate, key and tokens anew, for clients that connect from then on.

One service serves every timeline of a cluster, and only reads. WAL that is not sliced yet is not served: run
zenith_slicedice --follow beside it. SIGTERM and SIGINT end it: what was asked for is still answered, for ten seconds at
most (exit status 1 tells that somebody did not take it in that time). docs/page-service.md has the protocol, and
what --metrics tells.

{SOURCES}")
)]
struct Cli {
    /// The directory of the Unix socket
    #[arg(
        short = 'k',
        long = "socket-dir",
        value_name = "DIR",
        required_unless_present = "listen_addresses"
    )]
    directory: Option<PathBuf>,
    /// The TCP port, and the number in the Unix socket's name; without -k, 0 is any port that is free
    #[arg(short, long, value_name = "PORT", default_value_t = 5432)]
    port: u16,
    /// End when the PostgreSQL server that runs on this data directory does
    #[arg(long, value_name = "DIR")]
    postmaster: Option<PathBuf>,
    /// Serve metrics for Prometheus on http://HOST:PORT/metrics, to whoever can connect there
    #[arg(long, value_name = "HOST:PORT", value_parser = monitor::address)]
    metrics: Option<monitor::Address>,
    #[command(flatten)]
    network: NetworkOptions,
    #[command(flatten)]
    store: StoreOptions,
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
    if cli.port == 0 && cli.directory.is_some() {
        let message =
            "-p 0 is any TCP port that is free, and no Unix socket has that number: give another, or no -k";
        return Err(Usage(message.to_owned()).into());
    }
    let access = cli.network.read(&settings.cluster)?;
    let store = settings.open_store(false)?;
    let options = ReaderOptions { env: Env::system(), ..ReaderOptions::new(std::env::temp_dir()) };
    let source = Arc::new(Source::new(&store, &settings.cluster, options));
    // A store that cannot be reached, or holds no such cluster, is told now.
    if source.names().list().await?.is_empty() {
        bail!("cluster \"{}\" of {} has no timelines", settings.cluster, settings.store);
    }
    let (mut doors, mut names) = (Vec::new(), Vec::new());
    let socket = match &cli.directory {
        Some(directory) => {
            let (socket, listener) = Socket::listen(directory, cli.port).await?;
            doors.push(Door::local(listener));
            names.push(socket.path().display().to_string());
            Some(socket)
        }
        None => None,
    };
    if let Some(access) = access {
        let mut network = cli.network.open(access, &settings.cluster, cli.port).await?;
        doors.append(&mut network.doors);
        names.append(&mut network.addresses);
        tokio::spawn(network.reload_at_hangup()?);
    }
    if let Some(address) = &cli.metrics {
        names.append(&mut monitor::serve(address, &source).await?);
    }
    let (stop, stopped) = watch::channel(false);
    output::say(&format!("{PROGRAM}: listening on {}", names.join(", ")));
    tokio::spawn(stop_at_end(signals, postmaster, socket, stop));
    match serve(doors, source, Limits::default(), stopped).await {
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
    socket: Option<Socket>,
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
