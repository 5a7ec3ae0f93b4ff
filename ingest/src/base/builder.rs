//! See the module above.

use super::classify::{BaseFile, classify, database_of};
use super::files::{OBJECT, SMALL_FILES_MAX, SmallFile, encode_small_files};
use super::ordered::OrderedLayers;
use super::spool::Spool;
use super::{BaseError, wal};
use crate::archive::frame;
use crate::model::{Database, NextXid, Parameters, RelSize, ReplOrigin, SlruSize, Tablespace};
use bytes::Bytes;
use object_store::ObjectStore;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use zenith_layers::{Key, Slru, Value};
use zenith_manifest::{BaseId, BaseImage, BaseKind, LayerEntry};
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::page::{self, PageError, PageHeader};
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::relmap::RelMap;
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, Oid, Page, RELSEG_SIZE, RelNode, Tli, slru, two_phase};
use zenith_store::{Creation, Env, TimelinePaths};

/// Files at least this long get layers of their own as they arrive; shorter ones are spooled.
const DIRECT_BYTES: u64 = 32 << 20;
/// A two-phase file: more than any real one (locks and subtransactions of one transaction).
const STATE_FILE_MAX: u64 = 64 << 20;
/// `REPLICATION_STATE_MAGIC`, replication/logical/origin.c.
const REPLICATION_STATE_MAGIC: u32 = 0x1257_DADE;

/// What a base image is of.
#[derive(Clone, Debug)]
pub struct BaseOptions {
    /// Names its objects: a fresh id.
    pub id: BaseId,
    /// How it is taken.
    pub kind: BaseKind,
    /// PostgreSQL's timeline number.
    pub tli: Tli,
    /// `START WAL LOCATION` of backup_label (`Online`); where the shutdown checkpoint's record starts (`Directory`).
    pub redo: Lsn,
    /// Start of the checkpoint's record.
    pub checkpoint: Lsn,
    /// The cluster's system identifier; the control file must have the same.
    pub system_identifier: u64,
    /// Pages carry checksums.
    pub data_checksums: bool,
    /// Where small files are spooled; up to a third of their bytes.
    pub spool_folder: PathBuf,
    /// Layers are about this long.
    pub layer_bytes: u64,
}

impl BaseOptions {
    /// The usual length of a layer.
    pub const LAYER_BYTES: u64 = 128 << 20;
}

/// How far a base image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BaseProgress {
    /// Files that were taken.
    pub files: u64,
    /// Bytes of relation files that were taken.
    pub data_bytes: u64,
    /// Bytes of objects that were stored.
    pub stored_bytes: u64,
}

/// A base image whose objects are all stored; committing it (`Change::RegisterBase`) makes it exist.
#[derive(Clone, Debug)]
pub struct FinishedBase {
    /// Not confirmed.
    pub image: BaseImage,
    /// Its layers, by key; `serves_from` is the image's end.
    pub layers: Vec<LayerEntry>,
}

/// Turns files into a base image.
#[derive(Debug)]
pub struct BaseBuilder {
    options: BaseOptions,
    objects: Arc<dyn ObjectStore>,
    paths: TimelinePaths,
    env: Env,
    layers: OrderedLayers,
    spool: Spool,
    open: Option<OpenFile>,
    /// Full blocks of every segment file.
    forks: BTreeMap<(RelNode, Fork), BTreeMap<u32, u32>>,
    databases: BTreeSet<(Oid, Oid)>,
    states: BTreeMap<Key, Value>,
    small: BTreeMap<String, SmallFile>,
    small_bytes: u64,
    control: Option<ControlFile>,
    progress: BaseProgress,
}

/// The file that is being brought.
#[derive(Debug)]
struct OpenFile {
    path: String,
    mode: u32,
    size: u64,
    received: u64,
    kind: OpenKind,
}

#[derive(Debug)]
enum OpenKind {
    Pages { of: PageFile, direct: bool, next: u32, partial: Vec<u8> },
    Whole { kind: BaseFile, content: Vec<u8> },
    Skipped,
}

/// Files of pages.
#[derive(Clone, Copy, Debug)]
enum PageFile {
    Relation(RelFile),
    Slru(Slru, u32),
}

impl PageFile {
    fn key(self, page: u32) -> Key {
        match self {
            PageFile::Relation(file) => {
                Key::rel_block(file.node, file.fork, file.first_block().saturating_add(page))
            }
            PageFile::Slru(slru, segment) => Key::slru_page(slru, segment, page),
        }
    }

    fn pages_max(self) -> u32 {
        match self {
            PageFile::Relation(_) => RELSEG_SIZE,
            PageFile::Slru(..) => slru::PAGES_PER_SEGMENT,
        }
    }
}

impl BaseBuilder {
    /// An image without files. Opens its temporary file.
    pub fn new(
        options: BaseOptions,
        objects: Arc<dyn ObjectStore>,
        paths: TimelinePaths,
        env: Env,
    ) -> Result<BaseBuilder, BaseError> {
        let spool = Spool::new(&options.spool_folder)?;
        let layers = OrderedLayers::new(&options, objects.clone(), paths.clone(), env.clone());
        Ok(BaseBuilder {
            options,
            objects,
            paths,
            env,
            layers,
            spool,
            open: None,
            forks: BTreeMap::new(),
            databases: BTreeSet::new(),
            states: BTreeMap::new(),
            small: BTreeMap::new(),
            small_bytes: 0,
            control: None,
            progress: BaseProgress::default(),
        })
    }

    /// How far it is.
    pub fn progress(&self) -> BaseProgress {
        BaseProgress {
            stored_bytes: self.progress.stored_bytes + self.layers.stored_bytes(),
            ..self.progress
        }
    }

    /// Begins a file: its path below the data directory (tablespaces through `pg_tblspc/<oid>/…`), permission bits and
    /// length. The answer says what it is; a file that is [`BaseFile::Left`] may be skipped.
    pub fn begin_file(&mut self, path: &str, mode: u32, size: u64) -> Result<BaseFile, BaseError> {
        let wrong = |what: String| Err(BaseError::File { file: path.to_owned(), what });
        if let Some(open) = &self.open {
            return wrong(format!("it begins before {} has ended", open.path));
        }
        let class = classify(path);
        if class != BaseFile::Left
            && let Some((spc, db)) = database_of(path).filter(|(_, db)| *db != 0)
        {
            self.databases.insert((spc, db));
        }
        let pages = |of, direct| OpenKind::Pages { of, direct, next: 0, partial: Vec::new() };
        let kind = match class {
            BaseFile::Relation(file) => pages(PageFile::Relation(file), size >= DIRECT_BYTES),
            BaseFile::Slru(slru, segment) => pages(PageFile::Slru(slru, segment), false),
            BaseFile::Left => OpenKind::Skipped,
            BaseFile::Small if self.small_bytes.saturating_add(size) > SMALL_FILES_MAX / 2 => {
                return wrong(format!(
                    "with {size} bytes it is too long for a file that is not data ({} MB in all are taken); \
                     move it out of the data directory",
                    SMALL_FILES_MAX >> 21
                ));
            }
            kind if size > STATE_FILE_MAX => return wrong(format!("{size} bytes are too long for {kind:?}")),
            kind => OpenKind::Whole { kind, content: Vec::new() },
        };
        if let OpenKind::Pages { direct: true, .. } = kind {
            self.layers.begin_direct()?;
        }
        self.open = Some(OpenFile { path: path.to_owned(), mode, size, received: 0, kind });
        Ok(class)
    }

    /// The next bytes of the file.
    pub async fn chunk(&mut self, bytes: &[u8]) -> Result<(), BaseError> {
        let Some(mut open) = self.open.take() else {
            return Err(BaseError::File { file: String::new(), what: "bytes without a file".to_owned() });
        };
        open.received = open.received.saturating_add(bytes.len() as u64);
        if open.received > open.size {
            let what = format!("more than the {} bytes that it began with", open.size);
            return Err(BaseError::File { file: open.path, what });
        }
        match &mut open.kind {
            OpenKind::Skipped => {}
            OpenKind::Whole { content, .. } => content.extend_from_slice(bytes),
            OpenKind::Pages { of, direct, next, partial } => {
                self.pages(&open.path, *of, *direct, next, partial, bytes).await?;
            }
        }
        self.open = Some(open);
        Ok(())
    }

    /// Ends the file. A last page that is not whole is left out, as PostgreSQL does not see it either.
    pub async fn end_file(&mut self) -> Result<(), BaseError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.progress.files += 1;
        match open.kind {
            OpenKind::Skipped => Ok(()),
            OpenKind::Whole { kind, content } => self.state_file(kind, open.path, open.mode, content),
            OpenKind::Pages { of, direct, next, .. } => {
                if direct {
                    self.layers.end_direct().await?;
                } else {
                    self.spool.end_file()?;
                }
                match of {
                    PageFile::Relation(file) => {
                        self.progress.data_bytes += open.received;
                        self.forks.entry((file.node, file.fork)).or_default().insert(file.segment, next);
                    }
                    PageFile::Slru(slru, segment) => {
                        let size = SlruSize { pages: next };
                        self.states.insert(Key::slru_size(slru, segment), Value::State(size.encode()));
                    }
                }
                Ok(())
            }
        }
    }

    /// A whole file at once.
    pub async fn add_file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<BaseFile, BaseError> {
        let class = self.begin_file(path, mode, content.len() as u64)?;
        self.chunk(content).await?;
        self.end_file().await?;
        Ok(class)
    }

    /// A tablespace and where it lies on the server (relative to the data directory for one inside it).
    pub fn add_tablespace(&mut self, spc: Oid, location: &str) {
        let tablespace = Tablespace { location: location.to_owned() };
        self.states.insert(Key::tablespace(spc), Value::State(tablespace.encode()));
    }

    /// A segment of the WAL between redo and end, or its beginning up to the end. Needed for a stopped directory, whose
    /// last segment was never archived; for an online image it serves `zenith_restore --replay`.
    pub async fn add_wal(&mut self, segment: u64, size: WalSegSize, content: &[u8]) -> Result<(), BaseError> {
        let name = wal::object_name(self.options.tli, segment, size);
        let object = frame::compress(content)
            .map_err(|e| BaseError::File { file: name.clone(), what: e.to_string() })?;
        self.store(&name, object).await
    }

    /// Writes what is spooled and the small files. `end`: the first LSN that the image serves; `taken_at`: RFC 3339.
    pub async fn finish(mut self, end: Lsn, taken_at: &str) -> Result<FinishedBase, BaseError> {
        if let Some(open) = &self.open {
            return Err(BaseError::File { file: open.path.clone(), what: "it was not ended".to_owned() });
        }
        let control = self.control.take().ok_or(BaseError::Incomplete("global/pg_control"))?;
        if !self.small.contains_key("PG_VERSION") {
            return Err(BaseError::Incomplete("PG_VERSION"));
        }
        self.counter_states(&control);
        let unlogged = self.relation_states();
        for (spc, db) in &self.databases {
            let database = Database { created: Lsn::INVALID, alias: None };
            self.states.insert(Key::database(*spc, *db), Value::State(database.encode()));
        }
        for (key, value) in std::mem::take(&mut self.states) {
            self.layers.push(key, value).await?;
        }
        for file in self.spool.files_in_order() {
            let skipped =
                |key: &Key| unlogged.contains(&key.node()) && Fork::from_number(key.fork) != Some(Fork::Init);
            if file.first_key().is_none_or(|key| skipped(&key)) {
                continue;
            }
            for (key, value) in self.spool.read(&file)? {
                self.layers.push(key, value).await?;
            }
        }
        let files = encode_small_files(&self.small)
            .map_err(|e| BaseError::File { file: OBJECT.to_owned(), what: e.to_string() })?;
        self.store(OBJECT, files).await?;
        let mut layers = self.layers.finish().await?;
        for layer in &mut layers {
            layer.serves_from = end;
        }
        let stored: u64 = layers.iter().map(|layer| layer.bytes).sum();
        let options = self.options;
        let image = BaseImage {
            id: options.id,
            kind: options.kind,
            tli: options.tli,
            redo: options.redo,
            checkpoint: options.checkpoint,
            end,
            confirmed: false,
            taken_at: taken_at.to_owned(),
            data_bytes: self.progress.data_bytes,
            stored_bytes: stored + self.progress.stored_bytes,
            data_checksums: options.data_checksums,
        };
        Ok(FinishedBase { image, layers })
    }

    async fn store(&mut self, name: &str, object: Bytes) -> Result<(), BaseError> {
        let path = self.paths.base_object(self.options.id.0, name);
        self.progress.stored_bytes += object.len() as u64;
        match zenith_store::create(&*self.objects, &self.env, &path, object).await? {
            Creation::Created | Creation::Same => Ok(()),
            Creation::Other => Err(BaseError::Damaged {
                object: path.to_string(),
                what: "an object of this base image exists already with other content".to_owned(),
            }),
        }
    }

    /// Cuts bytes into pages and takes each.
    async fn pages(
        &mut self,
        path: &str,
        of: PageFile,
        direct: bool,
        next: &mut u32,
        partial: &mut Vec<u8>,
        mut bytes: &[u8],
    ) -> Result<(), BaseError> {
        while partial.len() + bytes.len() >= BLCKSZ {
            let (head, rest) = bytes.split_at(BLCKSZ - partial.len());
            bytes = rest;
            let mut page: Page = [0; BLCKSZ];
            for (target, byte) in page.iter_mut().zip(partial.iter().chain(head)) {
                *target = *byte;
            }
            partial.clear();
            if *next >= of.pages_max() {
                let what = format!("longer than {} pages", of.pages_max());
                return Err(BaseError::File { file: path.to_owned(), what });
            }
            let key = of.key(*next);
            *next += 1;
            if page::is_all_zeros(&page) {
                continue;
            }
            if let PageFile::Relation(_) = of {
                self.verify(path, &page, key.block)?;
            }
            let value = Value::Page(Bytes::copy_from_slice(&page));
            if direct {
                self.layers.push_direct(key, value).await?;
            } else {
                self.spool.push(key, &page)?;
            }
        }
        partial.extend_from_slice(bytes);
        Ok(())
    }

    /// PostgreSQL's own rule (`sendFile`, basebackup.c): a page changed since the backup began may be half written,
    /// and the WAL brings it whole; any other page must be sound.
    fn verify(&self, path: &str, page: &Page, block: u32) -> Result<(), BaseError> {
        let Err(source) = page::verify(page, block, self.options.data_checksums) else { return Ok(()) };
        let being_written =
            self.options.kind == BaseKind::Online && PageHeader::decode(page).lsn >= self.options.redo;
        let header_only = matches!(source, PageError::Header { .. }) && !self.options.data_checksums;
        // Without checksums BASE_BACKUP checks nothing, and a torn header cannot be told from a damaged one.
        if being_written || (header_only && self.options.kind == BaseKind::Online) {
            return Ok(());
        }
        Err(BaseError::Page { file: path.to_owned(), source })
    }

    fn state_file(
        &mut self,
        kind: BaseFile,
        path: String,
        mode: u32,
        content: Vec<u8>,
    ) -> Result<(), BaseError> {
        let content = Bytes::from(content);
        match kind {
            BaseFile::RelMap { spc, db } => {
                RelMap::decode(&content).map_err(|source| BaseError::RelMap { file: path, source })?;
                self.states.insert(Key::rel_map(spc, db), Value::State(content));
                return Ok(());
            }
            BaseFile::TwoPhase(xid) => {
                two_phase::decode(&content).map_err(|source| BaseError::TwoPhase { file: path, source })?;
                self.states.insert(Key::two_phase(xid), Value::State(content));
                return Ok(());
            }
            BaseFile::ReplOrigins => return self.repl_origins(&path, &content),
            BaseFile::Control => {
                let control = ControlFile::decode(&content)?;
                if control.system_identifier != self.options.system_identifier {
                    let what = format!(
                        "it is of a cluster with system identifier {}, not {}",
                        control.system_identifier, self.options.system_identifier
                    );
                    return Err(BaseError::File { file: path, what });
                }
                self.control = Some(control);
            }
            _ => {}
        }
        self.small_bytes += content.len() as u64;
        self.small.insert(path, SmallFile { mode, content });
        Ok(())
    }

    /// `pg_logical/replorigin_checkpoint`: a magic number, 16 bytes an origin, a CRC-32C (`CheckPointReplicationOrigin`).
    fn repl_origins(&mut self, file: &str, content: &[u8]) -> Result<(), BaseError> {
        let wrong = |what: &str| BaseError::File { file: file.to_owned(), what: what.to_owned() };
        let cut = || wrong("it is cut");
        let (body, crc) = content.split_last_chunk::<4>().ok_or_else(cut)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(wrong("its checksum is wrong"));
        }
        let (magic, entries) = body.split_first_chunk::<4>().ok_or_else(cut)?;
        if u32::from_le_bytes(*magic) != REPLICATION_STATE_MAGIC || entries.len() % 16 != 0 {
            return Err(wrong("it is no checkpoint of replication origins"));
        }
        for entry in entries.chunks_exact(16) {
            let (Some(origin), Some(lsn)) = (entry.first_chunk::<2>(), entry.last_chunk::<8>()) else {
                return Err(cut());
            };
            let progress = ReplOrigin { remote_lsn: Lsn(u64::from_le_bytes(*lsn)), local_lsn: Lsn::INVALID };
            let key = Key::repl_origin(u16::from_le_bytes(*origin));
            self.states.insert(key, Value::State(progress.encode()));
        }
        Ok(())
    }

    fn counter_states(&mut self, control: &ControlFile) {
        let checkpoint = control.checkpoint_copy;
        let parameters = Parameters {
            max_connections: control.max_connections,
            max_worker_processes: control.max_worker_processes,
            max_wal_senders: control.max_wal_senders,
            max_prepared_transactions: control.max_prepared_xacts,
            max_locks_per_transaction: control.max_locks_per_xact,
            wal_level: control.wal_level as i32,
            wal_log_hints: control.wal_log_hints,
            track_commit_timestamp: control.track_commit_timestamp,
        };
        let bytes = Bytes::copy_from_slice(&checkpoint.encode());
        self.states.insert(Key::CHECKPOINT, Value::State(bytes));
        self.states.insert(Key::NEXT_XID, Value::State(NextXid(checkpoint.next_xid).encode()));
        self.states.insert(Key::PARAMETERS, Value::State(parameters.encode()));
    }

    /// Sizes of all forks. Of an unlogged relation (it has an init fork) only the init fork counts: the rest is reset
    /// whenever a server starts. Answers which relations are unlogged.
    fn relation_states(&mut self) -> BTreeSet<RelNode> {
        let unlogged: BTreeSet<RelNode> =
            self.forks.keys().filter(|(_, fork)| *fork == Fork::Init).map(|(node, _)| *node).collect();
        for ((node, fork), segments) in &self.forks {
            if *fork != Fork::Init && unlogged.contains(node) {
                continue;
            }
            let size = RelSize { blocks: fork_blocks(segments), ..RelSize::new(Lsn::INVALID) };
            self.states.insert(Key::rel_size(*node, *fork), Value::State(size.encode()));
        }
        unlogged
    }
}

/// `mdnblocks`: segments count as long as those before them are full.
fn fork_blocks(segments: &BTreeMap<u32, u32>) -> u32 {
    let mut blocks = 0u32;
    for (expected, (segment, length)) in segments.iter().enumerate() {
        if *segment as usize != expected {
            break;
        }
        blocks = blocks.saturating_add(*length);
        if *length < RELSEG_SIZE {
            break;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_ends_at_its_first_segment_that_is_not_full() {
        assert_eq!(fork_blocks(&BTreeMap::new()), 0);
        assert_eq!(fork_blocks(&BTreeMap::from([(0, 7)])), 7);
        assert_eq!(fork_blocks(&BTreeMap::from([(0, RELSEG_SIZE), (1, 3)])), RELSEG_SIZE + 3);
        assert_eq!(fork_blocks(&BTreeMap::from([(0, 7), (1, 3)])), 7, "cut while it was copied");
        assert_eq!(fork_blocks(&BTreeMap::from([(1, 3)])), 0);
    }
}
