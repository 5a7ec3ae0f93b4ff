//! A network between a command and the store: TLS, a time for every round trip, and a count of the requests.
//!
//! What is between is a socket whose bytes arrive half a round trip later, in both directions, TLS handshakes included; a
//! connection takes a round trip before its first byte. Behind it TLS ends, and the requests go on to the store in plain
//! HTTP/1.1. Bandwidth is not limited.

#![allow(clippy::disallowed_methods, reason = "what is imitated here is the time that a network takes")]

use anyhow::Context;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// Chunks under way in one direction: 16 MiB.
const UNDER_WAY: usize = 256;

/// Requests and the bytes of their bodies, both since the proxy began.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    requests: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// Requests, bytes to the store, bytes from it.
    pub(crate) fn read(&self) -> [u64; 3] {
        [&self.requests, &self.sent, &self.received].map(|count| count.load(Ordering::Relaxed))
    }
}

/// A running proxy. It ends with the process.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What went through.
    pub(crate) traffic: Arc<Traffic>,
}

/// The authority that all proxies of this process are certified by.
pub(crate) struct Authority {
    config: Arc<ServerConfig>,
    /// Its certificate, for those who ask.
    pub(crate) file: PathBuf,
}

impl Authority {
    /// A new one, its certificate in `directory`.
    pub(crate) fn new(directory: &Path) -> anyhow::Result<Authority> {
        let key = rcgen::KeyPair::generate()?;
        let mut root = rcgen::CertificateParams::new(Vec::<String>::new())?;
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        root.distinguished_name.push(rcgen::DnType::CommonName, "zenith-bench");
        let certificate = root.self_signed(&key)?;
        let issuer = rcgen::Issuer::new(root, key);
        let server_key = rcgen::KeyPair::generate()?;
        let server = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        let server = server.signed_by(&server_key, &issuer)?;
        let file = directory.join("authority.pem");
        std::fs::write(&file, certificate.pem()).context("the authority's certificate")?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![server.der().clone()], key)
            .context("the proxy's certificate")?;
        Ok(Authority { config: Arc::new(config), file })
    }
}

impl Proxy {
    /// Starts one before the server at `store`.
    pub(crate) async fn start(
        authority: &Authority,
        store: SocketAddr,
        round_trip: Duration,
    ) -> anyhow::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a port")?;
        let address = listener.local_addr()?;
        let (traffic, tls) = (Arc::<Traffic>::default(), TlsAcceptor::from(Arc::clone(&authority.config)));
        let counted = Arc::clone(&traffic);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (tls, traffic) = (tls.clone(), Arc::clone(&counted));
                // A connection that breaks off is the client's affair.
                tokio::spawn(async move { drop(relay(client, store, round_trip, &tls, traffic).await) });
            }
        });
        Ok(Proxy { address, traffic })
    }
}

async fn relay(
    client: TcpStream,
    store: SocketAddr,
    round_trip: Duration,
    tls: &TlsAcceptor,
    traffic: Arc<Traffic>,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let server = TcpStream::connect(store).await?;
    server.set_nodelay(true)?;
    let client = if round_trip.is_zero() {
        Box::new(client) as Box<dyn Socket>
    } else {
        sleep(round_trip).await;
        Box::new(far_away(client, round_trip / 2))
    };
    let (from_client, to_client) = tokio::io::split(tls.accept(client).await?);
    let (from_server, to_server) = server.into_split();
    let counted = Arc::clone(&traffic);
    let mut requests = Requests::default();
    let up = copy(from_client, to_server, move |bytes| {
        traffic.requests.fetch_add(requests.count(bytes), Ordering::Relaxed);
        traffic.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    });
    let down = copy(from_server, to_client, move |bytes| {
        counted.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    });
    tokio::try_join!(up, down)?;
    Ok(())
}

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut seen: impl FnMut(&[u8]),
) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await;
        };
        seen(bytes);
        to.write_all(bytes).await?;
        to.flush().await?;
    }
}

/// The same socket, seen from so far away.
fn far_away(near: TcpStream, way: Duration) -> DuplexStream {
    let (far, end) = tokio::io::duplex(CHUNK);
    let (from_near, to_near) = near.into_split();
    let (from_end, to_end) = tokio::io::split(end);
    tokio::spawn(later(from_near, to_end, way));
    tokio::spawn(later(from_end, to_near, way));
    far
}

async fn later(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin,
    way: Duration,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let arrives = Instant::now() + way;
            if sender.send((arrives, buffer.get(..length).unwrap_or_default().to_vec())).await.is_err() {
                break;
            }
        }
    });
    while let Some((arrives, bytes)) = receiver.recv().await {
        sleep_until(arrives).await;
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    drop(to.shutdown().await);
}

/// Finds the beginnings of HTTP/1.1 requests in a stream of them; bodies have a `content-length`.
#[derive(Debug, Default)]
struct Requests {
    head: Vec<u8>,
    body: u64,
}

impl Requests {
    /// How many heads end in these bytes.
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut found = 0;
        while !bytes.is_empty() {
            if self.body > 0 {
                let skipped = usize::try_from(self.body).unwrap_or(usize::MAX).min(bytes.len());
                self.body -= skipped as u64;
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            let (byte, rest) = (bytes[0], &bytes[1..]);
            self.head.push(byte);
            bytes = rest;
            if self.head.ends_with(b"\r\n\r\n") {
                found += 1;
                self.body = content_length(&self.head);
                self.head.clear();
            }
        }
        found
    }
}

fn content_length(head: &[u8]) -> u64 {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let value = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_wherever_the_stream_is_cut() {
        let stream =
            b"PUT /a HTTP/1.1\r\nContent-Length: 7\r\n\r\nGET \r\n\rGET /b HTTP/1.1\r\nhost: x\r\n\r\n";
        for cut in 0..=stream.len() {
            let mut requests = Requests::default();
            assert_eq!(requests.count(&stream[..cut]) + requests.count(&stream[cut..]), 2, "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn what_is_sent_arrives_whole_in_order_and_no_earlier_than_the_way_takes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut other, _) = listener.accept().await.unwrap();
        let way = Duration::from_millis(30);
        let mut far = far_away(near, way);
        let sent: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        let begun = Instant::now();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            other.write_all(&sent).await.unwrap();
            other.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert!(begun.elapsed() >= way);
        assert!(received == expected);
        writing.await.unwrap();
    }
}
