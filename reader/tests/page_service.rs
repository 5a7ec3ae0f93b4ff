//! The page service, on layers written by hand and over connections in memory.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod world;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use world::*;
use zenith_pgformat::{Fork, Lsn, RelNode};
use zenith_reader::ReaderOptions;
use zenith_reader::service::connection::{Connection, Ended};
use zenith_reader::service::pagestream::{Answer, Code, Request, Wanted};
use zenith_reader::service::source::Source;
use zenith_store::{Clock, Env};
use zenith_testkit::env::SeededIds;

/// Time passes when it is told to.
#[derive(Debug, Default)]
struct Told(AtomicU64);

#[async_trait::async_trait]
impl Clock for Told {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    async fn sleep(&self, _pause: Duration) {
        std::future::pending().await
    }
}

/// A service of a world, to which any number of clients connect.
struct Service {
    source: Arc<Source>,
    clock: Arc<Told>,
    stop: watch::Sender<bool>,
    ended: Mutex<Vec<JoinHandle<Result<(), Ended>>>>,
}

impl Service {
    fn of(world: &World) -> Service {
        let clock = Arc::new(Told::default());
        let env = Env { clock: Arc::clone(&clock) as Arc<dyn Clock>, ids: Arc::new(SeededIds::new(77)) };
        let options = ReaderOptions { env, ..world.options() };
        let source = Arc::new(Source::new(world.store.clone(), "main", options));
        Service { source, clock, stop: watch::Sender::new(false), ended: Mutex::default() }
    }

    /// A client with so many bytes on the way in each direction.
    fn connect(&self, bytes: usize) -> Client {
        let (ours, theirs) = duplex(bytes);
        let connection = Connection::new(Arc::clone(&self.source), 32, self.stop.subscribe());
        self.ended.lock().unwrap().push(tokio::spawn(connection.run(theirs)));
        Client(ours)
    }

    /// A client that is let in.
    async fn client(&self) -> Client {
        let mut client = self.connect(1 << 20);
        client.begin().await;
        client
    }

    /// A page stream of the timeline "main".
    async fn stream(&self) -> Client {
        let mut client = self.client().await;
        client.send(b'Q', b"pagestream main\0").await;
        assert_eq!(client.receive().await.0, b'W');
        client
    }
}

struct Client(DuplexStream);

impl Client {
    async fn begin(&mut self) {
        let body = [&(3u32 << 16).to_be_bytes()[..], b"user\0u\0\0"].concat();
        self.0.write_u32(4 + body.len() as u32).await.unwrap();
        self.0.write_all(&body).await.unwrap();
        while self.receive().await.0 != b'Z' {}
    }

    async fn send(&mut self, kind: u8, body: &[u8]) {
        let mut bytes = BytesMut::new();
        bytes.put_u8(kind);
        bytes.put_u32(4 + body.len() as u32);
        bytes.put_slice(body);
        self.0.write_all(&bytes).await.unwrap();
    }

    async fn receive(&mut self) -> (u8, Bytes) {
        let kind = self.0.read_u8().await.unwrap();
        let length = self.0.read_u32().await.unwrap() as usize - 4;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        (kind, body.into())
    }

    async fn ask(&mut self, id: u64, lsn: u64, wanted: Wanted) {
        self.send(b'd', &Request { id, lsn: Lsn(lsn), wanted }.encode()).await;
    }

    async fn answer(&mut self) -> (u64, Answer) {
        let (kind, body) = self.receive().await;
        assert_eq!(kind, b'd', "{body:?}");
        Answer::decode(&body).unwrap()
    }

    /// One request and its answer.
    async fn get(&mut self, lsn: u64, wanted: Wanted) -> Answer {
        self.ask(9, lsn, wanted).await;
        let (id, answer) = self.answer().await;
        assert_eq!(id, 9);
        answer
    }

    /// An error's SQLSTATE and message.
    async fn error(&mut self) -> (String, String) {
        let (kind, body) = self.receive().await;
        assert_eq!(kind, b'E', "{body:?}");
        let field = |wanted: u8| {
            let mut fields = body.split(|byte| *byte == 0).filter(|field| field.first() == Some(&wanted));
            String::from_utf8(fields.next().unwrap()[1..].to_vec()).unwrap()
        };
        (field(b'C'), field(b'M'))
    }
}

fn pages(block: u32, count: u16) -> Wanted {
    Wanted::Pages { node: NODE, fork: Fork::Main, block, count }
}

fn relation(rel: u32) -> Wanted {
    Wanted::Relation { node: RelNode { rel, ..NODE }, fork: Fork::Main }
}

fn marks(answer: Answer) -> Vec<u8> {
    match answer {
        Answer::Pages(pages) => pages.iter().map(|page| mark_of(page)).collect(),
        other => panic!("{other:?}"),
    }
}

fn code(answer: Answer) -> (Code, String) {
    match answer {
        Answer::Error { code, message } => (code, message),
        other => panic!("{other:?}"),
    }
}

/// Four blocks, of which the second was written twice; readable from 200 to 400.
async fn small_world(seed: u64) -> World {
    let mut world = World::new(seed).await;
    let blocks = (0..4).map(|block| page_row(NODE, block, 100, 10 + block as u8));
    let base = world.base(100, 200, blocks.chain([size(NODE, 0, 4, 0)]).collect()).await;
    world.slice(400, vec![page_row(NODE, 1, 300, 20)], &[], &[base]).await;
    world
}

#[tokio::test]
async fn answers_carry_the_ids_of_what_was_asked_without_waiting() {
    let world = small_world(1).await;
    let service = Service::of(&world);
    let mut client = service.stream().await;
    client.ask(1, 299, pages(1, 1)).await;
    client.ask(2, 400, pages(0, 4)).await;
    client.ask(3, 400, relation(NODE.rel)).await;
    client.ask(4, 400, relation(99)).await;
    client.ask(5, 400, pages(4, 1)).await;
    client.ask(6, 199, pages(0, 1)).await;
    let mut answers = std::collections::BTreeMap::new();
    for _ in 0..6 {
        let (id, answer) = client.answer().await;
        answers.insert(id, answer);
    }
    let mut next = |id| answers.remove(&id).unwrap();
    assert_eq!(marks(next(1)), [11]);
    assert_eq!(marks(next(2)), [10, 20, 12, 13]);
    assert_eq!(next(3), Answer::Relation(Some(4)));
    assert_eq!(next(4), Answer::Relation(None));
    let (past, message) = code(next(5));
    assert!(past == Code::Gone && message.contains("has 4 blocks"), "{message}");
    let (early, message) = code(next(6));
    assert!(early == Code::Gone && message.contains("0/C7"), "{message}");
    client.send(b'c', b"").await;
    let end = [client.receive().await.0, client.receive().await.0, client.receive().await.0];
    assert_eq!(end, *b"cCZ");
    client.send(b'X', b"").await;
    assert_eq!(client.0.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn what_was_sliced_since_a_timeline_was_opened_is_served_a_second_later() {
    let mut world = small_world(2).await;
    let service = Service::of(&world);
    let mut client = service.stream().await;
    let (early, message) = code(client.get(500, pages(0, 1)).await);
    assert!(early == Code::NotYet && message.contains("0/1F4"), "{message}");
    world.slice(500, vec![page_row(NODE, 0, 450, 30)], &[], &[]).await;
    assert_eq!(code(client.get(500, pages(0, 1)).await).0, Code::NotYet, "it was opened just now");
    service.clock.0.store(1000, Ordering::Relaxed);
    assert_eq!(marks(client.get(500, pages(0, 1)).await), [30]);
}

#[tokio::test]
async fn damage_is_told_and_the_rest_is_served() {
    let mut world = small_world(3).await;
    let mut early = page_row(NODE, 2, 900, 1);
    early.lsn = Lsn(450);
    world.slice(500, vec![early], &[], &[]).await;
    let service = Service::of(&world);
    let mut client = service.stream().await;
    let (damaged, message) = code(client.get(500, pages(2, 1)).await);
    assert!(damaged == Code::Corrupt && message.contains("1663/5/16384"), "{message}");
    assert_eq!(marks(client.get(500, pages(3, 1)).await), [13]);
}

/// 32 blocks may be on their way to one client.
#[tokio::test]
async fn a_client_that_takes_no_answers_is_not_read_on_and_hurts_nobody() {
    let world = small_world(4).await;
    let service = Service::of(&world);
    let mut slow = service.connect(16 << 10);
    slow.begin().await;
    slow.send(b'Q', b"pagestream main\0").await;
    assert_eq!(slow.receive().await.0, b'W');
    let (read, mut write) = tokio::io::split(slow.0);
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    const ASKED: u64 = 5000;
    let asking = tokio::spawn(async move {
        for id in 0..ASKED {
            let content = Request { id, lsn: Lsn(400), wanted: pages(0, 4) }.encode();
            let mut bytes = BytesMut::new();
            bytes.put_u8(b'd');
            bytes.put_u32(4 + content.remaining() as u32);
            bytes.put(content);
            write.write_all(&bytes).await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
        }
        write
    });
    let mut other = service.stream().await;
    for _ in 0..200 {
        assert_eq!(marks(other.get(400, pages(1, 1)).await), [20]);
    }
    // What fits into both buffers between them, and what has room.
    let taken = sent.load(Ordering::Relaxed);
    assert!(taken < ASKED / 2, "{taken} requests were taken from a client that takes no answers");

    let mut read = tokio::io::BufReader::new(read);
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..ASKED {
        assert_eq!(read.read_u8().await.unwrap(), b'd');
        let mut body = vec![0; read.read_u32().await.unwrap() as usize - 4];
        read.read_exact(&mut body).await.unwrap();
        ids.insert(Answer::decode(&body.into()).unwrap().0);
    }
    assert_eq!(ids.len() as u64, ASKED);
    asking.await.unwrap();
}

#[tokio::test]
async fn a_service_that_stops_answers_what_was_asked_for_and_says_so() {
    let world = small_world(5).await;
    let service = Service::of(&world);
    let (mut idle, mut stream) = (service.client().await, service.stream().await);
    for id in 0..8 {
        stream.ask(id, 400, pages(0, 4)).await;
    }
    let (first, _) = stream.answer().await;
    service.stop.send_replace(true);
    let mut ids = vec![first];
    let kind = loop {
        match stream.receive().await {
            (b'd', body) => ids.push(Answer::decode(&body).unwrap().0),
            (kind, _) => break kind,
        }
    };
    assert_eq!(kind, b'c');
    assert_eq!([stream.receive().await.0, stream.receive().await.0], *b"CZ");
    assert_eq!(stream.error().await.0, "57P01");
    assert_eq!(idle.error().await.0, "57P01");
    let distinct: std::collections::BTreeSet<u64> = ids.iter().copied().collect();
    assert_eq!(distinct.len(), ids.len());
    let connections = std::mem::take(&mut *service.ended.lock().unwrap());
    for ended in connections {
        ended.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn questions_are_answered_and_what_is_none_is_refused_by_what_there_is_to_ask() {
    let world = small_world(6).await;
    let service = Service::of(&world);
    let mut client = service.client().await;
    client.send(b'Q', b"SHOW timelines;\0").await;
    assert_eq!(client.receive().await.0, b'T');
    let (kind, row) = client.receive().await;
    let row = String::from_utf8_lossy(&row).into_owned();
    assert!(kind == b'D' && row.contains("main") && row.contains("0/C8") && row.contains("0/190"), "{row}");
    assert_eq!([client.receive().await.0, client.receive().await.0], *b"CZ");
    client.send(b'Q', b"SELECT 1\0").await;
    let (state, message) = client.error().await;
    assert!(state == "42601" && message.contains("SHOW timelines"), "{message}");
    assert_eq!(client.receive().await.0, b'Z');
    client.send(b'Q', b"pagestream mian\0").await;
    let (state, message) = client.error().await;
    assert!(state == "42704" && message.contains("mian") && message.contains("main"), "{message}");
    assert_eq!(client.receive().await.0, b'Z');
}

#[tokio::test]
async fn what_is_not_the_protocol_ends_the_connection_and_says_why() {
    let world = small_world(7).await;
    let service = Service::of(&world);
    let mut client = service.stream().await;
    client.send(b'd', b"no request").await;
    let (state, message) = client.error().await;
    assert!(state == "08P01" && message.contains("page stream"), "{message}");
    assert_eq!(client.0.read(&mut [0]).await.unwrap(), 0);
    let mut client = service.client().await;
    client.send(b'P', b"\0SELECT 1\0\0\0").await;
    assert_eq!(client.error().await.0, "08P01");
    let mut client = service.client().await;
    client.0.write_all(&[b'Q', 0xFF, 0xFF, 0xFF, 0xFF]).await.unwrap();
    assert_eq!(client.error().await.0, "08P01");
    let mut client = service.connect(1 << 10);
    client.0.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
    assert_eq!(client.0.read_u8().await.unwrap(), b'N');
    client.begin().await;
}
