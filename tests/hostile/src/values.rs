//! What layers hold that is no record and no page.

use bytes::Bytes;
use zenith_ingest::model::{
    Database, ModelError, NextXid, Parameters, RelEvent, RelSize, ReplOrigin, SlruSize, Tablespace,
};
use zenith_layers::Key;
use zenith_manifest::KeyBytes;
use zenith_pgformat::{BLCKSZ, Lsn, Page};
use zenith_redo::native::Edit;

/// Pages that an edit may meet: zeros, ones, and one whose special space is a GIN page's.
fn edited_pages() -> [Page; 3] {
    let mut gin = [0; BLCKSZ];
    gin[12..20].copy_from_slice(&[24, 0, 0xF8, 0x1F, 0xF8, 0x1F, 4, 0x20]);
    [[0; BLCKSZ], [0xFF; BLCKSZ], gin]
}

pub(crate) fn edit(input: &[u8]) -> bool {
    let Ok(edit) = Edit::decode(input) else { return false };
    assert_eq!(edit.encode(), input);
    for mut page in edited_pages() {
        let _ = edit.apply(&mut page, Lsn(0x1000));
    }
    true
}

fn again<T: PartialEq + std::fmt::Debug>(
    input: &[u8],
    decode: fn(&[u8]) -> Result<T, ModelError>,
    encode: fn(&T) -> Bytes,
) -> bool {
    let Ok(value) = decode(input) else { return false };
    assert_eq!(decode(&encode(&value)), Ok(value));
    true
}

/// Every value of the model, and a key.
pub(crate) fn model(input: &[u8]) -> bool {
    let key = input.first_chunk::<18>().and_then(|bytes| Key::from_bytes(&KeyBytes(*bytes)));
    if let Some(key) = key {
        assert_eq!(Some(&key.to_bytes().0), input.first_chunk());
        drop((key.to_string(), key.node()));
    }
    let decoded = [
        key.is_some(),
        again(input, RelSize::decode, RelSize::encode),
        again(input, RelEvent::decode, RelEvent::encode),
        again(input, SlruSize::decode, SlruSize::encode),
        again(input, Database::decode, Database::encode),
        again(input, Tablespace::decode, Tablespace::encode),
        again(input, NextXid::decode, NextXid::encode),
        again(input, Parameters::decode, Parameters::encode),
        again(input, ReplOrigin::decode, ReplOrigin::encode),
    ];
    decoded.contains(&true)
}
