//! Reading the fields of a C struct out of hostile bytes.

use super::WalError;
use crate::{Lsn, RelNode};

/// Takes fields off the front of a byte string, little-endian as every platform of the supported servers is.
///
/// A read past the end is an error that names the record and the struct.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    lsn: Lsn,
    subject: &'static str,
}

impl<'a> Fields<'a> {
    /// Reads `bytes`, which belong to `subject` in the record at `lsn`.
    pub(crate) fn new(bytes: &'a [u8], lsn: Lsn, subject: &'static str) -> Fields<'a> {
        Fields { rest: bytes, lsn, subject }
    }

    /// What has not been read yet.
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// An error about this struct.
    pub(crate) fn wrong(&self, what: impl std::fmt::Display) -> WalError {
        WalError::invalid(self.lsn, format!("{}: {what}", self.subject))
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], WalError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| self.wrong(format_args!("{len} bytes wanted, {} left", self.rest.len())))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WalError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WalError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WalError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WalError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, WalError> {
        self.array().map(i32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WalError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, WalError> {
        self.array().map(i64::from_le_bytes)
    }

    pub(crate) fn lsn(&mut self) -> Result<Lsn, WalError> {
        self.u64().map(Lsn)
    }

    /// A C `bool`; other values than 0 and 1 are an error.
    pub(crate) fn bool(&mut self) -> Result<bool, WalError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.wrong(format_args!("{other} is not a bool"))),
        }
    }

    /// A `RelFileNode`.
    pub(crate) fn rel_node(&mut self) -> Result<RelNode, WalError> {
        Ok(RelNode { spc: self.u32()?, db: self.u32()?, rel: self.u32()? })
    }

    /// A C `int` that counts something.
    pub(crate) fn count(&mut self) -> Result<usize, WalError> {
        let count = self.i32()?;
        usize::try_from(count).map_err(|_| self.wrong(format_args!("negative count {count}")))
    }

    /// An array of `count` elements of `width` bytes each, all of which must be there before any is stored.
    pub(crate) fn array_of<T>(
        &mut self,
        count: usize,
        width: usize,
        read: impl Fn(&mut Fields<'a>) -> Result<T, WalError>,
    ) -> Result<Vec<T>, WalError> {
        let bytes = count.checked_mul(width).ok_or_else(|| self.wrong("array too long"))?;
        let mut elements = Fields { rest: self.take(bytes)?, ..*self };
        (0..count).map(|_| read(&mut elements)).collect()
    }

    /// Skips an array.
    pub(crate) fn skip_array(&mut self, count: usize, width: usize) -> Result<(), WalError> {
        let bytes = count.checked_mul(width).ok_or_else(|| self.wrong("array too long"))?;
        self.take(bytes).map(drop)
    }

    /// The number of an SLRU page, a C `int` that is never negative.
    pub(crate) fn page_number(&mut self) -> Result<u32, WalError> {
        let page = self.i32()?;
        u32::try_from(page).map_err(|_| self.wrong(format_args!("negative page number {page}")))
    }

    /// Skips what aligns the next field to 8 bytes after a part of `len` bytes (`MAXALIGN`).
    pub(crate) fn align_after(&mut self, len: usize) -> Result<(), WalError> {
        self.take(len.wrapping_neg() % 8).map(drop)
    }

    /// A C string that ends inside the rest; its terminator is read too.
    pub(crate) fn c_string(&mut self) -> Result<&'a [u8], WalError> {
        let end = self.rest.iter().position(|byte| *byte == 0);
        let text = self.take(end.ok_or_else(|| self.wrong("text without an end"))?)?;
        self.take(1)?;
        Ok(text)
    }

    /// All bytes were read; anything left is a format that is not PostgreSQL 15's.
    pub(crate) fn end(self) -> Result<(), WalError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(self.wrong(format_args!("{left} bytes more than expected"))),
        }
    }
}
