//! How a connection begins: its transport, its first packet, and the proof of who it is.

use super::access::Access;
use super::connection::Ended;
use super::tokens::Scope;
use super::wire::{self, First, NotTheProtocol, Outgoing};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// First packets that ask for another transport: TLS, GSS, and once more.
const TRIES: u32 = 3;

/// Both directions of a client's connection, encrypted or not.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A client that has not been let in.
pub(super) struct Newcomer {
    /// Gone with a handshake of TLS that failed, or was given up.
    stream: Option<Box<dyn Socket>>,
    is_encrypted: bool,
}

impl Newcomer {
    pub(super) fn of(stream: impl Socket + 'static) -> Newcomer {
        Newcomer { stream: Some(Box::new(stream)), is_encrypted: false }
    }

    /// The connection, if there still is one.
    pub(super) fn into_stream(self) -> Option<Box<dyn Socket>> {
        self.stream
    }

    /// Agrees on the transport and reads who the client says it is. `false`: it wants nothing more.
    pub(super) async fn greet(&mut self, access: &Access) -> Result<bool, Ended> {
        for _ in 0..TRIES {
            let packet = self.packet().await?;
            match wire::first(&packet)? {
                First::Tls => self.encrypt(access).await?,
                First::Gss => self.send(b"N").await?,
                First::Cancel => return Ok(false),
                First::Startup { .. } if !self.is_encrypted && !access.allows_plain() => {
                    return Err(Ended::PlainText);
                }
                First::Startup { minor, parameters } => {
                    let unknown: Vec<&str> = parameters
                        .iter()
                        .map(|(name, _)| name.as_str())
                        .filter(|name| name.starts_with("_pq_."))
                        .collect();
                    if minor > 0 || !unknown.is_empty() {
                        self.send(&Outgoing::default().negotiate(&unknown).take()).await?;
                    }
                    return Ok(true);
                }
            }
        }
        Err(NotTheProtocol("one request for encryption after the other".to_owned()).into())
    }

    /// What the client may read: where there are tokens, it must show one.
    pub(super) async fn prove(&mut self, access: &Access) -> Result<Scope, Ended> {
        let Some(tokens) = access.tokens() else { return Ok(Scope::Cluster) };
        self.send(&Outgoing::default().ask_password().take()).await?;
        let stream = self.stream()?;
        let kind = stream.read_u8().await?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).await?;
        let mut body = vec![0; wire::length(length, wire::PASSWORD_MAX)?];
        stream.read_exact(&mut body).await?;
        tokens.scope(wire::password(kind, &body)?).ok_or(Ended::WrongToken)
    }

    /// Nothing is read ahead: bytes that follow a request for TLS can only be TLS.
    async fn packet(&mut self) -> Result<Vec<u8>, Ended> {
        let stream = self.stream()?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).await?;
        let mut body = vec![0; wire::length(length, wire::STARTUP_MAX)?];
        stream.read_exact(&mut body).await?;
        Ok(body)
    }

    async fn encrypt(&mut self, access: &Access) -> Result<(), Ended> {
        let Some(acceptor) = access.acceptor().filter(|_| !self.is_encrypted) else {
            return Ok(self.send(b"N").await?);
        };
        self.send(b"S").await?;
        let Some(stream) = self.stream.take() else { return Err(gone().into()) };
        self.stream = Some(Box::new(acceptor.accept(stream).await?));
        self.is_encrypted = true;
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let stream = self.stream()?;
        stream.write_all(bytes).await?;
        stream.flush().await
    }

    fn stream(&mut self) -> std::io::Result<&mut Box<dyn Socket>> {
        self.stream.as_mut().ok_or_else(gone)
    }
}

fn gone() -> std::io::Error {
    std::io::ErrorKind::NotConnected.into()
}
