//! What the tests of several files here share, and the orchestration against a source that fails.

use super::source::{Facts, ForkSize, PageRange, Source};
use super::*;
use std::path::Path;
use zenith_ingest::model::Parameters;
use zenith_layers::Slru;
use zenith_pgformat::checkpoint::CheckPoint;
use zenith_pgformat::control::{ControlFile, DbState};
use zenith_pgformat::{BLCKSZ, Fork, RelNode, Xid};
use zenith_testkit::control::{checkpoint, control_file};

/// A small cluster at 0/3000000, the start of a segment, so that its WAL has no head.
pub(crate) fn facts() -> Facts {
    Facts {
        lsn: Lsn(0x300_0000),
        last_record: Lsn(0x2FF_FF00),
        tli: 1,
        control: ControlFile {
            state: DbState::InProduction,
            checkpoint: Lsn(0x200_0028),
            checkpoint_copy: CheckPoint::default(),
            data_checksum_version: 1,
            ..control_file()
        },
        checkpoint: CheckPoint { tli: 0, prev_tli: 0, next_xid: 750, next_oid: 24_576, ..checkpoint() },
        next_xid: 800,
        parameters: Parameters {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
            wal_level: 1,
            wal_log_hints: false,
            track_commit_timestamp: false,
        },
    }
}

/// A cluster of one relation of two zero pages, which may be unreadable, and one tablespace, which may be somewhere.
#[derive(Default)]
struct Tiny {
    unreadable: bool,
    tablespace: Option<PathBuf>,
}

const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16_384 };

#[async_trait::async_trait]
impl Source for Tiny {
    async fn facts(&self) -> Result<Facts> {
        Ok(facts())
    }
    async fn small_files(&self) -> Result<BTreeMap<String, SmallFile>> {
        Ok(BTreeMap::new())
    }
    async fn history_file(&self, _tli: Tli) -> Result<Option<Bytes>> {
        Ok(None)
    }
    async fn segment_head(&self) -> Result<Bytes> {
        Ok(Bytes::new())
    }
    async fn databases(&self) -> Result<Vec<(Oid, Oid)>> {
        Ok(vec![(1663, 5)])
    }
    async fn relations(&self, _spc: Oid, db: Oid) -> Result<Vec<ForkSize>> {
        Ok(if db == 5 { vec![ForkSize { node: NODE, fork: Fork::Main, blocks: 2 }] } else { vec![] })
    }
    async fn tablespaces(&self) -> Result<Vec<(Oid, String)>> {
        Ok(self.tablespace.iter().map(|path| (16_400, path.display().to_string())).collect())
    }
    async fn rel_map(&self, _spc: Oid, _db: Oid) -> Result<Option<Bytes>> {
        Ok(Some(Bytes::from(RelMap::default().encode())))
    }
    async fn pages(&self, ranges: &[PageRange]) -> Result<Vec<Bytes>> {
        anyhow::ensure!(!self.unreadable, "layer x is damaged");
        let count: u32 = ranges.iter().map(|range| range.count).sum();
        Ok(vec![Bytes::from_static(&[0; BLCKSZ]); count as usize])
    }
    async fn slru_segments(&self, _slru: Slru) -> Result<Vec<(u32, u32)>> {
        Ok(vec![(0, 1)])
    }
    async fn slru_segment(&self, _slru: Slru, _segment: u32) -> Result<Bytes> {
        Ok(Bytes::from_static(&[0; BLCKSZ]))
    }
    async fn two_phase(&self) -> Result<Vec<(Xid, Bytes)>> {
        Ok(Vec::new())
    }
    async fn repl_origins(&self) -> Result<Vec<(u16, Lsn)>> {
        Ok(Vec::new())
    }
}

fn options(target: &Path) -> Options {
    Options {
        target: target.to_path_buf(),
        tablespaces: Vec::new(),
        owner: None,
        sync: true,
        parallel: 4,
        tli: None,
        reason: "for a test".to_owned(),
        archive_command: None,
        lazy: None,
        host: Arc::new(config::ThisHost::new(None)),
        now: 1_700_000_000,
    }
}

#[tokio::test]
async fn a_restore_is_complete_and_says_what_it_did() {
    let home = tempfile::tempdir().expect("temporary directory");
    let root = home.path().join("data");
    let tablespace = home.path().join("space");
    let source = Tiny { tablespace: Some(tablespace.clone()), ..Tiny::default() };
    let seen = AtomicU64::new(0);
    let progress = |progress: Progress| seen.store(progress.done, Ordering::Relaxed);
    let report = write_directory(&source, &options(&root), &progress).await.expect("complete");
    assert_eq!((report.tli, report.checkpoint), (2, Lsn(0x300_0028)));
    assert_eq!(seen.into_inner(), 2 * BLCKSZ as u64);
    assert_eq!(report.tablespaces, [(16_400, tablespace.clone())]);
    for path in [
        "PG_VERSION",
        "base/5/16384",
        "base/5/PG_VERSION",
        "base/5/pg_filenode.map",
        "global/pg_control",
        "pg_wal/000000020000000000000003",
        "pg_wal/00000002.history",
        "pg_wal/archive_status/00000002.history.ready",
        "pg_xact/0000",
        "pg_subtrans",
        "pg_tblspc/16400/PG_15_202209061",
        "postgresql.conf",
    ] {
        assert!(root.join(path).exists(), "{path}");
    }
    let history = std::fs::read_to_string(root.join("pg_wal/00000002.history")).expect("written");
    assert_eq!(history, "1\t0/3000000\tfor a test\n");
    assert!(tablespace.join("PG_15_202209061").is_dir());
}

#[tokio::test]
async fn a_restore_that_fails_leaves_nothing_behind() {
    let home = tempfile::tempdir().expect("temporary directory");
    let source = Tiny { unreadable: true, tablespace: Some(home.path().join("spaces/one")) };
    let target = home.path().join("new/data");
    let error = write_directory(&source, &options(&target), &|_| {}).await.expect_err("damaged");
    assert!(format!("{error:#}").contains("layer x is damaged"), "{error:#}");
    assert_eq!(std::fs::read_dir(home.path()).expect("still there").count(), 0);
}

#[tokio::test]
async fn a_tablespace_whose_place_is_taken_is_refused_with_the_remedy() {
    let home = tempfile::tempdir().expect("temporary directory");
    let place = home.path().join("space");
    std::fs::create_dir(&place).expect("directory");
    std::fs::write(place.join("precious"), "x").expect("file");
    let source = Tiny { tablespace: Some(place.clone()), ..Tiny::default() };
    let target = home.path().join("data");
    let error = write_directory(&source, &options(&target), &|_| {}).await.expect_err("taken");
    assert!(format!("{error:#}").contains("-T"), "{error:#}");
    assert!(place.join("precious").exists() && !target.exists());
}

#[tokio::test]
async fn a_timeline_that_is_not_new_is_refused() {
    let home = tempfile::tempdir().expect("temporary directory");
    let options = Options { tli: Some(1), ..options(&home.path().join("data")) };
    assert!(write_directory(&Tiny::default(), &options, &|_| {}).await.is_err());
}
