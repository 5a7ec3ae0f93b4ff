//! The page service: pages, sizes and existence of relations at any LSN, over a connection that speaks PostgreSQL's wire
//! protocol (docs/page-service.md).
//!
//! [`pagestream`] (a crate of its own, for clients) and [`wire`] are the formats, without I/O; [`source`] opens timelines and
//! snapshots and keeps them; `answer` makes the answer to one request; [`connection`] serves one client; [`access`] and
//! [`tokens`] are what it must show before, `startup` how it does; [`doors`] accepts clients; [`metrics`] is what
//! can be seen of all that.

pub mod access;
mod answer;
pub mod connection;
pub mod doors;
pub mod metrics;
mod query;
pub mod source;
mod startup;
pub mod tokens;
pub mod wire;

pub use doors::{Door, Listener, serve};
pub use source::Source;
pub use zenith_page_protocol::pagestream;

use std::time::Duration;

/// How long connections may take to end when the service stops: answers that are being made are still sent.
pub const GRACE: Duration = Duration::from_secs(10);

/// How much a service takes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections at a time; further ones are refused.
    pub connections: usize,
    /// Blocks that one connection may have asked for and not yet taken, 8 KB each; twice that while they are written.
    pub blocks: u32,
    /// Requests of one connection that are worked on at the same time.
    pub working: usize,
}

impl Default for Limits {
    /// 1,024 connections, as a server has one for each of its processes, of 4 MB, and of half the requests that a [`Source`] works on
    /// at the same time.
    fn default() -> Limits {
        Limits { connections: 1024, blocks: 512, working: source::WORKING / 2 }
    }
}
