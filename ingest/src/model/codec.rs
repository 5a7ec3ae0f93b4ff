//! The small binary language that state values are written in: one version byte, then fixed fields or
//! variable-length integers (LEB128), and nothing after the last field.

use zenith_pgformat::Lsn;

/// A state value that cannot be decoded. It was read from a layer whose checksum was right, so either a newer
/// version of Zenith wrote it or the object was made by something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Written by another version of the format.
    #[error("{what}: format version {found} is not known here; use the version of Zenith that wrote it")]
    Version {
        /// Which state value.
        what: &'static str,
        /// The version found.
        found: u8,
    },
    /// Not a value of this kind at all.
    #[error("{what}: {reason}")]
    Malformed {
        /// Which state value.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Builds a value.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Begins with the version byte.
    pub(crate) fn new(version: u8) -> Writer {
        Writer { bytes: vec![version] }
    }

    pub(crate) fn byte(mut self, value: u8) -> Writer {
        self.bytes.push(value);
        self
    }

    pub(crate) fn varint(mut self, mut value: u64) -> Writer {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
        self
    }

    pub(crate) fn lsn(self, value: Lsn) -> Writer {
        self.varint(value.0)
    }

    pub(crate) fn tail(mut self, bytes: &[u8]) -> Writer {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn finish(self) -> bytes::Bytes {
        self.bytes.into()
    }
}

/// Takes a value apart.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks the version byte.
    pub(crate) fn new(what: &'static str, version: u8, bytes: &'a [u8]) -> Result<Reader<'a>, ModelError> {
        match bytes.split_first() {
            Some((found, rest)) if *found == version => Ok(Reader { what, rest }),
            Some((found, _)) => Err(ModelError::Version { what, found: *found }),
            None => Err(ModelError::Malformed { what, reason: "the value is empty" }),
        }
    }

    pub(crate) fn malformed(&self, reason: &'static str) -> ModelError {
        ModelError::Malformed { what: self.what, reason }
    }

    pub(crate) fn byte(&mut self) -> Result<u8, ModelError> {
        let (first, rest) = self.rest.split_first().ok_or(self.malformed("it ends too early"))?;
        self.rest = rest;
        Ok(*first)
    }

    pub(crate) fn boolean(&mut self) -> Result<bool, ModelError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed("a flag is neither 0 nor 1")),
        }
    }

    pub(crate) fn varint(&mut self) -> Result<u64, ModelError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7F);
            if shift == 63 && part > 1 {
                return Err(self.malformed("a number exceeds 64 bits"));
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number exceeds 64 bits"))
    }

    pub(crate) fn varint32(&mut self) -> Result<u32, ModelError> {
        let value = self.varint()?;
        u32::try_from(value).map_err(|_| self.malformed("a number exceeds 32 bits"))
    }

    pub(crate) fn lsn(&mut self) -> Result<Lsn, ModelError> {
        self.varint().map(Lsn)
    }

    pub(crate) fn tail(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn finish(self) -> Result<(), ModelError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("bytes follow its last field")) }
    }
}
