//! A cleanly stopped data directory as the source of a restore: PostgreSQL's own files stand in for the store.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zenith_ingest::base::SmallFile;
use zenith_ingest::model::Parameters;
use zenith_layers::Slru;
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::rel::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE, RelFile, TABLESPACE_VERSION_DIRECTORY};
use zenith_pgformat::wal::encode::{WalWriter, WriterStart};
use zenith_pgformat::wal::{RmgrId, StreamStart, WalStream};
use zenith_pgformat::wal_name::WalFile;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, Oid, RelNode, Tli, XLOG_BLCKSZ, Xid, slru, two_phase};
use zenith_tools::restore::source::{Facts, ForkSize, PageRange, Source};

/// `XLOG_NOOP` (catalog/pg_control.h).
const NOOP: u8 = 0x20;

/// The state of a stopped server, at the end of its shutdown checkpoint or of WAL that does nothing behind it.
pub(crate) struct StoppedDirectory {
    root: PathBuf,
    control: ControlFile,
    lsn: Lsn,
    last_record: Lsn,
    head: Bytes,
}

impl StoppedDirectory {
    /// Opens a directory at the end of its WAL.
    pub(crate) fn open(root: &Path) -> Result<StoppedDirectory> {
        let control = ControlFile::decode(&std::fs::read(root.join("global/pg_control"))?)?;
        let size = control.wal_segment_size;
        let (tli, checkpoint) = (control.checkpoint_copy.tli, control.checkpoint);
        let first = size.segment_of(checkpoint);
        let mut stream = WalStream::new(StreamStart {
            lsn: checkpoint,
            prev: Lsn::INVALID,
            tli,
            seg_size: size,
            system_identifier: control.system_identifier,
        });
        let mut last = None;
        for segment in first..first + 2 {
            let name = WalFile::Segment { tli, segment }.name(size);
            let Ok(bytes) = std::fs::read(root.join("pg_wal").join(name)) else { break };
            stream.feed(size.start_of(segment), Bytes::from(bytes))?;
            while let Ok(Some(record)) = stream.next() {
                last = Some(record);
            }
        }
        let last = last.context("no checkpoint record")?;
        let segment = size.segment_of(last.end);
        let name = WalFile::Segment { tli, segment }.name(size);
        let bytes = std::fs::read(root.join("pg_wal").join(name)).unwrap_or_default();
        let head = Bytes::from(bytes).slice(..size.offset_of(last.end) as usize);
        Ok(StoppedDirectory { root: root.to_owned(), control, lsn: last.end, last_record: last.lsn, head })
    }

    /// The same state after one more record that does nothing and ends exactly at `lsn`.
    pub(crate) fn padded_to(mut self, lsn: Lsn) -> Result<StoppedDirectory> {
        let size = self.control.wal_segment_size;
        let start = WriterStart {
            lsn: self.lsn,
            prev: self.last_record,
            tli: self.control.checkpoint_copy.tli,
            seg_size: size,
            system_identifier: self.control.system_identifier,
        };
        let mut writer = WalWriter::continue_segment(start, &self.head)?;
        let pages = (self.lsn.0..lsn.0).filter(|at| at.is_multiple_of(XLOG_BLCKSZ as u64));
        let headers: u64 = pages.map(|page| if size.offset_of(Lsn(page)) == 0 { 40 } else { 24 }).sum();
        let length = lsn.since(self.lsn) - headers;
        // 24 bytes of header, then 5 before long data and 2 before short.
        let data = if length > 300 { length - 29 } else { length - 26 };
        let placed = writer.append(RmgrId::XLOG, NOOP, 0, &vec![0x5A; data as usize]);
        if placed.end != lsn {
            bail!("padding to {lsn} ended at {}", placed.end);
        }
        let bytes = Bytes::from(writer.finish());
        let from = size.start_of(size.segment_of(lsn)).since(size.start_of(size.segment_of(self.lsn)));
        self.head = bytes.slice(from as usize..(from + size.offset_of(lsn)) as usize);
        (self.lsn, self.last_record) = (lsn, placed.lsn);
        Ok(self)
    }

    pub(crate) fn lsn(&self) -> Lsn {
        self.lsn
    }

    pub(crate) fn control(&self) -> &ControlFile {
        &self.control
    }

    /// Every file below a directory, as paths below the data directory; links are followed.
    fn walk(&self, below: &str, found: &mut Vec<String>) -> Result<()> {
        for entry in std::fs::read_dir(self.root.join(below))? {
            let name = entry?.file_name().into_string().map_err(|name| anyhow::anyhow!("{name:?}"))?;
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            if std::fs::metadata(self.root.join(&path))?.is_dir() {
                self.walk(&path, found)?;
            } else {
                found.push(path);
            }
        }
        Ok(())
    }

    fn relation_files(&self) -> Result<Vec<(RelFile, u64)>> {
        let mut found = Vec::new();
        self.walk("", &mut found)?;
        let files = found.iter().filter_map(|path| Some((RelFile::parse(path)?, path)));
        files.map(|(file, path)| Ok((file, std::fs::metadata(self.root.join(path))?.len()))).collect()
    }
}

#[async_trait::async_trait]
impl Source for StoppedDirectory {
    async fn facts(&self) -> Result<Facts> {
        let control = &self.control;
        Ok(Facts {
            lsn: self.lsn,
            last_record: self.last_record,
            tli: control.checkpoint_copy.tli,
            control: control.clone(),
            checkpoint: control.checkpoint_copy,
            next_xid: control.checkpoint_copy.next_xid,
            parameters: Parameters {
                max_connections: control.max_connections,
                max_worker_processes: control.max_worker_processes,
                max_wal_senders: control.max_wal_senders,
                max_prepared_transactions: control.max_prepared_xacts,
                max_locks_per_transaction: control.max_locks_per_xact,
                wal_level: control.wal_level as i32,
                wal_log_hints: control.wal_log_hints,
                track_commit_timestamp: control.track_commit_timestamp,
            },
        })
    }

    async fn small_files(&self) -> Result<BTreeMap<String, SmallFile>> {
        let mut found = Vec::new();
        self.walk("", &mut found)?;
        let small =
            found.into_iter().filter(|path| RelFile::parse(path).is_none() && !path.starts_with("pg_wal/"));
        small
            .map(|path| {
                let file = self.root.join(&path);
                let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
                Ok((path, SmallFile { mode, content: Bytes::from(std::fs::read(file)?) }))
            })
            .collect()
    }

    async fn history_file(&self, tli: Tli) -> Result<Option<Bytes>> {
        let path = self.root.join("pg_wal").join(format!("{tli:08X}.history"));
        Ok(if path.exists() { Some(Bytes::from(std::fs::read(path)?)) } else { None })
    }

    async fn segment_head(&self) -> Result<Bytes> {
        Ok(self.head.clone())
    }

    async fn databases(&self) -> Result<Vec<(Oid, Oid)>> {
        let mut found: Vec<(Oid, Oid)> =
            self.relation_files()?.into_iter().map(|(file, _)| (file.node.spc, file.node.db)).collect();
        found.sort_unstable();
        found.dedup();
        found.retain(|place| *place != (GLOBAL_TABLESPACE, 0));
        Ok(found)
    }

    async fn relations(&self, spc: Oid, db: Oid) -> Result<Vec<ForkSize>> {
        let mut sizes: BTreeMap<(RelNode, Fork), u64> = BTreeMap::new();
        for (file, length) in self.relation_files()? {
            if (file.node.spc, file.node.db) == (spc, db) {
                *sizes.entry((file.node, file.fork)).or_default() += length;
            }
        }
        let sizes = sizes.into_iter();
        Ok(sizes
            .map(|((node, fork), length)| ForkSize { node, fork, blocks: (length / BLCKSZ as u64) as u32 })
            .collect())
    }

    async fn tablespaces(&self) -> Result<Vec<(Oid, String)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.root.join("pg_tblspc"))? {
            let entry = entry?;
            let oid = entry.file_name().to_string_lossy().parse()?;
            found.push((oid, std::fs::read_link(entry.path())?.display().to_string()));
        }
        Ok(found)
    }

    async fn rel_map(&self, spc: Oid, db: Oid) -> Result<Option<Bytes>> {
        let directory = match spc {
            GLOBAL_TABLESPACE => "global".to_owned(),
            DEFAULT_TABLESPACE => format!("base/{db}"),
            _ => format!("pg_tblspc/{spc}/{TABLESPACE_VERSION_DIRECTORY}/{db}"),
        };
        let path = self.root.join(directory).join("pg_filenode.map");
        Ok(if path.exists() { Some(Bytes::from(std::fs::read(path)?)) } else { None })
    }

    async fn pages(&self, ranges: &[PageRange]) -> Result<Vec<Bytes>> {
        let mut pages = Vec::new();
        for range in ranges {
            for block in range.first..range.first + range.count {
                let segment = block / zenith_pgformat::RELSEG_SIZE;
                let file = RelFile { node: range.node, fork: range.fork, segment };
                let mut page = vec![0; BLCKSZ];
                let offset = u64::from(block - file.first_block()) * BLCKSZ as u64;
                std::fs::File::open(self.root.join(file.path()))?.read_exact_at(&mut page, offset)?;
                pages.push(Bytes::from(page));
            }
        }
        Ok(pages)
    }

    async fn slru_segments(&self, which: Slru) -> Result<Vec<(u32, u32)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.root.join(which.directory()))? {
            let entry = entry?;
            let pages = entry.metadata()?.len() / BLCKSZ as u64;
            found.extend(
                slru::parse_segment_name(&entry.file_name().to_string_lossy())
                    .map(|number| (number, pages as u32)),
            );
        }
        Ok(found)
    }

    async fn slru_segment(&self, which: Slru, segment: u32) -> Result<Bytes> {
        let path = self.root.join(which.directory()).join(slru::segment_name(segment));
        Ok(Bytes::from(std::fs::read(path)?))
    }

    async fn two_phase(&self) -> Result<Vec<(Xid, Bytes)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.root.join("pg_twophase"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let xid = two_phase::parse_file_name(&name).context("a two-phase file")?;
            found.push((xid, Bytes::from(std::fs::read(path)?)));
        }
        Ok(found)
    }

    async fn repl_origins(&self) -> Result<Vec<(u16, Lsn)>> {
        let Ok(bytes) = std::fs::read(self.root.join("pg_logical/replorigin_checkpoint")) else {
            return Ok(Vec::new());
        };
        let entries = bytes[4..bytes.len() - 4].chunks(16);
        Ok(entries
            .map(|entry| {
                let origin = u16::from_le_bytes([entry[0], entry[1]]);
                (origin, Lsn(u64::from_le_bytes(entry[8..16].try_into().expect("8 bytes"))))
            })
            .collect())
    }
}
