//! The page service: pages, sizes and existence of relations at any LSN, over a connection that speaks PostgreSQL's wire
//! protocol (docs/page-service.md).
//!
//! [`pagestream`] (a crate of its own, for clients) and [`wire`] are the formats, without I/O; [`source`] opens timelines and snapshots and keeps them;
//! [`connection`] serves one client; [`serve`] accepts them.

mod answer;
pub mod connection;
mod query;
pub mod source;
pub mod wire;

pub use zenith_page_protocol::pagestream;

use connection::Connection;
use source::Source;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// How long connections may take to end when the service stops: answers that are being made are still sent.
const GRACE: Duration = Duration::from_secs(10);
/// A pause after the system refused a connection, because it has no more file descriptors say.
const REFUSED: Duration = Duration::from_millis(100);

/// How much a service takes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections at a time; further ones wait to be accepted.
    pub connections: usize,
    /// Blocks that one connection may have asked for and not yet taken, 8 KB each; twice that while they are written.
    pub blocks: u32,
}

impl Default for Limits {
    /// 64 connections of 8 MB.
    fn default() -> Limits {
        Limits { connections: 64, blocks: 512 }
    }
}

/// Serves every client that connects, until `stop` says true; then connections send what they owe and end.
pub async fn serve(
    listener: UnixListener,
    source: Arc<Source>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            // An error tells that nobody can stop it any more.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = Connection::new(Arc::clone(&source), limits.blocks, stop.clone());
                connections.spawn(async move {
                    if let Err(error) = connection.run(stream).await {
                        tracing::debug!(%error, "a connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                source.clock().sleep(REFUSED).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        () = ended => {}
        () = source.clock().sleep(GRACE) => {}
    }
}
