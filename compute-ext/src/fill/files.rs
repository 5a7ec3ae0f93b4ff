//! The filler's own files: one segment of a relation, and the journal.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use zenith_compute_dir::FOLDER;
use zenith_compute_dir::journal::{self, COUNT_AT, Entry, JOURNAL};
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::{BLCKSZ, RELSEG_SIZE};

/// A segment file of a relation.
pub(super) struct Segment {
    file: File,
    first: u32,
}

impl Segment {
    /// The one that a block lies in; none if it is gone.
    pub(super) fn open(place: &RelFile) -> Result<Option<Segment>, Error> {
        match File::options().read(true).write(true).open(place.path()) {
            Ok(file) => Ok(Some(Segment { file, first: place.first_block() })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn offset(&self, block: u32) -> u64 {
        u64::from(block - self.first) * BLCKSZ as u64
    }

    /// Those of the blocks from `first` up to `end` that are all zeros, and there.
    pub(super) fn holes(&self, first: u32, end: u32) -> Result<Vec<u32>, Error> {
        let mut bytes = vec![0; (end - first) as usize * BLCKSZ];
        let mut there = 0;
        while there < bytes.len() {
            match self.file.read_at(&mut bytes[there..], self.offset(first) + there as u64)? {
                0 => break,
                count => there += count,
            }
        }
        let blocks = bytes[..there].chunks_exact(BLCKSZ).zip(first..);
        Ok(blocks.filter(|(page, _)| super::is_zero(page)).map(|(_, block)| block).collect())
    }

    /// Makes room for blocks, as far as the file system can: what it refuses now it does not refuse in the middle of a page.
    pub(super) fn make_room(&self, first: u32, last: u32) -> Result<(), Error> {
        let (from, to) = (self.offset(first), self.offset(last) + BLCKSZ as u64);
        let length = self.file.metadata()?.len();
        if from >= length {
            return Ok(());
        }
        let kept = rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, kept, from, to.min(length) - from) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a page; not beyond the file's end.
    pub(super) fn write(&self, entry: &Entry) -> Result<(), Error> {
        let offset = self.offset(entry.block);
        if self.file.metadata()?.len() < offset + BLCKSZ as u64 {
            return Ok(());
        }
        self.file.write_all_at(&entry.page[..], offset)
    }

    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_data()
    }
}

/// The segment of a block.
pub(super) fn segment_of(entry: &Entry) -> RelFile {
    RelFile { node: entry.node, fork: entry.fork, segment: entry.block / RELSEG_SIZE }
}

/// The journal.
pub(super) struct Journal(File);

impl Journal {
    /// Opens it; makes it if it is not there.
    pub(super) fn open() -> Result<Journal, Error> {
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(JOURNAL)?;
        file.sync_all()?;
        File::open(FOLDER)?.sync_all()?;
        Ok(Journal(file))
    }

    /// Writes a batch; durable when this returns.
    pub(super) fn write(&self, batch: &[Entry]) -> Result<(), Error> {
        self.0.write_all_at(&journal::encode(batch), 0)?;
        self.0.sync_data()
    }

    /// What it holds.
    pub(super) fn read(&self) -> Result<Vec<Entry>, Error> {
        let length = usize::try_from(self.0.metadata()?.len()).unwrap_or(0);
        let mut bytes = vec![0; length.min(8 << 20)];
        self.0.read_exact_at(&mut bytes, 0)?;
        Ok(journal::decode(&bytes))
    }

    /// The batch has reached its file, durably.
    pub(super) fn retire(&self) -> Result<(), Error> {
        self.0.write_all_at(&0u32.to_le_bytes(), COUNT_AT)?;
        self.0.sync_data()
    }
}
