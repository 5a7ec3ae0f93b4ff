//! WAL that is written by hand, and timelines that it is archived to.

#![allow(unreachable_pub, reason = "a module of one test")]

use crate::support::*;
use zenith_ingest::error::IngestError;
use zenith_ingest::slicer::{SliceReport, SlicerOptions};
use zenith_manifest::BaseKind;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::control::ControlFile;
use zenith_pgformat::wal::encode::{Parts, Placed, WalWriter, WriterStart, encode_with_blocks};
use zenith_pgformat::wal::{BlockRef, RmgrId};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{Lsn, Tli};
use zenith_testkit::control;

pub const SYSTEM: u64 = control::SYSTEM_IDENTIFIER;
/// The number of the first segment.
pub const FIRST_SEGMENT: u64 = 2;
pub const CHECKPOINT_SHUTDOWN: u8 = 0x00;
pub const NOOP: u8 = 0x20;
pub const SWITCH: u8 = 0x40;
pub const BACKUP_END: u8 = 0x50;
pub const FPI: u8 = 0xB0;

pub fn size() -> WalSegSize {
    WalSegSize::new(1 << 20).expect("size")
}

pub fn control_file() -> ControlFile {
    ControlFile { wal_segment_size: size(), ..control::control_file() }
}

/// WAL that begins with a shutdown checkpoint in segment 2.
pub struct Wal {
    pub writer: WalWriter,
    pub checkpoint: Placed,
    pub next_xid: u32,
    size: WalSegSize,
}

impl Wal {
    pub fn new() -> Wal {
        Wal::with_segments_of(size())
    }

    pub fn with_segments_of(size: WalSegSize) -> Wal {
        let lsn = Lsn(size.start_of(FIRST_SEGMENT).0 + 40);
        let start = WriterStart { lsn, prev: Lsn(8), tli: 1, seg_size: size, system_identifier: SYSTEM };
        let mut writer = WalWriter::new(start).expect("writer");
        let checkpoint =
            writer.append(RmgrId::XLOG, CHECKPOINT_SHUTDOWN, 0, &control_file().checkpoint_copy.encode());
        Wal { writer, checkpoint, next_xid: 1000, size }
    }

    /// Another timeline that goes on at `at`, the end of the record at `prev` in the WAL that begins with `segments`.
    pub fn continued(segments: &[Vec<u8>], tli: Tli, at: Lsn, prev: Lsn) -> Wal {
        let size = size();
        let start = WriterStart { lsn: at, prev, tli, seg_size: size, system_identifier: SYSTEM };
        let writer = match size.offset_of(at) as usize {
            0 => WalWriter::new(start),
            offset => {
                let segment = &segments[(size.segment_of(at) - FIRST_SEGMENT) as usize];
                WalWriter::continue_segment(start, &segment[..offset])
            }
        };
        let checkpoint = Placed { lsn: prev, end: at };
        Wal { writer: writer.expect("writer"), checkpoint, next_xid: 1_000_000, size }
    }

    /// Commits with some padding between them, until the WAL reaches this segment.
    pub fn commits_up_to(&mut self, segment: u64) {
        while self.writer.position() < self.size.start_of(segment) {
            self.commit();
            self.writer.append(RmgrId::XLOG, NOOP, 0, &[7; 3000]);
        }
    }

    pub fn commit(&mut self) -> Placed {
        self.next_xid += 1;
        self.writer.append(RmgrId::XACT, 0, self.next_xid, &i64::from(self.next_xid).to_le_bytes())
    }

    pub fn with_blocks(&mut self, rmgr: RmgrId, info: u8, blocks: &[BlockRef]) -> Placed {
        let prev = self.writer.prev();
        let parts = Parts { rmgr, info, xid: 0, prev, origin: None, top_xid: None, main_data: &[] };
        self.writer.append_raw(&encode_with_blocks(&parts, blocks.iter()))
    }

    /// A checkpoint's place and the redo LSN before it, for a base image of the running server.
    pub fn begin_backup(&mut self) -> (Lsn, Lsn) {
        let redo = self.position();
        (redo, self.writer.append(RmgrId::XLOG, NOOP, 0, &[0; 8]).lsn)
    }

    pub fn end_backup(&mut self, redo: Lsn) -> Lsn {
        self.writer.append(RmgrId::XLOG, BACKUP_END, 0, &redo.0.to_le_bytes()).end
    }

    /// What a clean shutdown writes.
    pub fn shut_down(&mut self) -> Placed {
        let checkpoint = CheckPoint { redo: self.position(), ..control_file().checkpoint_copy };
        self.writer.append(RmgrId::XLOG, CHECKPOINT_SHUTDOWN, 0, &checkpoint.encode())
    }

    pub fn position(&self) -> Lsn {
        self.writer.position()
    }

    /// The segments from number 2 on (of a continued timeline: from that of its beginning), the last one filled up.
    pub fn segments(self) -> Vec<Vec<u8>> {
        self.writer.finish().chunks(self.size.bytes() as usize).map(<[u8]>::to_vec).collect()
    }
}

pub async fn archive(timeline: &Timeline, segments: &[Vec<u8>], numbers: &[u64]) {
    archive_tli(timeline, 1, FIRST_SEGMENT, segments, numbers).await;
}

/// Archives some of `segments`, which begin with number `first`.
pub async fn archive_tli(timeline: &Timeline, tli: Tli, first: u64, segments: &[Vec<u8>], numbers: &[u64]) {
    for number in numbers {
        let file = WalFile::Segment { tli, segment: *number };
        let content = &segments[(*number - first) as usize];
        timeline.archive.put(&timeline.env, file, content).await.expect("archived");
    }
}

pub async fn archive_history(timeline: &Timeline, tli: Tli, text: &str) {
    timeline.archive.put(&timeline.env, WalFile::History { tli }, text.as_bytes()).await.expect("archived");
}

pub async fn register(timeline: &Timeline, kind: BaseKind, redo: Lsn, checkpoint: Lsn, end: Lsn) {
    let mut builder = timeline.builder(kind, &control_file(), redo, checkpoint);
    builder.add_file("PG_VERSION", 0o600, b"15\n").await.expect("added");
    builder.add_file("global/pg_control", 0o600, &control_file().encode()).await.expect("added");
    builder.add_file("pg_xact/0000", 0o600, &[0; 8192]).await.expect("added");
    builder.add_file("base/5/PG_VERSION", 0o600, b"15\n").await.expect("added");
    timeline.register(builder.finish(end, "2026-01-01T00:00:00Z").await.expect("finished")).await;
}

/// A timeline with a base image at the WAL's shutdown checkpoint.
pub async fn timeline_at(wal: &Wal, seed: u64) -> Timeline {
    let control = ControlFile { wal_segment_size: wal.size, ..control_file() };
    let timeline = Timeline::new(&control, seed);
    let Placed { lsn, end } = wal.checkpoint;
    register(&timeline, BaseKind::Directory, lsn, lsn, end).await;
    timeline
}

pub async fn run(timeline: &Timeline) -> Result<SliceReport, IngestError> {
    timeline.slicer(SlicerOptions::default()).await.run_once().await
}

pub async fn sliced(timeline: &Timeline) -> Lsn {
    timeline.layers().await.0.sliced.clone().expect("sliced").lsn
}

/// The name of a segment of TLI 1.
pub fn name(segment: u64) -> String {
    WalFile::Segment { tli: 1, segment }.name(size())
}
