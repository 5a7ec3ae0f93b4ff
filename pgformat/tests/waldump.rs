//! PostgreSQL's own tools and files as judges of the WAL decoder: `pg_waldump` must print the same records, and the
//! server's files must hold the pages whose images were logged.

#[path = "waldump/wal.rs"]
mod wal;

use bytes::Bytes;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use wal::{METHODS, read, wal};
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::wal::describe::{Described, check_known, type_name};
use zenith_pgformat::wal::record::XLR_CHECK_CONSISTENCY;
use zenith_pgformat::wal::{
    BlockImage, Record, RmgrId, StreamStart, WalError, WalStream, clog, commit_ts, dbase, heap, image,
    logicalmsg, multixact, relmap, replorigin, smgr, standby, tblspc, trim, xact, xlog,
};
use zenith_pgformat::{Fork, Lsn, RelNode};

/// Parses the main data of any record of a manager that has a parser.
fn parse(record: &Record) -> Result<(), WalError> {
    match record.rmgr {
        RmgrId::XLOG => xlog::parse(record).map(drop),
        RmgrId::XACT => xact::parse(record).map(drop),
        RmgrId::SMGR => smgr::parse(record).map(drop),
        RmgrId::CLOG => clog::parse(record).map(drop),
        RmgrId::DBASE => dbase::parse(record).map(drop),
        RmgrId::TBLSPC => tblspc::parse(record).map(drop),
        RmgrId::MULTIXACT => multixact::parse(record).map(drop),
        RmgrId::RELMAP => relmap::parse(record).map(drop),
        RmgrId::STANDBY => standby::parse(record).map(drop),
        RmgrId::HEAP | RmgrId::HEAP2 => heap::parse(record).map(drop),
        RmgrId::COMMIT_TS => commit_ts::parse(record).map(drop),
        RmgrId::REPLORIGIN => replorigin::parse(record).map(drop),
        RmgrId::LOGICALMSG => logicalmsg::parse(record).map(drop),
        _ => Ok(()),
    }
}

/// Takes the lines of the next record off `pg_waldump`'s output. Its first line goes on after what we print.
fn agrees<'a>(record: &Record, lines: &mut impl Iterator<Item = &'a str>) -> Result<(), String> {
    for (at, ours) in Described(record).to_string().lines().enumerate() {
        let theirs = lines.next().unwrap_or("nothing more");
        let same = if at == 0 { theirs.starts_with(&format!("{ours} ")) } else { theirs == ours };
        if !same {
            return Err(format!("pg_waldump: {theirs}\nZenith:     {ours}"));
        }
    }
    Ok(())
}

#[test]
fn every_record_is_what_pg_waldump_prints() {
    let wal = wal();
    let mut lines = wal.dump.lines();
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let (error, stream) = read(&wal.segments, wal.start, |record| {
        agrees(record, &mut lines).unwrap_or_else(|difference| panic!("{}:\n{difference}", record.lsn));
        let name = type_name(record.rmgr, record.info).unwrap_or("UNKNOWN");
        *seen.entry(format!("{}/{name}", record.rmgr)).or_default() += 1;
    });
    assert_eq!(lines.next(), None, "pg_waldump has more records after {}", stream.position());
    assert!(error.is_none_or(|error| error.may_be_end_of_wal()));
    let total: u64 = seen.values().sum();
    println!("{total} records of {} types agree: {seen:?}", seen.len());
    for wanted in [
        "XLOG/OVERWRITE_CONTRECORD",
        "XLOG/SWITCH",
        "XLOG/FPI",
        "XLOG/RESTORE_POINT",
        "XLOG/BACKUP_END",
        "XLOG/PARAMETER_CHANGE",
        "XLOG/FPW_CHANGE",
        "XLOG/CHECKPOINT_SHUTDOWN",
        "XLOG/CHECKPOINT_ONLINE",
        "Transaction/COMMIT",
        "Transaction/ABORT",
        "Transaction/PREPARE",
        "Transaction/COMMIT_PREPARED",
        "Transaction/ABORT_PREPARED",
        "Transaction/ASSIGNMENT",
        "Transaction/INVALIDATION",
        "Storage/CREATE",
        "Storage/TRUNCATE",
        "Database/CREATE_FILE_COPY",
        "Database/CREATE_WAL_LOG",
        "Database/DROP",
        "Tablespace/CREATE",
        "Tablespace/DROP",
        "MultiXact/CREATE_ID",
        "RelMap/UPDATE",
        "Standby/RUNNING_XACTS",
        "Standby/LOCK",
        "Heap/INSERT",
        "Heap/LOCK",
        "Heap/HEAP_CONFIRM",
        "Heap/TRUNCATE",
        "Heap2/VISIBLE",
        "Heap2/MULTI_INSERT",
        "Heap2/LOCK_UPDATED",
        "Heap2/PRUNE",
        "Heap2/FREEZE_PAGE",
        "Btree/SPLIT_R",
        "Btree/VACUUM",
        "Hash/INSERT",
        "Hash/SPLIT_PAGE",
        "Gin/SPLIT",
        "Gin/INSERT_LISTPAGE",
        "Gist/PAGE_SPLIT",
        "Sequence/LOG",
        "SPGist/PICKSPLIT",
        "BRIN/DESUMMARIZE",
        "ReplicationOrigin/SET",
        "ReplicationOrigin/DROP",
        "LogicalMessage/MESSAGE",
    ] {
        assert!(seen.contains_key(wanted), "the workload made no {wanted}");
    }
}

#[test]
fn every_real_record_is_known_and_its_main_data_parses() {
    let wal = wal();
    let mut errors = Vec::new();
    read(&wal.segments, wal.start, |record| {
        if let Err(error) = check_known(record).and_then(|()| parse(record)) {
            errors.push(error.to_string());
        }
    });
    assert_eq!(errors, Vec::<String>::new());
}

/// The words after a label in `pg_waldump`'s description of a record, up to the next semicolon.
fn words_after<'a>(line: &'a str, label: &str) -> Vec<&'a str> {
    let rest = line.split_once(label).map_or("", |(_, rest)| rest);
    rest.split(';').next().unwrap_or_default().split_whitespace().collect()
}

/// The main fork's paths, as `pg_waldump` names relations.
fn paths(nodes: &[RelNode]) -> Vec<String> {
    nodes.iter().map(|node| RelFile { node: *node, fork: Fork::Main, segment: 0 }.path()).collect()
}

fn texts(xids: &[u32]) -> Vec<String> {
    xids.iter().map(u32::to_string).collect()
}

#[test]
fn transactions_end_with_the_relations_and_subtransactions_that_pg_waldump_prints() {
    let wal = wal();
    let mut lines = wal.dump.lines().filter(|line| line.starts_with("rmgr: Transaction"));
    let (mut dropped, mut subxacts, mut prepared) = (0, 0, 0);
    read(&wal.segments, wal.start, |record| {
        if record.rmgr != RmgrId::XACT {
            return;
        }
        let line = lines.next().expect("a line for every record");
        match xact::parse(record).expect("known") {
            xact::XactRecord::Commit(end) | xact::XactRecord::Abort(end) => {
                assert_eq!(words_after(line, "; rels: "), paths(&end.dropped), "{line}");
                assert_eq!(words_after(line, "; subxacts: "), texts(&end.subxacts), "{line}");
                assert_eq!(words_after(line, "; dropped stats: ").len(), end.dropped_stats.len(), "{line}");
                assert!(!end.two_phase || line.contains(&format!("_PREPARED {}: ", end.xid)), "{line}");
                dropped += end.dropped.len();
                subxacts += end.subxacts.len();
            }
            xact::XactRecord::Prepare(prepare) => {
                let gid = String::from_utf8(prepare.gid).expect("ASCII");
                assert!(line.contains(&format!("desc: PREPARE gid {gid}: ")), "{line}");
                assert_eq!(words_after(line, "; rels(commit): "), paths(&prepare.drop_on_commit), "{line}");
                assert_eq!(words_after(line, "; rels(abort): "), paths(&prepare.drop_on_abort), "{line}");
                assert_eq!(words_after(line, "; subxacts: "), texts(&prepare.subxacts), "{line}");
                prepared += 1;
            }
            _ => {}
        }
    });
    assert!(dropped > 20 && subxacts > 100 && prepared > 5, "{dropped} {subxacts} {prepared}");
}

#[test]
fn images_restore_to_the_pages_that_the_server_wrote() {
    let wal = wal();
    // Everything but `pd_lsn` and `pd_checksum`, which a logged image has not, and what the image leaves out.
    let content = |page: &[u8], logged: &BlockImage| {
        let mut page = page.to_vec();
        page[usize::from(logged.hole_offset)..][..usize::from(logged.hole_length)].fill(0);
        page.split_off(10)
    };
    let mut compared: BTreeMap<&str, usize> = BTreeMap::new();
    let mut restored = 0;
    read(&wal.segments, wal.start, |record| {
        for block in &record.blocks {
            let Some(logged) = &block.image else { continue };
            let page = image::restore(logged).unwrap_or_else(|error| panic!("{}: {error}", record.lsn));
            restored += 1;
            let Some((method, _, file)) = wal.indexes.iter().find(|(_, node, _)| *node == block.node) else {
                continue;
            };
            let at = block.block as usize * page.len();
            let (ours, theirs) = (content(&*page, logged), content(&file[at..at + page.len()], logged));
            assert!(ours == theirs, "{} block {} of {}", block.node, block.block, record.lsn);
            if logged.is_compressed() == (*method != "off") {
                *compared.entry(*method).or_default() += 1;
            }
        }
    });
    println!("{restored} images restored, compared with files: {compared:?}");
    for method in METHODS {
        assert!(compared.get(method).is_some_and(|pages| *pages > 5), "{method}: {compared:?}");
    }
}

#[test]
fn every_record_trimmed_to_every_block_decodes_and_keeps_what_redo_reads() {
    let wal = wal();
    let (mut before, mut after) = (0_usize, 0_usize);
    read(&wal.segments, wal.start, |record| {
        for (index, own) in record.blocks.iter().enumerate() {
            let raw = trim::for_block(record, index);
            (before, after) = (before + record.raw.len(), after + raw.len());
            let cut = Record::decode(raw, record.lsn, record.end).expect("a trimmed record decodes");
            assert_eq!((&cut.main_data, cut.info, cut.xid), (&record.main_data, record.info, record.xid));
            assert_eq!(cut.blocks.len(), record.blocks.len());
            let own_image = own.image.as_ref().filter(|image| image.apply);
            assert_eq!((cut.blocks[index].image.as_ref(), &cut.blocks[index].data), (own_image, &own.data));
            for (kept, whole) in cut.blocks.iter().zip(&record.blocks) {
                assert_eq!(
                    (kept.id, kept.node, kept.fork, kept.block),
                    (whole.id, whole.node, whole.fork, whole.block)
                );
                assert!(!whole.will_init || kept.data == whole.data, "an initialised block keeps its data");
            }
        }
    });
    println!("{before} bytes of records, one for each block, are {after} trimmed");
    assert!(after < before);
}

#[test]
fn a_record_lost_in_a_crash_is_passed_over() {
    let wal = wal();
    let mut overwrites = Vec::new();
    let mut lost_seen = false;
    read(&wal.segments, wal.start, |record| {
        lost_seen |= record.lsn == wal.lost;
        if let (RmgrId::XLOG, Ok(xlog::XlogRecord::OverwriteContrecord(overwrite))) =
            (record.rmgr, parse_xlog(record))
        {
            overwrites.push((record.prev, overwrite.overwritten_lsn));
        }
    });
    assert!(!lost_seen);
    let [(prev, lost)] = overwrites[..] else { panic!("{overwrites:?}") };
    assert_eq!(lost, wal.lost);
    // A stream that begins where the lost record does comes to the same end.
    let mut first = None;
    let start = StreamStart { lsn: lost, prev, ..wal.start };
    read(&wal.segments, start, |record| first = first.or(Some((record.rmgr, record.op()))));
    assert_eq!(first, Some((RmgrId::XLOG, 0xD0)));
}

fn parse_xlog(record: &Record) -> Result<xlog::XlogRecord, WalError> {
    if record.rmgr == RmgrId::XLOG { xlog::parse(record) } else { Ok(xlog::XlogRecord::Noop) }
}

#[test]
fn a_stream_may_begin_at_any_record_and_takes_segments_in_pieces() {
    let wal = wal();
    let mut records = Vec::new();
    let (_, whole) =
        read(&wal.segments, wal.start, |record| records.push((record.lsn, record.end, record.prev)));
    for at in (0..records.len()).step_by(records.len() / 40 + 1) {
        let (lsn, _, prev) = records[at];
        let mut next = at;
        let start = StreamStart { lsn, prev, ..wal.start };
        let mut stream = WalStream::new(start);
        // A few thousand bytes more each time, up to the end of the second segment.
        let mut len = 0;
        let end = loop {
            match stream.next() {
                Ok(Some(record)) => {
                    assert_eq!((record.lsn, record.end), (records[next].0, records[next].1));
                    next += 1;
                }
                Err(error) => panic!("{error} after {}", stream.position()),
                Ok(None) => {
                    let wanted = stream.wants();
                    let Some(bytes) = wal.segments.get(&wal::seg_size().segment_of(wanted)) else {
                        break next;
                    };
                    len = if len >= bytes.len() { 4321 } else { (len + 100_321).min(bytes.len()) };
                    stream.feed(wanted, bytes.slice(..len)).expect("what it wants");
                    if next > at + 500 {
                        break next;
                    }
                }
            }
        };
        assert!(end > at || records[at].1 == whole.position(), "nothing read from {lsn}");
    }
}

#[test]
fn a_missing_or_damaged_byte_is_noticed() {
    let wal = wal();
    let (first, bytes) = wal.segments.iter().nth(3).expect("more than three segments");
    let mut start = wal.start;
    let (mut inside, mut before) = (Vec::new(), Lsn::INVALID);
    read(&wal.segments, start, |record| {
        if [record.lsn, record.end].map(|lsn| wal::seg_size().segment_of(lsn)) == [*first; 2] {
            inside.push(record.clone());
        } else if inside.is_empty() {
            before = record.lsn;
        }
    });
    let begin = inside.first().expect("records in it");
    start = StreamStart { lsn: begin.lsn, prev: before, ..start };
    let follows = std::iter::once(begin.lsn).chain(inside.iter().map(|record| record.end));
    for (record, sound_to) in inside.iter().zip(follows).step_by(50) {
        let offset = wal::seg_size().offset_of(record.lsn) as usize;
        // Length, xl_prev, resource manager, the padding that only the checksum covers, and the checksum.
        for damaged in [offset + 3, offset + 8, offset + 17, offset + 18, offset + 20] {
            if damaged / 8192 != offset / 8192 {
                continue;
            }
            let mut copy = bytes.to_vec();
            copy[damaged] ^= 0x40;
            let (error, stream) = read(&BTreeMap::from([(*first, Bytes::from(copy))]), start, |_| {});
            assert!(matches!(error, Some(WalError::Invalid { .. })), "{}: {error:?}", record.lsn);
            assert_eq!(stream.position(), sound_to, "{error:?}");
        }
    }
}

/// One record of each type and shape, so that mutations reach every parser.
fn samples() -> Vec<Record> {
    let mut shapes = BTreeSet::new();
    let mut samples = Vec::new();
    let wal = wal();
    read(&wal.segments, wal.start, |record| {
        let images =
            record.blocks.iter().filter_map(|block| block.image.as_ref()).map(|image| image.info).max();
        let shape = (record.rmgr, record.info, record.blocks.len().min(4), images, record.origin.is_some());
        if record.raw.len() < 20_000 && shapes.insert(shape) {
            samples.push(record.clone());
        }
    });
    samples
}

/// A repeatable source of choices.
fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn mutated_records_never_panic() {
    use proptest::prelude::*;
    let samples = samples();
    assert!(samples.len() > 150, "{} shapes", samples.len());
    assert!(samples.iter().any(|record| record.info & XLR_CHECK_CONSISTENCY != 0));
    let mutation = (0..samples.len(), prop::collection::vec((any::<u16>(), any::<u8>()), 1..6), any::<u16>());
    let (decoded, refused) = (Cell::new(0), Cell::new(0));
    let outcome = runner(20_000).run(&mutation, |(which, changes, cut)| {
        let mut raw = samples[which].raw.to_vec();
        for (at, value) in changes {
            // Mostly into the headers, where the lengths are.
            let range = if at % 4 == 0 { raw.len() } else { raw.len().min(120) };
            raw[at as usize % range] = value;
        }
        if cut % 8 == 0 {
            raw.truncate(24.max(cut as usize % raw.len()));
        }
        zenith_pgformat::wal::encode::seal(&mut raw);
        match Record::decode(Bytes::from(raw), Lsn(0x100), Lsn(0x200)) {
            Ok(record) => {
                decoded.set(decoded.get() + 1);
                exercise(&record);
            }
            Err(_) => refused.set(refused.get() + 1),
        }
        Ok(())
    });
    assert_eq!(outcome, Ok(()));
    let (decoded, refused) = (decoded.get(), refused.get());
    println!("{decoded} mutated records decoded, {refused} refused");
    assert!(decoded > 1000 && refused > 1000);
}

/// Everything that can be asked of a record.
fn exercise(record: &Record) {
    drop(parse(record));
    drop(check_known(record));
    drop(Described(record).to_string());
    for (index, block) in record.blocks.iter().enumerate() {
        drop(block.image.as_ref().map(image::restore));
        let trimmed = trim::for_block(record, index);
        assert!(
            Record::decode(trimmed, record.lsn, record.end).is_ok(),
            "trimming keeps it sound: {record:?}"
        );
    }
}

#[test]
fn mutated_segments_never_panic() {
    use proptest::prelude::*;
    let wal = wal();
    let segments: Vec<(u64, Bytes)> =
        wal.segments.iter().step_by(7).map(|(n, bytes)| (*n, bytes.clone())).collect();
    // At page headers and right behind them, where they hurt most, and anywhere.
    let place =
        prop_oneof![(0_usize..128, 0_usize..64).prop_map(|(page, at)| page * 8192 + at), 0_usize..1 << 20];
    let mutation = (
        0..segments.len(),
        prop::collection::vec((place, any::<u8>()), 1..8),
        0_usize..1 << 20,
        any::<bool>(),
    );
    let outcome = runner(300).run(&mutation, |(which, changes, start_at, aligned)| {
        let (number, bytes) = &segments[which];
        let mut copy = bytes.to_vec();
        for (at, value) in changes {
            copy[at] = value;
        }
        let lsn = wal::seg_size().start_of(*number).0 + if aligned { 0 } else { start_at as u64 };
        let start = StreamStart { lsn: Lsn(lsn), ..wal.start };
        read(&BTreeMap::from([(*number, Bytes::from(copy))]), start, exercise);
        Ok(())
    });
    assert_eq!(outcome, Ok(()));
}

#[test]
fn visibility_clears_name_heap_blocks_that_the_record_refers_to() {
    let wal = wal();
    let mut clears = 0;
    read(&wal.segments, wal.start, |record| {
        if !matches!(record.rmgr, RmgrId::HEAP | RmgrId::HEAP2) {
            return;
        }
        for clear in heap::parse(record).expect("known").clears {
            clears += 1;
            let refers = |b: &zenith_pgformat::wal::BlockRef| {
                (b.node, b.block, b.fork) == (clear.node, clear.heap_block, Fork::Main)
            };
            assert!(record.blocks.iter().any(refers), "{}", record.lsn);
        }
    });
    assert!(clears > 20, "{clears} clears");
}
