//! Metrics of a service, as an HTTP client sees them.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::io::{Read, Write};
use std::net::TcpStream;

/// What the service at `http://HOST:PORT/metrics` answers to a request line, head and all.
pub(crate) fn asked(url: &str, request: &str) -> String {
    let address = url.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/metrics")).expect("a URL");
    let mut stream = TcpStream::connect(address).expect("connected");
    write!(stream, "{request} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// Its samples, once every line was one, or a comment.
pub(crate) fn samples(url: &str) -> Vec<(String, f64)> {
    let answer = asked(url, "GET /metrics");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.to_ascii_lowercase().contains("content-type: application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let lines = body.lines().filter(|line| !line.starts_with("# "));
    let samples = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        assert!(name.starts_with("zenith_"), "{line}");
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
    });
    samples.collect()
}

/// One of them.
pub(crate) fn sample(url: &str, name: &str) -> f64 {
    let samples = samples(url);
    let found = samples.iter().find(|(found, _)| found == name);
    found.unwrap_or_else(|| panic!("no {name} among {samples:?}")).1
}
