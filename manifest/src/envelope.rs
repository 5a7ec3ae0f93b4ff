//! The frame around every small object of the manifest: what it is, its format, and a checksum.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic: which kind of object |
//! | 8..10 | format version, little-endian; 1 |
//! | 10..12 | encryption algorithm, little-endian; 0 is none, and no other is known yet |
//! | 12..16 | length of the body in bytes, little-endian |
//! | 16..20 | CRC-32C of bytes 0..16 and the body, little-endian |
//! | 20.. | the body, JSON |
//!
//! These 20 bytes stay the same in every format, so that a newer object is told from a damaged one.

use crate::error::ManifestError;
use bytes::Bytes;
use object_store::path::Path;
use serde::Serialize;
use serde::de::DeserializeOwned;

const HEADER: usize = 20;
const PLAIN: u16 = 0;

/// A kind of object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kind {
    pub(crate) magic: [u8; 8],
    /// For messages.
    pub(crate) what: &'static str,
    /// The newest format that this program reads, and the one that it writes.
    pub(crate) format: u16,
}

pub(crate) const ROOT: Kind = Kind { magic: *b"ZENMANIF", what: "manifest version", format: 1 };
pub(crate) const NAME: Kind = Kind { magic: *b"ZENNAME\0", what: "name", format: 1 };
pub(crate) const IDENTITY: Kind = Kind { magic: *b"ZENIDENT", what: "identity", format: 1 };
pub(crate) const BOUNDARY: Kind = Kind { magic: *b"ZENBOUND", what: "boundary", format: 1 };
pub(crate) const HORIZON: Kind = Kind { magic: *b"ZENHORIZ", what: "horizon", format: 1 };
pub(crate) const PIN: Kind = Kind { magic: *b"ZENPIN\0\0", what: "pin", format: 1 };

/// The object's bytes.
pub(crate) fn seal<T: Serialize>(kind: Kind, object: &Path, value: &T) -> Result<Bytes, ManifestError> {
    let unwritable = |reason: String| ManifestError::Damaged {
        object: object.to_string(),
        reason: format!("cannot be written: {reason}"),
    };
    let body = serde_json::to_vec(value).map_err(|e| unwritable(e.to_string()))?;
    let length = u32::try_from(body.len()).map_err(|_| unwritable("over 4 GiB".to_owned()))?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&kind.magic);
    bytes.extend_from_slice(&kind.format.to_le_bytes());
    bytes.extend_from_slice(&PLAIN.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes.into())
}

/// What the object says.
pub(crate) fn open<T: DeserializeOwned>(kind: Kind, object: &Path, bytes: &[u8]) -> Result<T, ManifestError> {
    let damaged = |reason: String| ManifestError::Damaged { object: object.to_string(), reason };
    let Some((header, body)) = bytes.split_first_chunk::<HEADER>() else {
        return Err(damaged(format!("it has {} bytes, too few for a {}", bytes.len(), kind.what)));
    };
    let (checked, stored_crc) = header.split_at(16);
    let (magic, numbers) = checked.split_at(8);
    if magic != kind.magic {
        return Err(damaged(format!("it is no {}", kind.what)));
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(checked), body);
    if crc.to_le_bytes() != *stored_crc {
        return Err(damaged(format!("its checksum does not match ({} bytes)", bytes.len())));
    }
    let [f0, f1, e0, e1, l0, l1, l2, l3] = *numbers else {
        return Err(damaged("its header is cut".to_owned()));
    };
    let (format, algorithm) = (u16::from_le_bytes([f0, f1]), u16::from_le_bytes([e0, e1]));
    if format > kind.format {
        return Err(ManifestError::Newer { object: object.to_string(), found: format, known: kind.format });
    }
    if algorithm != PLAIN {
        return Err(ManifestError::Encrypted { object: object.to_string(), algorithm });
    }
    if u32::from_le_bytes([l0, l1, l2, l3]) as usize != body.len() {
        return Err(damaged("its length does not match".to_owned()));
    }
    serde_json::from_slice(body).map_err(|e| damaged(e.to_string()))
}
