//! Files of a data directory and of the archive, their names, and pages.

use zenith_pgformat::backup_label::BackupLabel;
use zenith_pgformat::catalog::{ClassRow, DatabaseRow, NamespaceRow};
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::control::{CONTROL_FILE_LEN, ControlFile};
use zenith_pgformat::history::{History, child_file};
use zenith_pgformat::mask::{PageKind, mask};
use zenith_pgformat::page::PageHeader;
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::relmap::{RELMAP_LEN, RelMap};
use zenith_pgformat::slru::{clog, commit_ts, multixact, parse_segment_name, segment_name};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{BLCKSZ, Lsn, Page, heap, page, two_phase};

/// The bytes with the CRC-32C of all before it at `at`, if they reach so far.
fn signed(input: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let crc = bytes.get(..at).map(crc32c::crc32c);
    if let (Some(crc), Some(field)) = (crc, bytes.get_mut(at..at + 4)) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

pub(crate) fn control(input: &[u8]) -> bool {
    let _ = ControlFile::decode(input);
    // The samples leave out the zeros behind the struct.
    let mut whole = input.to_vec();
    whole.resize(whole.len().max(CONTROL_FILE_LEN), 0);
    let control = ControlFile::decode(&signed(&whole, 288));
    if let Ok(control) = &control {
        assert_eq!(ControlFile::decode(&control.encode()).unwrap().encode(), control.encode());
    }
    let checkpoint = CheckPoint::decode(input);
    if let Ok(checkpoint) = &checkpoint {
        assert_eq!(CheckPoint::decode(&checkpoint.encode()).as_ref(), Ok(checkpoint));
    }
    control.is_ok() || checkpoint.is_ok()
}

pub(crate) fn relation_map(input: &[u8]) -> bool {
    let _ = RelMap::decode(input);
    let Ok(map) = RelMap::decode(&signed(input, RELMAP_LEN - 8)) else { return false };
    assert_eq!(RelMap::decode(&map.encode()), Ok(map));
    true
}

pub(crate) fn two_phase(input: &[u8]) -> bool {
    let _ = two_phase::decode(input);
    // As the record has it: without the CRC, and with the length that it will have.
    let mut data = input.get(..input.len().saturating_sub(4)).unwrap_or_default().to_vec();
    let length = (data.len() as u32 + 4).to_le_bytes();
    let mut decoded = false;
    for length_is_right in [false, true] {
        if let (true, Some(field)) = (length_is_right, data.get_mut(4..8)) {
            field.copy_from_slice(&length);
        }
        let Ok(file) = two_phase::file_from_prepare(&data) else { continue };
        let header = two_phase::decode(&file).unwrap();
        assert_eq!(header.total_len as usize, file.len());
        assert!(header.subxacts.len() * 4 <= file.len());
        decoded = true;
    }
    decoded
}

pub(crate) fn history(input: &[u8]) -> bool {
    let mut decoded = false;
    for tli in [3, u32::MAX] {
        let Ok(history) = History::parse(tli, input) else { continue };
        for lsn in [Lsn(0), history.begin(), Lsn(history.begin().0.saturating_sub(1)), Lsn(u64::MAX)] {
            let found = history.tli_of(lsn);
            assert!(history.contains(found));
            let _ = history.switch_point(found);
            drop(history.branch(u32::MAX, lsn));
        }
        let child = child_file(input, tli, history.begin(), "why\nso");
        if tli < u32::MAX {
            assert!(History::parse(u32::MAX, &child).unwrap().descends_from(&history));
        }
        decoded = true;
    }
    decoded
}

pub(crate) fn backup_label(input: &[u8]) -> bool {
    let Ok(label) = BackupLabel::parse(input) else { return false };
    let text = label.format();
    assert_eq!(BackupLabel::parse(text.as_bytes()).unwrap().format(), text);
    true
}

/// Names of WAL, SLRU, two-phase and relation files, and LSNs, one a line.
pub(crate) fn names(input: &[u8]) -> bool {
    let mut parsed = false;
    for name in String::from_utf8_lossy(input).split('\n') {
        for size in [1 << 20, 1 << 24, 1 << 30] {
            let size = WalSegSize::new(size).unwrap();
            if let Some(file) = WalFile::parse(name, size) {
                assert_eq!(file.name(size), name);
                parsed = true;
            }
        }
        if let Some(segment) = parse_segment_name(name) {
            assert_eq!(segment_name(segment), name);
            parsed = true;
        }
        if let Some(xid) = two_phase::parse_file_name(name) {
            assert_eq!(two_phase::file_name(xid), name);
            parsed = true;
        }
        if let Some(file) = RelFile::parse(name) {
            assert_eq!(file.path(), name);
            parsed = true;
            let _ = file.first_block();
        }
        if let Ok(lsn) = name.parse::<Lsn>() {
            assert_eq!(lsn.to_string().parse(), Ok(lsn));
            parsed = true;
        }
    }
    parsed
}

/// A page of a relation or of an SLRU; short inputs are filled up with zeros.
pub(crate) fn page(input: &[u8]) -> bool {
    let mut page: Page = [0; BLCKSZ];
    let length = input.len().min(BLCKSZ);
    page[..length].copy_from_slice(&input[..length]);
    let _ = PageHeader::decode(&page).is_sane();
    for tuple in heap::tuples(&page) {
        let _ =
            (ClassRow::decode(tuple.data), NamespaceRow::decode(tuple.data), DatabaseRow::decode(tuple.data));
    }
    for checksums in [false, true] {
        let _ = page::verify(&page, 7, checksums);
    }
    for xid in [0, 3, 32_767, 818, 819, u32::MAX] {
        let _ = (clog::status(&page, xid), commit_ts::entry(&page, xid));
        // A cut page has not all entries.
        let _ = (clog::status(input, xid), commit_ts::entry(input, xid));
        let _ = (multixact::offset(input, xid), multixact::updater(input, xid));
    }
    for kind in PageKind::ALL.into_iter().chain([PageKind::guess(&page)]) {
        for block in [0, 1] {
            mask(&mut page.clone(), kind, block);
        }
    }
    true
}
