//! How a seed's primary is made and configured.

use crate::dice::Dice;
use zenith_testkit::pg::PgOptions;
use zenith_testkit::store::Kind;

/// See the module.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Settings {
    /// Where the store lies.
    pub(crate) store: Kind,
    /// Data checksums.
    pub(crate) checksums: bool,
    /// Segments of so many MB.
    pub(crate) segment_mb: u32,
    /// A tablespace at a place of its own besides those within the data directory.
    pub(crate) tablespace: bool,
    /// Arguments of `pg_resetwal` before the first start: counters shortly before a page or a turn ends.
    pub(crate) counters: Vec<&'static str>,
    /// Lines of the configuration for the whole run.
    pub(crate) lines: Vec<String>,
    /// Lines that a restart may change.
    pub(crate) changing: Vec<String>,
}

impl Settings {
    /// What these dice say.
    pub(crate) fn draw(dice: &mut Dice) -> Settings {
        let lines = vec![
            format!("wal_compression = {}", dice.pick(&["off", "pglz", "lz4", "zstd"])),
            format!("autovacuum = {}", dice.pick(&["on", "off", "off"])),
            "autovacuum_naptime = 1s".to_owned(),
            format!("shared_buffers = {}", dice.pick(&["1MB", "4MB", "128MB"])),
            format!("synchronous_commit = {}", dice.pick(&["on", "on", "off"])),
            format!("checkpoint_timeout = {}", dice.pick(&["30s", "5min"])),
            format!("gin_pending_list_limit = {}", dice.pick(&["64kB", "4MB"])),
            "max_prepared_transactions = 30".to_owned(),
            "max_worker_processes = 8".to_owned(),
            "allow_in_place_tablespaces = on".to_owned(),
        ];
        Settings {
            store: dice.weighed(&[(5, Kind::Folder), (1, Kind::Minio)]),
            checksums: dice.percent(50),
            segment_mb: dice.weighed(&[(5, 1), (4, 16), (1, 4), (1, 64)]),
            tablespace: dice.percent(50),
            counters: dice
                .weighed(&[(6, &NO_COUNTERS[..]), (2, &SHORT_OF_A_PAGE[..]), (2, &SHORT_OF_A_TURN[..])])
                .to_vec(),
            lines,
            changing: Settings::draw_changing(dice),
        }
    }

    /// Settings that a restart may change.
    pub(crate) fn draw_changing(dice: &mut Dice) -> Vec<String> {
        vec![
            format!("wal_level = {}", dice.pick(&["replica", "logical"])),
            format!("wal_log_hints = {}", dice.pick(&["on", "off"])),
            format!("full_page_writes = {}", dice.weighed(&[(3, "on"), (1, "off")])),
            format!("track_commit_timestamp = {}", dice.pick(&["on", "off"])),
            format!("max_connections = {}", dice.pick(&[40, 60])),
        ]
    }

    /// A cluster like that.
    pub(crate) fn options(&self) -> PgOptions {
        let mut options = PgOptions::default().initdb(&format!("--wal-segsize={}", self.segment_mb));
        if self.checksums {
            options = options.initdb("--data-checksums");
        }
        if self.segment_mb == 64 {
            options = options.conf("min_wal_size = 128MB");
        }
        self.lines.iter().chain(&self.changing).fold(options, |options, line| options.conf(line))
    }
}

const NO_COUNTERS: [&str; 0] = [];
/// A page of `pg_xact` holds 32768 transactions, one of `pg_multixact/offsets` 2048 multixacts, one of `members` 1636 members.
const SHORT_OF_A_PAGE: [&str; 6] = ["-x", "32600", "-m", "2040,1", "-O", "1600"];
/// The next OID turns around, and with it the epoch is not the first.
const SHORT_OF_A_TURN: [&str; 4] = ["-o", "4294967200", "-e", "3"];
