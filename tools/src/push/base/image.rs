//! What both sources of a base image hand on: files, and the WAL that goes with them.

use std::path::PathBuf;
use zenith_ingest::base::{BaseBuilder, BaseError};
use zenith_pgformat::Lsn;
use zenith_pgformat::wal_name::WalSegSize;

/// What a path of a data directory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// In bytes.
        size: u64,
    },
}

/// A file or directory that belongs to a base image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundFile {
    /// Below the data directory; tablespaces through `pg_tblspc/<oid>/…`.
    pub path: String,
    /// Where it lies.
    pub absolute: PathBuf,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
}

/// The WAL from redo to the end of a base image, as segments arrive. Holds two segments at most: where the image ends
/// is known only after the last one.
#[derive(Debug)]
pub struct WalTail {
    size: WalSegSize,
    next: u64,
    pending: Option<(u64, Vec<u8>)>,
}

/// WAL that does not reach from redo to the end.
#[derive(Debug, thiserror::Error)]
pub enum WalTailError {
    /// A segment that does not follow the last one.
    #[error(
        "the base image's WAL has segment {found} where {expected} comes next; run zenith_push base again"
    )]
    Order {
        /// Its number.
        found: u64,
        /// The number expected.
        expected: u64,
    },
    /// The last segment does not hold the end.
    #[error("the base image's WAL ends before {0}, the end of the base image; run zenith_push base again")]
    Short(Lsn),
    /// Storing it.
    #[error(transparent)]
    Base(#[from] BaseError),
}

impl WalTail {
    /// Before the segment that holds `redo`.
    pub fn new(redo: Lsn, size: WalSegSize) -> WalTail {
        WalTail { size, next: size.segment_of(redo), pending: None }
    }

    /// The next segment, whole.
    pub async fn add(
        &mut self,
        builder: &mut BaseBuilder,
        segment: u64,
        content: Vec<u8>,
    ) -> Result<(), WalTailError> {
        if segment != self.next {
            return Err(WalTailError::Order { found: segment, expected: self.next });
        }
        if let Some((before, whole)) = self.pending.take() {
            builder.add_wal(before, self.size, &whole).await?;
        }
        self.next += 1;
        self.pending = Some((segment, content));
        Ok(())
    }

    /// The image ends at `end`: what lies behind it in the last segment is left out.
    pub async fn finish(self, builder: &mut BaseBuilder, end: Lsn) -> Result<(), WalTailError> {
        let Some((segment, content)) = self.pending else { return Err(WalTailError::Short(end)) };
        let length = end.since(self.size.start_of(segment));
        let wanted = usize::try_from(length).ok().filter(|length| *length > 0);
        let Some(part) = wanted.and_then(|length| content.get(..length)) else {
            return Err(WalTailError::Short(end));
        };
        Ok(builder.add_wal(segment, self.size, part).await?)
    }
}
