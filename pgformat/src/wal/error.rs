//! What can be wrong with WAL, told so that the caller knows what to do next.

use super::RmgrId;
use crate::Lsn;

/// WAL that cannot be read.
///
/// At the end of an archive or of `pg_wal` every kind but [`WalError::Feed`] and [`WalError::UnknownRecord`] is
/// normal: what follows the last complete record is zeros or an old segment's bytes. With a later segment at hand
/// the same error is damage. Only the caller knows which; `WalStream::position` is the end of what is sound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// Zeros stand where the next record would begin.
    #[error(
        "no WAL record at {lsn}: the WAL is zeros there, so it ends here or a part of it was never written"
    )]
    NoRecord {
        /// Where the record would begin.
        lsn: Lsn,
    },
    /// Bytes that are no WAL of this cluster.
    #[error("invalid WAL at {lsn}: {what}")]
    Invalid {
        /// The record or page that is wrong.
        lsn: Lsn,
        /// What is wrong with it.
        what: String,
    },
    /// A record type that PostgreSQL 15 does not have (invariant I9: never guess what it does).
    #[error(
        "unknown WAL record at {lsn}: resource manager {rmgr}, info 0x{info:02X}; \
         this version of Zenith cannot interpret it"
    )]
    UnknownRecord {
        /// Where the record begins.
        lsn: Lsn,
        /// Its resource manager.
        rmgr: RmgrId,
        /// Its `xl_info`.
        info: u8,
    },
    /// A full-page image that does not restore; the caller adds record and block.
    #[error("damaged full-page image: {what}")]
    Image {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Segments were handed over in a way that [`super::stream::WalStream::feed`] does not allow.
    #[error("WAL bytes at {lsn} cannot follow: {what}")]
    Feed {
        /// Where the rejected bytes begin.
        lsn: Lsn,
        /// Which rule they break.
        what: String,
    },
}

impl WalError {
    /// Shorthand for [`WalError::Invalid`].
    pub(crate) fn invalid(lsn: Lsn, what: impl Into<String>) -> WalError {
        WalError::Invalid { lsn, what: what.into() }
    }

    /// Whether the WAL may simply end at the place of this error (see the type's description).
    pub fn may_be_end_of_wal(&self) -> bool {
        matches!(self, WalError::NoRecord { .. } | WalError::Invalid { .. })
    }
}
