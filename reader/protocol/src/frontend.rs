//! The client's side of PostgreSQL's wire protocol, version 3.0, as far as it needs it to become a page stream
//! ("Frontend/Backend Protocol" in PostgreSQL's documentation).

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// `PG_PROTOCOL(3,0)`.
const PROTOCOL: u32 = 3 << 16;
/// The longest message that a page service sends: an answer with the most pages that there may be.
pub const MESSAGE_MAX: usize = 4 + 16 + crate::pagestream::MAX_BLOCKS as usize * zenith_pgformat::BLCKSZ;
/// `AuthenticationOk` in the body of an authentication message.
const AUTHENTICATION_OK: u32 = 0;

/// The first packet of a connection.
pub fn startup(user: &str, database: &str) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u32(PROTOCOL);
    for text in ["user", user, "database", database] {
        put_text(&mut body, text);
    }
    body.put_u8(0);
    let mut packet = BytesMut::with_capacity(4 + body.len());
    packet.put_u32(length(body.len()));
    packet.put(body);
    packet.freeze()
}

/// A simple query.
pub fn query(text: &str) -> Bytes {
    let mut body = BytesMut::new();
    put_text(&mut body, text);
    message(b'Q', &body)
}

/// A request of a page stream.
pub fn copy_data(content: &[u8]) -> Bytes {
    message(b'd', content)
}

fn message(kind: u8, body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + body.len());
    bytes.put_u8(kind);
    bytes.put_u32(length(body.len()));
    bytes.put_slice(body);
    bytes.freeze()
}

/// A message's length counts itself.
fn length(body: usize) -> u32 {
    u32::try_from(body + 4).unwrap_or(u32::MAX)
}

/// A string ends at its first zero byte.
fn put_text(body: &mut BytesMut, text: &str) {
    body.put_slice(text.split('\0').next().unwrap_or_default().as_bytes());
    body.put_u8(0);
}

/// A message of the service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// It lets the client in.
    Welcome,
    /// It wants a password, or another proof, of the given kind.
    Authentication(u32),
    /// It waits for a query.
    Ready,
    /// The connection is a page stream from now on.
    CopyBoth,
    /// An answer of a page stream ([`crate::pagestream::Answer`]).
    CopyData(Bytes),
    /// The page stream ends.
    CopyDone,
    /// It refuses something, or ends.
    Error(Refused),
    /// Nothing that a client of a page stream needs.
    Other(u8),
}

/// An error of the service.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message} (SQLSTATE {sqlstate})")]
pub struct Refused {
    /// PostgreSQL's five characters.
    pub sqlstate: String,
    /// Names what was wrong and the remedy.
    pub message: String,
}

/// Bytes that are no message of a page service.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a page service: {0}")]
pub struct NotAService(&'static str);

/// The next message of what was received so far, which it takes away. `None`: it is not whole yet.
///
/// # Errors
/// A length that no page service sends; nothing can be read from the connection any more.
pub fn next(received: &mut BytesMut) -> Result<Option<Incoming>, NotAService> {
    let Some((head, _)) = received.split_first_chunk::<5>() else { return Ok(None) };
    let [kind, length @ ..] = *head;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if !(4..=MESSAGE_MAX).contains(&length) {
        return Err(NotAService("a message is shorter or longer than any of its messages"));
    }
    if received.len() <= length {
        return Ok(None);
    }
    let mut body = received.split_to(1 + length).freeze();
    body.advance(5);
    Ok(Some(incoming(kind, body)?))
}

fn incoming(kind: u8, body: Bytes) -> Result<Incoming, NotAService> {
    Ok(match kind {
        b'R' => match body.first_chunk::<4>().map(|kind| u32::from_be_bytes(*kind)) {
            Some(AUTHENTICATION_OK) => Incoming::Welcome,
            Some(kind) => Incoming::Authentication(kind),
            None => return Err(NotAService("an authentication message is cut off")),
        },
        b'Z' => Incoming::Ready,
        b'W' => Incoming::CopyBoth,
        b'd' => Incoming::CopyData(body),
        b'c' => Incoming::CopyDone,
        b'E' => Incoming::Error(refused(&body)),
        other => Incoming::Other(other),
    })
}

/// Fields that are missing are empty.
fn refused(body: &[u8]) -> Refused {
    let field = |wanted: u8| {
        let mut fields = body.split(|byte| *byte == 0);
        let found = fields.find_map(|field| field.strip_prefix(&[wanted]));
        String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
    };
    Refused { sqlstate: field(b'C'), message: field(b'M') }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_client_says_is_postgresqls() {
        let expected = b"\0\0\0\x1b\0\x03\0\0user\0u\0database\0d\0\0";
        assert_eq!(&startup("u", "d\0x")[..], expected);
        assert_eq!(&query("SHOW version")[..], b"Q\0\0\0\x11SHOW version\0");
        assert_eq!(&copy_data(b"abc")[..], b"d\0\0\0\x07abc");
    }

    #[test]
    fn messages_are_taken_when_they_are_whole() {
        let error = b"SERROR\0C57P03\0Mno\0\0";
        let bytes = [
            &b"R\0\0\0\x08\0\0\0\0E"[..],
            &u32::try_from(error.len() + 4).unwrap().to_be_bytes(),
            error,
            b"S\0\0\0\x06a\0Z\0\0\0\x05I",
        ]
        .concat();
        let refused = Refused { sqlstate: "57P03".to_owned(), message: "no".to_owned() };
        let expected = [Incoming::Welcome, Incoming::Error(refused), Incoming::Other(b'S'), Incoming::Ready];
        let (mut received, mut found) = (BytesMut::new(), Vec::new());
        for byte in bytes {
            received.put_u8(byte);
            while let Some(message) = next(&mut received).unwrap() {
                found.push(message);
            }
        }
        assert_eq!(found, expected);
        assert!(received.is_empty());
    }

    #[test]
    fn lengths_that_no_service_sends_are_refused() {
        for length in [0u32, 3, u32::MAX, u32::try_from(MESSAGE_MAX).unwrap() + 1] {
            let mut received = BytesMut::from(&[&b"d"[..], &length.to_be_bytes()].concat()[..]);
            assert!(next(&mut received).is_err(), "{length}");
        }
    }

    #[test]
    fn the_longest_answer_fits() {
        use crate::pagestream::{Answer, MAX_BLOCKS};
        let pages = vec![Bytes::from(vec![1; zenith_pgformat::BLCKSZ]); usize::from(MAX_BLOCKS)];
        let answer = Answer::Pages(pages).encode(1);
        let mut received = BytesMut::from(&copy_data(&answer)[..]);
        assert_eq!(next(&mut received).unwrap(), Some(Incoming::CopyData(answer)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind: u8, short: u8) {
            let mut received = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next(&mut received) {}
            let mut received = BytesMut::from(&[&[kind, 0, 0, 0, short], &bytes[..]].concat()[..]);
            while let Ok(Some(_)) = next(&mut received) {}
        }
    }
}
