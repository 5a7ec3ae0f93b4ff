//! The bytes of an edit: one byte of kind, then little-endian fields; a list takes what is left.

use super::{Edit, Member, XactStatus};
use bytes::Bytes;

const CLEAR_VISIBILITY: u8 = 1;
const TRUNCATE_VISIBILITY: u8 = 2;
const XACT_STATUS: u8 = 3;
const MULTIXACT_OFFSETS: u8 = 4;
const MULTIXACT_MEMBERS: u8 = 5;
const COMMIT_TS: u8 = 6;
const GIN_FINISH_SPLIT: u8 = 7;

/// Bytes that are not an edit of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A kind that this version does not know.
    #[error("native edit of unknown kind {0}: a newer Zenith wrote this layer, use that version")]
    Kind(u8),
    /// A transaction status that does not exist.
    #[error("native edit with transaction status {0}: the layer is damaged")]
    Status(u8),
    /// Too few bytes, or bytes left over.
    #[error(
        "native edit of kind {kind} with {length} bytes, which fit no whole number of entries: the layer is damaged"
    )]
    Length {
        /// The kind.
        kind: u8,
        /// Length of the edit.
        length: usize,
    },
    /// Nothing at all.
    #[error("empty native edit: the layer is damaged")]
    Empty,
}

impl Edit {
    /// The edit's bytes, as layers keep them.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Edit::ClearVisibility { blocks } => {
                out.push(CLEAR_VISIBILITY);
                for (block, bits) in blocks {
                    out.extend(block.to_le_bytes());
                    out.push(*bits);
                }
            }
            Edit::TruncateVisibility { first_removed } => {
                out.push(TRUNCATE_VISIBILITY);
                out.extend(first_removed.to_le_bytes());
            }
            Edit::XactStatus { status, slots } => {
                out.extend([XACT_STATUS, *status as u8]);
                out.extend(slots.iter().flat_map(|slot| slot.to_le_bytes()));
            }
            Edit::MultiXactOffsets { entries } => {
                out.push(MULTIXACT_OFFSETS);
                for (slot, offset) in entries {
                    out.extend(slot.to_le_bytes());
                    out.extend(offset.to_le_bytes());
                }
            }
            Edit::MultiXactMembers { members } => {
                out.push(MULTIXACT_MEMBERS);
                for member in members {
                    out.extend(member.slot.to_le_bytes());
                    out.extend(member.xid.to_le_bytes());
                    out.push(member.status);
                }
            }
            Edit::CommitTs { time, origin, slots } => {
                out.push(COMMIT_TS);
                out.extend(time.to_le_bytes());
                out.extend(origin.to_le_bytes());
                out.extend(slots.iter().flat_map(|slot| slot.to_le_bytes()));
            }
            Edit::GinFinishSplit => out.push(GIN_FINISH_SPLIT),
        }
        Bytes::from(out)
    }

    /// Reads what [`Edit::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Edit, DecodeError> {
        let (kind, body) = bytes.split_first().ok_or(DecodeError::Empty)?;
        let wrong = DecodeError::Length { kind: *kind, length: bytes.len() };
        match *kind {
            CLEAR_VISIBILITY => {
                let blocks = entries::<3, _>(body, |[a, b, bits]| (u16::from_le_bytes([a, b]), bits));
                Ok(Edit::ClearVisibility { blocks: blocks.ok_or(wrong)? })
            }
            TRUNCATE_VISIBILITY => {
                let bytes: [u8; 2] = body.try_into().map_err(|_| wrong)?;
                Ok(Edit::TruncateVisibility { first_removed: u16::from_le_bytes(bytes) })
            }
            XACT_STATUS => {
                let (status, rest) = body.split_first().ok_or(wrong)?;
                let status = match status {
                    1 => XactStatus::Committed,
                    2 => XactStatus::Aborted,
                    3 => XactStatus::SubCommitted,
                    other => return Err(DecodeError::Status(*other)),
                };
                Ok(Edit::XactStatus { status, slots: entries(rest, u16::from_le_bytes).ok_or(wrong)? })
            }
            MULTIXACT_OFFSETS => {
                let entries = entries::<6, _>(body, |[a, b, c, d, e, f]| {
                    (u16::from_le_bytes([a, b]), u32::from_le_bytes([c, d, e, f]))
                });
                Ok(Edit::MultiXactOffsets { entries: entries.ok_or(wrong)? })
            }
            MULTIXACT_MEMBERS => {
                let members = entries::<7, _>(body, |[a, b, c, d, e, f, status]| Member {
                    slot: u16::from_le_bytes([a, b]),
                    xid: u32::from_le_bytes([c, d, e, f]),
                    status,
                });
                Ok(Edit::MultiXactMembers { members: members.ok_or(wrong)? })
            }
            COMMIT_TS => {
                let (time, rest) = body.split_first_chunk::<8>().ok_or(wrong)?;
                let (origin, rest) = rest.split_first_chunk::<2>().ok_or(wrong)?;
                Ok(Edit::CommitTs {
                    time: i64::from_le_bytes(*time),
                    origin: u16::from_le_bytes(*origin),
                    slots: entries(rest, u16::from_le_bytes).ok_or(wrong)?,
                })
            }
            GIN_FINISH_SPLIT if body.is_empty() => Ok(Edit::GinFinishSplit),
            GIN_FINISH_SPLIT => Err(wrong),
            unknown => Err(DecodeError::Kind(unknown)),
        }
    }
}

/// All of `body` as entries of `N` bytes, `None` if a part is left over.
fn entries<const N: usize, T>(body: &[u8], read: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
    let (chunks, rest) = body.as_chunks::<N>();
    rest.is_empty().then(|| chunks.iter().map(|chunk| read(*chunk)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Edit> {
        vec![
            Edit::ClearVisibility { blocks: vec![(1, 3), (32_671, 2)] },
            Edit::TruncateVisibility { first_removed: 77 },
            Edit::XactStatus { status: XactStatus::Committed, slots: vec![5, 32_767] },
            Edit::MultiXactOffsets { entries: vec![(3, 0xFFFF_FFFF)] },
            Edit::MultiXactMembers { members: vec![Member { slot: 9, xid: 700, status: 4 }] },
            Edit::CommitTs { time: i64::MIN, origin: 1, slots: vec![0, 818] },
            Edit::GinFinishSplit,
        ]
    }

    #[test]
    fn every_edit_reads_back() {
        for edit in one_of_each() {
            assert_eq!(Edit::decode(&edit.encode()), Ok(edit));
        }
    }

    #[test]
    fn a_cut_edit_or_one_with_bytes_left_over_is_refused_or_a_shorter_list() {
        for edit in one_of_each() {
            let whole = edit.encode();
            for length in 0..whole.len() {
                assert_ne!(Edit::decode(&whole[..length]).as_ref(), Ok(&edit));
            }
            let longer = [whole.as_ref(), &[0]].concat();
            assert!(Edit::decode(&longer).is_err(), "{edit:?}");
        }
    }

    #[test]
    fn unknown_kinds_and_statuses_are_refused_by_number() {
        assert_eq!(Edit::decode(&[200]), Err(DecodeError::Kind(200)));
        assert_eq!(Edit::decode(&[XACT_STATUS, 0]), Err(DecodeError::Status(0)));
        assert_eq!(Edit::decode(&[]), Err(DecodeError::Empty));
    }
}
