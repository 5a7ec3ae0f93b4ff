//! What the service counts, over HTTP: one document, for Prometheus.

use super::tcp;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zenith_reader::service::metrics;
use zenith_reader::service::source::Source;

/// Clients at a time, on each address; further ones wait.
const CLIENTS: usize = 8;
/// How long one may take to ask and to read the answer.
const WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a request: what it may have in its head, and more.
const REQUEST_BYTES: usize = 16 << 10;
/// A pause after the system refused a connection.
const REFUSED: Duration = Duration::from_millis(100);
const PATH: &str = "/metrics";

/// Where metrics are served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Address {
    host: String,
    port: u16,
}

/// `HOST:PORT`, as an option's value.
pub(super) fn address(text: &str) -> Result<Address, String> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let address =
        parts.and_then(|(host, port)| Some(Address { host: host.to_owned(), port: port.parse().ok()? }));
    address.ok_or_else(|| "give HOST:PORT: 127.0.0.1:9187, say, or [::1]:9187".to_owned())
}

/// Serves metrics on the addresses of a host from now on; gives their URLs. It ends with the runtime.
pub(super) async fn serve(address: &Address, source: &Arc<Source>) -> anyhow::Result<Vec<String>> {
    let mut urls = Vec::new();
    for listener in tcp::listen_on(&address.host, address.port).await? {
        urls.push(format!("http://{}{PATH}", listener.local_addr()?));
        tokio::spawn(accept(listener, Arc::clone(source)));
    }
    Ok(urls)
}

async fn accept(listener: TcpListener, source: Arc<Source>) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    // Never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(answer(stream, Arc::clone(&source), place))),
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics was not accepted");
                source.clock().sleep(REFUSED).await;
            }
        }
    }
}

/// One request of one client.
async fn answer(stream: TcpStream, source: Arc<Source>, _place: OwnedSemaphorePermit) {
    let respond = service_fn(async |request| Ok::<_, Infallible>(respond(&source, &request).await));
    let mut http = http1::Builder::new();
    // The time for all of it is bounded below.
    http.keep_alive(false).header_read_timeout(None).max_buf_size(REQUEST_BYTES);
    tokio::select! {
        ended = http.serve_connection(TokioIo::new(stream), respond) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection for metrics ended");
            }
        }
        () = source.clock().sleep(WITHIN) => {}
    }
}

async fn respond(source: &Source, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (method, path) = (request.method(), request.uri().path());
    let text = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    match path {
        PATH if method == Method::GET || method == Method::HEAD => {
            let mut response = Response::new(Full::from(source.metrics().await));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
            response
        }
        PATH => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET it\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
        _ => text(StatusCode::NOT_FOUND, "there is only /metrics\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let is = |text, host: &str, port| {
            assert_eq!(address(text), Ok(Address { host: host.to_owned(), port }), "{text}");
        };
        is("127.0.0.1:9187", "127.0.0.1", 9187);
        is("[::1]:0", "[::1]", 0);
        is("*:9187", "*", 9187);
        for none in ["9187", ":9187", "localhost", "localhost:", "localhost:99999", ""] {
            assert!(address(none).expect_err(none).contains("HOST:PORT"));
        }
    }
}
