//! The server's side of PostgreSQL's wire protocol, version 3.0, as far as the page service speaks it ("Frontend/Backend
//! Protocol" in PostgreSQL's documentation). Pure: bytes in, messages out.

use bytes::{BufMut, Bytes, BytesMut};

/// `PG_PROTOCOL(3,0)`; who asks for a newer minor version is told that this one is spoken.
const PROTOCOL_MAJOR: u32 = 3;
const PROTOCOL: u32 = PROTOCOL_MAJOR << 16;
const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
/// `MAX_STARTUP_PACKET_LENGTH`.
pub(crate) const STARTUP_MAX: usize = 10_000;
/// The longest message that a client may send: a query.
pub(crate) const MESSAGE_MAX: usize = 16 << 10;
/// The longest password message that a client may send.
pub(crate) const PASSWORD_MAX: usize = 2 << 10;
/// `AuthenticationCleartextPassword`.
const CLEARTEXT_PASSWORD: u32 = 3;

/// What a client that is not known yet sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum First {
    /// It wants TLS: `S` begins it, `N` tells that there is none.
    Tls,
    /// It wants the encryption of GSSAPI, which there is not: `N`.
    Gss,
    /// It wants to begin.
    Startup {
        /// The minor version of the protocol that it knows.
        minor: u32,
        /// Names and values.
        parameters: Vec<(String, String)>,
    },
    /// It wants to cancel what another connection does.
    Cancel,
}

/// A message of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    Query(String),
    CopyData(Bytes),
    CopyDone,
    /// Why the client ends the copy.
    CopyFail(String),
    Sync,
    Flush,
    Terminate,
}

/// Bytes that are no message of the protocol.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not PostgreSQL's protocol: {0}")]
pub struct NotTheProtocol(pub(crate) String);

/// The length that a message's four bytes announce, without themselves.
pub(crate) fn length(bytes: [u8; 4], most: usize) -> Result<usize, NotTheProtocol> {
    let length = usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(usize::MAX);
    match length.checked_sub(4) {
        Some(length) if length <= most => Ok(length),
        _ => Err(NotTheProtocol(format!("a message of {length} bytes"))),
    }
}

/// The first packet's content.
pub(crate) fn first(body: &[u8]) -> Result<First, NotTheProtocol> {
    let bad = |what: &str| NotTheProtocol(what.to_owned());
    let (version, rest) = body.split_first_chunk().ok_or_else(|| bad("a first packet without a version"))?;
    let version = u32::from_be_bytes(*version);
    match version {
        CANCEL => return Ok(First::Cancel),
        SSL => return Ok(First::Tls),
        GSS => return Ok(First::Gss),
        _ if version >> 16 != PROTOCOL_MAJOR => {
            return Err(NotTheProtocol(format!(
                "version {}.{}; this is 3.0",
                version >> 16,
                version & 0xFFFF
            )));
        }
        _ => {}
    }
    let texts = rest.strip_suffix(b"\0\0").or_else(|| (rest == b"\0").then_some(&[][..]));
    let texts = texts.ok_or_else(|| bad("start-up parameters that do not end"))?;
    let minor = version & 0xFFFF;
    if texts.is_empty() {
        return Ok(First::Startup { minor, parameters: Vec::new() });
    }
    let texts: Vec<String> =
        texts.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    let pairs = texts.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(bad("a start-up parameter without a value"));
    }
    let parameters = pairs.map(|pair| (pair[0].clone(), pair[1].clone())).collect();
    Ok(First::Startup { minor, parameters })
}

/// A later message's content.
pub(crate) fn message(kind: u8, body: Bytes) -> Result<Message, NotTheProtocol> {
    Ok(match kind {
        b'Q' => Message::Query(string(&body)),
        b'd' => Message::CopyData(body),
        b'c' => Message::CopyDone,
        b'f' => Message::CopyFail(string(&body)),
        b'S' => Message::Sync,
        b'H' => Message::Flush,
        b'X' => Message::Terminate,
        _ => {
            return Err(NotTheProtocol(format!(
                "a message of type {:?}, of which this service has no use: it takes simple queries",
                char::from(kind)
            )));
        }
    })
}

/// The answer to [`Outgoing::ask_password`]: what was typed, without the zero byte at its end.
pub(crate) fn password(kind: u8, body: &[u8]) -> Result<&[u8], NotTheProtocol> {
    let text = body.strip_suffix(b"\0").filter(|text| !text.contains(&0));
    match text {
        Some(text) if kind == b'p' => Ok(text),
        _ => Err(NotTheProtocol("a message that is no password where one was asked for".to_owned())),
    }
}

/// A body that is one string.
fn string(body: &[u8]) -> String {
    String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(body)).into_owned()
}

/// How bad an error is: whether the connection goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Severity {
    Error,
    Fatal,
}

/// Messages to a client, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Outgoing(BytesMut);

impl Outgoing {
    pub(crate) fn take(&mut self) -> Bytes {
        self.0.split().freeze()
    }

    fn put(&mut self, kind: u8, body: impl FnOnce(&mut BytesMut)) -> &mut Outgoing {
        self.0.put_u8(kind);
        let at = self.0.len();
        self.0.put_u32(0);
        body(&mut self.0);
        let length = u32::try_from(self.0.len() - at).unwrap_or(u32::MAX);
        if let Some(place) = self.0.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        self
    }

    /// It must show its password, as it is.
    pub(crate) fn ask_password(&mut self) -> &mut Outgoing {
        self.put(b'R', |body| body.put_u32(CLEARTEXT_PASSWORD))
    }

    /// The client is let in.
    pub(crate) fn welcome(&mut self) -> &mut Outgoing {
        self.put(b'R', |body| body.put_u32(0));
        let version = concat!("15.0 (zenith ", env!("CARGO_PKG_VERSION"), ")");
        let parameters =
            [("server_version", version), ("client_encoding", "UTF8"), ("standard_conforming_strings", "on")];
        for (name, value) in parameters {
            self.put(b'S', |body| {
                text(body, name);
                text(body, value);
            });
        }
        self
    }

    /// This is the newest version that is spoken, and of these options of the protocol nothing is known.
    pub(crate) fn negotiate(&mut self, unknown: &[&str]) -> &mut Outgoing {
        self.put(b'v', |body| {
            body.put_u32(PROTOCOL);
            body.put_u32(u32::try_from(unknown.len()).unwrap_or(u32::MAX));
            unknown.iter().for_each(|name| text(body, name));
        })
    }

    /// It may ask.
    pub(crate) fn ready(&mut self) -> &mut Outgoing {
        self.put(b'Z', |body| body.put_u8(b'I'))
    }

    /// Rows of text.
    pub(crate) fn rows(&mut self, columns: &[&str], rows: &[Vec<String>]) -> &mut Outgoing {
        const TEXT_OID: u32 = 25;
        let count =
            |body: &mut BytesMut, count: usize| body.put_u16(u16::try_from(count).unwrap_or(u16::MAX));
        self.put(b'T', |body| {
            count(body, columns.len());
            for column in columns {
                text(body, column);
                // No table, no column of one; of any length; as text.
                body.put_u32(0);
                body.put_u16(0);
                body.put_u32(TEXT_OID);
                body.put_i16(-1);
                body.put_i32(-1);
                body.put_u16(0);
            }
        });
        for row in rows {
            self.put(b'D', |body| {
                count(body, row.len());
                for value in row {
                    body.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
                    body.put_slice(value.as_bytes());
                }
            });
        }
        self.complete("SHOW")
    }

    pub(crate) fn complete(&mut self, tag: &str) -> &mut Outgoing {
        self.put(b'C', |body| text(body, tag))
    }

    /// The query was empty.
    pub(crate) fn empty(&mut self) -> &mut Outgoing {
        self.put(b'I', |_| {})
    }

    pub(crate) fn error(&mut self, severity: Severity, sqlstate: &str, message: &str) -> &mut Outgoing {
        let severity = match severity {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        };
        self.put(b'E', |body| {
            for (field, value) in [(b'S', severity), (b'V', severity), (b'C', sqlstate), (b'M', message)] {
                body.put_u8(field);
                text(body, value);
            }
            body.put_u8(0);
        })
    }

    /// From now on both sides send `CopyData`.
    pub(crate) fn copy_both(&mut self) -> &mut Outgoing {
        self.put(b'W', |body| {
            body.put_u8(1);
            body.put_u16(0);
        })
    }

    pub(crate) fn copy_data(&mut self, content: &[u8]) -> &mut Outgoing {
        self.put(b'd', |body| body.put_slice(content))
    }

    pub(crate) fn copy_done(&mut self) -> &mut Outgoing {
        self.put(b'c', |_| {})
    }
}

/// A string ends at its first zero byte.
fn text(body: &mut BytesMut, text: &str) {
    body.put_slice(text.split('\0').next().unwrap_or_default().as_bytes());
    body.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_packets_are_read_and_what_is_none_is_refused() {
        let packet = |version: u32, rest: &[u8]| first(&[&version.to_be_bytes()[..], rest].concat());
        assert_eq!(packet(SSL, b""), Ok(First::Tls));
        assert_eq!(packet(GSS, b""), Ok(First::Gss));
        assert_eq!(packet(CANCEL, &[0; 8]), Ok(First::Cancel));
        let pairs = vec![("user".to_owned(), "u".to_owned()), ("database".to_owned(), String::new())];
        let startup = |minor, parameters| Ok(First::Startup { minor, parameters });
        assert_eq!(packet(3 << 16, b"user\0u\0database\0\0\0"), startup(0, pairs));
        assert_eq!(packet((3 << 16) + 2, b"\0"), startup(2, Vec::new()));
        assert!(packet(3 << 16, b"user\0u").is_err() && packet(3 << 16, b"user\0\0").is_err());
        assert!(packet(2 << 16, b"\0").is_err() && first(b"abc").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind: u8) {
            let _ = (first(&bytes), first(&[&(3u32 << 16).to_be_bytes()[..], &bytes].concat()));
            let _ = password(kind, &bytes);
            let _ = message(kind, bytes.into());
        }
    }

    #[test]
    fn lengths_beyond_the_bound_and_below_themselves_are_refused() {
        assert_eq!(length(4u32.to_be_bytes(), 10), Ok(0));
        assert_eq!(length(14u32.to_be_bytes(), 10), Ok(10));
        for bad in [0u32, 3, 15, u32::MAX] {
            assert!(length(bad.to_be_bytes(), 10).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_one_string_in_a_message_of_its_own() {
        assert_eq!(password(b'p', b"hush\0"), Ok(&b"hush"[..]));
        assert_eq!(password(b'p', b"\0"), Ok(&b""[..]));
        for (kind, body) in [(b'Q', &b"hush\0"[..]), (b'p', b"hush"), (b'p', b"h\0sh\0"), (b'p', b"")] {
            assert!(password(kind, body).is_err(), "{body:?}");
        }
        assert_eq!(Outgoing::default().ask_password().take(), &b"R\0\0\0\x08\0\0\0\x03"[..]);
    }

    #[test]
    fn a_message_carries_its_own_length() {
        let mut out = Outgoing::default();
        out.error(Severity::Fatal, "08P01", "no\0t shown").ready();
        let bytes = out.take();
        let error = b"SFATAL\0VFATAL\0C08P01\0Mno\0\0";
        let expected = [&b"E"[..], &(error.len() as u32 + 4).to_be_bytes(), error, b"Z\0\0\0\x05I"].concat();
        assert_eq!(bytes, expected);
        assert!(out.take().is_empty());
        out.negotiate(&["_pq_.x"]);
        assert_eq!(&out.take()[..], b"v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.x\0");
    }
}
