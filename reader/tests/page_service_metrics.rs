//! What the page service counts.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod page_client;
mod world;

use page_client::*;
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};
use zenith_reader::service::{Door, Limits, serve};

/// What a document says of one sample.
async fn sample(service: &Service, name: &str) -> f64 {
    let text = service.source.metrics().await;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}

async fn served_from(service: &Service) -> [f64; 4] {
    let mut counts = [0.0; 4];
    for (count, source) in counts.iter_mut().zip(["store", "block_cache", "page_cache", "shared"]) {
        let name = format!("zenith_page_request_latency_seconds_count{{source=\"{source}\"}}");
        *count = sample(service, &name).await;
    }
    counts
}

#[tokio::test]
async fn pages_are_counted_by_where_they_come_from() {
    let world = small_world(1).await;
    let service = Service::of(&world);
    let mut client = service.stream().await;
    assert_eq!(served_from(&service).await, [0.0; 4]);
    assert_eq!(marks(client.get(400, pages(1, 1)).await), [20]);
    assert_eq!(served_from(&service).await, [1.0, 0.0, 0.0, 0.0]);
    let asked = sample(&service, "zenith_store_requests_total{kind=\"get\"}").await;
    assert!(asked > 0.0 && sample(&service, "zenith_store_received_bytes_total").await > asked);
    assert_eq!(marks(client.get(400, pages(1, 1)).await), [20]);
    // Of a layer that was read whole.
    assert_eq!(marks(client.get(400, pages(2, 1)).await), [12]);
    assert_eq!(marks(client.get(400, pages(0, 4)).await), [10, 20, 12, 13]);
    assert_eq!(served_from(&service).await, [1.0, 2.0, 1.0, 0.0]);
    assert_eq!(sample(&service, "zenith_store_requests_total{kind=\"get\"}").await, asked);
    assert_eq!(sample(&service, "zenith_pages_total").await, 7.0);
    assert_eq!(sample(&service, "zenith_page_layers_count").await, 2.0);
    assert!(sample(&service, "zenith_page_layers_sum").await >= 2.0);
    assert!(sample(&service, "zenith_cache_bytes{cache=\"pages\"}").await > 16384.0);
    assert!(sample(&service, "zenith_cache_bytes{cache=\"snapshots\"}").await > 0.0);

    client.get(400, relation(99)).await;
    client.get(199, pages(0, 1)).await;
    for (answer, count) in [("pages", 4.0), ("relation", 1.0), ("gone", 1.0)] {
        let name = format!("zenith_requests_total{{answer=\"{answer}\"}}");
        assert_eq!(sample(&service, &name).await, count, "{answer}");
    }
    assert_eq!(sample(&service, "zenith_requests_in_work").await, 0.0);
}

#[tokio::test]
async fn connections_are_counted_while_they_last() {
    let world = small_world(3).await;
    let service = Service::of(&world);
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let limits = Limits { connections: 1, blocks: 32, working: 8 };
    let (source, stopped) = (Arc::clone(&service.source), service.stop.subscribe());
    let serving = tokio::spawn(serve(vec![Door::local(listener)], source, limits, stopped));
    let connect = async || Client(UnixStream::connect(folder.path().join("s")).await.unwrap());
    let mut first = connect().await;
    first.begin().await;
    assert_eq!(sample(&service, "zenith_connections").await, 1.0);
    let mut second = connect().await;
    second.startup().await;
    assert_eq!(second.error().await.0, "53300");
    drop(first);
    while sample(&service, "zenith_connections").await != 0.0 {
        tokio::task::yield_now().await;
    }
    while sample(&service, "zenith_connections_refused_total{reason=\"full\"}").await != 1.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(sample(&service, "zenith_connected_total").await, 1.0);
    service.stop.send_replace(true);
    assert_eq!(serving.await.unwrap(), 0);
}
