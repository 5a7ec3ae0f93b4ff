//! What a page service and its clients say to each other, byte by byte (docs/page-service.md). Pure: bytes in, messages out.
//!
//! [`pagestream`] has the requests and their answers, [`frontend`] the part of PostgreSQL's wire protocol around them as a
//! client speaks it. A crate of its own, so that a client, which lives in a PostgreSQL server, need not know how pages are
//! made.

pub mod frontend;
pub mod pagestream;
