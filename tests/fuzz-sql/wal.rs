//! What a plain archive holds: where records end, and which settings they say the primary had.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::wal::smgr::{self, SmgrRecord};
use zenith_pgformat::wal::xact::{self, XactRecord};
use zenith_pgformat::wal::xlog::{self, ParameterChange, XlogRecord};
use zenith_pgformat::wal::{Record, RmgrId, StreamStart, WalStream};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{Fork, Lsn, RelNode, Xid};

/// The records between two LSNs.
#[derive(Default)]
pub(crate) struct Archived {
    ends: Vec<Lsn>,
    parameters: Vec<(Lsn, ParameterChange)>,
    full_page_writes: Vec<(Lsn, bool)>,
    /// Which transaction has made a relation's file.
    created: BTreeMap<RelNode, Xid>,
    /// Transactions that committed, aborted or were prepared.
    ended: BTreeSet<Xid>,
}

impl Archived {
    /// Reads the plain segments of TLI 1 in a folder from `from` on: where records end that do so at or before `to`, and what all
    /// of them say about settings.
    pub(crate) fn read(folder: &Path, size: WalSegSize, from: Lsn, to: Lsn) -> Archived {
        let start =
            StreamStart { lsn: from, prev: Lsn::INVALID, tli: 1, seg_size: size, system_identifier: 0 };
        let mut stream = WalStream::new(start);
        let mut archived = Archived::default();
        loop {
            match stream.next().expect("sound WAL") {
                Some(record) => {
                    if record.end <= to {
                        archived.ends.push(record.end);
                    }
                    archived.note(&record);
                }
                None => {
                    let segment = stream.wants();
                    let name = WalFile::Segment { tli: 1, segment: size.segment_of(segment) }.name(size);
                    let Ok(bytes) = std::fs::read(folder.join(&name)) else { return archived };
                    stream.feed(segment, Bytes::from(bytes)).expect("the segment it wants");
                }
            }
        }
    }

    fn note(&mut self, record: &Record) {
        match record.rmgr {
            RmgrId::XLOG => match xlog::parse(record).expect("a sound record") {
                XlogRecord::ParameterChange(change) => self.parameters.push((record.end, change)),
                // A start with another value leaves its word only in the next checkpoint.
                XlogRecord::CheckpointOnline(bytes) | XlogRecord::CheckpointShutdown(bytes) => {
                    let checkpoint = CheckPoint::decode(&bytes).expect("a checkpoint");
                    self.full_page_writes.push((record.end, checkpoint.full_page_writes));
                }
                XlogRecord::FpwChange(on) => self.full_page_writes.push((record.end, on)),
                _ => {}
            },
            RmgrId::SMGR => {
                if let SmgrRecord::Create { node, fork: Fork::Main } =
                    smgr::parse(record).expect("a sound record")
                {
                    self.created.insert(node, record.xid);
                }
            }
            RmgrId::XACT => {
                let (xid, subxacts) = match xact::parse(record).expect("a sound record") {
                    XactRecord::Commit(ended) | XactRecord::Abort(ended) => (ended.xid, ended.subxacts),
                    XactRecord::Prepare(prepared) => (prepared.xid, prepared.subxacts),
                    _ => return,
                };
                self.ended.insert(xid);
                self.ended.extend(subxacts);
            }
            _ => {}
        }
    }

    /// Whether the WAL never says what became of the transaction that made a relation: a crash came first.
    pub(crate) fn is_unfinished(&self, node: RelNode) -> bool {
        self.created.get(&node).is_some_and(|xid| *xid != 0 && !self.ended.contains(xid))
    }

    /// How many records there are.
    pub(crate) fn records(&self) -> usize {
        self.ends.len()
    }

    /// The end of the record so far through all of them. There is always one after it.
    pub(crate) fn at(&self, share: f64) -> Lsn {
        let last = self.ends.len() - 1;
        self.ends[((last as f64 * share) as usize).min(last - 1)]
    }

    /// Settings that the WAL up to `lsn` says the primary had, after `initial`; the last line of each counts.
    pub(crate) fn settings_at(&self, lsn: Lsn, initial: &[String]) -> Vec<String> {
        let mut lines = initial.to_vec();
        if let Some((_, change)) = self.parameters.iter().rfind(|(end, _)| *end <= lsn) {
            let level = ["minimal", "replica", "logical"][change.wal_level as usize];
            lines.push(format!("wal_level = {level}"));
            lines.push(format!("wal_log_hints = {}", change.wal_log_hints));
            lines.push(format!("track_commit_timestamp = {}", change.track_commit_timestamp));
            lines.push(format!("max_connections = {}", change.max_connections));
        }
        if let Some((_, on)) = self.full_page_writes.iter().rfind(|(end, _)| *end <= lsn) {
            lines.push(format!("full_page_writes = {on}"));
        }
        lines
    }
}
