//! WAL pages, streams, records and images.

use crate::seeds::parameters;
use bytes::Bytes;
use zenith_ingest::interpret::{Context, State, interpret, needs};
use zenith_ingest::model::{Database, NextXid, Parameters, RelSize};
use zenith_layers::{Slru, Value};
use zenith_pgformat::wal::describe::{Described, check_known};
use zenith_pgformat::wal::page::PageHeader;
use zenith_pgformat::wal::record::RECORD_HEADER;
use zenith_pgformat::wal::{
    BlockImage, Record, StreamStart, WalError, WalStream, clog, commit_ts, dbase, heap, image, logicalmsg,
    multixact, relmap, replorigin, smgr, standby, tblspc, trim, xact, xlog,
};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{Fork, Lsn, two_phase};
use zenith_redo::native::Edit;
use zenith_testkit::control::checkpoint;

pub(crate) const SYSTEM_IDENTIFIER: u64 = 77;
/// Where the streams of the samples begin.
pub(crate) const STREAM_START: Lsn = Lsn(0x20_0000);
const CRC_AT: std::ops::Range<usize> = 20..RECORD_HEADER;

pub(crate) fn segment_size() -> WalSegSize {
    WalSegSize::new(1 << 20).unwrap()
}

pub(crate) fn page(input: &[u8]) -> bool {
    let Ok(header) = PageHeader::decode(input) else { return false };
    assert_eq!(PageHeader::decode(&header.encode()), Ok(header));
    for place in [STREAM_START, header.page_addr, Lsn(u64::MAX)] {
        let _ = header.check(place, segment_size(), SYSTEM_IDENTIFIER);
    }
    true
}

fn start() -> StreamStart {
    StreamStart {
        lsn: STREAM_START,
        prev: Lsn::INVALID,
        tli: 2,
        seg_size: segment_size(),
        system_identifier: SYSTEM_IDENTIFIER,
    }
}

/// Feeds beginnings of these lengths, and reads as far as each goes.
fn read(segment: &Bytes, lengths: &[usize]) -> (Vec<Lsn>, Option<WalError>, Lsn) {
    let mut stream = WalStream::new(start());
    let mut records = Vec::new();
    for length in lengths {
        if stream.wants() != STREAM_START {
            break;
        }
        stream.feed(STREAM_START, segment.slice(..(*length).min(segment.len()))).unwrap();
        loop {
            match stream.next() {
                Ok(Some(record)) => {
                    assert!(record.lsn < record.end && record.end == stream.position());
                    records.push(record.lsn);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(stream.next(), Err(error.clone()));
                    return (records, Some(error), stream.position());
                }
            }
        }
    }
    (records, None, stream.position())
}

/// The beginning of a segment, fed at once and piece by piece, which must make no difference.
pub(crate) fn stream(input: &[u8]) -> bool {
    let segment = Bytes::copy_from_slice(input);
    let whole = read(&segment, &[input.len()]);
    let pieces: Vec<usize> = (1..=7).map(|part| input.len() * part / 7).collect();
    assert_eq!(read(&segment, &pieces), whole);
    !whole.0.is_empty() && whole.1.is_none_or(|error| error.may_be_end_of_wal())
}

/// The bytes as a record of their own length whose checksum is right.
fn signed(input: &[u8]) -> Option<Bytes> {
    let mut raw = input.to_vec();
    let length = u32::try_from(raw.len()).ok()?;
    raw.get_mut(..4)?.copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c(raw.get(RECORD_HEADER..)?);
    let crc = crc32c::crc32c_append(crc, raw.get(..CRC_AT.start)?);
    raw.get_mut(CRC_AT)?.copy_from_slice(&crc.to_le_bytes());
    Some(raw.into())
}

/// A record whose checksum is right: every parser, trimming, its images, and what it changes.
pub(crate) fn record(input: &[u8]) -> bool {
    let (lsn, end) = (Lsn(0x5000_0028), Lsn(0x5100_0000));
    let _ = Record::decode(Bytes::copy_from_slice(input), lsn, end);
    let Some(raw) = signed(input) else { return false };
    let Ok(record) = Record::decode(raw, lsn, end) else { return false };
    let _ = (Described(&record).to_string(), check_known(&record));
    parse(&record);
    for (index, block) in record.blocks.iter().enumerate() {
        let _ = block.image.as_ref().map(image::restore);
        let trimmed = Record::decode(trim::for_block(&record, index), lsn, end).unwrap();
        assert!(trimmed.raw.len() <= record.raw.len() + 4);
        assert_eq!(trimmed.blocks[index].data, block.data);
        assert_eq!((trimmed.blocks.len(), &trimmed.main_data), (record.blocks.len(), &record.main_data));
    }
    if let Ok(file) = two_phase::file_from_prepare(&record.main_data) {
        two_phase::decode(&file).unwrap();
    }
    change(&record)
}

/// Each parser refuses what is not its own.
fn parse(record: &Record) {
    drop(xlog::parse(record));
    drop(xact::parse(record));
    drop(smgr::parse(record));
    drop(clog::parse(record));
    drop(dbase::parse(record));
    drop(tblspc::parse(record));
    drop(multixact::parse(record));
    drop(relmap::parse(record));
    drop(standby::parse(record));
    drop(heap::parse(record));
    drop(commit_ts::parse(record));
    drop(replorigin::parse(record));
    drop(logicalmsg::parse(record));
}

fn state() -> State {
    let parameters = Parameters { track_commit_timestamp: true, ..parameters() };
    let mut state = State::new(checkpoint(), NextXid(1000), parameters);
    for db in 1..6 {
        state.databases.insert((1663, db), Database { created: Lsn(0), alias: None });
    }
    state.slru.extend(Slru::ALL.map(|slru| ((slru, 0), 1)));
    state
}

/// What the record changes in a timeline where every fork that it names is there, or none is.
fn change(record: &Record) -> bool {
    let Ok(needs) = needs(record) else { return false };
    let mut interpreted = false;
    for (exist, window_open) in [(true, false), (false, true)] {
        let mut state = state();
        state.databases.extend(
            record
                .blocks
                .iter()
                .map(|block| ((block.node.spc, block.node.db), Database { created: Lsn(0), alias: None })),
        );
        let missing: Vec<_> = needs.missing(&state).collect();
        for key in missing {
            match Fork::from_number(key.fork).filter(|_| key.rel > 0) {
                Some(fork) => {
                    let size = RelSize { blocks: key.spc % 7, ..RelSize::new(Lsn(0)) };
                    state.load_rel_size(key.node(), fork, exist.then_some(size));
                }
                None => state.load_rel_map(key.spc, key.db, exist.then(Bytes::new)),
            }
        }
        let Ok(changes) = interpret(record, &state, Context { window_open }) else { continue };
        assert!(changes.rows.is_sorted_by_key(|row| row.key));
        for row in &changes.rows {
            if let Value::Edit(edit) = &row.value {
                Edit::decode(edit).unwrap();
            }
        }
        changes.apply(&mut state);
        interpreted = true;
    }
    interpreted
}

/// `bimg_info`, hole offset, hole length (5 bytes), then the image.
pub(crate) fn image(input: &[u8]) -> bool {
    let Some((head, bytes)) = input.split_first_chunk::<5>() else { return false };
    let [info, o0, o1, l0, l1] = *head;
    let image = BlockImage {
        bytes: Bytes::copy_from_slice(bytes),
        hole_offset: u16::from_le_bytes([o0, o1]),
        hole_length: u16::from_le_bytes([l0, l1]),
        info,
        apply: true,
    };
    image::restore(&image).is_ok()
}
