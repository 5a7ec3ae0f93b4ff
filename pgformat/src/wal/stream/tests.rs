use super::super::encode::{WalWriter, WriterStart};
use super::super::page::XLP_FIRST_IS_OVERWRITE_CONTRECORD;
use super::super::xlog::XLOG_NOOP;
use super::*;

const SEG: u64 = 1 << 20;
const SYSTEM: u64 = 99;

fn seg_size() -> WalSegSize {
    WalSegSize::new(SEG).expect("valid")
}

fn writer(tli: Tli) -> WalWriter {
    let lsn = Lsn(SEG);
    WalWriter::new(WriterStart { lsn, prev: Lsn(8), tli, seg_size: seg_size(), system_identifier: SYSTEM })
        .expect("a segment's start")
}

fn stream(tli: Tli) -> WalStream {
    let (lsn, prev) = (Lsn(SEG), Lsn::INVALID);
    WalStream::new(StreamStart { lsn, prev, tli, seg_size: seg_size(), system_identifier: SYSTEM })
}

fn noop(writer: &mut WalWriter, len: usize) -> super::super::encode::Placed {
    writer.append(RmgrId::XLOG, XLOG_NOOP, 0, &vec![1; len])
}

/// Feeds all segments of `wal` that are wanted; how many records came, and what ended them.
fn drain(stream: &mut WalStream, wal: &[u8]) -> (usize, Option<WalError>) {
    let mut records = 0;
    loop {
        match stream.next() {
            Ok(Some(_)) => records += 1,
            Err(error) => return (records, Some(error)),
            Ok(None) => {
                let wanted = stream.wants();
                let from = wanted.since(Lsn(SEG)) as usize;
                let Some(bytes) = wal.get(from..from + SEG as usize) else { return (records, None) };
                stream.feed(wanted, Bytes::copy_from_slice(bytes)).expect("what it wants");
            }
        }
    }
}

/// Changes a page's header and writes it back.
fn patch(wal: &mut [u8], page: usize, change: impl Fn(&mut PageHeader)) {
    let at = page * XLOG_BLCKSZ;
    let mut header = PageHeader::decode(&wal[at..]).expect("sound");
    change(&mut header);
    let bytes = header.encode();
    wal[at..at + bytes.len()].copy_from_slice(&bytes);
}

#[test]
fn zeros_after_the_last_record_are_told_from_other_bytes() {
    let mut writer = writer(1);
    let last = noop(&mut writer, 100);
    let mut wal = writer.finish();
    let mut zeros = stream(1);
    assert_eq!(drain(&mut zeros, &wal), (1, Some(WalError::NoRecord { lsn: last.end })));
    assert_eq!((zeros.position(), zeros.prev()), (last.end, last.lsn));
    wal[last.end.since(Lsn(SEG)) as usize] = 17;
    let (_, error) = drain(&mut stream(1), &wal);
    assert!(matches!(error, Some(WalError::Invalid { lsn, .. }) if lsn == last.end), "{error:?}");
}

#[test]
fn a_segment_is_wanted_once_even_if_a_record_ends_on_its_last_page() {
    let mut writer = writer(1);
    // To the middle of the last page but one, over the border, and on behind it into the next segment.
    noop(&mut writer, SEG as usize - 3 * XLOG_BLCKSZ / 2 - 128 * 24);
    noop(&mut writer, XLOG_BLCKSZ);
    noop(&mut writer, 50);
    let last = noop(&mut writer, 2 * XLOG_BLCKSZ);
    assert!(last.lsn < Lsn(2 * SEG) && last.lsn.since(Lsn(2 * SEG - XLOG_BLCKSZ as u64)) > 0);
    let wal = writer.finish();
    let mut stream = stream(1);
    let (mut records, mut wanted) = (0, Vec::new());
    while records < 4 {
        match stream.next().expect("sound") {
            Some(_) => records += 1,
            None => {
                wanted.push(stream.wants());
                let from = stream.wants().since(Lsn(SEG)) as usize;
                let bytes = Bytes::copy_from_slice(&wal[from..from + SEG as usize]);
                stream.feed(stream.wants(), bytes).expect("what it wants");
            }
        }
    }
    assert_eq!(wanted, [Lsn(SEG), Lsn(2 * SEG)]);
}

#[test]
fn an_error_is_final_and_says_the_same_again() {
    let mut writer = writer(1);
    noop(&mut writer, 100);
    let wal = writer.finish();
    let mut stream = stream(1);
    let (_, error) = drain(&mut stream, &wal);
    assert_eq!(stream.next().err(), error);
}

#[test]
fn a_record_cut_off_by_the_last_segment_waits_and_is_named() {
    let mut writer = writer(1);
    noop(&mut writer, 100);
    let cut = noop(&mut writer, 2_000_000);
    let wal = writer.finish();
    let mut stream = stream(1);
    assert_eq!(drain(&mut stream, &wal[..SEG as usize]), (1, None));
    assert_eq!((stream.position(), stream.partial()), (cut.lsn, Some(cut.lsn)));
    assert_eq!(stream.wants(), Lsn(2 * SEG));
    assert_eq!(drain(&mut stream, &wal).0, 1, "it goes on when the rest arrives");
}

#[test]
fn the_rest_of_a_record_must_be_announced_and_as_long_as_it_is() {
    let long = || {
        let mut writer = writer(1);
        noop(&mut writer, 30_000);
        writer.finish()
    };
    let changes: [fn(&mut PageHeader); 3] =
        [|h| h.info &= !XLP_FIRST_IS_CONTRECORD, |h| h.rem_len += 1, |h| h.rem_len = 0];
    for change in changes {
        let mut wal = long();
        patch(&mut wal, 2, change);
        let (records, error) = drain(&mut stream(1), &wal);
        assert!(records == 0 && matches!(error, Some(WalError::Invalid { .. })), "{error:?}");
    }
    assert_eq!(drain(&mut stream(1), &long()).0, 1);
}

#[test]
fn pages_of_an_older_timeline_do_not_follow_those_of_a_newer_one() {
    let mut writer = writer(2);
    noop(&mut writer, 30_000);
    let whole = writer.finish();
    let with_tli = |page: usize, tli: Tli| {
        let mut wal = whole.clone();
        patch(&mut wal, page, |header| header.tli = tli);
        drain(&mut stream(2), &wal)
    };
    assert_eq!(with_tli(0, 1).0, 1, "the parent's pages may come first");
    let back = with_tli(2, 1).1.expect("an error").to_string();
    assert!(back.contains("out-of-sequence timeline 1 after 2"), "{back}");
    let foreign = with_tli(2, 3).1.expect("an error").to_string();
    assert!(foreign.contains("is of timeline 3"), "{foreign}");
    let mut later = stream(2);
    later.enter_timeline(3);
    assert_eq!(drain(&mut later, &whole).0, 1);
}

#[test]
fn another_clusters_segment_is_refused() {
    let mut writer = writer(1);
    noop(&mut writer, 10);
    let mut wal = writer.finish();
    patch(&mut wal, 0, |header| {
        header.long = header.long.map(|long| super::super::page::LongHeader { system_identifier: 7, ..long });
    });
    let error = drain(&mut stream(1), &wal).1.expect("an error").to_string();
    assert!(error.contains("system identifier 7, not 99"), "{error}");
}

#[test]
fn an_overwritten_record_must_be_the_one_that_was_lost() {
    // Whole records, then one of which only the first page was written, and a record over its second page.
    let build = |overwritten: Option<Lsn>| {
        let mut writer = writer(1);
        let before = noop(&mut writer, 5000);
        let lost = noop(&mut writer, 20_000);
        let mut wal = writer.finish();
        wal[XLOG_BLCKSZ..].fill(0);
        let page = Lsn(SEG + XLOG_BLCKSZ as u64);
        let start = WriterStart {
            lsn: page,
            prev: before.lsn,
            tli: 1,
            seg_size: seg_size(),
            system_identifier: SYSTEM,
        };
        let mut over = WalWriter::continue_segment(start, &wal[..XLOG_BLCKSZ]).expect("a page's start");
        match overwritten {
            Some(lsn) => {
                let data = [lsn.0.to_le_bytes(), 0_i64.to_le_bytes()].concat();
                over.append(RmgrId::XLOG, XLOG_OVERWRITE_CONTRECORD, 0, &data);
            }
            None => drop(noop(&mut over, 16)),
        }
        let mut wal = over.finish();
        patch(&mut wal, 1, |header| header.info |= XLP_FIRST_IS_OVERWRITE_CONTRECORD);
        (lost.lsn, wal)
    };
    let (lost, _) = build(None);
    assert_eq!(drain(&mut stream(1), &build(Some(lost)).1).0, 2);
    for wrong in [Some(Lsn(lost.0 + 8)), None] {
        let (records, error) = drain(&mut stream(1), &build(wrong).1);
        assert_eq!(records, 1);
        let error = error.expect("an error").to_string();
        assert!(error.contains(&format!("the WAL lost record {lost}")), "{error}");
    }
}

#[test]
fn only_the_wanted_segment_can_be_fed_and_only_a_few_wait() {
    let mut stream = stream(1);
    let whole = || Bytes::from(vec![0; SEG as usize]);
    assert!(stream.feed(Lsn(0), whole()).is_err());
    assert!(stream.feed(Lsn(SEG), Bytes::from(vec![0; SEG as usize + 1])).is_err());
    stream.feed(Lsn(SEG), whole().slice(..100)).expect("a beginning");
    assert!(stream.feed(Lsn(2 * SEG), whole()).is_err(), "the first one is not whole");
    assert!(stream.feed(Lsn(SEG), whole().slice(..50)).is_err(), "less than before");
    for segment in 1..=MAX_WAITING_SEGMENTS as u64 {
        stream.feed(Lsn(segment * SEG), whole()).expect("contiguous");
    }
    assert!(stream.feed(stream.wants(), whole()).is_err());
}

#[test]
fn a_stream_cannot_begin_inside_a_header_or_in_the_middle_of_a_record() {
    let mut writer = writer(1);
    noop(&mut writer, 30_000);
    let wal = writer.finish();
    for lsn in [SEG + 8, SEG + 8192, SEG + 8192 + 24, SEG + 9000, u64::MAX - 100] {
        let start = StreamStart { lsn: Lsn(lsn), ..stream(1).start };
        let mut stream = WalStream::new(start);
        drain(&mut stream, &wal);
        assert_eq!(stream.position(), Lsn(lsn), "{lsn:X}");
    }
}
