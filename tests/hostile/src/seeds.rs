//! Sound samples: records and files of a real server (`seeds/`, written by `tests/collect.rs`), and what Zenith itself
//! writes.

use crate::objects::{cluster, paths, timeline};
use crate::wal::{STREAM_START, SYSTEM_IDENTIFIER, segment_size};
use bytes::Bytes;
use serde_json::json;
use std::collections::BTreeMap;
use uuid::Uuid;
use zenith_ingest::base::{SmallFile, encode_small_files};
use zenith_ingest::model::{
    Alias, Database, NextXid, Parameters, RelEvent, RelSize, ReplOrigin, SlruSize, Tablespace,
};
use zenith_layers::{
    Event, EventKind, EventWriter, FinishedLayer, Key, LayerWriter, Row, Slru, Source, Value, WriterOptions,
};
use zenith_manifest::codec::encode_root;
use zenith_manifest::{
    Ancestor, BaseId, BaseImage, BaseKind, Change, LayerEntry, LayerKind, Root, Slice, apply,
};
use zenith_pgformat::relmap::RelMap;
use zenith_pgformat::wal::encode::{WalWriter, WriterStart};
use zenith_pgformat::wal::record::RECORD_HEADER;
use zenith_pgformat::wal::{Record, RmgrId, image};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RelNode, XLOG_BLCKSZ};
use zenith_redo::native::{Edit, Member, XactStatus};
use zenith_store::TimelineId;
use zenith_testkit::control::{checkpoint, control_file};

const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16_384 };

fn from_hex(text: &str) -> Vec<u8> {
    let (pairs, _) = text.trim().as_bytes().as_chunks::<2>();
    pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The records of a real server, with where each ended.
fn real_records() -> Vec<(Lsn, Vec<u8>)> {
    let lines = include_str!("../seeds/records.txt").lines().filter(|line| !line.starts_with('#'));
    let of_line = |line: &str| {
        let (end, raw) = line.split_once(' ').unwrap();
        (end.parse().unwrap(), from_hex(raw))
    };
    lines.map(of_line).collect()
}

pub(crate) fn records() -> Vec<Vec<u8>> {
    real_records().into_iter().map(|(_, raw)| raw).collect()
}

fn decoded() -> impl Iterator<Item = Record> {
    real_records().into_iter().map(|(end, raw)| Record::decode(raw.into(), Lsn(end.0 - 8), end).unwrap())
}

pub(crate) fn images() -> Vec<Vec<u8>> {
    let of_image = |image: &zenith_pgformat::wal::BlockImage| {
        let hole = [image.hole_offset.to_le_bytes(), image.hole_length.to_le_bytes()].concat();
        [&[image.info], &hole[..], &image.bytes].concat()
    };
    let blocks = decoded().flat_map(|record| record.blocks);
    let mut images: Vec<Vec<u8>> = blocks.filter_map(|block| block.image.as_ref().map(of_image)).collect();
    // The real ones that are short enough to be kept here do not use every method.
    let page: Vec<u8> = (0..BLCKSZ).map(|at| (at / 100) as u8).collect();
    images.push([&[0x12, 0, 0, 0, 0], &zstd::bulk::compress(&page, 1).unwrap()[..]].concat());
    images.push([&[0x02, 0, 0, 0, 0], &page[..]].concat());
    images
}

/// Pages of every access method, out of the images of records.
pub(crate) fn pages() -> Vec<Vec<u8>> {
    let blocks = decoded().flat_map(|record| record.blocks);
    let restored = blocks.filter_map(|block| Some(image::restore(block.image.as_ref()?).unwrap().to_vec()));
    restored.chain([vec![0x55; 8192]]).collect()
}

/// Real records one after the other over pages, their `xl_prev` put right.
pub(crate) fn wal_streams() -> Vec<Vec<u8>> {
    let records = records();
    let stream = |records: &[Vec<u8>]| {
        let start = WriterStart {
            lsn: STREAM_START,
            prev: Lsn(8),
            tli: 2,
            seg_size: segment_size(),
            system_identifier: SYSTEM_IDENTIFIER,
        };
        let mut writer = WalWriter::new(start).unwrap();
        for raw in records {
            let mut raw = raw.clone();
            raw[8..16].copy_from_slice(&writer.prev().0.to_le_bytes());
            let crc = crc32c::crc32c_append(crc32c::crc32c(&raw[RECORD_HEADER..]), &raw[..20]);
            raw[20..RECORD_HEADER].copy_from_slice(&crc.to_le_bytes());
            // A switch fills its segment, and samples are short.
            if raw[16..18] != [0x40, 0] {
                writer.append_raw(&raw);
            }
        }
        writer.append(RmgrId::LOGICALMSG, 0, 0, &[7; 20_000]);
        let used = writer.position().since(STREAM_START) as usize;
        let mut bytes = writer.finish();
        bytes.truncate(used.next_multiple_of(XLOG_BLCKSZ));
        bytes
    };
    records.chunks(records.len().div_ceil(4).max(1)).map(stream).collect()
}

pub(crate) fn wal_pages() -> Vec<Vec<u8>> {
    wal_streams()
        .iter()
        .flat_map(|stream| stream.chunks(XLOG_BLCKSZ).map(|page| page[..40].to_vec()))
        .collect()
}

pub(crate) fn control() -> Vec<Vec<u8>> {
    vec![
        from_hex(include_str!("../seeds/pg_control.txt")),
        control_file().encode()[..296].to_vec(),
        checkpoint().encode().to_vec(),
    ]
}

pub(crate) fn relation_map() -> Vec<Vec<u8>> {
    let made = RelMap::new((1..=62).map(|oid| (oid, oid + 16_384)).collect()).unwrap();
    vec![from_hex(include_str!("../seeds/pg_filenode.map.txt")), made.encode()]
}

pub(crate) fn two_phase() -> Vec<Vec<u8>> {
    vec![from_hex(include_str!("../seeds/two_phase.txt"))]
}

pub(crate) fn histories() -> Vec<Vec<u8>> {
    let texts = [
        "1\t0/3000000\tno recovery target specified\n\n2\t0/5000028\tbefore 2000-01-01 00:00:00+00\n",
        "# a comment\n  1 0/28\n",
        "",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

pub(crate) fn backup_labels() -> Vec<Vec<u8>> {
    vec![include_bytes!("../seeds/backup_label.txt").to_vec()]
}

pub(crate) fn names() -> Vec<Vec<u8>> {
    let texts = [
        "000000020000000100000003\n000000020000000100000003.partial\n00000002.history",
        "000000020000000100000003.00000028.backup\n0000\n0ABC\n12345",
        "base/5/16384_fsm.1\nglobal/1262\npg_tblspc/16400/PG_15_202209061/5/16384\nbase/5/t3_16384",
        "16/B374D848\n0/0\nFFFFFFFF/FFFFFFFF\n000002E4",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

pub(crate) fn edits() -> Vec<Vec<u8>> {
    let edits = [
        Edit::ClearVisibility { blocks: vec![(5, 3), (32_671, 1)] },
        Edit::TruncateVisibility { first_removed: 6 },
        Edit::XactStatus { status: XactStatus::Committed, slots: vec![0, 1, 32_767] },
        Edit::MultiXactOffsets { entries: vec![(2047, 9), (3, 70_000)] },
        Edit::MultiXactMembers { members: vec![Member { slot: 6, xid: 700, status: 1 }] },
        Edit::CommitTs { time: -2, origin: 3, slots: vec![1, 818] },
        Edit::GinFinishSplit,
    ];
    edits.map(|edit| edit.encode().to_vec()).to_vec()
}

pub(crate) fn parameters() -> Parameters {
    Parameters {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 5,
        max_locks_per_transaction: 64,
        wal_level: 1,
        wal_log_hints: true,
        track_commit_timestamp: false,
    }
}

pub(crate) fn models() -> Vec<Vec<u8>> {
    let alias = Some(Alias { spc: 1663, db: 1, lsn: Lsn(0x100_0000) });
    let values = [
        RelSize { blocks: 70_000, created: Lsn(0x200_0000), ..RelSize::new(Lsn(8)) }.encode(),
        RelEvent::Truncated { to: 300 }.encode(),
        RelEvent::Gap { from: 1, to: 1 << 30 }.encode(),
        SlruSize { pages: 32 }.encode(),
        Database { created: Lsn(0x200_0000), alias }.encode(),
        Database { created: Lsn(0), alias: None }.encode(),
        Tablespace { location: "/srv/space".to_owned() }.encode(),
        NextXid(1 << 40).encode(),
        parameters().encode(),
        ReplOrigin { remote_lsn: Lsn(7), local_lsn: Lsn(1 << 50) }.encode(),
        Bytes::copy_from_slice(&Key::rel_block(NODE, Fork::Vm, 7).to_bytes().0),
        Bytes::copy_from_slice(&Key::slru_page(Slru::CommitTs, 1, 2).to_bytes().0),
    ];
    values.map(|value| value.to_vec()).to_vec()
}

fn base(id: u128, redo: u64, end: u64) -> BaseImage {
    BaseImage {
        id: BaseId(Uuid::from_u128(id)),
        kind: BaseKind::Online,
        tli: 1,
        redo: Lsn(redo),
        checkpoint: Lsn(redo),
        end: Lsn(end),
        confirmed: false,
        taken_at: "2026-01-01T00:00:00Z".to_owned(),
        data_bytes: 1 << 30,
        stored_bytes: 1 << 20,
        data_checksums: true,
    }
}

fn entry(id: u128, kind: LayerKind, base: Option<&BaseImage>, from: u64, to: u64) -> LayerEntry {
    let key = |block| Key::rel_block(NODE, Fork::Main, block).to_bytes();
    LayerEntry {
        id: Uuid::from_u128(id),
        kind,
        tli: 1,
        key_min: key(0),
        key_max: key(u32::MAX),
        lsn_from: Lsn(from),
        lsn_to: Lsn(to),
        serves_from: base.map_or(Lsn(from), |base| base.end),
        base: base.map(|base| base.id),
        rows: 10,
        bytes: 1000,
        meta_offset: 900,
        meta_crc: 7,
        max_time: (kind == LayerKind::Events).then_some(-5),
    }
}

/// Versions as registering a base image and slicing make them.
fn made_roots() -> Vec<Root> {
    let ancestor = Ancestor { timeline: TimelineId(Uuid::from_u128(8)), lsn: Lsn(0x100_0000), tli: 1 };
    let empty = Root::empty(timeline(), None);
    let base = base(1, 0x200_0000, 0x300_0000);
    let image = entry(11, LayerKind::Image, Some(&base), 0x200_0000, 0x200_0000);
    let slice = Slice {
        epoch: 1,
        from: Lsn(0x200_0000),
        to: Lsn(0x400_0000),
        prev: Lsn(0x3FF_FF00),
        layers: vec![
            entry(12, LayerKind::Delta, None, 0x200_0000, 0x400_0000),
            entry(13, LayerKind::Events, None, 0x200_0000, 0x400_0000),
        ],
        confirmed: vec![base.id],
        switches: Vec::new(),
        state: json!({ "invalid_pages": [[[1, 2, "three"], null]], "more": { "deep": [true, 1.5] } }),
    };
    let changes = [
        Change::RegisterBase { base, layers: vec![image] },
        Change::TakeEpoch(zenith_manifest::Role::Slicer),
        Change::Slice(slice),
    ];
    let mut roots = vec![empty];
    for (number, change) in changes.into_iter().enumerate() {
        let last = roots.last().unwrap();
        roots.push(apply(last, &[change], Uuid::from_u128(100 + number as u128)).unwrap());
    }
    let branch = roots.last().unwrap().clone();
    roots.push(Root { ancestor: Some(ancestor), ..branch });
    roots
}

/// Bodies of manifest versions.
pub(crate) fn roots() -> Vec<Vec<u8>> {
    let body = |root: &Root| encode_root(&paths().manifest(root.version), root).unwrap()[20..].to_vec();
    // The version before the first is never stored.
    made_roots().iter().filter(|root| root.version > 0).map(body).collect()
}

pub(crate) fn small() -> Vec<Vec<u8>> {
    let id = timeline();
    let name = json!({ "name": "main", "version": 1, "state": { "timeline": id } });
    let given_up = json!({ "name": "main", "version": 1, "state": "given_up" });
    let identity = json!({
        "format": 1, "timeline": id, "system_identifier": u64::MAX - 5, "pg_major": 15,
        "wal_segment_size": 1 << 24, "block_size": 8192, "ancestor": null, "encryption": null,
    });
    let boundary = json!({ "void_up_to": 0 });
    let horizon = json!({ "collected_below": "0/3000148" });
    let pin = json!({ "timeline": id, "lsn": "0/3000148", "holder": { "branch": id } });
    let kinds = [(0u8, name), (0, given_up), (1, identity), (2, boundary), (3, horizon), (4, pin)];
    kinds.map(|(kind, body)| [&[kind], body.to_string().as_bytes()].concat()).to_vec()
}

/// An index page as `ManifestStore` spills it, with its number of entries before it.
pub(crate) fn index_pages() -> Vec<Vec<u8>> {
    use object_store::ObjectStoreExt;
    use zenith_manifest::{ManifestStore, Role};
    crate::objects::block_on(async {
        let objects = zenith_store::Store::memory().objects;
        let env = zenith_testkit::env::test_env(1);
        let manifest =
            ManifestStore::new(std::sync::Arc::clone(&objects), env, cluster().timeline(timeline()), None);
        let base = base(1, 0x200_0000, 0x300_0000);
        manifest.commit(&Change::RegisterBase { base: base.clone(), layers: Vec::new() }).await.unwrap();
        manifest.take_epoch(Role::Slicer).await.unwrap();
        let layers =
            (0..150).map(|n| entry(1000 + n, LayerKind::Delta, None, 0x200_0000, 0x400_0000)).collect();
        let slice = Slice {
            epoch: 1,
            from: Lsn(0x200_0000),
            to: Lsn(0x400_0000),
            prev: Lsn(0x3FF_FF00),
            layers,
            confirmed: Vec::new(),
            switches: Vec::new(),
            state: serde_json::Value::Null,
        };
        let root = manifest.commit(&Change::Slice(slice)).await.unwrap().root;
        let page = root.pages.first().unwrap();
        let bytes = objects.get(&paths().index_page(page.id)).await.unwrap().bytes().await.unwrap();
        vec![[&(page.entries as u32).to_le_bytes(), &bytes[..]].concat()]
    })
}

pub(crate) fn archived() -> Vec<Vec<u8>> {
    let mut samples = vec![b"1\t0/3000000\tno recovery target specified\n".to_vec(), b"# nothing\n".to_vec()];
    let framed: Vec<Vec<u8>> = samples.iter().map(|text| zstd::bulk::compress(text, 1).unwrap()).collect();
    samples.extend(framed);
    let mut segment = wal_streams().swap_remove(0);
    segment.resize(1 << 20, 0);
    samples.push(zstd::bulk::compress(&segment, 1).unwrap());
    samples
}

pub(crate) fn small_files() -> Vec<Vec<u8>> {
    let file = |content: &[u8]| SmallFile { mode: 0o600, content: Bytes::copy_from_slice(content) };
    let files = BTreeMap::from([
        ("PG_VERSION".to_owned(), file(b"15\n")),
        ("backup_label".to_owned(), file(include_bytes!("../seeds/backup_label.txt"))),
        ("global/pg_control".to_owned(), file(&control_file().encode()[..300])),
    ]);
    let object = encode_small_files(&files).unwrap();
    let content = zstd::bulk::decompress(&object, 1 << 20).unwrap();
    vec![object.to_vec(), content]
}

fn rows(count: u32, image: bool) -> impl Iterator<Item = Row> {
    let noise = |n: u32, length: usize| -> Bytes {
        (0..length).map(|at| (at as u32).wrapping_mul(n.wrapping_mul(2_654_435_761)) as u8).collect()
    };
    let value = move |n: u32| match n % 6 {
        _ if image => Value::Page(noise(n, BLCKSZ)),
        0 => Value::Record(noise(n, 30)),
        1 => Value::Edit(noise(n, 5)),
        2 => Value::InitRecord(noise(n, 200)),
        3 => Value::State(noise(n, 9)),
        4 => Value::Page(Bytes::new()),
        _ => Value::Tombstone,
    };
    (0..count).map(move |n| Row {
        key: Key::rel_block(NODE, Fork::Main, if image { n } else { n / 3 }),
        lsn: if image { Lsn(8) } else { Lsn(16 + u64::from(n) * 8) },
        value: value(n),
        source: Source { xid: n, length: n * 3, ..Source::NONE },
    })
}

fn events(count: u64) -> FinishedLayer {
    let mut writer = EventWriter::new(1, Lsn(50), Lsn(1 << 30)).unwrap();
    for n in 0..count {
        let event = Event {
            start: Lsn(100 + n * 40),
            lsn: Lsn(132 + n * 40),
            kind: EventKind::ALL[(n % 6) as usize],
            xid: n as u32,
            time: n as i64 * 7 - 9,
            name: if n % 6 == 4 { format!("point {n}") } else { String::new() },
            subxacts: 2,
        };
        writer.push(&event).unwrap();
    }
    writer.finish().unwrap()
}

/// Layers of each kind, with where the tail begins before them.
pub(crate) fn layers() -> Vec<Vec<u8>> {
    let written = |options, rows: &mut dyn Iterator<Item = Row>| {
        let mut writer = LayerWriter::new(options).unwrap();
        rows.for_each(|row| writer.push(&row).unwrap());
        writer.finish().unwrap()
    };
    let layers = [
        written(WriterOptions::delta(1, Lsn(8), Lsn(1 << 20)), &mut rows(60, false)),
        written(WriterOptions::image(1, Lsn(8), None), &mut rows(4, true)),
        events(40),
    ];
    let with_offset = |layer: FinishedLayer| {
        let offset = layer.entry(Uuid::nil()).meta_offset as u32;
        [&offset.to_le_bytes(), &layer.object()[..]].concat()
    };
    layers.map(with_offset).to_vec()
}
