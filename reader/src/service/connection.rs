//! One client: questions one after the other, then a page stream, whose answers come as they are ready.

use super::Limits;
use super::access::Access;
use super::answer::{answer, sqlstate, sqlstate_of_denied};
use super::pagestream::{Malformed, Request};
use super::query::{self, Query};
use super::source::Source;
use super::startup::{Newcomer, Socket};
use super::tokens::Scope;
use super::wire::{self, Message, NotTheProtocol, Outgoing, Severity};
use bytes::Bytes;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use zenith_store::TimelineId;

/// How long a client may take until it has said who it is.
const STARTUP: Duration = Duration::from_secs(10);
/// How long a client may take until it has read the last words.
const CLOSING: Duration = Duration::from_secs(5);
/// How long a client that showed a wrong token waits until it is told.
const WRONG_TOKEN: Duration = Duration::from_secs(1);
/// Answers that are put together into one write.
const WRITTEN_TOGETHER: usize = 64;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The client is gone, or its connection broke.
    #[error(transparent)]
    Broken(#[from] std::io::Error),
    /// It does not speak the protocol.
    #[error(transparent)]
    NotTheProtocol(#[from] NotTheProtocol),
    /// It does not speak the page stream's.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It did not begin in time.
    #[error("the client did not say who it is within {STARTUP:?}")]
    Silent,
    /// It does not use TLS where it must.
    #[error("this service takes TLS connections only: connect with sslmode=verify-full or require")]
    PlainText,
    /// What it gave as its password is no token of this service's cluster.
    #[error("the password is no token of this service: give one from its token file, for its cluster")]
    WrongToken,
    /// There was no place for it.
    #[error("the service has as many connections as it takes")]
    Full,
    /// The service stops.
    #[error("the page service stops")]
    Stopped,
}

impl Ended {
    /// What [`Ended::refusal`] may say.
    pub(super) const REFUSALS: [&'static str; 4] = ["silent", "plain_text", "wrong_token", "full"];

    /// Why it was not let in, in a word, if it was not.
    pub(super) fn refusal(&self) -> Option<&'static str> {
        match self {
            Ended::Silent => Some("silent"),
            Ended::PlainText => Some("plain_text"),
            Ended::WrongToken => Some("wrong_token"),
            Ended::Full => Some("full"),
            Ended::Broken(_) | Ended::NotTheProtocol(_) | Ended::Malformed(_) | Ended::Stopped => None,
        }
    }

    /// What the client is told, if it can be told anything.
    fn sqlstate(&self) -> Option<&'static str> {
        match self {
            Ended::Broken(_) | Ended::Silent => None,
            // invalid_authorization_specification, invalid_password
            Ended::PlainText => Some("28000"),
            Ended::WrongToken => Some("28P01"),
            // protocol_violation, too_many_connections, admin_shutdown
            Ended::NotTheProtocol(_) | Ended::Malformed(_) => Some("08P01"),
            Ended::Full => Some("53300"),
            Ended::Stopped => Some("57P01"),
        }
    }
}

/// An answer on its way, and the blocks that it may hold until it is written.
type Due = (Bytes, OwnedSemaphorePermit);

/// One connection of a service.
pub struct Connection {
    source: Arc<Source>,
    access: Arc<Access>,
    limits: Limits,
    stop: watch::Receiver<bool>,
}

/// Both directions of a connection.
struct Peer<R, W> {
    read: BufReader<R>,
    write: W,
}

/// How a page stream ended.
enum Stream {
    /// The client ended it, or the service stops.
    Done,
    /// The client gave it up, for this reason.
    Failed(String),
    /// The client ended the connection.
    Left,
}

impl Connection {
    /// Of a service that stops when `stop` says true.
    pub fn new(
        source: Arc<Source>,
        access: Arc<Access>,
        limits: Limits,
        stop: watch::Receiver<bool>,
    ) -> Connection {
        // One request must have room.
        let blocks = limits.blocks.max(u32::from(super::pagestream::MAX_BLOCKS));
        let limits = Limits { blocks, working: limits.working.max(1), ..limits };
        Connection { source, access, limits, stop }
    }

    /// Serves the client until it goes or the service stops. `entering` is given back once it is let in.
    pub async fn run(
        mut self,
        stream: impl Socket + 'static,
        entering: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Ended> {
        let mut newcomer = Newcomer::of(stream);
        let scope = self.begin(&mut newcomer, true).await;
        if let Err(Ended::WrongToken) = &scope {
            self.pause(WRONG_TOKEN).await;
        }
        let Some(stream) = newcomer.into_stream() else { return scope.map(drop) };
        let mut peer = Peer::of(stream);
        let ended = match scope {
            Ok(Some(scope)) => {
                drop(entering);
                self.converse(&mut peer, &scope).await
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        self.close(peer, ended).await
    }

    /// Tells the client that there is no place for it.
    pub async fn turn_away(mut self, stream: impl Socket + 'static) -> Result<(), Ended> {
        let mut newcomer = Newcomer::of(stream);
        // It hears it where it expects an answer.
        let ended = self.begin(&mut newcomer, false).await.and(Err(Ended::Full));
        match newcomer.into_stream() {
            Some(stream) => self.close(Peer::of(stream), ended).await,
            None => ended,
        }
    }

    /// Lets the client in, or hears it out only. `None`: it wants nothing more.
    async fn begin(&mut self, newcomer: &mut Newcomer, let_in: bool) -> Result<Option<Scope>, Ended> {
        let (clock, access) = (Arc::clone(self.source.clock()), Arc::clone(&self.access));
        let begun = async {
            if !newcomer.greet(&access).await? || !let_in {
                return Ok(None);
            }
            newcomer.prove(&access).await.map(Some)
        };
        tokio::select! {
            begun = begun => begun,
            () = clock.sleep(STARTUP) => Err(Ended::Silent),
            _ = self.stop.wait_for(|stop| *stop) => Err(Ended::Stopped),
        }
    }

    /// Waits, unless the service stops.
    async fn pause(&mut self, pause: Duration) {
        let clock = Arc::clone(self.source.clock());
        tokio::select! {
            () = clock.sleep(pause) => {}
            _ = self.stop.wait_for(|stop| *stop) => {}
        }
    }

    /// The last words, for which nobody waits long.
    async fn close<R, W>(&self, mut peer: Peer<R, W>, ended: Result<(), Ended>) -> Result<(), Ended>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let last_words = async {
            if let Err(error) = &ended
                && let Some(sqlstate) = error.sqlstate()
            {
                let words = Outgoing::default().error(Severity::Fatal, sqlstate, &error.to_string()).take();
                peer.send(&words).await?;
            }
            peer.write.shutdown().await
        };
        tokio::select! {
            said = last_words => said?,
            () = self.source.clock().sleep(CLOSING) => {}
        }
        match ended {
            Err(Ended::Stopped) => Ok(()),
            ended => ended,
        }
    }

    /// Answers questions.
    async fn converse<R, W>(&mut self, peer: &mut Peer<R, W>, scope: &Scope) -> Result<(), Ended>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let mut out = Outgoing::default();
        out.welcome().ready();
        loop {
            peer.send(&out.take()).await?;
            let text = match peer.next(&mut self.stop).await? {
                Message::Query(text) => text,
                Message::Terminate => return Ok(()),
                Message::Sync => {
                    out.ready();
                    continue;
                }
                // What a copy left behind, as PostgreSQL does.
                Message::Flush | Message::CopyData(_) | Message::CopyDone | Message::CopyFail(_) => continue,
            };
            match query::parse(&text) {
                None => out.error(Severity::Error, "42601", query::KNOWN),
                Some(Query::Empty) => out.empty(),
                Some(Query::Version) => {
                    out.rows(&["version"], &[vec![concat!("zenith ", env!("CARGO_PKG_VERSION")).to_owned()]])
                }
                Some(Query::Timelines) => {
                    match peer.unless_gone(query::timelines(&self.source, scope)).await? {
                        Ok(rows) => out.rows(&query::COLUMNS, &rows),
                        Err(error) => out.error(Severity::Error, sqlstate(&error), &error.to_string()),
                    }
                }
                Some(Query::PageStream(timeline)) => {
                    match peer.unless_gone(scope.find(&self.source, &timeline)).await? {
                        Ok(timeline) => match self.stream(timeline, peer).await? {
                            Stream::Done => out.copy_done().complete("PAGESTREAM"),
                            Stream::Failed(reason) => out.error(Severity::Error, "57014", &reason),
                            Stream::Left => return Ok(()),
                        },
                        Err(denied) => {
                            let sqlstate = sqlstate_of_denied(&denied);
                            out.error(Severity::Error, sqlstate, &denied.to_string())
                        }
                    }
                }
            };
            out.ready();
        }
    }

    /// Answers requests as they are ready; the client's next one is read only when there is room for its answer.
    async fn stream<R, W>(&mut self, timeline: TimelineId, peer: &mut Peer<R, W>) -> Result<Stream, Ended>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        peer.send(&Outgoing::default().copy_both().take()).await?;
        let Peer { read, write } = peer;
        // Bounded by the room that every answer in it takes.
        let (sender, receiver) = mpsc::unbounded_channel();
        let requests = async {
            // Those that are under way when the connection breaks end with it.
            let mut working = JoinSet::new();
            let ended = self.requests(timeline, read, &sender, &mut working).await;
            if let Err(Ended::Broken(error)) = ended {
                return Err(Ended::Broken(error));
            }
            while working.join_next().await.is_some() {}
            // The writer ends when nobody can send any more.
            drop(sender);
            Ok(ended)
        };
        // Whoever finds the connection broken ends both. Anything else is told when what was asked for before is answered.
        let (ended, ()) = futures::try_join!(requests, written(receiver, write))?;
        match ended {
            // The stream is ended as the client would have; that the service stops is told after it.
            Err(Ended::Stopped) => Ok(Stream::Done),
            ended => ended,
        }
    }

    async fn requests(
        &mut self,
        timeline: TimelineId,
        read: &mut BufReader<impl AsyncRead + Unpin + Send>,
        sender: &mpsc::UnboundedSender<Due>,
        working: &mut JoinSet<()>,
    ) -> Result<Stream, Ended> {
        let room = Arc::new(Semaphore::new(self.limits.blocks as usize));
        let share = Arc::new(Semaphore::new(self.limits.working));
        loop {
            let request = match next(read, &mut self.stop).await? {
                Message::CopyData(content) => Request::decode(&content)?,
                Message::CopyDone => return Ok(Stream::Done),
                Message::CopyFail(reason) => return Ok(Stream::Failed(reason)),
                Message::Sync | Message::Flush => continue,
                Message::Terminate => return Ok(Stream::Left),
                Message::Query(_) => {
                    return Err(NotTheProtocol("a query within a page stream".to_owned()).into());
                }
            };
            let room = Arc::clone(&room).acquire_many_owned(request.blocks());
            // It is never closed.
            let Ok(room) = unless_gone(read, room).await? else { return Ok(Stream::Left) };
            let (source, sender, share) = (Arc::clone(&self.source), sender.clone(), Arc::clone(&share));
            working.spawn(async move {
                let _share = share.acquire().await;
                let answer = answer(&source, timeline, &request).await;
                // Whoever writes it may be gone.
                let _ = sender.send((answer.encode(request.id), room));
            });
            while working.try_join_next().is_some() {}
        }
    }
}

impl<T: AsyncRead + AsyncWrite> Peer<ReadHalf<T>, WriteHalf<T>> {
    fn of(stream: T) -> Self {
        let (read, write) = tokio::io::split(stream);
        Peer { read: BufReader::new(read), write }
    }
}

impl<R: AsyncRead + Unpin + Send, W: AsyncWrite + Unpin + Send> Peer<R, W> {
    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.write.write_all(bytes).await?;
        self.write.flush().await
    }

    async fn next(&mut self, stop: &mut watch::Receiver<bool>) -> Result<Message, Ended> {
        next(&mut self.read, stop).await
    }

    async fn unless_gone<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Ended> {
        unless_gone(&mut self.read, work).await
    }
}

/// The client's next message; [`Ended::Stopped`] once the service stops.
async fn next(
    read: &mut (impl AsyncRead + Unpin + Send),
    stop: &mut watch::Receiver<bool>,
) -> Result<Message, Ended> {
    tokio::select! {
        // A message that is cut off here is never gone on with: whoever stops stays so.
        biased;
        _ = stop.wait_for(|stop| *stop) => Err(Ended::Stopped),
        message = message(read) => message,
    }
}

async fn message(read: &mut (impl AsyncRead + Unpin)) -> Result<Message, Ended> {
    let kind = read.read_u8().await?;
    let mut length = [0; 4];
    read.read_exact(&mut length).await?;
    let mut body = vec![0; wire::length(length, wire::MESSAGE_MAX)?];
    read.read_exact(&mut body).await?;
    Ok(wire::message(kind, body.into())?)
}

/// What `work` gives, unless the client hangs up before. One that has sent more already is noticed when it is written to.
async fn unless_gone<T>(
    read: &mut BufReader<impl AsyncRead + Unpin + Send>,
    work: impl Future<Output = T>,
) -> Result<T, Ended> {
    let gone = async {
        match read.fill_buf().await {
            Ok([]) => std::io::Error::from(ErrorKind::UnexpectedEof),
            Ok(_) => std::future::pending().await,
            Err(error) => error,
        }
    };
    tokio::select! {
        biased;
        done = work => Ok(done),
        error = gone => Err(error.into()),
    }
}

/// Writes answers as they come; those that wait together go together.
async fn written(
    mut receiver: mpsc::UnboundedReceiver<Due>,
    write: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Ended> {
    let mut due = Vec::with_capacity(WRITTEN_TOGETHER);
    let mut out = Outgoing::default();
    while receiver.recv_many(&mut due, WRITTEN_TOGETHER).await > 0 {
        for (answer, _) in &due {
            out.copy_data(answer);
        }
        write.write_all(&out.take()).await?;
        write.flush().await?;
        // What was written makes room.
        due.clear();
    }
    Ok(())
}
