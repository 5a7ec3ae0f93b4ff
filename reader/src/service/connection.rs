//! One client: questions one after the other, then a page stream, whose answers come as they are ready.

use super::answer::answer;
use super::pagestream::{Malformed, Request};
use super::query::{self, Query};
use super::source::Source;
use super::wire::{self, First, Message, NotTheProtocol, Outgoing, Severity};
use crate::error::ReadError;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use zenith_store::TimelineId;

/// How long a client may take until it has said who it is.
const STARTUP: Duration = Duration::from_secs(10);
/// First packets that ask for another transport: TLS, GSS, and once more.
const STARTUP_TRIES: u32 = 3;
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
}

/// An answer on its way, and the blocks that it may hold until it is written.
type Due = (Bytes, OwnedSemaphorePermit);

/// One connection of a service.
pub struct Connection {
    source: Arc<Source>,
    /// Blocks that may be asked for and not written yet.
    blocks: u32,
    stop: watch::Receiver<bool>,
}

/// What comes next.
enum Next {
    Message(Message),
    /// The service stops.
    Stop,
}

impl Connection {
    /// Of a service that stops when `stop` says true.
    pub fn new(source: Arc<Source>, blocks: u32, stop: watch::Receiver<bool>) -> Connection {
        // One request must have room.
        Connection { source, blocks: blocks.max(u32::from(super::pagestream::MAX_BLOCKS)), stop }
    }

    /// Serves the client until it goes or the service stops.
    pub async fn run(
        mut self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(), Ended> {
        let (read, mut write) = tokio::io::split(stream);
        let mut read = BufReader::new(read);
        let clock = Arc::clone(self.source.clock());
        let begun = tokio::select! {
            begun = begin(&mut read, &mut write) => begun?,
            () = clock.sleep(STARTUP) => return Err(Ended::Silent),
        };
        if !begun {
            return Ok(());
        }
        let ended = self.converse(&mut read, &mut write).await;
        if let Err(error @ (Ended::NotTheProtocol(_) | Ended::Malformed(_))) = &ended {
            let mut out = Outgoing::default();
            out.error(Severity::Fatal, "08P01", &error.to_string());
            write.write_all(&out.take()).await?;
        }
        write.shutdown().await?;
        ended
    }

    /// Answers questions.
    async fn converse(
        &mut self,
        read: &mut (impl AsyncRead + Unpin + Send),
        write: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<(), Ended> {
        let mut out = Outgoing::default();
        out.welcome().ready();
        loop {
            write.write_all(&out.take()).await?;
            let text = match self.next(read).await? {
                Next::Message(Message::Query(text)) => text,
                Next::Message(Message::Terminate) => return Ok(()),
                // What a copy left behind, as PostgreSQL does.
                Next::Message(_) => continue,
                Next::Stop => {
                    out.error(Severity::Fatal, "57P01", "the page service stops");
                    write.write_all(&out.take()).await?;
                    return Ok(());
                }
            };
            match query::parse(&text) {
                None => out.error(Severity::Error, "42601", query::KNOWN),
                Some(Query::Empty) => out.empty(),
                Some(Query::Version) => {
                    out.rows(&["version"], &[vec![concat!("zenith ", env!("CARGO_PKG_VERSION")).to_owned()]])
                }
                Some(Query::Timelines) => match query::timelines(&self.source).await {
                    Ok(rows) => out.rows(&query::COLUMNS, &rows),
                    Err(error) => out.error(Severity::Error, sqlstate(&error), &error.to_string()),
                },
                Some(Query::PageStream(timeline)) => match self.source.find(&timeline).await {
                    Ok(timeline) => {
                        write.write_all(&out.copy_both().take()).await?;
                        if !self.stream(timeline, read, write).await? {
                            return Ok(());
                        }
                        out.copy_done().complete("PAGESTREAM")
                    }
                    Err(error) => out.error(Severity::Error, sqlstate(&error), &error.to_string()),
                },
            };
            out.ready();
        }
    }

    /// Answers requests as they are ready; the client's next one is read only when there is room for its answer. `false`: the
    /// client ended the connection.
    async fn stream(
        &mut self,
        timeline: TimelineId,
        read: &mut (impl AsyncRead + Unpin + Send),
        write: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<bool, Ended> {
        // Bounded by the room that every answer in it takes.
        let (sender, receiver) = mpsc::unbounded_channel();
        let requests = async {
            // Those that are under way end with it.
            let mut working = JoinSet::new();
            let ended = self.requests(timeline, read, &sender, &mut working).await;
            if ended.is_ok() {
                while working.join_next().await.is_some() {}
            }
            // The writer ends when nobody can send any more.
            drop(sender);
            ended
        };
        // Whoever ends with an error ends both.
        let (goes_on, ()) = futures::try_join!(requests, written(receiver, write))?;
        Ok(goes_on)
    }

    async fn requests(
        &mut self,
        timeline: TimelineId,
        read: &mut (impl AsyncRead + Unpin + Send),
        sender: &mpsc::UnboundedSender<Due>,
        working: &mut JoinSet<()>,
    ) -> Result<bool, Ended> {
        let room = Arc::new(Semaphore::new(self.blocks as usize));
        loop {
            let request = match self.next(read).await? {
                Next::Message(Message::CopyData(content)) => Request::decode(&content)?,
                Next::Message(Message::CopyDone | Message::CopyFail) => return Ok(true),
                Next::Message(Message::Idle) => continue,
                Next::Message(Message::Terminate) => return Ok(false),
                Next::Message(Message::Query(_)) => {
                    return Err(NotTheProtocol("a query within a page stream".to_owned()).into());
                }
                Next::Stop => return Ok(true),
            };
            let room = Arc::clone(&room).acquire_many_owned(request.blocks()).await;
            // It is never closed.
            let Ok(room) = room else { return Ok(false) };
            let (source, sender) = (Arc::clone(&self.source), sender.clone());
            working.spawn(async move {
                let answer = answer(&source, timeline, &request).await;
                // Whoever writes it may be gone.
                let _ = sender.send((answer.encode(request.id), room));
            });
            while working.try_join_next().is_some() {}
        }
    }

    async fn next(&mut self, read: &mut (impl AsyncRead + Unpin + Send)) -> Result<Next, Ended> {
        tokio::select! {
            // A message that is cut off here is never gone on with: whoever stops stays so.
            biased;
            _ = self.stop.wait_for(|stop| *stop) => Ok(Next::Stop),
            message = message(read) => message.map(Next::Message),
        }
    }
}

/// Lets a client in; the socket's permissions have decided who may. `false`: it wants nothing more.
async fn begin(
    read: &mut (impl AsyncRead + Unpin),
    write: &mut (impl AsyncWrite + Unpin),
) -> Result<bool, Ended> {
    for _ in 0..STARTUP_TRIES {
        let mut length = [0; 4];
        read.read_exact(&mut length).await?;
        let mut body = vec![0; wire::length(length, wire::STARTUP_MAX)?];
        read.read_exact(&mut body).await?;
        match wire::first(&body)? {
            First::Encryption => write.write_all(b"N").await?,
            First::Startup(_) => return Ok(true),
            First::Cancel => return Ok(false),
        }
    }
    Err(NotTheProtocol("one request for encryption after the other".to_owned()).into())
}

async fn message(read: &mut (impl AsyncRead + Unpin)) -> Result<Message, Ended> {
    let kind = read.read_u8().await?;
    let mut length = [0; 4];
    read.read_exact(&mut length).await?;
    let mut body = vec![0; wire::length(length, wire::MESSAGE_MAX)?];
    read.read_exact(&mut body).await?;
    Ok(wire::message(kind, body.into())?)
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

/// `undefined_object`, else `cannot_connect_now`, else `data_corrupted`.
fn sqlstate(error: &ReadError) -> &'static str {
    use crate::error::Meaning;
    match error.meaning() {
        Meaning::NotThere => "42704",
        Meaning::MayPass | Meaning::NotYet => "57P03",
        Meaning::Damage => "XX001",
    }
}
