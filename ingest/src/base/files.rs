//! The object of small files of a base image, `base/<id>/files.zst`.
//!
//! One zstd frame with a content checksum. Its content: the 8 bytes `ZENFILES`, a format version (u32, 1), the number
//! of files (u32), then for each file, in order of its path: the path's length (u32) and bytes (UTF-8), the mode
//! (u32, the permission bits), the content's length (u64), CRC-32C (u32) and bytes. Numbers are little endian.

use super::BaseError;
use crate::archive::frame;
use bytes::Bytes;
use object_store::ObjectStore;
use std::collections::BTreeMap;
use zenith_manifest::BaseId;
use zenith_store::TimelinePaths;

const MAGIC: &[u8; 8] = b"ZENFILES";
const VERSION: u32 = 1;
/// All small files of a cluster together; a default cluster's are under 1 MB.
pub(crate) const SMALL_FILES_MAX: u64 = 256 << 20;
/// The object's name below the base image's folder.
pub(crate) const OBJECT: &str = "files.zst";

/// A small file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SmallFile {
    /// Permission bits.
    pub mode: u32,
    /// What is in it.
    pub content: Bytes,
}

/// The object's bytes.
pub fn encode_small_files(files: &BTreeMap<String, SmallFile>) -> std::io::Result<Bytes> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((files.len() as u32).to_le_bytes());
    for (path, file) in files {
        out.extend((path.len() as u32).to_le_bytes());
        out.extend(path.as_bytes());
        out.extend(file.mode.to_le_bytes());
        out.extend((file.content.len() as u64).to_le_bytes());
        out.extend(crc32c::crc32c(&file.content).to_le_bytes());
        out.extend(&file.content);
    }
    frame::compress(&out)
}

/// Reads what [`encode_small_files`] made; the error says what is wrong with it.
pub fn decode_small_files(object: &[u8]) -> Result<BTreeMap<String, SmallFile>, String> {
    let content = Bytes::from(frame::decompress(object, SMALL_FILES_MAX)?);
    let mut at = Cursor { content, position: 0 };
    if at.take(8)?.as_ref() != MAGIC {
        return Err("it does not begin with ZENFILES".to_owned());
    }
    match at.u32()? {
        VERSION => {}
        other => return Err(format!("it has format version {other}; this program reads {VERSION}")),
    }
    let count = at.u32()?;
    let mut files = BTreeMap::new();
    for _ in 0..count {
        let length = at.u32()? as usize;
        let path = String::from_utf8(at.take(length)?.to_vec()).map_err(|_| "a path is not UTF-8")?;
        let mode = at.u32()?;
        let length = usize::try_from(at.u64()?).map_err(|_| "a length past any memory")?;
        let crc = at.u32()?;
        let content = at.take(length)?;
        if crc32c::crc32c(&content) != crc {
            return Err(format!("the checksum of {path} is wrong"));
        }
        if files.insert(path, SmallFile { mode, content }).is_some() {
            return Err("a path comes twice".to_owned());
        }
    }
    if at.position != at.content.len() {
        return Err("bytes follow the last file".to_owned());
    }
    Ok(files)
}

/// The small files of a base image, by path below the data directory.
pub async fn read_small_files(
    objects: &dyn ObjectStore,
    paths: &TimelinePaths,
    base: BaseId,
) -> Result<BTreeMap<String, SmallFile>, BaseError> {
    let path = paths.base_object(base.0, OBJECT);
    let object = zenith_store::get_if_present(objects, &path, frame::compressed_max(SMALL_FILES_MAX))
        .await?
        .ok_or_else(|| BaseError::Missing { object: path.to_string() })?;
    decode_small_files(&object).map_err(|what| BaseError::Damaged { object: path.to_string(), what })
}

struct Cursor {
    content: Bytes,
    position: usize,
}

impl Cursor {
    fn take(&mut self, length: usize) -> Result<Bytes, String> {
        let end = self.position.checked_add(length).filter(|end| *end <= self.content.len());
        let end = end.ok_or("it ends too early")?;
        let taken = self.content.slice(self.position..end);
        self.position = end;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        bytes.as_ref().try_into().map(u32::from_le_bytes).map_err(|_| "it ends too early".to_owned())
    }

    fn u64(&mut self) -> Result<u64, String> {
        let bytes = self.take(8)?;
        bytes.as_ref().try_into().map(u64::from_le_bytes).map_err(|_| "it ends too early".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn small_files_read_back(files in prop::collection::btree_map("[a-z/.]{1,20}", (0u32..0o1000, any::<Vec<u8>>()), 0..5)) {
            let files: BTreeMap<String, SmallFile> = files
                .into_iter()
                .map(|(path, (mode, content))| (path, SmallFile { mode, content: content.into() }))
                .collect();
            prop_assert_eq!(decode_small_files(&encode_small_files(&files).unwrap()), Ok(files));
        }

        #[test]
        fn hostile_bytes_are_refused_without_a_panic(bytes: Vec<u8>) {
            prop_assert!(decode_small_files(&bytes).is_err());
            let framed = frame::compress(&[MAGIC.as_slice(), &VERSION.to_le_bytes(), &bytes].concat()).unwrap();
            drop(decode_small_files(&framed));
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let file = SmallFile { mode: 0o600, content: Bytes::from(vec![7; 500]) };
        let object = encode_small_files(&BTreeMap::from([("a".to_owned(), file)])).unwrap();
        for position in 0..object.len() {
            let mut damaged = object.to_vec();
            damaged[position] ^= 4;
            let read = decode_small_files(&damaged);
            // A flip in the frame's header may leave the content whole; then it must be the same.
            assert!(read.is_err() || read == decode_small_files(&object), "byte {position}");
        }
    }
}
