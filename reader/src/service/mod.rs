//! The page service: pages, sizes and existence of relations at any LSN, over a connection that speaks PostgreSQL's wire
//! protocol (docs/page-service.md).
//!
//! [`pagestream`] (a crate of its own, for clients) and [`wire`] are the formats, without I/O; [`source`] opens timelines and
//! snapshots and keeps them; `answer` makes the answer to one request; [`connection`] serves one client; [`serve`] accepts
//! them.

mod answer;
pub mod connection;
mod query;
pub mod source;
mod startup;
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
pub const GRACE: Duration = Duration::from_secs(10);
/// A pause after the system refused a connection, because it has no more file descriptors say.
const REFUSED: Duration = Duration::from_millis(100);
/// Connections that are being told that there is no place for them. Further ones are closed without a word.
const TURNED_AWAY: usize = 64;

/// How much a service takes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections at a time; further ones are refused.
    pub connections: usize,
    /// Blocks that one connection may have asked for and not yet taken, 8 KB each; twice that while they are written.
    pub blocks: u32,
    /// Requests of one connection that are worked on at the same time.
    pub working: usize,
}

impl Default for Limits {
    /// 1,024 connections, as a server has one for each of its processes, of 4 MB, and of half the requests that a [`Source`] works on
    /// at the same time.
    fn default() -> Limits {
        Limits { connections: 1024, blocks: 512, working: source::WORKING / 2 }
    }
}

/// Serves every client that connects, until `stop` says true; then connections send what they owe and end. Gives how many had
/// not done so after [`GRACE`] and were cut off.
pub async fn serve(
    listener: UnixListener,
    source: Arc<Source>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) -> usize {
    let (places, turned_away) =
        (Arc::new(Semaphore::new(limits.connections)), Arc::new(Semaphore::new(TURNED_AWAY)));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // An error tells that nobody can stop it any more.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = Connection::new(Arc::clone(&source), limits, stop.clone());
                let place = Arc::clone(&places).try_acquire_owned();
                let Ok(held) = place.or_else(|_| Arc::clone(&turned_away).try_acquire_owned()) else {
                    continue;
                };
                let is_full = Arc::ptr_eq(held.semaphore(), &turned_away);
                connections.spawn(async move {
                    let ended = if is_full {
                        connection.turn_away(stream).await
                    } else {
                        connection.run(stream).await
                    };
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended");
                    }
                    drop(held);
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
    tokio::select! {
        () = async { while connections.join_next().await.is_some() {} } => {}
        () = source.clock().sleep(GRACE) => {}
    }
    while connections.try_join_next().is_some() {}
    connections.len()
}
