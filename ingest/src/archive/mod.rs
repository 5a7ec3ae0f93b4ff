//! The raw WAL archive of one timeline: files as `archive_command` hands them over, each under its own name, each
//! stored once (I2, I6). Their names are their index (I3).

mod buffers;
mod chain;
mod check;
mod compressed;
pub(crate) mod frame;

pub use chain::{ArchiveChain, BranchPoint};
pub use check::{SegmentCheckError, check_segment, check_segment_head};
pub use compressed::Compressed;

use buffers::Buffers;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStore;
use std::borrow::Cow;
use std::sync::Arc;
use zenith_pgformat::Tli;
use zenith_pgformat::history::{History, HistoryError};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_store::{Creation, Env, StoreError, TimelinePaths};

/// More WAL files of one TLI than this in one listing are refused; at 16 MB a file that is 16 TB.
const LISTED_FILES_MAX: usize = 1 << 20;
/// The longest history or backup file; PostgreSQL's are a few hundred bytes.
const SMALL_FILE_MAX: u64 = 1 << 20;

/// What went wrong with a file of the archive.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ArchiveError {
    /// The file must not be acknowledged.
    #[error("{name} was not archived: {source}")]
    Check {
        /// The WAL file.
        name: String,
        /// Why.
        source: SegmentCheckError,
    },
    /// Another file of this name was archived before; it stays.
    #[error(
        "{name} was archived before with other content (CRC-32C {archived:08X}, now {offered:08X}); \
         the archived file was kept. Two servers write to one timeline: give one of them its own"
    )]
    Other {
        /// The WAL file.
        name: String,
        /// CRC-32C of what is in the archive.
        archived: u32,
        /// CRC-32C of what was to be archived.
        offered: u32,
    },
    /// An object that cannot be what this archive stored.
    #[error("{object} is damaged: {what}; restore it from a copy of the store")]
    Damaged {
        /// Its path.
        object: String,
        /// What is wrong.
        what: String,
    },
    /// A file that was to be archived and could be read only once.
    #[error("{name} cannot be read again, to compare it with what was archived before: {reason}")]
    Unreadable {
        /// The WAL file.
        name: String,
        /// Why.
        reason: String,
    },
    /// A history file that PostgreSQL did not write.
    #[error("{name}: {source}")]
    History {
        /// The WAL file.
        name: String,
        /// What is wrong.
        source: HistoryError,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What archiving a file ended in; both mean that it is there, durably (I4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// It was not there before.
    Stored,
    /// It was there with the same content.
    AlreadyThere,
}

/// The raw WAL of one timeline. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WalArchive {
    objects: Arc<dyn ObjectStore>,
    paths: TimelinePaths,
    segment_size: WalSegSize,
    system_identifier: u64,
    buffers: Buffers,
}

impl WalArchive {
    /// The archive of the timeline at `paths`, of the cluster with this segment size and system identifier.
    pub fn new(
        objects: Arc<dyn ObjectStore>,
        paths: TimelinePaths,
        segment_size: WalSegSize,
        system_identifier: u64,
    ) -> WalArchive {
        WalArchive { objects, paths, segment_size, system_identifier, buffers: Buffers::default() }
    }

    /// The size of the cluster's WAL segments.
    pub fn segment_size(&self) -> WalSegSize {
        self.segment_size
    }

    /// The cluster's system identifier.
    pub fn system_identifier(&self) -> u64 {
        self.system_identifier
    }

    /// Where the timeline's objects lie.
    pub fn paths(&self) -> &TimelinePaths {
        &self.paths
    }

    /// Archives content: checks it, compresses it, and creates its object with one conditional PUT. The same content
    /// again succeeds; other content fails and changes nothing, history files included.
    pub async fn put(&self, env: &Env, file: WalFile, content: &[u8]) -> Result<Stored, ArchiveError> {
        self.check(file, content, content.len() as u64).await?;
        let frame = frame::compress(content).map_err(|e| ArchiveError::Damaged {
            object: self.name(file),
            what: format!("it cannot be compressed: {e}"),
        })?;
        self.create(env, file, frame, || Ok(Cow::Borrowed(content))).await
    }

    /// As [`WalArchive::put`], of a file that was compressed while the timeline was still being looked up.
    pub async fn put_compressed(
        &self,
        env: &Env,
        file: WalFile,
        compressed: &Compressed,
    ) -> Result<Stored, ArchiveError> {
        self.check(file, compressed.head(), compressed.length()).await?;
        let content = || {
            compressed.content().map(Cow::Owned).map_err(|error| ArchiveError::Unreadable {
                name: self.name(file),
                reason: error.to_string(),
            })
        };
        self.create(env, file, compressed.frame(), content).await
    }

    async fn create<'a>(
        &self,
        env: &Env,
        file: WalFile,
        frame: Bytes,
        content: impl FnOnce() -> Result<Cow<'a, [u8]>, ArchiveError>,
    ) -> Result<Stored, ArchiveError> {
        let path = self.path(file);
        match zenith_store::create(&*self.objects, env, &path, frame).await? {
            Creation::Created => return Ok(Stored::Stored),
            Creation::Same => return Ok(Stored::AlreadyThere),
            Creation::Other => {}
        }
        // Another release of the compressor, or another number of threads, gives other bytes for the same content.
        let max = self.content_max(file);
        let found = zenith_store::get(&*self.objects, &path, frame::compressed_max(max)).await?;
        let archived = frame::decompress(&found, max)
            .map_err(|what| ArchiveError::Damaged { object: path.to_string(), what })?;
        let content = content()?;
        if archived == *content {
            return Ok(Stored::AlreadyThere);
        }
        Err(ArchiveError::Other {
            name: self.name(file),
            archived: crc32c::crc32c(&archived),
            offered: crc32c::crc32c(&content),
        })
    }

    /// The content of an archived file, `None` if it was not archived here. Never longer than a segment.
    pub async fn get(&self, file: WalFile) -> Result<Option<Bytes>, ArchiveError> {
        let path = self.path(file);
        let max = self.content_max(file);
        let Some(frame) =
            zenith_store::get_if_present(&*self.objects, &path, frame::compressed_max(max)).await?
        else {
            return Ok(None);
        };
        let damaged = |what| ArchiveError::Damaged { object: path.to_string(), what };
        if !matches!(file, WalFile::Segment { .. }) {
            return frame::decompress(&frame, max).map_err(damaged).map(Bytes::from).map(Some);
        }
        let mut content = self.buffers.take();
        frame::decompress_into(&frame, max, &mut content).map_err(damaged)?;
        if content.len() as u64 != max {
            return Err(damaged(format!("{} bytes instead of a segment's {max}", content.len())));
        }
        Ok(Some(self.buffers.share(content)))
    }

    /// The complete segments of `tli` from number `from` on, ascending: one LIST. `.partial` files never count.
    pub async fn list(&self, tli: Tli, from: u64) -> Result<Vec<u64>, ArchiveError> {
        let prefix = self.paths.wal(tli);
        let listed = match from.checked_sub(1) {
            None => zenith_store::list(&*self.objects, &prefix, LISTED_FILES_MAX).await?,
            Some(before) => {
                let after = self.path(WalFile::Segment { tli, segment: before });
                zenith_store::list_after(&*self.objects, &prefix, &after, LISTED_FILES_MAX).await?
            }
        };
        let segment_of = |name: &str| match WalFile::parse(name.strip_suffix(".zst")?, self.segment_size)? {
            WalFile::Segment { tli: found, segment } if found == tli && segment >= from => Some(segment),
            _ => None,
        };
        Ok(listed.iter().filter_map(|meta| segment_of(meta.location.filename()?)).collect())
    }

    /// The numbers of all TLIs of which anything was archived, ascending.
    pub async fn tlis(&self) -> Result<Vec<Tli>, ArchiveError> {
        let prefix = self.paths.all_wal();
        let listed = self
            .objects
            .list_with_delimiter(Some(&prefix))
            .await
            .map_err(|e| StoreError::from_request(&prefix, &e))?;
        let tli_of = |name: &str| match WalFile::parse(&format!("{name}.history"), self.segment_size) {
            Some(WalFile::History { tli }) => Some(tli),
            _ => None,
        };
        let mut tlis: Vec<Tli> =
            listed.common_prefixes.iter().filter_map(|path| tli_of(path.filename()?)).collect();
        tlis.sort_unstable();
        Ok(tlis)
    }

    /// The archived history files of TLIs above `above`, by TLI.
    pub async fn histories(&self, above: Tli) -> Result<Vec<History>, ArchiveError> {
        let candidates: Vec<Tli> = self.tlis().await?.into_iter().filter(|tli| *tli > above).collect();
        let found = futures::stream::iter(candidates.into_iter().map(|tli| Ok(self.history(tli))))
            .try_buffered(8)
            .try_collect::<Vec<_>>()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// One TLI's archived history file. TLI 1 has none.
    pub async fn history(&self, tli: Tli) -> Result<Option<History>, ArchiveError> {
        let file = WalFile::History { tli };
        let Some(content) = self.get(file).await? else { return Ok(None) };
        self.parse_history(tli, &content).map(Some)
    }

    fn parse_history(&self, tli: Tli, content: &[u8]) -> Result<History, ArchiveError> {
        History::parse(tli, content)
            .map_err(|source| ArchiveError::History { name: self.name(WalFile::History { tli }), source })
    }

    /// What must hold before a file is acknowledged; `head` is all of one that is no segment. A segment's first page may
    /// be of an ancestor's TLI: the first segment after a promotion begins with its parent's pages. History and backup
    /// files do not say whose they are: that is for the caller to find out.
    async fn check(&self, file: WalFile, head: &[u8], length: u64) -> Result<(), ArchiveError> {
        let refused = |source| ArchiveError::Check { name: self.name(file), source };
        match file {
            WalFile::Segment { tli, segment } | WalFile::Partial { tli, segment } => {
                let page_tli =
                    check_segment_head(head, length, segment, self.segment_size, self.system_identifier)
                        .map_err(refused)?;
                if page_tli == tli {
                    return Ok(());
                }
                let foreign = refused(SegmentCheckError::Tli { page: page_tli, file: tli });
                if page_tli > tli {
                    return Err(foreign);
                }
                match self.history(tli).await? {
                    Some(history) if !history.contains(page_tli) => Err(foreign),
                    // Without a history file (archiving began after the promotion) any lower TLI may be one.
                    _ => Ok(()),
                }
            }
            WalFile::History { tli } if length <= SMALL_FILE_MAX => self.parse_history(tli, head).map(|_| ()),
            WalFile::Backup { .. } if length <= SMALL_FILE_MAX => Ok(()),
            WalFile::History { .. } | WalFile::Backup { .. } => {
                Err(refused(SegmentCheckError::Size { found: length, expected: SMALL_FILE_MAX }))
            }
        }
    }

    fn content_max(&self, file: WalFile) -> u64 {
        match file {
            WalFile::Segment { .. } | WalFile::Partial { .. } => self.segment_size.bytes(),
            WalFile::Backup { .. } | WalFile::History { .. } => SMALL_FILE_MAX,
        }
    }

    fn name(&self, file: WalFile) -> String {
        file.name(self.segment_size)
    }

    fn path(&self, file: WalFile) -> object_store::path::Path {
        self.paths.wal_file(file.tli(), &self.name(file))
    }
}

#[cfg(test)]
mod tests;
