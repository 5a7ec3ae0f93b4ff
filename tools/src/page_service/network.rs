//! The page service on the network: TLS and tokens, unless they are given up by name.

use super::{secret, tcp};
use crate::cli::exit::Usage;
use crate::cli::output;
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use zenith_reader::service::access::{Access, Tls};
use zenith_reader::service::tokens::Tokens;
use zenith_reader::service::{Door, Listener};

#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkOptions {
    /// Listen for TCP connections on these addresses, too; * for all of this machine's
    #[arg(long, value_name = "HOST[,HOST]", value_delimiter = ',')]
    listen_addresses: Vec<String>,
    /// The certificate of TLS, followed by those that lead to its authority (PEM)
    #[arg(long, value_name = "FILE", requires = "listen_addresses", requires = "ssl_key_file")]
    ssl_cert_file: Option<PathBuf>,
    /// Its private key (PEM, without a passphrase), which nobody else may read
    #[arg(long, value_name = "FILE", requires = "ssl_cert_file")]
    ssl_key_file: Option<PathBuf>,
    /// The tokens that TCP clients give as passwords, one a line; nobody else may read it
    #[arg(long, value_name = "FILE", requires = "listen_addresses", conflicts_with = "no_tokens")]
    token_file: Option<PathBuf>,
    /// Let in whoever can connect to the TCP addresses
    #[arg(long, requires = "listen_addresses")]
    no_tokens: bool,
    /// Serve TCP clients without TLS as well, on a network where nobody else is; needs --no-tokens: a token is never
    /// asked for in plain text
    #[arg(long, requires = "no_tokens")]
    plain_text: bool,
}

/// What the service listens on, and what its clients must show.
pub(super) struct Network {
    options: NetworkOptions,
    cluster: String,
    /// `host:port` of each.
    pub(super) addresses: Vec<String>,
    pub(super) doors: Vec<Door>,
    access: watch::Sender<Arc<Access>>,
}

impl NetworkOptions {
    /// What clients must show, from the files. `None`: no address is named.
    ///
    /// # Errors
    /// What is wrong with the options, or the files.
    pub(super) fn read(&self, cluster: &str) -> anyhow::Result<Option<Access>> {
        if self.listen_addresses.is_empty() { Ok(None) } else { self.access(cluster).map(Some) }
    }

    /// Listens.
    pub(super) async fn open(&self, access: Access, cluster: &str, port: u16) -> anyhow::Result<Network> {
        let access = watch::Sender::new(Arc::new(access));
        let (mut addresses, mut doors) = (Vec::new(), Vec::new());
        for host in &self.listen_addresses {
            for listener in tcp::listen_on(host, port).await? {
                addresses.push(listener.local_addr()?.to_string());
                doors.push(Door { listener: Listener::Tcp(listener), access: access.subscribe() });
            }
        }
        Ok(Network { options: self.clone(), cluster: cluster.to_owned(), addresses, doors, access })
    }

    fn access(&self, cluster: &str) -> anyhow::Result<Access> {
        let tls = match (&self.ssl_cert_file, &self.ssl_key_file) {
            (Some(certificates), Some(key)) => Some(tls(certificates, key)?),
            _ => None,
        };
        let tokens = self.token_file.as_deref().map(|file| tokens(file, cluster)).transpose()?;
        match (tls, tokens) {
            (tls, None) if self.plain_text => Ok(Access::open(tls)),
            (Some(tls), None) if self.no_tokens => Ok(Access::tls(tls, None)),
            (Some(tls), Some(tokens)) => Ok(Access::tls(tls, Some(tokens))),
            (None, _) => Err(Usage(
                "no certificate is named for --listen-addresses: give --ssl-cert-file and --ssl-key-file, or, on a \
                 network where nobody else is, --plain-text --no-tokens"
                    .to_owned(),
            )
            .into()),
            (Some(_), None) => Err(Usage(
                "no tokens are named for --listen-addresses: give --token-file, or let in whoever connects with \
                 --no-tokens"
                    .to_owned(),
            )
            .into()),
        }
    }
}

impl Network {
    /// Reads the files anew at each SIGHUP, for clients that connect from then on; in a runtime, for as long as it is polled.
    pub(super) fn reload_at_hangup(&self) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let mut hangups = signal(SignalKind::hangup()).context("cannot listen to signals")?;
        let (options, cluster, access) = (self.options.clone(), self.cluster.clone(), self.access.clone());
        Ok(async move {
            while hangups.recv().await.is_some() {
                match options.access(&cluster) {
                    Ok(anew) => {
                        access.send_replace(Arc::new(anew));
                        output::say("zenith_reader: SIGHUP: certificate, key and tokens were read anew");
                    }
                    Err(error) => {
                        let kept = "what was read before stays in use";
                        output::say(&format!("zenith_reader: SIGHUP: {error:#}; {kept}"));
                    }
                }
            }
        })
    }
}

fn tls(certificates: &Path, key: &Path) -> anyhow::Result<Tls> {
    let content = secret::read_public(certificates)?;
    let tls = Tls::new(&content, &secret::read(key)?);
    tls.with_context(|| format!("{} and {}", certificates.display(), key.display()))
}

fn tokens(file: &Path, cluster: &str) -> anyhow::Result<Tokens> {
    let parsing = || {
        let content = secret::read(file)?;
        let text = str::from_utf8(&content).context("it is no text in UTF-8")?;
        Ok::<_, anyhow::Error>(Tokens::parse(text, cluster)?)
    };
    parsing().with_context(|| format!("token file {}", file.display()))
}
