//! Where clients come in: sockets, and how many are let in through them.

use super::access::Access;
use super::connection::{Connection, Ended};
use super::source::Source;
use super::startup::Socket;
use super::{GRACE, Limits};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

/// A pause after the system refused a connection, because it has no more file descriptors say.
const REFUSED: Duration = Duration::from_millis(100);
/// Connections that are being told that there is no place for them. Further ones are closed without a word.
const TURNED_AWAY: usize = 64;

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    /// On this machine.
    Unix(UnixListener),
    /// On the network.
    Tcp(TcpListener),
}

/// A socket, and how its clients are let in.
#[derive(Debug)]
pub struct Door {
    /// Where they connect.
    pub listener: Listener,
    /// What they must do before they may ask. Those that connect after a change go by what it is then.
    pub access: watch::Receiver<Arc<Access>>,
}

impl Door {
    /// A Unix socket, whose permissions decide who may connect.
    pub fn local(listener: UnixListener) -> Door {
        Door { listener: Listener::Unix(listener), access: watch::channel(Arc::new(Access::local())).1 }
    }
}

/// The places that all doors share.
struct Places {
    all: Arc<Semaphore>,
    /// Of these, for clients of the network that have not been let in: half of them, so that those who stall leave room.
    entering: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
}

/// What a client holds for as long as it is there.
enum Place {
    /// The second for as long as it has not been let in.
    Taken(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    TurnedAway(OwnedSemaphorePermit),
}

impl Places {
    fn take(&self, listener: &Listener) -> Option<Place> {
        let free = |semaphore: &Arc<Semaphore>| Arc::clone(semaphore).try_acquire_owned().ok();
        let entering = match listener {
            Listener::Unix(_) => Some(None),
            Listener::Tcp(_) => free(&self.entering).map(Some),
        };
        let taken = entering.and_then(|entering| Some(Place::Taken(free(&self.all)?, entering)));
        taken.or_else(|| Some(Place::TurnedAway(free(&self.turned_away)?)))
    }
}

impl Listener {
    /// The next client, and where it is.
    async fn accept(&self) -> std::io::Result<(Box<dyn Socket>, String)> {
        Ok(match self {
            Listener::Unix(listener) => (Box::new(listener.accept().await?.0), "this machine".to_owned()),
            Listener::Tcp(listener) => {
                let (stream, client) = listener.accept().await?;
                stream.set_nodelay(true)?;
                (Box::new(stream), client.to_string())
            }
        })
    }
}

/// Serves every client that connects, until `stop` says true; then connections send what they owe and end. Gives how many had
/// not done so after [`GRACE`] and were cut off.
pub async fn serve(
    doors: Vec<Door>,
    source: Arc<Source>,
    limits: Limits,
    stop: watch::Receiver<bool>,
) -> usize {
    let places = Places {
        all: Arc::new(Semaphore::new(limits.connections)),
        entering: Arc::new(Semaphore::new(limits.connections.div_ceil(2))),
        turned_away: Arc::new(Semaphore::new(TURNED_AWAY)),
    };
    let open = doors.into_iter().map(|door| open(door, &places, &source, limits, stop.clone()));
    futures::future::join_all(open).await.into_iter().sum()
}

/// Lets in the clients of one door. Gives how many were cut off.
async fn open(
    door: Door,
    places: &Places,
    source: &Arc<Source>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) -> usize {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = door.listener.accept() => accepted,
            // An error tells that nobody can stop it any more.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, client)) => {
                let Some(place) = places.take(&door.listener) else { continue };
                let access = Arc::clone(&door.access.borrow());
                let connection = Connection::new(Arc::clone(source), access, limits, stop.clone());
                connections.spawn(serve_one(Arc::clone(source), connection, stream, client, place));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                source.clock().sleep(REFUSED).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(door);
    tokio::select! {
        () = async { while connections.join_next().await.is_some() {} } => {}
        () = source.clock().sleep(GRACE) => {}
    }
    while connections.try_join_next().is_some() {}
    connections.len()
}

async fn serve_one(
    source: Arc<Source>,
    connection: Connection,
    stream: Box<dyn Socket>,
    client: String,
    place: Place,
) {
    let ended = match place {
        Place::Taken(_place, entering) => {
            let _connected = source.counted().connected();
            connection.run(stream, entering).await
        }
        Place::TurnedAway(_place) => connection.turn_away(stream).await,
    };
    if let Err(error) = &ended
        && let Some(reason) = error.refusal()
    {
        source.counted().refused(reason);
    }
    match ended {
        Ok(()) => {}
        Err(error @ Ended::WrongToken) => tracing::warn!(%client, "a client was refused: {error}"),
        Err(error) => tracing::debug!(%client, %error, "a connection ended"),
    }
}
