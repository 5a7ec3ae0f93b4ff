//! Headers of WAL pages (`XLogPageHeaderData`, `XLogLongPageHeaderData`, access/xlog_internal.h).

use super::WalError;
use super::fields::Fields;
use crate::wal_name::WalSegSize;
use crate::{Lsn, Tli, XLOG_BLCKSZ};

/// `XLOG_PAGE_MAGIC` of PostgreSQL 15.
pub const XLOG_PAGE_MAGIC: u16 = 0xD110;
/// `SizeOfXLogShortPHD`.
pub const SHORT_HEADER: usize = 24;
/// `SizeOfXLogLongPHD`.
pub const LONG_HEADER: usize = 40;

/// `XLP_FIRST_IS_CONTRECORD`: the page begins with the rest of a record.
pub const XLP_FIRST_IS_CONTRECORD: u16 = 0x0001;
/// `XLP_LONG_HEADER`: the first page of a segment.
pub const XLP_LONG_HEADER: u16 = 0x0002;
/// `XLP_BKP_REMOVABLE`: full-page images of this page's records may be left out.
pub const XLP_BKP_REMOVABLE: u16 = 0x0004;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the rest of a record that would be here was lost and is overwritten.
pub const XLP_FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
/// `XLP_ALL_FLAGS`.
pub const XLP_ALL_FLAGS: u16 = 0x000F;

/// The header of one WAL page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageHeader {
    /// `xlp_info`, `XLP_*`.
    pub info: u16,
    /// `xlp_tli`: the timeline of the first record on the page.
    pub tli: Tli,
    /// `xlp_pageaddr`: where the page stands in the WAL.
    pub page_addr: Lsn,
    /// `xlp_rem_len`: bytes of the record from the page before that are still to come, this page's included.
    pub rem_len: u32,
    /// What only a segment's first page says.
    pub long: Option<LongHeader>,
}

/// The additional fields of a segment's first page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongHeader {
    /// `xlp_sysid`: the cluster's system identifier.
    pub system_identifier: u64,
    /// `xlp_seg_size`, in bytes.
    pub seg_size: u32,
    /// `xlp_xlog_blcksz`, in bytes.
    pub xlog_blcksz: u32,
}

impl PageHeader {
    /// Decodes the header at the front of a page. At least [`SHORT_HEADER`] bytes are needed, [`LONG_HEADER`] when the
    /// long flag is set.
    ///
    /// Checks magic and flags, which need no knowledge of the page's place: that is [`PageHeader::check`]'s. An error
    /// carries the address that the page claims for itself.
    pub fn decode(page: &[u8]) -> Result<PageHeader, WalError> {
        let claimed = page.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let mut fields = Fields::new(page, Lsn(claimed.unwrap_or(0)), "WAL page header");
        let magic = fields.u16()?;
        if magic != XLOG_PAGE_MAGIC {
            return Err(fields.wrong(format_args!(
                "magic number {magic:04X} instead of PostgreSQL 15's {XLOG_PAGE_MAGIC:04X}"
            )));
        }
        let info = fields.u16()?;
        if info & !XLP_ALL_FLAGS != 0 {
            return Err(fields.wrong(format_args!("invalid info bits {info:04X}")));
        }
        let (tli, page_addr, rem_len) = (fields.u32()?, fields.lsn()?, fields.u32()?);
        fields.take(4)?;
        let long = if info & XLP_LONG_HEADER != 0 {
            Some(LongHeader {
                system_identifier: fields.u64()?,
                seg_size: fields.u32()?,
                xlog_blcksz: fields.u32()?,
            })
        } else {
            None
        };
        Ok(PageHeader { info, tli, page_addr, rem_len, long })
    }

    /// Bytes that the header takes on its page (`XLogPageHeaderSize`).
    pub fn size(&self) -> usize {
        if self.long.is_some() { LONG_HEADER } else { SHORT_HEADER }
    }

    /// Whether a flag of `xlp_info` is set.
    pub fn has(&self, flag: u16) -> bool {
        self.info & flag != 0
    }

    /// Checks the header against the page's place and cluster, as `XLogReaderValidatePageHeader` does, its check of the
    /// order of timelines aside. `system_identifier` 0 is unknown and matches any.
    pub fn check(
        &self,
        page_addr: Lsn,
        seg_size: WalSegSize,
        system_identifier: u64,
    ) -> Result<(), WalError> {
        let wrong = |what: String| Err(WalError::invalid(page_addr, what));
        match &self.long {
            Some(long) if system_identifier != 0 && long.system_identifier != system_identifier => {
                return wrong(format!(
                    "the WAL page is of a cluster with system identifier {}, not {system_identifier}",
                    long.system_identifier
                ));
            }
            Some(long) if u64::from(long.seg_size) != seg_size.bytes() => {
                return wrong(format!(
                    "the WAL page is of segments of {} bytes, not {}",
                    long.seg_size,
                    seg_size.bytes()
                ));
            }
            Some(long) if long.xlog_blcksz as usize != XLOG_BLCKSZ => {
                return wrong(format!("WAL block size {}, not {XLOG_BLCKSZ}", long.xlog_blcksz));
            }
            None if seg_size.offset_of(page_addr) == 0 => {
                return wrong("the first page of the segment has no long header".to_owned());
            }
            _ => {}
        }
        if self.page_addr != page_addr {
            return wrong(format!("the WAL page says that it stands at {}", self.page_addr));
        }
        Ok(())
    }

    /// The header's bytes, [`PageHeader::size`] many.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LONG_HEADER);
        bytes.extend(XLOG_PAGE_MAGIC.to_le_bytes());
        let info = self.info & !XLP_LONG_HEADER | if self.long.is_some() { XLP_LONG_HEADER } else { 0 };
        bytes.extend(info.to_le_bytes());
        bytes.extend(self.tli.to_le_bytes());
        bytes.extend(self.page_addr.0.to_le_bytes());
        bytes.extend(self.rem_len.to_le_bytes());
        bytes.extend([0; 4]);
        if let Some(long) = &self.long {
            bytes.extend(long.system_identifier.to_le_bytes());
            bytes.extend(long.seg_size.to_le_bytes());
            bytes.extend(long.xlog_blcksz.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long() -> PageHeader {
        PageHeader {
            info: XLP_LONG_HEADER | XLP_FIRST_IS_CONTRECORD,
            tli: 3,
            page_addr: Lsn(0x1_0200_0000),
            rem_len: 77,
            long: Some(LongHeader { system_identifier: 42, seg_size: 1 << 24, xlog_blcksz: 8192 }),
        }
    }

    #[test]
    fn headers_read_back_as_they_were_written() {
        let short = PageHeader { info: XLP_BKP_REMOVABLE, long: None, ..long() };
        for header in [long(), short] {
            let bytes = header.encode();
            assert_eq!(bytes.len(), header.size());
            assert_eq!(PageHeader::decode(&bytes), Ok(header));
            for cut in 0..bytes.len() {
                assert!(PageHeader::decode(&bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn another_versions_magic_is_refused() {
        let mut bytes = long().encode();
        bytes[0] = 0x13;
        let error = PageHeader::decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("magic number D113"), "{error}");
    }

    #[test]
    fn a_page_of_another_place_cluster_or_segment_size_is_refused() {
        let size = WalSegSize::DEFAULT;
        let at = long().page_addr;
        assert_eq!(long().check(at, size, 42), Ok(()));
        assert_eq!(long().check(at, size, 0), Ok(()));
        assert!(long().check(at, size, 43).is_err());
        assert!(long().check(Lsn(at.0 + 8192), size, 42).is_err());
        assert!(long().check(at, WalSegSize::new(1 << 20).unwrap(), 42).is_err());
        let short = PageHeader { long: None, ..long() };
        assert!(short.check(at, size, 42).is_err(), "a segment begins with a long header");
    }
}
