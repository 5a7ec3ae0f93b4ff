//! How the page service ends connections, and what a client is owed before it does.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod page_client;
mod world;

use object_store::ObjectStoreExt;
use page_client::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use world::*;
use zenith_reader::service::connection::Ended;
use zenith_reader::service::pagestream::{Answer, Code};
use zenith_reader::service::{Door, Limits, serve};

/// A service behind a shut gate, and a stream whose eight requests wait there.
async fn eight_that_wait(seed: u64) -> (Service, Gate, Client) {
    let world = small_world(seed).await;
    let (gate, store) = Gate::before(&world.store);
    let service = Service::reading(&world, store);
    let mut client = service.stream().await;
    gate.shut();
    for id in 0..8 {
        client.ask(id, 400, pages(0, 4)).await;
    }
    gate.is_waited_for().await;
    (service, gate, client)
}

/// Every answer up to another message, and that message's type.
async fn answers(client: &mut Client) -> (BTreeSet<u64>, u8, bytes::Bytes) {
    let mut ids = BTreeSet::new();
    loop {
        match client.receive().await {
            (b'd', body) => {
                let (id, answer) = Answer::decode(&body).unwrap();
                assert_eq!(marks(answer), [10, 20, 12, 13]);
                assert!(ids.insert(id), "answered twice");
            }
            (kind, body) => return (ids, kind, body),
        }
    }
}

#[tokio::test]
async fn a_service_that_stops_answers_what_was_asked_for_and_says_so() {
    let (service, gate, mut stream) = eight_that_wait(1).await;
    // Let in before, and without a question.
    let mut idle = service.client().await;
    service.stop.send_replace(true);
    assert_eq!(idle.error().await.0, "57P01");
    gate.open();
    let (ids, kind, _) = answers(&mut stream).await;
    assert_eq!((ids.len(), kind), (8, b'c'));
    assert_eq!([stream.receive().await.0, stream.receive().await.0], *b"CZ");
    assert_eq!(stream.error().await.0, "57P01");
    let connections = std::mem::take(&mut *service.ended.lock().unwrap());
    for ended in connections {
        ended.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_was_asked_before_a_message_that_is_none_is_answered_before_it_is_refused() {
    let (_service, gate, mut stream) = eight_that_wait(2).await;
    stream.send(b'd', b"no request").await;
    gate.open();
    let (ids, kind, body) = answers(&mut stream).await;
    assert_eq!((ids.len(), kind), (8, b'E'));
    assert!(String::from_utf8_lossy(&body).contains("08P01"), "{body:?}");
    assert_eq!(stream.0.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_stream_that_the_client_gives_up_is_answered_and_the_connection_goes_on() {
    let (_service, gate, mut stream) = eight_that_wait(3).await;
    stream.send(b'f', b"enough\0").await;
    gate.open();
    let (ids, kind, body) = answers(&mut stream).await;
    assert_eq!((ids.len(), kind), (8, b'E'));
    let error = String::from_utf8_lossy(&body).into_owned();
    assert!(error.contains("57014") && error.contains("enough"), "{error}");
    assert_eq!(stream.receive().await.0, b'Z');
    stream.send(b'S', b"").await;
    assert_eq!(stream.receive().await.0, b'Z');
}

/// Who came while another opened it goes on with an opening that began after that: there are two in all, of which the second
/// finds the gate open.
#[tokio::test]
async fn clients_that_wait_for_a_store_that_fails_fail_together() {
    let world = small_world(4).await;
    let (gate, store) = Gate::before(&world.store);
    let service = Service::reading(&world, store);
    world.store.objects.delete(&world.identity_path()).await.unwrap();
    let id = world.identity.timeline;
    gate.shut();
    let all: Vec<_> = (0..20)
        .map(|_| {
            let source = Arc::clone(&service.source);
            tokio::spawn(async move { source.snapshot(id, zenith_pgformat::Lsn(400)).await })
        })
        .collect();
    gate.is_waited_for().await;
    gate.open();
    for outcome in all {
        assert!(outcome.await.unwrap().is_err());
    }
    assert_eq!(gate.reads(), 1);
}

#[tokio::test]
async fn a_client_that_hangs_up_while_it_waits_gives_its_place_back() {
    let (service, _gate, stream) = eight_that_wait(5).await;
    drop(stream);
    let ended = service.ended.lock().unwrap().pop().unwrap();
    // The gate stays shut.
    assert!(matches!(ended.await.unwrap(), Err(Ended::Broken(_))));

    let world = small_world(6).await;
    let (gate, store) = Gate::before(&world.store);
    let service = Service::reading(&world, store);
    let mut asking = service.client().await;
    gate.shut();
    asking.send(b'Q', b"SHOW timelines\0").await;
    gate.is_waited_for().await;
    drop(asking);
    let ended = service.ended.lock().unwrap().pop().unwrap();
    assert!(matches!(ended.await.unwrap(), Err(Ended::Broken(_))));
}

#[tokio::test]
async fn damage_of_one_timeline_is_told_in_its_row() {
    let world = small_world(7).await;
    let child = world.branch("child", 300).await;
    world.store.objects.delete(&child.identity_path()).await.unwrap();
    let service = Service::of(&world);
    let mut client = service.client().await;
    client.send(b'Q', b"SHOW timelines\0").await;
    assert_eq!(client.receive().await.0, b'T');
    let (child, main) = (client.receive().await, client.receive().await);
    let row = String::from_utf8_lossy(&child.1).into_owned();
    assert!(child.0 == b'D' && row.contains("child") && row.contains("identity"), "{row}");
    let row = String::from_utf8_lossy(&main.1).into_owned();
    assert!(main.0 == b'D' && row.contains("0/C8"), "{row}");
    assert_eq!([client.receive().await.0, client.receive().await.0], *b"CZ");
}

#[tokio::test]
async fn a_layer_that_the_newest_manifest_has_no_need_of_may_be_gone() {
    let mut world = small_world(8).await;
    let first = world.layers().await;
    let service = Service::of(&world);
    let mut client = service.stream().await;
    // Opens the timeline, and reads no layer.
    assert_eq!(code(client.get(199, pages(0, 1)).await).0, Code::Gone);
    let blocks = (0..4).map(|block| page_row(NODE, block, 350, 30 + block as u8));
    let base = world.base(350, 390, blocks.chain([size(NODE, 0, 4, 0)]).collect()).await;
    world.slice(410, Vec::new(), &[], &[base]).await;
    for path in first {
        world.store.objects.delete(&path).await.unwrap();
    }
    let (missing, message) = code(client.get(400, pages(3, 1)).await);
    assert!(missing == Code::Corrupt && message.contains("newest manifest"), "{message}");
    service.clock.set(1000);
    assert_eq!(marks(client.get(400, pages(3, 1)).await), [33]);
}

/// The socket of a service that takes one connection.
async fn small_service(
    source: &Service,
) -> (tempfile::TempDir, watch::Sender<bool>, tokio::task::JoinHandle<usize>) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let limits = Limits { connections: 1, blocks: 32, working: 8 };
    let (stop, stopped) = watch::channel(false);
    let serving =
        tokio::spawn(serve(vec![Door::local(listener)], Arc::clone(&source.source), limits, stopped));
    (folder, stop, serving)
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_a_place_is_given_back() {
    let world = small_world(9).await;
    let (folder, stop, serving) = small_service(&Service::of(&world)).await;
    let connect = async || UnixStream::connect(folder.path().join("s")).await.unwrap();
    let begin = [&16u32.to_be_bytes()[..], &(3u32 << 16).to_be_bytes(), b"user\0u\0\0"].concat();
    let mut first = connect().await;
    first.write_all(&begin).await.unwrap();
    assert_eq!(first.read_u8().await.unwrap(), b'R');
    let mut second = connect().await;
    second.write_all(&begin).await.unwrap();
    let mut said = Vec::new();
    second.read_to_end(&mut said).await.unwrap();
    assert!(String::from_utf8_lossy(&said).contains("53300"), "{said:?}");
    drop(first);
    loop {
        let mut third = connect().await;
        third.write_all(&begin).await.unwrap();
        if third.read_u8().await.unwrap() == b'R' {
            break;
        }
    }
    stop.send_replace(true);
    assert_eq!(serving.await.unwrap(), 0);
}

#[tokio::test]
async fn a_first_packet_that_is_none_is_refused_and_a_newer_protocol_is_answered_by_this_one() {
    let world = small_world(10).await;
    let service = Service::of(&world);
    let mut client = service.connect(1 << 10);
    client.0.write_all(&[0, 0, 0, 8, 0, 2, 0, 0]).await.unwrap();
    assert_eq!(client.error().await.0, "08P01");
    let mut client = service.connect(1 << 10);
    let body = [&((3u32 << 16) + 2).to_be_bytes()[..], b"_pq_.new\x001\0\0"].concat();
    client.0.write_all(&[&(4 + body.len() as u32).to_be_bytes()[..], &body].concat()).await.unwrap();
    let (kind, said) = client.receive().await;
    assert_eq!((kind, &said[..]), (b'v', &b"\0\x03\0\0\0\0\0\x01_pq_.new\0"[..]));
    while client.receive().await.0 != b'Z' {}
}
