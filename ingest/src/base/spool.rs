//! The temporary file of a base image: pages of small files, compressed, each file one frame, to be read back in key
//! order. It has no name, so nothing is left behind however the process ends (I1).

use super::BaseError;
use bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use zenith_layers::{Key, KeyClass, Value};
use zenith_manifest::KeyBytes;
use zenith_pgformat::{BLCKSZ, Page};

const LEVEL: i32 = 1;
/// A key and a page.
const ENTRY: usize = 18 + BLCKSZ;

/// See the module.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    folder: String,
    length: u64,
    /// Keys and pages of the file that is being brought; at most as long as a small file.
    current: Vec<u8>,
    files: Vec<SpooledFile>,
}

/// One spooled file.
#[derive(Clone, Debug)]
pub(crate) struct SpooledFile {
    first: KeyBytes,
    offset: u64,
    length: usize,
    raw_length: usize,
}

impl SpooledFile {
    pub(crate) fn first_key(&self) -> Option<Key> {
        Key::from_bytes(&self.first)
    }
}

impl Spool {
    pub(crate) fn new(folder: &Path) -> Result<Spool, BaseError> {
        let name = folder.display().to_string();
        let file = tempfile::tempfile_in(folder)
            .map_err(|e| BaseError::Spool { folder: name.clone(), what: e.to_string() })?;
        Ok(Spool { file, folder: name, length: 0, current: Vec::new(), files: Vec::new() })
    }

    pub(crate) fn push(&mut self, key: Key, page: &Page) -> Result<(), BaseError> {
        debug_assert!(matches!(key.class, KeyClass::RelBlock | KeyClass::SlruPage));
        self.current.extend_from_slice(&key.to_bytes().0);
        self.current.extend_from_slice(page);
        Ok(())
    }

    /// The file's pages are complete; a file of zeros leaves nothing.
    pub(crate) fn end_file(&mut self) -> Result<(), BaseError> {
        let current = std::mem::take(&mut self.current);
        let Some(first) = current.first_chunk::<18>() else { return Ok(()) };
        let frame = zstd::bulk::compress(&current, LEVEL).map_err(|e| self.error(e))?;
        self.file.write_all_at(&frame, self.length).map_err(|e| self.error(e))?;
        self.files.push(SpooledFile {
            first: KeyBytes(*first),
            offset: self.length,
            length: frame.len(),
            raw_length: current.len(),
        });
        self.length += frame.len() as u64;
        Ok(())
    }

    /// All files, by key.
    pub(crate) fn files_in_order(&mut self) -> Vec<SpooledFile> {
        let mut files = std::mem::take(&mut self.files);
        files.sort_unstable_by_key(|file| file.first);
        files
    }

    pub(crate) fn read(&self, file: &SpooledFile) -> Result<Vec<(Key, Value)>, BaseError> {
        let mut frame = vec![0; file.length];
        self.file.read_exact_at(&mut frame, file.offset).map_err(|e| self.error(e))?;
        let raw = zstd::bulk::decompress(&frame, file.raw_length).map_err(|e| self.error(e))?;
        let raw = Bytes::from(raw);
        let mut rows = Vec::with_capacity(raw.len() / ENTRY);
        for at in (0..raw.len()).step_by(ENTRY) {
            let entry = raw.get(at..at + ENTRY).and_then(|entry| entry.first_chunk::<18>());
            let key = entry.and_then(|key| Key::from_bytes(&KeyBytes(*key)));
            let key = key.ok_or_else(|| self.error("it does not read back"))?;
            rows.push((key, Value::Page(raw.slice(at + 18..at + ENTRY))));
        }
        Ok(rows)
    }

    #[allow(clippy::needless_pass_by_value, reason = "errors and texts alike are handed over")]
    fn error(&self, what: impl ToString) -> BaseError {
        BaseError::Spool { folder: self.folder.clone(), what: what.to_string() }
    }
}
