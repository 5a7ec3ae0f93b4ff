//! A file on its way into the archive, compressed while it is read.

use super::frame;
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes that are read at a time, and that are kept of the beginning: all of a file that is no segment.
const PART_BYTES: usize = 1 << 20;
/// The largest segment that PostgreSQL allows.
const FILE_MAX: u64 = 1 << 30;
/// Files from this length on are compressed by several threads, which begin to pay there.
const THREADED_FROM: u64 = 4 << 20;

/// A file's content, compressed before anything is known of the timeline that it goes to. Of the content itself only the
/// beginning is held.
#[derive(Clone, Debug)]
pub struct Compressed {
    path: PathBuf,
    head: Vec<u8>,
    length: u64,
    frame: Bytes,
}

impl Compressed {
    /// Reads and compresses a file, a segment with that many threads besides this one (0: none). Takes tens of milliseconds
    /// for a segment, so not in an async task.
    pub fn read(path: &Path, threads: u32) -> io::Result<Compressed> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > FILE_MAX {
            let reason = format!("it has {length} bytes, more than the largest WAL segment");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let threads = if length < THREADED_FROM { 0 } else { threads };
        let mut encoder = frame::encoder(length, threads)?;
        let head = next_part(&mut file)?;
        encoder.write_all(&head)?;
        let mut read = head.len() as u64;
        // The part is used again: memory that is new to the process costs more than reading the file into it.
        let mut part = Vec::new();
        while read < length {
            read_part(&mut file, &mut part)?;
            if part.is_empty() {
                break;
            }
            encoder.write_all(&part)?;
            read += part.len() as u64;
        }
        let frame = encoder.finish()?.into();
        Ok(Compressed { path: path.to_owned(), head, length: read, frame })
    }

    /// The beginning: at least the first page of a segment.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// How many bytes the file has.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// All of the content, if it is short: everything but a segment is.
    pub fn whole(&self) -> Option<&[u8]> {
        (self.head.len() as u64 == self.length).then_some(self.head.as_slice())
    }

    /// The content, read again from the file.
    pub(super) fn content(&self) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(&self.path)?.take(FILE_MAX).read_to_end(&mut content)?;
        Ok(content)
    }

    pub(super) fn frame(&self) -> Bytes {
        self.frame.clone()
    }
}

fn next_part(file: &mut File) -> io::Result<Vec<u8>> {
    let mut part = Vec::new();
    read_part(file, &mut part)?;
    Ok(part)
}

fn read_part(file: &mut File, part: &mut Vec<u8>) -> io::Result<()> {
    part.clear();
    file.take(PART_BYTES as u64).read_to_end(part).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn what_is_compressed_by_any_number_of_threads_reads_back() {
        let long: Vec<u8> = (0..5_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as u8).collect();
        for content in [&long[..], &long[..PART_BYTES], &long[..PART_BYTES + 1], b"1\t0/300028\tx\n", b""] {
            for threads in [0, 1, 3] {
                let compressed = Compressed::read(file(content).path(), threads).unwrap();
                assert_eq!(compressed.length(), content.len() as u64);
                assert_eq!(frame::decompress(&compressed.frame(), 8 << 20).unwrap(), content);
                assert!(content.starts_with(compressed.head()));
                assert_eq!(compressed.whole(), (content.len() <= PART_BYTES).then_some(content));
            }
        }
    }

    #[test]
    fn a_file_longer_than_any_segment_is_refused_unread() {
        let file = file(b"");
        file.as_file().set_len(FILE_MAX + 1).unwrap();
        let refused = Compressed::read(file.path(), 0).unwrap_err();
        assert!(refused.to_string().contains("largest WAL segment"), "{refused}");
    }
}
