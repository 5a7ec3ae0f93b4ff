//! One layer: what is written is read, in few requests, and no damage goes unnoticed.

use crate::error::LayerError;
use crate::events::{Event, EventKind, EventWriter};
use crate::key::{Key, KeyRange};
use crate::map::ReadMode;
use crate::reader::LayerStore;
use crate::row::{Row, Source, Value};
use crate::set::LayerSet;
use crate::test_env::{Place, written};
use crate::test_rows::rows_of;
use crate::writer::{LayerWriter, WriterOptions};
use bytes::Bytes;
use object_store::{ObjectStore, PutMode};
use proptest::prelude::*;
use std::sync::Arc;
use uuid::Uuid;
use zenith_manifest::LayerEntry;
use zenith_pgformat::{Fork, Lsn, RelNode};

const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16384 };
const ALL: KeyRange = KeyRange { first: Key::MIN, last: Key::MAX };

fn delta() -> WriterOptions {
    WriterOptions::delta(1, Lsn(1), Lsn(1 << 40))
}

/// Bytes that neither repeat nor compress to nothing.
fn noise(seed: u32, length: usize) -> Bytes {
    let mut state = u64::from(seed) << 8 | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&((state >> 2) & 0x3F3F_3F3F_3F3F_3F3F).to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

fn page_row(block: u32) -> Row {
    let key = Key::rel_block(NODE, Fork::Main, block);
    Row { key, lsn: Lsn(8), value: Value::Page(noise(block, 8192)), source: Source::NONE }
}

async fn all_rows(store: &Arc<LayerStore>, entry: &Arc<LayerEntry>) -> Result<Vec<Row>, LayerError> {
    let layer = store.open(entry).await?;
    let mut rows = Vec::new();
    for group in 0..layer.groups() {
        rows.extend(layer.group_rows(group).await?);
    }
    Ok(rows)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn rows_come_back_as_they_were_written(rows in rows_of(1..150)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let place = Place::new();
            let entry = place.layer(delta(), &rows).await;
            assert_eq!(all_rows(&place.cold(0), &entry).await.unwrap(), rows);
            let set = LayerSet::new(place.cold(0), [Arc::clone(&entry)], None).unwrap();
            assert_eq!(set.versions(&[ALL], Lsn(0), Lsn::MAX).await.unwrap(), rows);
            assert_eq!(entry.rows, rows.len() as u64);
            assert_eq!(entry.key_min, rows[0].key.to_bytes());
            assert_eq!(entry.key_max, rows[rows.len() - 1].key.to_bytes());
        });
    }
}

#[tokio::test]
async fn layers_of_several_row_groups_come_back() {
    let rows: Vec<Row> = (0..3000).map(page_row).collect();
    let place = Place::new();
    let entry = place.layer(WriterOptions::image(1, Lsn(8), None), &rows).await;
    let layer = place.store.open(&entry).await.unwrap();
    assert_eq!(layer.groups(), 2);
    assert_eq!(all_rows(&place.cold(0), &entry).await.unwrap(), rows);
    let small =
        |n: u32| Row { lsn: Lsn(u64::from(n) + 2), value: Value::Edit(noise(n, 3)), ..page_row(n / 3) };
    let rows: Vec<Row> = (0..140_000).map(small).collect();
    let entry = place.layer(delta(), &rows).await;
    assert_eq!(place.store.open(&entry).await.unwrap().groups(), 3);
    assert_eq!(all_rows(&place.cold(0), &entry).await.unwrap(), rows);
}

/// The point of 64 KiB pages: reading one page of a relation decodes eight, not a row group.
#[tokio::test]
async fn a_data_page_of_payload_holds_eight_pages_of_a_relation() {
    let rows: Vec<Row> = (0..4096).map(page_row).collect();
    let place = Place::new();
    let entry = place.layer(WriterOptions::image(1, Lsn(8), None), &rows).await;
    let layer = place.store.open(&entry).await.unwrap();
    let pages = layer.payload_pages();
    assert_eq!(pages.len(), 512);
    assert!(pages.iter().all(|page| page.rows == 8 && page.decoded == 8 * 8196));
}

#[tokio::test]
async fn a_cold_lookup_takes_three_requests_and_a_warm_one_takes_one() {
    let rows: Vec<Row> = (0..4096).map(page_row).collect();
    let place = Place::new();
    let entry = place.layer(WriterOptions::image(1, Lsn(8), None), &rows).await;
    let set = LayerSet::new(Arc::clone(&place.store), [entry], None).unwrap();
    let read = async |block: u32| {
        let before = place.objects.counts().snapshot();
        let range = KeyRange::one(Key::rel_block(NODE, Fork::Main, block));
        let history = set.history(&[range], Lsn(8), ReadMode::Serve).await.unwrap();
        assert_eq!(history.len(), 1);
        assert_eq!(history[0].rows, [page_row(block)]);
        let counts = place.objects.counts().snapshot().since(&before);
        (counts.gets, counts.bytes_got)
    };
    // Footer, keys, then details and payload together.
    assert_eq!(read(7).await.0, 4);
    assert_eq!(read(7).await, (0, 0));
    assert_eq!(read(0).await.0, 0);
    let (gets, bytes) = read(1000).await;
    assert_eq!(gets, 1);
    assert!(bytes < 64 << 10, "{bytes}");
}

#[tokio::test]
async fn a_small_layer_is_read_by_one_request() {
    let place = Place::new();
    let entry = place.layer(delta(), &mixed_rows()).await;
    let set = LayerSet::new(Arc::clone(&place.store), [entry], None).unwrap();
    let before = place.gets();
    assert_eq!(set.versions(&[ALL], Lsn(0), Lsn::MAX).await.unwrap(), mixed_rows());
    assert!(!set.history(&[ALL], Lsn::MAX, ReadMode::Serve).await.unwrap().is_empty());
    assert_eq!(place.gets() - before, 1);
}

#[tokio::test]
async fn near_pages_of_a_batch_are_fetched_by_one_request() {
    let rows: Vec<Row> = (0..2000).map(page_row).collect();
    let place = Place::new();
    let entry = place.layer(WriterOptions::image(1, Lsn(8), None), &rows).await;
    let set = LayerSet::new(Arc::clone(&place.store), [entry], None).unwrap();
    let blocks = |from, to| KeyRange::blocks(NODE, Fork::Main, from, to);
    set.history(&[blocks(1999, 1999)], Lsn(8), ReadMode::Serve).await.unwrap();
    let before = place.gets();
    let ranges = [blocks(0, 20), blocks(30, 40), blocks(1000, 1001)];
    let histories = set.history(&ranges, Lsn(8), ReadMode::Serve).await.unwrap();
    assert_eq!(histories.len(), 34);
    assert_eq!(place.gets() - before, 2);
}

#[tokio::test]
async fn many_readers_of_one_page_load_it_once() {
    let rows: Vec<Row> = (0..100).map(page_row).collect();
    let place = Place::new();
    let entry = place.layer(WriterOptions::image(1, Lsn(8), None), &rows).await;
    let set = LayerSet::new(Arc::clone(&place.store), [entry], None).unwrap();
    let before = place.gets();
    let reads = (0..50).map(|_| {
        let set = set.clone();
        tokio::spawn(async move {
            let range = KeyRange::one(Key::rel_block(NODE, Fork::Main, 50));
            set.history(&[range], Lsn(8), ReadMode::Serve).await.unwrap()
        })
    });
    for read in futures::future::join_all(reads).await {
        assert_eq!(read.unwrap()[0].rows, [page_row(50)]);
    }
    assert_eq!(place.gets() - before, 4);
}

#[test]
fn the_writer_refuses_what_a_layer_cannot_hold() {
    let row = page_row(5);
    let push = |options: WriterOptions, rows: &[Row]| {
        let mut writer = LayerWriter::new(options).unwrap();
        rows.iter().try_for_each(|row| writer.push(row))
    };
    let image = WriterOptions::image(1, Lsn(8), None);
    assert!(push(image, &[row.clone(), page_row(6)]).is_ok());
    let at = |lsn| Row { lsn: Lsn(lsn), ..row.clone() };
    let edit = Row { value: Value::Edit(Bytes::new()), ..row.clone() };
    let short = Row { value: Value::Page(Bytes::from_static(b"short")), ..row.clone() };
    let delta = WriterOptions::delta(1, Lsn(8), Lsn(16));
    assert!(push(delta, &[at(9), at(16)]).is_ok());
    for (options, rows) in [
        (image, vec![row.clone(), row.clone()]),
        (image, vec![row.clone(), page_row(4)]),
        (image, vec![at(9)]),
        (image, vec![edit]),
        (image, vec![short]),
        (delta, vec![at(8)]),
        (delta, vec![at(17)]),
        (delta, vec![at(10), at(9)]),
        (delta, vec![at(10), at(10)]),
    ] {
        let error = push(options, &rows).unwrap_err();
        assert!(matches!(error, LayerError::Refused(_)), "{error}");
    }
    assert!(matches!(LayerWriter::new(image).unwrap().finish(), Err(LayerError::Refused(_))));
    assert!(LayerWriter::new(WriterOptions::delta(1, Lsn(9), Lsn(8))).is_err());
}

#[test]
fn the_estimate_follows_the_object() {
    let mut writer = LayerWriter::new(WriterOptions::image(1, Lsn(8), None)).unwrap();
    for block in 0..3000 {
        writer.push(&page_row(block)).unwrap();
    }
    let estimate = writer.estimated_bytes();
    let bytes = writer.finish().unwrap().bytes();
    assert!(estimate.abs_diff(bytes) < bytes / 10, "{estimate} for {bytes}");
}

/// Small rows of every kind, in two row groups' worth of shapes, and a branch of damage to each byte.
fn mixed_rows() -> Vec<Row> {
    let value = |n: u32| match n % 6 {
        0 => Value::Record(noise(n, 30)),
        1 => Value::Edit(noise(n, 5)),
        2 => Value::InitRecord(noise(n, 20)),
        3 => Value::State(noise(n, 9)),
        4 => Value::Page(Bytes::new()),
        _ => Value::Tombstone,
    };
    let row = |n: u32| Row {
        key: Key::rel_block(NODE, Fork::Main, n / 3),
        lsn: Lsn(16 + u64::from(n) * 8),
        value: value(n),
        source: Source { xid: n, length: n * 3, ..Source::NONE },
    };
    (0..40).map(row).collect()
}

/// Whatever reads of a layer there are, by themselves and with cold caches.
async fn read_everything(place: &Place, entry: &Arc<LayerEntry>) -> [Result<Vec<Row>, LayerError>; 4] {
    let set = |whole| LayerSet::new(place.cold(whole), [Arc::clone(entry)], None).unwrap();
    let histories = set(0).history(&[ALL], Lsn::MAX, ReadMode::Serve).await;
    [
        all_rows(&place.cold(0), entry).await,
        set(0).versions(&[ALL], Lsn(0), Lsn::MAX).await,
        set(1 << 20).versions(&[ALL], Lsn(0), Lsn::MAX).await,
        histories.map(|histories| histories.into_iter().flat_map(|history| history.rows).collect()),
    ]
}

async fn overwrite(place: &Place, entry: &LayerEntry, object: Bytes) {
    let path = place.store.paths().layer(entry.id);
    place.objects.put_opts(&path, object.into(), PutMode::Overwrite.into()).await.unwrap();
}

fn check_damage(
    what: &str,
    object: &str,
    good: &[Vec<Row>],
    reads: [Result<Vec<Row>, LayerError>; 4],
) -> usize {
    let mut errors = 0;
    for (read, good) in reads.into_iter().zip(good) {
        match read {
            Ok(rows) => assert_eq!(&rows, good, "{what}"),
            Err(error) => {
                assert!(matches!(error, LayerError::Damaged { .. }), "{what}: {error}");
                assert!(error.to_string().contains(object), "{what}: {error}");
                errors += 1;
            }
        }
    }
    errors
}

#[tokio::test]
async fn a_flipped_byte_is_an_error_that_names_the_object_or_harmless_and_never_another_row() {
    let place = Place::new();
    let layer = written(delta(), &mixed_rows());
    let entry = Arc::new(place.store(&layer).await.unwrap());
    let object = entry.id.simple().to_string();
    let good: Vec<Vec<Row>> = read_everything(&place, &entry).await.map(Result::unwrap).into();
    assert_eq!(good[0], mixed_rows());
    let mut harmless = Vec::new();
    for at in 0..layer.object().len() {
        // In the tail every flip meets the same CRC.
        let tail = at as u64 >= entry.meta_offset;
        let flips: &[u8] = if tail { &[0x10] } else { &[0x01, 0x80, 0xFF] };
        for flip in flips {
            let mut bytes = layer.object().to_vec();
            bytes[at] ^= flip;
            overwrite(&place, &entry, bytes.into()).await;
            let reads = read_everything(&place, &entry).await;
            if check_damage(&format!("byte {at} ^ {flip:#x}"), &object, &good, reads) == 0 {
                harmless.push(at);
            }
        }
    }
    harmless.dedup();
    // The leading magic, and bits of the one payload page's header that decoding does not depend on.
    assert!(harmless.len() < 24, "{harmless:?}");
}

#[tokio::test]
async fn a_cut_or_missing_object_is_an_error_that_names_it() {
    let place = Place::new();
    let layer = written(delta(), &mixed_rows());
    let entry = Arc::new(place.store(&layer).await.unwrap());
    let object = entry.id.simple().to_string();
    for length in (0..layer.object().len()).step_by(7) {
        overwrite(&place, &entry, layer.object().slice(..length)).await;
        for read in read_everything(&place, &entry).await {
            let error = read.unwrap_err();
            assert!(matches!(error, LayerError::Damaged { .. }), "{length}: {error}");
            assert!(error.to_string().contains(&object), "{error}");
        }
    }
    let gone = Arc::new(LayerEntry { id: Uuid::from_u128(99), ..(*entry).clone() });
    for read in read_everything(&place, &gone).await {
        let error = read.unwrap_err();
        assert!(matches!(error, LayerError::Missing { .. }), "{error}");
        assert!(error.to_string().contains(&gone.id.simple().to_string()), "{error}");
    }
}

#[tokio::test]
async fn another_layer_under_the_name_is_noticed() {
    let place = Place::new();
    let entry = place.layer(delta(), &mixed_rows()).await;
    let other = written(delta(), &mixed_rows()[..20]);
    overwrite(&place, &entry, other.object().clone()).await;
    let mut wrong = vec![(*entry).clone(), other.entry(entry.id)];
    wrong[1].lsn_to = Lsn(1 << 41);
    for entry in wrong {
        let error = place.cold(0).open(&Arc::new(entry)).await.unwrap_err();
        assert!(matches!(error, LayerError::Damaged { .. }), "{error}");
    }
}

fn event(n: u64) -> Event {
    let kind = EventKind::ALL[(n % 6) as usize];
    let name = if kind == EventKind::RestorePoint { format!("point {n}") } else { String::new() };
    let lsn = 100 + n * 40;
    Event {
        start: Lsn(lsn - 32),
        lsn: Lsn(lsn),
        kind,
        xid: n as u32,
        time: n as i64 * 7 - 9,
        name,
        subxacts: 2,
    }
}

#[tokio::test]
async fn events_come_back_by_their_lsn_and_damage_to_them_is_noticed() {
    let place = Place::new();
    let mut writer = EventWriter::new(1, Lsn(50), Lsn(1 << 30)).unwrap();
    let events: Vec<Event> = (0..300).map(event).collect();
    for event in &events {
        writer.push(event).unwrap();
    }
    assert!(writer.push(&event(299)).is_err());
    let layer = writer.finish().unwrap();
    let entry = Arc::new(place.store(&layer).await.unwrap());
    assert_eq!(entry.max_time, Some(299 * 7 - 9));
    let read = async |after: u64, upto: u64| {
        let set = LayerSet::new(place.cold(0), [Arc::clone(&entry)], None).unwrap();
        set.events(Lsn(after), Lsn(upto)).await
    };
    assert_eq!(read(0, u64::MAX).await.unwrap(), events);
    assert_eq!(read(events[10].lsn.0, events[20].lsn.0).await.unwrap(), events[11..=20]);
    assert_eq!(read(1 << 20, u64::MAX).await.unwrap(), []);
    let object = entry.id.simple().to_string();
    for at in 0..layer.object().len() {
        let mut bytes = layer.object().to_vec();
        bytes[at] ^= 0x10;
        overwrite(&place, &entry, bytes.into()).await;
        match read(0, u64::MAX).await {
            Ok(read) => assert!(at < 4 && read == events, "byte {at}"),
            Err(error) => assert!(error.to_string().contains(&object), "{error}"),
        }
    }
}

#[tokio::test]
async fn events_of_several_row_groups_come_back() {
    let place = Place::new();
    let mut writer = EventWriter::new(1, Lsn(50), Lsn(1 << 40)).unwrap();
    let events: Vec<Event> = (0..70_000).map(event).collect();
    for event in &events {
        writer.push(event).unwrap();
    }
    let entry = place.store(&writer.finish().unwrap()).await.unwrap();
    let set = LayerSet::new(place.cold(0), [entry], None).unwrap();
    assert_eq!(set.events(Lsn(0), Lsn::MAX).await.unwrap(), events);
    let last = events[69_990].lsn;
    let before = place.gets();
    assert_eq!(set.events(last, Lsn::MAX).await.unwrap(), events[69_991..]);
    assert_eq!(place.gets() - before, 1);
}

#[tokio::test]
async fn events_with_the_longest_names_come_back() {
    let place = Place::new();
    let mut writer = EventWriter::new(1, Lsn(50), Lsn(1 << 40)).unwrap();
    // Different ones, as a dictionary would hold one name once.
    let name =
        |n: u64| String::from_utf8_lossy(&[&[0xFF; 194], n.to_string().as_bytes()].concat()).into_owned();
    let named = |n| Event { kind: EventKind::CommitPrepared, name: name(10_000 + n), ..event(n) };
    let events: Vec<Event> = (0..5000).map(named).collect();
    for event in &events {
        writer.push(event).unwrap();
    }
    let entry = place.store(&writer.finish().unwrap()).await.unwrap();
    let set = LayerSet::new(place.cold(0), [entry], None).unwrap();
    assert_eq!(set.events(Lsn(0), Lsn::MAX).await.unwrap(), events);
}

#[test]
fn a_time_that_no_timestamp_can_say_is_refused() {
    let mut writer = EventWriter::new(1, Lsn(0), Lsn(1000)).unwrap();
    let error = writer.push(&Event { time: i64::MAX, ..event(1) }).unwrap_err();
    assert!(error.to_string().contains("0/8C"), "{error}");
}
