//! The messages inside BASE_BACKUP's COPY stream in PostgreSQL 15 (protocol-replication.html, "BASE_BACKUP";
//! backup/basebackup_copy.c).

/// One CopyData message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// `n`: a tar archive begins.
    NewArchive {
        /// `base.tar`, or `<oid>.tar` of a tablespace.
        name: &'a str,
        /// The tablespace's directory on the server; empty for the data directory.
        location: &'a str,
    },
    /// `m`: the backup manifest begins.
    Manifest,
    /// `d`: bytes of the archive (or manifest) that began last.
    Data(&'a [u8]),
    /// `p`: bytes of the current tablespace that the server has sent.
    Progress(u64),
}

/// A message that PostgreSQL 15 does not send.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the server sent a malformed BASE_BACKUP message: {0}; is it PostgreSQL 15?")]
pub struct CopyDataError(&'static str);

/// Reads one CopyData message.
pub fn parse(bytes: &[u8]) -> Result<Message<'_>, CopyDataError> {
    let (kind, body) = bytes.split_first().ok_or(CopyDataError("an empty message"))?;
    match kind {
        b'd' => Ok(Message::Data(body)),
        b'n' => {
            let (name, rest) = text(body)?;
            let (location, rest) = text(rest)?;
            nothing_behind(rest)?;
            Ok(Message::NewArchive { name, location })
        }
        b'm' => nothing_behind(body).map(|()| Message::Manifest),
        b'p' => {
            let number: [u8; 8] =
                body.try_into().map_err(|_| CopyDataError("progress that is no 64-bit number"))?;
            let number = i64::from_be_bytes(number);
            let number = u64::try_from(number).map_err(|_| CopyDataError("negative progress"))?;
            Ok(Message::Progress(number))
        }
        _ => Err(CopyDataError("an unknown kind of message")),
    }
}

/// A NUL-terminated text and what follows it.
fn text(bytes: &[u8]) -> Result<(&str, &[u8]), CopyDataError> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(CopyDataError("a text without its end"))?;
    let (text, rest) = bytes.split_at(end);
    let text = std::str::from_utf8(text).map_err(|_| CopyDataError("a name that is not UTF-8"))?;
    Ok((text, rest.get(1..).unwrap_or_default()))
}

fn nothing_behind(rest: &[u8]) -> Result<(), CopyDataError> {
    if rest.is_empty() { Ok(()) } else { Err(CopyDataError("bytes behind the end of a message")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_of_message_is_read() {
        assert_eq!(parse(b"nbase.tar\0\0"), Ok(Message::NewArchive { name: "base.tar", location: "" }));
        assert_eq!(
            parse(b"n16400.tar\0/srv/ts\0"),
            Ok(Message::NewArchive { name: "16400.tar", location: "/srv/ts" })
        );
        assert_eq!(parse(b"m"), Ok(Message::Manifest));
        assert_eq!(parse(b"dxyz"), Ok(Message::Data(b"xyz")));
        assert_eq!(parse(b"p\0\0\0\0\0\0\x01\0"), Ok(Message::Progress(256)));
    }

    #[test]
    fn malformed_messages_are_errors() {
        for bytes in [
            &b""[..],
            b"x",
            b"nbase.tar",
            b"nbase.tar\0",
            b"nbase.tar\0\0more",
            b"n\xff\0\0",
            b"p\0\0\0",
            b"p\xff\xff\xff\xff\xff\xff\xff\xff",
            b"mm",
        ] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }
    }
}
