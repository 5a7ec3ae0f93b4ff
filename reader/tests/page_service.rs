//! The page service, on layers written by hand and over connections in memory.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod page_client;
mod world;

use bytes::{Buf, BufMut, BytesMut};
use page_client::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use world::*;
use zenith_pgformat::Lsn;
use zenith_reader::service::pagestream::{Answer, Code, Request};

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
    service.clock.set(1000);
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
