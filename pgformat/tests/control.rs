//! The control file: what is written reads back, and what no stock server wrote is refused by name.

use proptest::prelude::*;
use zenith_pgformat::Lsn;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::control::{CONTROL_FILE_LEN, ControlError, ControlFile};
use zenith_testkit::control::control_file;

/// `offsetof(ControlFileData, crc)` (catalog/pg_control.h).
const CRC_OFFSET: usize = 288;

/// Every field with a value of its own.
fn sample() -> ControlFile {
    ControlFile {
        system_identifier: 7_300_000_000_000_000_001,
        time: 1_700_000_000,
        checkpoint: Lsn(0x16B_3748),
        checkpoint_copy: CheckPoint { redo: Lsn(0x16B_3748), tli: 3, prev_tli: 2, ..CheckPoint::default() },
        wal_log_hints: true,
        max_prepared_xacts: 5,
        track_commit_timestamp: true,
        data_checksum_version: 1,
        mock_authentication_nonce: [7; 32],
        ..control_file()
    }
}

fn with_field(offset: usize, value: u32) -> Vec<u8> {
    let mut bytes = sample().encode();
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
    bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn a_control_file_reads_back_as_written() {
    let bytes = sample().encode();
    assert_eq!(bytes.len(), CONTROL_FILE_LEN);
    assert_eq!(ControlFile::decode(&bytes), Ok(sample()));
}

#[test]
fn another_version_is_named_even_when_the_crc_is_wrong() {
    let mut bytes = sample().encode();
    bytes[8..12].copy_from_slice(&1201u32.to_le_bytes());
    assert_eq!(ControlFile::decode(&bytes), Err(ControlError::Version(1201)));
    let mut bytes = sample().encode();
    bytes[12..16].copy_from_slice(&202_107_181u32.to_le_bytes());
    assert_eq!(ControlFile::decode(&bytes), Err(ControlError::Catalog(202_107_181)));
}

#[test]
fn a_flipped_bit_is_noticed() {
    for offset in [0, 17, 40, 100, 200, 287, 288] {
        let mut bytes = sample().encode();
        bytes[offset] ^= 0x40;
        assert!(matches!(ControlFile::decode(&bytes), Err(ControlError::Crc { .. })), "{offset}");
    }
}

#[test]
fn a_server_built_with_other_sizes_is_refused_by_name() {
    for (offset, field) in [
        (16, "state"),
        (172, "wal_level"),
        (204, "maxAlign"),
        (216, "blcksz"),
        (220, "relseg_size"),
        (224, "xlog_blcksz"),
        (228, "xlog_seg_size"),
        (252, "data_checksum_version"),
    ] {
        let error = ControlFile::decode(&with_field(offset, 77)).expect_err(field);
        assert!(matches!(error, ControlError::Unsupported { field: named, .. } if named == field), "{error}");
    }
}

#[test]
fn a_cut_file_is_refused() {
    let bytes = sample().encode();
    for length in [0, 8, 11, 12, 200, 288, 291] {
        assert_eq!(ControlFile::decode(&bytes[..length]), Err(ControlError::Cut(length)));
    }
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        drop(ControlFile::decode(&noise));
    }

    #[test]
    fn hostile_fields_under_a_right_crc_never_panic(offset in 16usize..284, value in any::<u32>()) {
        if let Ok(control) = ControlFile::decode(&with_field(offset, value)) {
            prop_assert_eq!(ControlFile::decode(&control.encode()).map(|read| read.encode()), Ok(control.encode()));
        }
    }
}
