//! Layer objects, forged: whatever the bytes are, the manifest's entry and all checksums fit them, so that the footer, the
//! columns and the pages behind the checksums are decoded.

use crate::objects::{block_on, holding, paths};
use bytes::Bytes;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use uuid::Uuid;
use zenith_layers::{CacheOptions, Key, KeyRange, LayerCaches, LayerError, LayerSet, LayerStore, ReadMode};
use zenith_manifest::parquet_pages::{decode_foreign, footer_is_sound};
use zenith_manifest::{KeyBytes, LayerEntry, LayerKind};
use zenith_pgformat::Lsn;

/// Row groups that are read.
const GROUPS_MAX: usize = 4;
/// An entry of `zenith.row_groups` (docs/formats.md): two CRCs end it.
const GROUP_ENTRY: usize = 64;
/// Of the columns of an image or delta layer: those of the key, and those before the payload.
const KEY_COLUMNS: usize = 8;
const DETAILS_END: usize = 13;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// The bytes of some columns.
fn span(group: &RowGroupMetaData, columns: Range<usize>) -> Option<Range<usize>> {
    let columns = group.columns().get(columns)?;
    let start = columns.first()?;
    let start = usize::try_from(start.dictionary_page_offset().unwrap_or(start.data_page_offset())).ok()?;
    let length: i64 =
        columns.iter().map(|column| column.compressed_size()).try_fold(0i64, i64::checked_add)?;
    Some(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn crc(object: &[u8], span: Option<Range<usize>>) -> Option<[u8; 4]> {
    Some(crc32c::crc32c(object.get(span?)?).to_be_bytes())
}

/// Makes the CRCs of the row groups right where the footer has room for them.
fn sign_groups(object: &mut [u8], metadata: &ParquetMetaData, said: &str, events: bool) -> Option<()> {
    let mut entries = from_hex(said)?;
    for (entry, group) in entries.as_chunks_mut::<GROUP_ENTRY>().0.iter_mut().zip(metadata.row_groups()) {
        let keys = if events { 0..group.num_columns() } else { 0..KEY_COLUMNS };
        if let Some(crc) = crc(object, span(group, keys)) {
            entry[56..60].copy_from_slice(&crc);
        }
        if let Some(crc) = crc(object, span(group, KEY_COLUMNS..DETAILS_END)).filter(|_| !events) {
            entry[60..].copy_from_slice(&crc);
        }
    }
    let at = object.windows(said.len()).rposition(|window| window == said.as_bytes())?;
    object.get_mut(at..at + said.len())?.copy_from_slice(hex(&entries).as_bytes());
    Some(())
}

fn key(text: Option<&String>) -> KeyBytes {
    let bytes = text.and_then(|text| from_hex(text)).and_then(|bytes| bytes.try_into().ok());
    KeyBytes(bytes.unwrap_or([0; 18]))
}

/// The object and its entry.
fn forge(meta_offset: u32, object: &[u8]) -> (LayerEntry, Bytes) {
    let mut object = object.to_vec();
    let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Skip);
    // As a writer on purpose would: what the product refuses at once is not even signed.
    let parsed = footer_is_sound(&object)
        .and_then(|()| decode_foreign(|| reader.parse_and_finish(&Bytes::copy_from_slice(&object))));
    let metadata = parsed.ok();
    let pairs = metadata.as_ref().and_then(|metadata| metadata.file_metadata().key_value_metadata());
    let said: HashMap<&str, &String> = pairs
        .into_iter()
        .flatten()
        .filter_map(|pair| Some((pair.key.as_str(), pair.value.as_ref()?)))
        .collect();
    let kind = match said.get("zenith.kind").map(|kind| kind.as_str()) {
        Some("image") => LayerKind::Image,
        Some("events") => LayerKind::Events,
        _ => LayerKind::Delta,
    };
    let lsn = |name: &str| said.get(name).and_then(|lsn| lsn.parse().ok()).unwrap_or(Lsn(8));
    let mut entry = LayerEntry {
        id: Uuid::from_u128(3),
        kind,
        tli: said.get("zenith.tli").and_then(|tli| tli.parse().ok()).unwrap_or(1),
        key_min: key(said.get("zenith.key_min").copied()),
        key_max: key(said.get("zenith.key_max").copied()),
        lsn_from: lsn("zenith.lsn_from"),
        lsn_to: lsn("zenith.lsn_to"),
        serves_from: lsn("zenith.lsn_from"),
        base: None,
        rows: said.get("zenith.rows").and_then(|rows| rows.parse().ok()).unwrap_or(1),
        bytes: object.len() as u64,
        meta_offset: u64::from(meta_offset),
        meta_crc: 0,
        max_time: None,
    };
    if let Some((metadata, groups)) = metadata.as_ref().zip(said.get("zenith.row_groups")) {
        sign_groups(&mut object, metadata, groups, kind == LayerKind::Events);
    }
    entry.meta_crc = crc32c::crc32c(object.get(meta_offset as usize..).unwrap_or_default());
    (entry, object.into())
}

/// Where the tail begins (four bytes), then the object.
pub(crate) fn layer(input: &[u8]) -> bool {
    let Some((meta_offset, object)) = input.split_first_chunk::<4>() else { return false };
    let (entry, object) = forge(u32::from_le_bytes(*meta_offset), object);
    let entry = Arc::new(entry);
    block_on(async {
        let objects = holding(&paths().layer(entry.id), object).await;
        let mut readable = [false; 2];
        for (readable, whole_bytes) in readable.iter_mut().zip([0, 1 << 20]) {
            let caches = LayerCaches::new(CacheOptions { whole_bytes, ..CacheOptions::default() });
            let store = LayerStore::new(Arc::clone(&objects), paths(), caches);
            *readable = read(&store, &entry).await.is_ok();
        }
        assert_eq!(readable[0], readable[1]);
        readable[0]
    })
}

/// All that is ever read of a layer; the first error, after everything was tried.
async fn read(store: &Arc<LayerStore>, entry: &Arc<LayerEntry>) -> Result<(), LayerError> {
    let layer = store.open(entry).await?;
    let mut ended = Ok(());
    for group in 0..layer.groups().min(GROUPS_MAX) {
        ended = ended.and(layer.group_rows(group).await.map(drop));
    }
    let all = [KeyRange { first: Key::MIN, last: Key::MAX }];
    let set = LayerSet::new(Arc::clone(store), [Arc::clone(entry)], None)?;
    ended = ended.and(set.versions(&all, Lsn(0), Lsn::MAX).await.map(drop));
    ended = ended.and(set.history(&all, Lsn::MAX, ReadMode::Serve).await.map(drop));
    ended.and(set.events(Lsn(0), Lsn::MAX).await.map(drop))
}
