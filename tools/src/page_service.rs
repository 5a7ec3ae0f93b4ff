//! `zenith_reader`: the page service on a Unix socket.

use crate::cli::options::SOURCES;
use crate::cli::{Settings, StoreOptions, exit, interrupt, output};
use anyhow::{Context, bail};
use clap::Parser;
use rustix::fs::Mode;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use zenith_reader::ReaderOptions;
use zenith_reader::service::source::Source;
use zenith_reader::service::{Limits, serve};
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
--follow beside it. SIGTERM and SIGINT end it with 0: what was asked for is still answered. docs/page-service.md has the
protocol.

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
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match exit::parse::<Cli>() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    exit::run(PROGRAM, exit::FAILED, || {
        let settings = cli.store.resolve()?;
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let runtime = exit::runtime(threads)?;
        let socket = cli.directory.join(format!(".s.PGSQL.{}", cli.port));
        let served = runtime.block_on(run(&settings, &socket));
        runtime.shutdown_background();
        served.map(|()| exit::DONE)
    })
}

async fn run(settings: &Settings, socket: &Path) -> anyhow::Result<()> {
    let store = settings.open_store(false)?;
    let options = ReaderOptions { env: Env::system(), ..ReaderOptions::new(std::env::temp_dir()) };
    let source = Arc::new(Source::new(store, &settings.cluster, options));
    // A store that cannot be reached, or holds no such cluster, is told now.
    if source.names().list().await?.is_empty() {
        bail!("cluster \"{}\" of {} has no timelines", settings.cluster, settings.store);
    }
    let listener = listen(socket).await.with_context(|| format!("cannot listen on {}", socket.display()))?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        let signal = interrupt::interrupted().await;
        output::say(&format!("{PROGRAM}: {signal}: answering what was asked for"));
        stop.send_replace(true);
        // Whoever listens holds a copy.
        stop.closed().await;
    });
    output::say(&format!("{PROGRAM}: listening on {}", socket.display()));
    serve(listener, source, Limits::default(), stopped).await;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", socket.display()))
        }
        _ => Ok(()),
    }
}

/// Listens on a socket that only this user can open. One that a killed service left behind is replaced; one at which somebody
/// answers is not.
async fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    match UnixStream::connect(socket).await {
        Ok(_) => bail!("somebody listens there already: choose another -p or -k"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(socket)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket);
    rustix::process::umask(before);
    Ok(listener?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[tokio::test]
    async fn a_socket_that_nobody_answers_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join(".s.PGSQL.5432");
        let first = listen(&socket).await.expect("listening");
        assert_eq!(std::fs::metadata(&socket).expect("there").permissions().mode() & 0o777, 0o600);
        let refused = listen(&socket).await.expect_err("in use").to_string();
        assert!(refused.contains("already"), "{refused}");
        drop(first);
        listen(&socket).await.expect("listening again");
    }
}
