//! How a connection begins.

use super::connection::{Ended, Peer};
use super::wire::{self, First, NotTheProtocol, Outgoing};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// First packets that ask for another transport: TLS, GSS, and once more.
const TRIES: u32 = 3;

/// Lets a client in; the socket's permissions have decided who may. `false`: it wants nothing more.
pub(super) async fn begin<R, W>(peer: &mut Peer<R, W>) -> Result<bool, Ended>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    for _ in 0..TRIES {
        let mut length = [0; 4];
        peer.read.read_exact(&mut length).await?;
        let mut body = vec![0; wire::length(length, wire::STARTUP_MAX)?];
        peer.read.read_exact(&mut body).await?;
        match wire::first(&body)? {
            First::Encryption => peer.send(b"N").await?,
            First::Startup { minor, parameters } => {
                let unknown: Vec<&str> = parameters
                    .iter()
                    .map(|(name, _)| name.as_str())
                    .filter(|name| name.starts_with("_pq_."))
                    .collect();
                if minor > 0 || !unknown.is_empty() {
                    peer.send(&Outgoing::default().negotiate(&unknown).take()).await?;
                }
                return Ok(true);
            }
            First::Cancel => return Ok(false),
        }
    }
    Err(NotTheProtocol("one request for encryption after the other".to_owned()).into())
}
