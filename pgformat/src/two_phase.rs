//! State files of prepared transactions, `pg_twophase/XXXXXXXX` (`TwoPhaseFileHeader`, twophase.c; the same struct is
//! `xl_xact_prepare`, access/xact.h).
//!
//! A PREPARE record's main data are the file's bytes without the CRC-32C at their end.

use crate::{Lsn, Oid, Xid, le};

/// `TWOPHASE_MAGIC`.
const MAGIC: u32 = 0x57F9_4534;
/// `sizeof(TwoPhaseFileHeader)`.
const HEADER_LEN: usize = 72;
/// `sizeof(pg_crc32c)`.
const CRC_LEN: usize = 4;
/// `GIDSIZE`: a prepared transaction's name with its zero byte is at most this long.
const GID_SIZE: usize = 200;
/// `sizeof(RelFileNode)`, `sizeof(xl_xact_stats_item)`.
const ENTRY_LEN: usize = 12;

/// What the header says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TwoPhaseHeader {
    /// The file's length, its CRC included.
    pub total_len: u32,
    /// The prepared transaction.
    pub xid: Xid,
    /// The database it ran in.
    pub database: Oid,
    /// Time of PREPARE: microseconds since 2000-01-01 UTC.
    pub prepared_at: i64,
    /// The role that prepared it.
    pub owner: Oid,
    /// Its name.
    pub gid: String,
    /// Its subtransactions.
    pub subxacts: Vec<Xid>,
    /// Position of the PREPARE in the origin, if it was replayed from one.
    pub origin_lsn: Lsn,
}

/// Why bytes are no two-phase state. Callers add the file or LSN.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TwoPhaseError {
    /// Cut, or its own length does not fit.
    #[error("two-phase state is cut: {found} bytes, its header says {expected}")]
    Length {
        /// How many bytes there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// Wrong magic number.
    #[error("two-phase state has magic number {0:#x}, expected {MAGIC:#x}")]
    Magic(u32),
    /// The checksum does not fit.
    #[error(
        "two-phase state of transaction {xid} is damaged: its CRC is {stored:08X}, computed {computed:08X}"
    )]
    Crc {
        /// The transaction.
        xid: Xid,
        /// What the file says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// Names no transaction, or has no sensible name.
    #[error("two-phase state names transaction {xid} with a name of {gid_len} bytes")]
    Content {
        /// The transaction.
        xid: Xid,
        /// Length of its name.
        gid_len: usize,
    },
}

/// The name of a transaction's state file (`TwoPhaseFilePath`).
pub fn file_name(xid: Xid) -> String {
    format!("{xid:08X}")
}

/// The transaction that a file name names; `None` for other files.
pub fn parse_file_name(name: &str) -> Option<Xid> {
    let well_formed = name.len() == 8 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if well_formed { Xid::from_str_radix(name, 16).ok() } else { None }
}

/// The state file that PostgreSQL makes of a PREPARE record (`RecreateTwoPhaseFile`): its main data and a CRC-32C.
pub fn file_from_prepare(main_data: &[u8]) -> Result<Vec<u8>, TwoPhaseError> {
    header(main_data, main_data.len() + CRC_LEN)?;
    let mut file = Vec::with_capacity(main_data.len() + CRC_LEN);
    file.extend_from_slice(main_data);
    file.extend_from_slice(&crc32c::crc32c(main_data).to_le_bytes());
    Ok(file)
}

/// Decodes a state file's header after checking its length and CRC (`ReadTwoPhaseFile`).
pub fn decode(file: &[u8]) -> Result<TwoPhaseHeader, TwoPhaseError> {
    let cut = TwoPhaseError::Length { found: file.len(), expected: HEADER_LEN + CRC_LEN };
    let Some((data, crc)) = file.len().checked_sub(CRC_LEN).and_then(|end| file.split_at_checked(end)) else {
        return Err(cut);
    };
    let header = header(data, file.len())?;
    let stored = le::u32(crc, 0).ok_or(cut)?;
    let computed = crc32c::crc32c(data);
    if stored != computed {
        return Err(TwoPhaseError::Crc { xid: header.xid, stored, computed });
    }
    Ok(header)
}

/// Reads the header of `data` (no CRC) whose file has `file_len` bytes.
fn header(data: &[u8], file_len: usize) -> Result<TwoPhaseHeader, TwoPhaseError> {
    let cut = || TwoPhaseError::Length { found: file_len, expected: HEADER_LEN + CRC_LEN };
    let u32_at = |offset| le::u32(data, offset).ok_or_else(cut);
    let magic = u32_at(0)?;
    if magic != MAGIC {
        return Err(TwoPhaseError::Magic(magic));
    }
    let total_len = u32_at(4)?;
    if total_len as usize != file_len {
        return Err(TwoPhaseError::Length { found: file_len, expected: total_len as usize });
    }
    let xid = u32_at(8)?;
    let gid_len = usize::from(le::u16(data, 54).ok_or_else(cut)?);
    let content = TwoPhaseError::Content { xid, gid_len };
    if xid == 0 || gid_len == 0 || gid_len > GID_SIZE {
        return Err(content);
    }
    let gid = data.get(HEADER_LEN..HEADER_LEN + gid_len).ok_or_else(cut)?;
    let Some((0, gid)) = gid.split_last() else { return Err(content) };
    Ok(TwoPhaseHeader {
        total_len,
        xid,
        database: u32_at(12)?,
        prepared_at: le::u64(data, 16).ok_or_else(cut)?.cast_signed(),
        owner: u32_at(24)?,
        gid: String::from_utf8_lossy(gid).into_owned(),
        subxacts: subxacts(data, gid_len).ok_or_else(cut)?,
        origin_lsn: Lsn(le::u64(data, 56).ok_or_else(cut)?),
    })
}

/// The subtransactions, which follow the name; `None` when any of the lists behind the header is cut.
fn subxacts(data: &[u8], gid_len: usize) -> Option<Vec<Xid>> {
    let start = HEADER_LEN + gid_len.next_multiple_of(8);
    let count = le::u32(data, 28)? as usize;
    let mut end = start.checked_add(count.checked_mul(4)?.checked_next_multiple_of(8)?)?;
    // Relations dropped at commit and at abort, then statistics dropped at commit and at abort.
    for offset in [32, 36, 40, 44] {
        let length = (le::u32(data, offset)? as usize).checked_mul(ENTRY_LEN)?;
        end = end.checked_add(length.checked_next_multiple_of(8)?)?;
    }
    if end > data.len() {
        return None;
    }
    (0..count).map(|index| le::u32(data, start + index * 4)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Main data of a PREPARE without subtransactions.
    fn main_data(gid: &str) -> Vec<u8> {
        let mut data = vec![0; HEADER_LEN];
        le::put(&mut data, 0, &MAGIC.to_le_bytes());
        le::put(&mut data, 8, &740u32.to_le_bytes());
        le::put(&mut data, 12, &5u32.to_le_bytes());
        le::put(&mut data, 54, &(gid.len() as u16 + 1).to_le_bytes());
        data.extend_from_slice(gid.as_bytes());
        data.push(0);
        data.resize(data.len().next_multiple_of(8) + 8, 0);
        let total = (data.len() + CRC_LEN) as u32;
        le::put(&mut data, 4, &total.to_le_bytes());
        data
    }

    #[test]
    fn a_prepare_record_becomes_a_valid_file() {
        let file = file_from_prepare(&main_data("gone")).expect("valid");
        let header = decode(&file).expect("valid");
        assert_eq!((header.xid, header.database, header.gid.as_str()), (740, 5, "gone"));
        assert_eq!(header.total_len as usize, file.len());
    }

    #[test]
    fn damage_is_named() {
        let file = file_from_prepare(&main_data("gone")).expect("valid");
        let flipped = |offset: usize| {
            let mut bytes = file.clone();
            bytes[offset] ^= 1;
            decode(&bytes)
        };
        assert!(matches!(flipped(0), Err(TwoPhaseError::Magic(_))));
        assert!(matches!(flipped(4), Err(TwoPhaseError::Length { .. })));
        assert!(matches!(flipped(16), Err(TwoPhaseError::Crc { xid: 740, .. })));
        assert!(matches!(decode(&file[..file.len() - 1]), Err(TwoPhaseError::Length { .. })));
        assert!(decode(&[]).is_err());
    }

    #[test]
    fn lists_longer_than_the_file_are_refused_without_allocating() {
        let mut data = main_data("gone");
        le::put(&mut data, 28, &u32::MAX.to_le_bytes());
        assert!(matches!(file_from_prepare(&data), Err(TwoPhaseError::Length { .. })));
    }

    #[test]
    fn file_names_read_back() {
        assert_eq!(parse_file_name(&file_name(0x2E4)), Some(0x2E4));
        for name in ["", "2E4", "000002e4", "000002E4.tmp"] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(offset in 8usize..72, noise in any::<[u8; 4]>()) {
            let mut data = main_data("gone");
            le::put(&mut data, offset, &noise);
            if let Ok(file) = file_from_prepare(&data) {
                prop_assert!(decode(&file).is_ok());
            }
            drop(decode(&data));
        }
    }
}
