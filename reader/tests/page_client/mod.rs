//! A page service of a [`World`], and its clients, over connections in memory.

#![allow(dead_code, reason = "every test file uses a part of it")]

use crate::world::*;
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use zenith_pgformat::{Fork, Lsn, RelNode};
use zenith_reader::ReaderOptions;
use zenith_reader::service::Limits;
use zenith_reader::service::access::Access;
use zenith_reader::service::connection::{Connection, Ended};
use zenith_reader::service::pagestream::{Answer, Code, Request, Wanted};
use zenith_reader::service::source::Source;
use zenith_store::{Clock, Env, Store};
use zenith_testkit::env::SeededIds;
use zenith_testkit::faults::{Fault, FaultStore, Operation, Rule};

/// Time passes when it is told to.
#[derive(Debug, Default)]
pub(crate) struct Told {
    milliseconds: AtomicU64,
    moved: Notify,
}

impl Told {
    /// So many milliseconds since it began.
    pub(crate) fn set(&self, milliseconds: u64) {
        self.milliseconds.store(milliseconds, Ordering::Relaxed);
        self.moved.notify_waiters();
    }
}

#[async_trait::async_trait]
impl Clock for Told {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }

    async fn sleep(&self, pause: Duration) {
        let until = self.elapsed() + pause;
        loop {
            let moved = self.moved.notified();
            if self.elapsed() >= until {
                return;
            }
            moved.await;
        }
    }
}

/// A service of a world, to which any number of clients connect.
pub(crate) struct Service {
    pub(crate) source: Arc<Source>,
    pub(crate) clock: Arc<Told>,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) ended: Mutex<Vec<JoinHandle<Result<(), Ended>>>>,
}

impl Service {
    pub(crate) fn of(world: &World) -> Service {
        Service::reading(world, world.store.clone())
    }

    /// Of a world, through a wrapper of its store.
    #[allow(clippy::needless_pass_by_value, reason = "it is made for this")]
    pub(crate) fn reading(world: &World, store: Store) -> Service {
        let clock = Arc::new(Told::default());
        let env = Env { clock: Arc::clone(&clock) as Arc<dyn Clock>, ids: Arc::new(SeededIds::new(77)) };
        let options = ReaderOptions { env, ..world.options() };
        let source = Arc::new(Source::new(&store, "main", options));
        Service { source, clock, stop: watch::Sender::new(false), ended: Mutex::default() }
    }

    /// A client with so many bytes on the way in each direction.
    pub(crate) fn connect(&self, bytes: usize) -> Client {
        self.connect_by(Access::local(), bytes)
    }

    /// The same, where something must be shown.
    pub(crate) fn connect_by(&self, access: Access, bytes: usize) -> Client {
        let (ours, theirs) = duplex(bytes);
        let connection = self.connection(access);
        self.ended.lock().unwrap().push(tokio::spawn(connection.run(theirs, None)));
        Client(ours)
    }

    fn connection(&self, access: Access) -> Connection {
        let limits = Limits { connections: 1, blocks: 32, working: 8 };
        Connection::new(Arc::clone(&self.source), Arc::new(access), limits, self.stop.subscribe())
    }

    /// A client that is let in.
    pub(crate) async fn client(&self) -> Client {
        let mut client = self.connect(1 << 20);
        client.begin().await;
        client
    }

    /// A page stream of the timeline "main".
    pub(crate) async fn stream(&self) -> Client {
        let mut client = self.client().await;
        client.send(b'Q', b"pagestream main\0").await;
        assert_eq!(client.receive().await.0, b'W');
        client
    }
}

pub(crate) struct Client<S = DuplexStream>(pub(crate) S);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) async fn begin(&mut self) {
        self.startup().await;
        self.is_let_in().await;
    }

    pub(crate) async fn startup(&mut self) {
        let body = [&(3u32 << 16).to_be_bytes()[..], b"user\0u\0\0"].concat();
        self.0.write_u32(4 + body.len() as u32).await.unwrap();
        self.0.write_all(&body).await.unwrap();
        self.0.flush().await.unwrap();
    }

    pub(crate) async fn is_let_in(&mut self) {
        assert_eq!(self.receive().await, (b'R', Bytes::from_static(&[0; 4])));
        while self.receive().await.0 != b'Z' {}
    }

    pub(crate) async fn send(&mut self, kind: u8, body: &[u8]) {
        let mut bytes = BytesMut::new();
        bytes.put_u8(kind);
        bytes.put_u32(4 + body.len() as u32);
        bytes.put_slice(body);
        self.0.write_all(&bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    pub(crate) async fn receive(&mut self) -> (u8, Bytes) {
        let kind = self.0.read_u8().await.unwrap();
        let length = self.0.read_u32().await.unwrap() as usize - 4;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        (kind, body.into())
    }

    pub(crate) async fn ask(&mut self, id: u64, lsn: u64, wanted: Wanted) {
        self.send(b'd', &Request { id, lsn: Lsn(lsn), wanted }.encode()).await;
    }

    pub(crate) async fn answer(&mut self) -> (u64, Answer) {
        let (kind, body) = self.receive().await;
        assert_eq!(kind, b'd', "{body:?}");
        Answer::decode(&body).unwrap()
    }

    /// One request and its answer.
    pub(crate) async fn get(&mut self, lsn: u64, wanted: Wanted) -> Answer {
        self.ask(9, lsn, wanted).await;
        let (id, answer) = self.answer().await;
        assert_eq!(id, 9);
        answer
    }

    /// An error's SQLSTATE and message.
    pub(crate) async fn error(&mut self) -> (String, String) {
        let (kind, body) = self.receive().await;
        assert_eq!(kind, b'E', "{body:?}");
        let field = |wanted: u8| {
            let mut fields = body.split(|byte| *byte == 0).filter(|field| field.first() == Some(&wanted));
            String::from_utf8(fields.next().unwrap()[1..].to_vec()).unwrap()
        };
        (field(b'C'), field(b'M'))
    }
}

pub(crate) fn pages(block: u32, count: u16) -> Wanted {
    Wanted::Pages { node: NODE, fork: Fork::Main, block, count }
}

pub(crate) fn relation(rel: u32) -> Wanted {
    Wanted::Relation { node: RelNode { rel, ..NODE }, fork: Fork::Main }
}

pub(crate) fn marks(answer: Answer) -> Vec<u8> {
    match answer {
        Answer::Pages(pages) => pages.iter().map(|page| mark_of(page)).collect(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn code(answer: Answer) -> (Code, String) {
    match answer {
        Answer::Error { code, message } => (code, message),
        other => panic!("{other:?}"),
    }
}

/// Four blocks, of which the second was written twice; readable from 200 to 400.
pub(crate) async fn small_world(seed: u64) -> World {
    let mut world = World::new(seed).await;
    let blocks = (0..4).map(|block| page_row(NODE, block, 100, 10 + block as u8));
    let base = world.base(100, 200, blocks.chain([size(NODE, 0, 4, 0)]).collect()).await;
    world.slice(400, vec![page_row(NODE, 1, 300, 20)], &[], &[base]).await;
    world
}

/// A store whose reads wait while the gate is shut.
#[derive(Debug)]
pub(crate) struct Gate {
    open: watch::Sender<bool>,
    waited: Arc<AtomicU64>,
}

/// The clock of a store whose requests take as long as the gate is shut.
#[derive(Debug)]
struct WhileShut {
    open: watch::Receiver<bool>,
    waited: Arc<AtomicU64>,
}

#[async_trait::async_trait]
impl Clock for WhileShut {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    async fn sleep(&self, _pause: Duration) {
        let mut open = self.open.clone();
        if !*open.borrow() {
            self.waited.fetch_add(1, Ordering::Relaxed);
        }
        let _ = open.wait_for(|open| *open).await;
    }
}

impl Gate {
    /// Open at first.
    pub(crate) fn before(store: &Store) -> (Gate, Store) {
        let (open, opened) = watch::channel(true);
        let waited = Arc::new(AtomicU64::new(0));
        let clock = WhileShut { open: opened, waited: Arc::clone(&waited) };
        let store = store.wrapped(|inner| {
            let store = FaultStore::new(inner, Arc::new(clock), 1);
            store.faults().add(Rule::new(Fault::Latency(Duration::ZERO)).on(Operation::Get));
            store
        });
        (Gate { open, waited }, store)
    }

    pub(crate) fn shut(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until a read waits, and everybody else has done what can be done without it.
    pub(crate) async fn is_waited_for(&self) {
        while self.reads() == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }

    /// Reads that have had to wait.
    pub(crate) fn reads(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }
}
