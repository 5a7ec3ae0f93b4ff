//! What the service tells of itself, in the text format of Prometheus (docs/page-service.md).

use super::connection::Ended;
use super::pagestream::{Answer, Code};
use super::source::Source;
use crate::options::RedoCounts;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use zenith_layers::Looked;
use zenith_store::CountsSnapshot;

/// The media type of [`Source::metrics`]: OpenMetrics, which Prometheus has read since 2.5.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of latencies: from 50 µs, doubled, to 6.5 s.
const FIRST_BOUND: f64 = 50e-6;
const BOUNDS: u16 = 18;
/// Bounds of numbers of layers.
const LAYERS: [f64; 12] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0];

/// What a request may be answered with.
const ANSWERS: [&str; 6] = ["pages", "relation", "retry", "not_yet", "gone", "corrupt"];

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

/// Where the pages of a request come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PageSource {
    /// The page was built before.
    PageCache,
    /// Built from parts of layers that were in memory.
    BlockCache,
    /// The store was asked.
    Store,
    /// Another request for the same page did the work.
    Shared,
}

impl PageSource {
    /// `built`: what building them asked of the layers; `None`: the page was in the page cache. `all`: what the whole request
    /// asked of them, which may have been the first at its LSN.
    fn of(built: Option<Looked>, all: Looked) -> PageSource {
        match built {
            _ if all.requests > 0 => PageSource::Store,
            None => PageSource::PageCache,
            Some(Looked { layers: 1.., .. }) => PageSource::BlockCache,
            Some(_) => PageSource::Shared,
        }
    }

    fn label(self) -> Label {
        let name = match self {
            PageSource::PageCache => "page_cache",
            PageSource::BlockCache => "block_cache",
            PageSource::Store => "store",
            PageSource::Shared => "shared",
        };
        [("source", name)]
    }
}

/// What one service counts.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    latency: Family<Label, Histogram, fn() -> Histogram>,
    layers: Histogram,
    requests: Family<Label, Counter>,
    pages: Counter,
    /// Requests that have a place among those that are worked on.
    in_work: Gauge,
    connections: Gauge,
    connected: Counter,
    refused: Family<Label, Counter>,
    // Known elsewhere, and taken over when somebody asks.
    store_requests: Family<Label, Counter>,
    store_bytes: Counter,
    redo_pages: Counter,
    redo_seconds: Counter<f64, AtomicU64>,
    caches: Family<Label, Gauge>,
}

impl Metrics {
    /// All zero.
    pub(super) fn new() -> Metrics {
        let latencies: fn() -> Histogram = || Histogram::new(exponential_buckets(FIRST_BOUND, 2.0, BOUNDS));
        let mut metrics = Metrics {
            registry: Registry::with_prefix("zenith"),
            latency: Family::new_with_constructor(latencies),
            layers: Histogram::new(LAYERS),
            requests: Family::default(),
            pages: Counter::default(),
            in_work: Gauge::default(),
            connections: Gauge::default(),
            connected: Counter::default(),
            refused: Family::default(),
            store_requests: Family::default(),
            store_bytes: Counter::default(),
            redo_pages: Counter::default(),
            redo_seconds: Counter::default(),
            caches: Family::default(),
        };
        metrics.begin();
        metrics.register();
        metrics
    }

    /// What has not happened yet is zero, and not missing.
    fn begin(&self) {
        for source in [PageSource::PageCache, PageSource::BlockCache, PageSource::Store, PageSource::Shared] {
            drop(self.latency.get_or_create(&source.label()));
        }
        for answer in ANSWERS {
            drop(self.requests.get_or_create(&[("answer", answer)]));
        }
        for reason in Ended::REFUSALS {
            drop(self.refused.get_or_create(&[("reason", reason)]));
        }
    }

    fn register(&mut self) {
        let of = &mut self.registry;
        let text = "Requests for pages that were answered with pages, and how long each took";
        of.register_with_unit("page_request_latency", text, Unit::Seconds, self.latency.clone());
        let text = "Layers that a page was looked for in, of single pages that were not in the page cache";
        of.register("page_layers", text, self.layers.clone());
        of.register(
            "requests",
            "Requests of page streams, by what they were answered with",
            self.requests.clone(),
        );
        of.register("pages", "Pages that were answered", self.pages.clone());
        of.register("requests_in_work", "Requests that are worked on", self.in_work.clone());
        of.register("connections", "Clients that have a place", self.connections.clone());
        of.register("connected", "Clients that were given a place", self.connected.clone());
        of.register("connections_refused", "Clients that were not let in", self.refused.clone());
        let text = "Requests to the store, by kind; retries inside its client are not seen";
        of.register("store_requests", text, self.store_requests.clone());
        let text = "Bytes that the store's answers promised";
        of.register_with_unit("store_received", text, Unit::Bytes, self.store_bytes.clone());
        of.register("redo_pages", "Pages that PostgreSQL's redo was asked for", self.redo_pages.clone());
        let text = "Time that requests waited for PostgreSQL's redo";
        of.register_with_unit("redo", text, Unit::Seconds, self.redo_seconds.clone());
        of.register_with_unit("cache", "What each cache holds", Unit::Bytes, self.caches.clone());
    }

    /// A request was answered, so long after it came; `built` and `all` as for [`PageSource::of`].
    pub(super) fn answered(&self, answer: &Answer, took: Duration, built: Option<Looked>, all: Looked) {
        if let Answer::Pages(pages) = answer {
            let source = PageSource::of(built, all);
            self.latency.get_or_create(&source.label()).observe(took.as_secs_f64());
            self.pages.inc_by(pages.len() as u64);
            if let (1, Some(built @ Looked { layers: 1.., .. })) = (pages.len(), built) {
                self.layers.observe(f64::from(built.layers));
            }
        }
        let name = match answer {
            Answer::Pages(_) => "pages",
            Answer::Relation(_) => "relation",
            Answer::Error { code: Code::Retry, .. } => "retry",
            Answer::Error { code: Code::NotYet, .. } => "not_yet",
            Answer::Error { code: Code::Gone, .. } => "gone",
            Answer::Error { code: Code::Corrupt, .. } => "corrupt",
        };
        self.requests.get_or_create(&[("answer", name)]).inc();
    }

    /// A request has a place among those that are worked on, for as long as this lives.
    pub(super) fn working(&self) -> Held {
        Held::of(&self.in_work)
    }

    /// A client has a place, for as long as this lives.
    pub(super) fn connected(&self) -> Held {
        self.connected.inc();
        Held::of(&self.connections)
    }

    /// A client was not let in.
    pub(super) fn refused(&self, why: &'static str) {
        self.refused.get_or_create(&[("reason", why)]).inc();
    }

    /// Takes over what others count.
    pub(super) fn update(&self, store: &CountsSnapshot, redo: &RedoCounts, caches: [(&'static str, u64); 4]) {
        for (kind, count) in [
            ("get", store.gets),
            ("head", store.heads),
            ("list", store.lists),
            ("other", store.puts + store.deletes + store.others),
        ] {
            raise(self.store_requests.get_or_create(&[("kind", kind)]).inner(), count);
        }
        raise(self.store_bytes.inner(), store.bytes_got);
        raise(self.redo_pages.inner(), redo.pages);
        // Bits of numbers that are not negative are in the order of the numbers.
        raise(self.redo_seconds.inner(), redo.time.as_secs_f64().to_bits());
        for (cache, bytes) in caches {
            self.caches.get_or_create(&[("cache", cache)]).set(bytes.cast_signed());
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Of two who ask at the same time the later one may have read the count earlier.
fn raise(counter: &AtomicU64, count: u64) {
    counter.fetch_max(count, Ordering::Relaxed);
}

/// One more, for as long as it lives.
#[derive(Debug)]
pub(super) struct Held(Gauge);

impl Held {
    fn of(gauge: &Gauge) -> Held {
        gauge.inc();
        Held(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Source {
    /// What the service counts, in the text format of Prometheus: a document of [`CONTENT_TYPE`].
    pub async fn metrics(&self) -> String {
        self.update_metrics().await;
        self.counted().text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_elsewhere_never_goes_back() {
        let metrics = Metrics::new();
        let redo = |seconds| RedoCounts { pages: 3, time: Duration::from_secs_f64(seconds) };
        let store = CountsSnapshot { gets: 7, bytes_got: 9, ..CountsSnapshot::default() };
        let caches = |bytes| [("pages", bytes), ("blocks", 0), ("index", 0), ("snapshots", 0)];
        metrics.update(&store, &redo(1.5), caches(5));
        metrics.update(&CountsSnapshot::default(), &redo(0.5), caches(4));
        let text = metrics.text();
        for line in [
            "zenith_store_requests_total{kind=\"get\"} 7",
            "zenith_store_received_bytes_total 9",
            "zenith_redo_pages_total 3",
            "zenith_redo_seconds_total 1.5",
            "zenith_cache_bytes{cache=\"pages\"} 4",
            "zenith_page_request_latency_seconds_count{source=\"store\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn a_page_is_from_the_store_if_that_was_asked_and_anothers_work_if_nothing_was() {
        let (none, asked) = (Looked::default(), Looked { layers: 2, requests: 1 });
        let in_memory = Looked { requests: 0, ..asked };
        assert_eq!(PageSource::of(Some(asked), asked), PageSource::Store);
        assert_eq!(PageSource::of(Some(in_memory), asked), PageSource::Store);
        assert_eq!(PageSource::of(Some(in_memory), in_memory), PageSource::BlockCache);
        assert_eq!(PageSource::of(None, none), PageSource::PageCache);
        assert_eq!(PageSource::of(Some(none), none), PageSource::Shared);
    }
}
