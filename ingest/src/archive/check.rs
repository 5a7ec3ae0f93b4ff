//! What a segment must look like before the archive acknowledges it.

use zenith_pgformat::wal::WalError;
use zenith_pgformat::wal::page::PageHeader;
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{Lsn, Tli};

/// Why a file is not what its name says.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SegmentCheckError {
    /// Cut, or of another cluster's segment size.
    #[error("it has {found} bytes where {expected} are expected")]
    Size {
        /// Its length.
        found: u64,
        /// What the name asks for.
        expected: u64,
    },
    /// Not WAL of PostgreSQL 15, another cluster's, or another segment's.
    #[error("its first page does not belong here: {0}")]
    Page(#[from] WalError),
    /// Of a history that this timeline does not have.
    #[error("its first page is of timeline {page}, which is neither {file} nor an ancestor of it")]
    Tli {
        /// `xlp_tli` of the first page.
        page: Tli,
        /// The number in the file's name.
        file: Tli,
    },
}

/// Checks size, magic, system identifier and address of a segment against its place; returns its first page's
/// TLI, which the caller judges.
pub fn check_segment(
    content: &[u8],
    segment: u64,
    size: WalSegSize,
    system_identifier: u64,
) -> Result<Tli, SegmentCheckError> {
    check_segment_head(content, content.len() as u64, segment, size, system_identifier)
}

/// As [`check_segment`], by the beginning of a segment, at least its first page, and its length.
pub fn check_segment_head(
    head: &[u8],
    length: u64,
    segment: u64,
    size: WalSegSize,
    system_identifier: u64,
) -> Result<Tli, SegmentCheckError> {
    if length != size.bytes() {
        return Err(SegmentCheckError::Size { found: length, expected: size.bytes() });
    }
    let header = PageHeader::decode(head)?;
    let start: Lsn = size.start_of(segment);
    header.check(start, size, system_identifier)?;
    Ok(header.tli)
}
