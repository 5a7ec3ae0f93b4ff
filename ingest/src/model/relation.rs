//! Existence, size and rare events of a relation's fork.

use super::codec::{ModelError, Reader, Writer};
use bytes::Bytes;
use zenith_pgformat::Lsn;

/// The value of `KeyClass::RelSize`: the fork exists and has this many blocks. A tombstone says that it exists
/// no longer.
///
/// Rules for readers of an old page of the fork:
/// - a row of the key space that is older than [`RelSize::created`] belongs to an earlier relation of the same number;
/// - after [`RelSize::last_truncation`] or [`RelSize::last_gap`] the fork's [`RelEvent`]s up to the read LSN say
///   which blocks they concern; while both are 0/0 there is no event to look for;
/// - when `created` equals the creation of a database that is an [`super::Alias`], the fork came with the copy:
///   what the rows do not answer goes on in the alias' source.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RelSize {
    /// Length in blocks.
    pub blocks: u32,
    /// End of the record that created the fork; 0/0 for what a base image brought; the creation of the database
    /// for what came with a copied database.
    pub created: Lsn,
    /// End of the last truncation since the creation; 0/0 if there was none.
    pub last_truncation: Lsn,
    /// End of the last record whose growth skipped blocks; 0/0 if there was none.
    pub last_gap: Lsn,
}

impl RelSize {
    const WHAT: &'static str = "relation size";

    /// An empty fork that begins at `created`.
    pub fn new(created: Lsn) -> RelSize {
        RelSize { blocks: 0, created, last_truncation: Lsn::INVALID, last_gap: Lsn::INVALID }
    }

    /// Version 1: blocks, created, last truncation, last gap, all LEB128.
    pub fn encode(&self) -> Bytes {
        Writer::new(1)
            .varint(u64::from(self.blocks))
            .lsn(self.created)
            .lsn(self.last_truncation)
            .lsn(self.last_gap)
            .finish()
    }

    /// Reads what [`RelSize::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<RelSize, ModelError> {
        let mut reader = Reader::new(Self::WHAT, 1, bytes)?;
        let value = RelSize {
            blocks: reader.varint32()?,
            created: reader.lsn()?,
            last_truncation: reader.lsn()?,
            last_gap: reader.lsn()?,
        };
        reader.finish()?;
        Ok(value)
    }
}

/// The value of `KeyClass::RelEvent`, at the LSN where it happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelEvent {
    /// Cut to `to` blocks: no older value of a block at or above `to` is visible from here on.
    Truncated {
        /// Length that remained, in blocks.
        to: u32,
    },
    /// Growth skipped blocks `from..to`: they begin as zeros at this LSN. Rows of the same LSN, for blocks of
    /// the range that the record did write, come after the zeros.
    Gap {
        /// First block that begins as zeros: the length before.
        from: u32,
        /// The block after the last one.
        to: u32,
    },
}

impl RelEvent {
    const WHAT: &'static str = "relation event";

    /// Version 1: a kind byte (1 truncated, 2 gap), then its numbers in LEB128.
    pub fn encode(&self) -> Bytes {
        match *self {
            RelEvent::Truncated { to } => Writer::new(1).byte(1).varint(u64::from(to)).finish(),
            RelEvent::Gap { from, to } => {
                Writer::new(1).byte(2).varint(u64::from(from)).varint(u64::from(to)).finish()
            }
        }
    }

    /// Reads what [`RelEvent::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<RelEvent, ModelError> {
        let mut reader = Reader::new(Self::WHAT, 1, bytes)?;
        let event = match reader.byte()? {
            1 => RelEvent::Truncated { to: reader.varint32()? },
            2 => {
                let (from, to) = (reader.varint32()?, reader.varint32()?);
                if from >= to {
                    return Err(reader.malformed("an empty range of skipped blocks"));
                }
                RelEvent::Gap { from, to }
            }
            _ => return Err(reader.malformed("an unknown kind of event")),
        };
        reader.finish()?;
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_relation_size_reads_back(blocks: u32, created: u64, truncated: u64, gap: u64) {
            let size = RelSize {
                blocks,
                created: Lsn(created),
                last_truncation: Lsn(truncated),
                last_gap: Lsn(gap),
            };
            prop_assert_eq!(RelSize::decode(&size.encode()), Ok(size));
        }

        #[test]
        fn a_relation_event_reads_back(from in 0u32..u32::MAX, length in 1u32..) {
            let gap = RelEvent::Gap { from, to: from.saturating_add(length) };
            prop_assert_eq!(RelEvent::decode(&gap.encode()), Ok(gap));
            let cut = RelEvent::Truncated { to: from };
            prop_assert_eq!(RelEvent::decode(&cut.encode()), Ok(cut));
        }

        #[test]
        fn hostile_bytes_are_refused_or_read_but_never_panic(bytes: Vec<u8>) {
            let _ = RelSize::decode(&bytes);
            let _ = RelEvent::decode(&bytes);
        }

        #[test]
        fn a_cut_or_longer_value_is_refused(blocks: u32, created: u64, extra: u8) {
            let whole = RelSize { blocks, ..RelSize::new(Lsn(created)) }.encode().to_vec();
            prop_assert!(RelSize::decode(&whole[..whole.len() - 1]).is_err());
            let longer = [whole.as_slice(), &[extra]].concat();
            prop_assert!(RelSize::decode(&longer).is_err());
        }
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        assert_eq!(
            RelSize::decode(&[9, 0, 0, 0, 0]),
            Err(ModelError::Version { what: "relation size", found: 9 })
        );
    }
}
