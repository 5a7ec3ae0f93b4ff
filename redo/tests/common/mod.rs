//! A real server's WAL, as every page's history, beside the pages that the server itself ended with.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::wal::smgr::{SMGR_TRUNCATE_HEAP, SMGR_TRUNCATE_VM, SmgrRecord};
use zenith_pgformat::wal::stream::{StreamStart, WalStream};
use zenith_pgformat::wal::{BlockImage, Record, RmgrId, heap, smgr, trim};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RelNode};
use zenith_redo::native::{Edit, HEAP_BLOCKS_PER_MAP_PAGE};
use zenith_redo::{BlockName, Change, PageRequest, RedoOptions, RedoPool};
use zenith_testkit::pg::{Pg, PgOptions, StopMode};

pub const WORKLOAD: &str = concat!(include_str!("workload.sql"), include_str!("deep.sql"));

/// One change of one block.
#[derive(Clone)]
pub struct Step {
    pub trimmed: Change,
    /// The same, by the whole record.
    pub whole: Change,
    /// The page after the change, where the server logged it for checking.
    pub check: Option<BlockImage>,
    pub what: String,
}

/// One block from the beginning of the recording to its end.
#[derive(Default, Clone)]
pub struct History {
    pub base: Option<Bytes>,
    pub steps: Vec<Step>,
}

type Key = (RelNode, Fork, u32);

/// A stopped server, its pages before, and what happened in between.
pub struct Recording {
    pub pg: Pg,
    pub hint_bits_logged: bool,
    pub histories: BTreeMap<Key, History>,
    pub records: Vec<Record>,
}

/// Relation files below a data directory.
fn relation_files(data: &Path) -> Vec<(RelFile, Bytes)> {
    let mut files = Vec::new();
    let mut directories = vec!["global".to_owned()];
    for entry in std::fs::read_dir(data.join("base")).unwrap().flatten() {
        directories.push(format!("base/{}", entry.file_name().to_string_lossy()));
    }
    for directory in directories {
        for entry in std::fs::read_dir(data.join(&directory)).unwrap().flatten() {
            let path = format!("{directory}/{}", entry.file_name().to_string_lossy());
            if let Some(file) = RelFile::parse(&path) {
                files.push((file, Bytes::from(std::fs::read(entry.path()).unwrap())));
            }
        }
    }
    files
}

/// Runs a script on a new server and records it.
pub fn record(options: &PgOptions, hint_bits_logged: bool, run: impl FnOnce(&Pg)) -> Recording {
    let options =
        options.clone().conf("autovacuum = off").conf("max_wal_size = 4GB").conf("wal_keep_size = 4GB");
    let pg = Pg::create(&options);
    let before = relation_files(pg.data());
    let control = std::fs::read(pg.data().join("global/pg_control")).unwrap();
    let control = ControlFile::decode(&control).unwrap();
    pg.start();
    run(&pg);
    pg.stop(StopMode::Fast);

    let mut histories: BTreeMap<Key, History> = BTreeMap::new();
    for (file, bytes) in before {
        for (index, page) in bytes.as_chunks::<BLCKSZ>().0.iter().enumerate() {
            let key = (file.node, file.fork, file.first_block() + index as u32);
            histories.entry(key).or_default().base = Some(Bytes::copy_from_slice(page));
        }
    }
    let records = read_wal(&pg, control.checkpoint);
    for record in &records {
        add(&mut histories, record);
    }
    histories.retain(|(_, fork, _), _| *fork != Fork::Fsm);
    Recording { pg, hint_bits_logged, histories, records }
}

/// All records of a stopped server from the checkpoint at `start` on.
fn read_wal(pg: &Pg, start: Lsn) -> Vec<Record> {
    let seg_size = WalSegSize::new(16 << 20).unwrap();
    let start = StreamStart { lsn: start, prev: Lsn::INVALID, tli: 1, seg_size, system_identifier: 0 };
    let mut stream = WalStream::new(start);
    let mut records = Vec::new();
    loop {
        let segment = stream.wants();
        let number = segment.0 >> 24;
        let name = format!("pg_wal/00000001{:08X}{:08X}", number >> 8, number & 0xFF);
        let Ok(bytes) = std::fs::read(pg.data().join(name)) else { return records };
        stream.feed(segment, Bytes::from(bytes)).unwrap();
        loop {
            match stream.next() {
                Ok(Some(record)) => records.push(record),
                Ok(None) => break,
                // The end of the WAL: what follows was never written.
                Err(_) => return records,
            }
        }
    }
}

fn add(histories: &mut BTreeMap<Key, History>, record: &Record) {
    for (index, block) in record.blocks.iter().enumerate() {
        let history = histories.entry((block.node, block.fork, block.block)).or_default();
        let check = block.image.clone().filter(|image| !image.apply);
        let gin_child = zenith_redo::stamps::finishes_gin_split(record.rmgr, record.info, block.id);
        let trimmed = if gin_child && !block.starts_history() {
            Change::edit(record.end, Edit::GinFinishSplit.encode())
        } else {
            Change::record(record.end, trim::for_block(record, index))
        };
        let whole = Change::record(record.end, record.raw.clone());
        let what = format!(
            "{} info {:#04x} block reference {} at {}",
            record.rmgr, record.info, block.id, record.end
        );
        history.steps.push(Step { trimmed, whole, check, what });
    }
    if record.rmgr == RmgrId::HEAP || record.rmgr == RmgrId::HEAP2 {
        for (key, edit) in visibility_edits(record) {
            push_edit(histories, key, record, &edit);
        }
    }
    if record.rmgr == RmgrId::SMGR
        && let SmgrRecord::Truncate { node, blocks, flags } = smgr::parse(record).unwrap()
    {
        truncate(histories, record, node, blocks, flags);
    }
}

fn visibility_edits(record: &Record) -> BTreeMap<Key, Edit> {
    let mut pages: BTreeMap<Key, Vec<(u16, u8)>> = BTreeMap::new();
    for clear in heap::parse(record).unwrap().clears {
        let (page, slot) =
            (clear.heap_block / HEAP_BLOCKS_PER_MAP_PAGE, clear.heap_block % HEAP_BLOCKS_PER_MAP_PAGE);
        pages.entry((clear.node, Fork::Vm, page)).or_default().push((slot as u16, clear.bits));
    }
    pages.into_iter().map(|(key, blocks)| (key, Edit::ClearVisibility { blocks })).collect()
}

fn push_edit(histories: &mut BTreeMap<Key, History>, key: Key, record: &Record, edit: &Edit) {
    let change = Change::edit(record.end, edit.encode());
    let what = format!("{edit:?} at {}", record.end);
    let step = Step { trimmed: change.clone(), whole: change, check: None, what };
    histories.entry(key).or_default().steps.push(step);
}

fn truncate(histories: &mut BTreeMap<Key, History>, record: &Record, node: RelNode, blocks: u32, flags: u32) {
    if flags & SMGR_TRUNCATE_HEAP != 0 {
        histories.retain(|(n, fork, block), _| (*n, *fork) != (node, Fork::Main) || *block < blocks);
    }
    if flags & SMGR_TRUNCATE_VM != 0 {
        let (page, rest) = (blocks / HEAP_BLOCKS_PER_MAP_PAGE, blocks % HEAP_BLOCKS_PER_MAP_PAGE);
        let kept = page + u32::from(rest != 0);
        histories.retain(|(n, fork, block), _| (*n, *fork) != (node, Fork::Vm) || *block < kept);
        if rest != 0 {
            push_edit(
                histories,
                (node, Fork::Vm, page),
                record,
                &Edit::TruncateVisibility { first_removed: rest as u16 },
            );
        }
    }
}

impl Recording {
    /// The server's own pages: of relations that are logged, and of init forks.
    pub fn pages(&self) -> BTreeMap<Key, Bytes> {
        let files = relation_files(self.pg.data());
        let unlogged: Vec<RelNode> =
            files.iter().filter(|(file, _)| file.fork == Fork::Init).map(|(file, _)| file.node).collect();
        let mut pages = BTreeMap::new();
        for (file, bytes) in &files {
            let compared = match file.fork {
                Fork::Main | Fork::Vm => !unlogged.contains(&file.node),
                Fork::Init => true,
                Fork::Fsm => false,
            };
            if compared {
                for (index, page) in bytes.as_chunks::<BLCKSZ>().0.iter().enumerate() {
                    let key = (file.node, file.fork, file.first_block() + index as u32);
                    pages.insert(key, Bytes::copy_from_slice(page));
                }
            }
        }
        pages
    }

    /// A request for a block with some of its steps.
    pub fn request(&self, key: Key, base: Option<Bytes>, changes: Vec<Change>) -> PageRequest {
        let (node, fork, block) = key;
        PageRequest { node, fork, block, base, changes, hint_bits_logged: self.hint_bits_logged }
    }
}

/// How errors name a key.
pub fn name((node, fork, block): Key) -> BlockName {
    BlockName { node, fork, block }
}

/// A pool of its own work directory, so that tests share nothing.
pub fn pool(workers: usize) -> (RedoPool, tempfile::TempDir) {
    let (options, directory) = options(workers);
    (RedoPool::start(&options).unwrap(), directory)
}

/// Options for a pool of its own.
pub fn options(workers: usize) -> (RedoOptions, tempfile::TempDir) {
    let directory = zenith_testkit::pg::server_dir();
    let work_dir = Some(directory.path().join("work"));
    (RedoOptions { workers: Some(workers), work_dir, ..RedoOptions::default() }, directory)
}
