//! The control file, `global/pg_control` (`ControlFileData`, catalog/pg_control.h; checks: `ReadControlFile`, xlog.c).

use crate::checkpoint::{CHECKPOINT_LEN, CheckPoint};
use crate::wal_name::WalSegSize;
use crate::{BLCKSZ, Lsn, RELSEG_SIZE, Tli, XLOG_BLCKSZ, le};
use std::fmt::Display;

/// `PG_CONTROL_VERSION` of PostgreSQL 13 to 15.
pub const CONTROL_VERSION: u32 = 1300;
/// `CATALOG_VERSION_NO` of PostgreSQL 15 (catalog/catversion.h).
pub const CATALOG_VERSION: u32 = 202_209_061;
/// `PG_CONTROL_FILE_SIZE`: the file's length; the data end far earlier.
pub const CONTROL_FILE_LEN: usize = 8192;
/// `PG_DATA_CHECKSUM_VERSION` (storage/bufpage.h).
pub const DATA_CHECKSUM_VERSION: u32 = 1;

/// `offsetof(ControlFileData, crc)`.
const CRC_OFFSET: usize = 288;
/// `FLOATFORMAT_VALUE`.
const FLOAT_FORMAT: f64 = 1_234_567.0;

/// `DBState`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum DbState {
    /// Starting for the first time.
    Startup = 0,
    /// Shut down cleanly: starts without recovery.
    Shutdowned = 1,
    /// A standby that was shut down.
    ShutdownedInRecovery = 2,
    /// A shutdown was under way.
    Shutdowning = 3,
    /// Crash recovery was under way.
    InCrashRecovery = 4,
    /// Archive recovery was under way, or a standby ran.
    InArchiveRecovery = 5,
    /// The server ran.
    InProduction = 6,
}

impl DbState {
    const ALL: [DbState; 7] = [
        DbState::Startup,
        DbState::Shutdowned,
        DbState::ShutdownedInRecovery,
        DbState::Shutdowning,
        DbState::InCrashRecovery,
        DbState::InArchiveRecovery,
        DbState::InProduction,
    ];

    /// The words that `pg_controldata` prints.
    pub fn describe(self) -> &'static str {
        match self {
            DbState::Startup => "starting up",
            DbState::Shutdowned => "shut down",
            DbState::ShutdownedInRecovery => "shut down in recovery",
            DbState::Shutdowning => "shutting down",
            DbState::InCrashRecovery => "in crash recovery",
            DbState::InArchiveRecovery => "in archive recovery",
            DbState::InProduction => "in production",
        }
    }
}

/// `wal_level` as pg_control stores it (`WalLevel`, access/xlog.h).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub enum WalLevel {
    /// Too little for archiving.
    Minimal = 0,
    /// Archiving and standbys.
    Replica = 1,
    /// And logical decoding.
    Logical = 2,
}

impl WalLevel {
    /// From its number, `None` for one that PostgreSQL 15 does not have.
    pub fn from_number(number: u32) -> Option<WalLevel> {
        [WalLevel::Minimal, WalLevel::Replica, WalLevel::Logical]
            .into_iter()
            .find(|level| *level as u32 == number)
    }

    /// The setting's value.
    pub fn name(self) -> &'static str {
        match self {
            WalLevel::Minimal => "minimal",
            WalLevel::Replica => "replica",
            WalLevel::Logical => "logical",
        }
    }
}

/// The contents of pg_control.
#[derive(Clone, PartialEq, Debug)]
pub struct ControlFile {
    /// `system_identifier`: which cluster.
    pub system_identifier: u64,
    /// How the server was left.
    pub state: DbState,
    /// Last update: seconds since 1970-01-01 UTC.
    pub time: i64,
    /// `checkPoint`: position of the last checkpoint's record.
    pub checkpoint: Lsn,
    /// `checkPointCopy`: what it says.
    pub checkpoint_copy: CheckPoint,
    /// `unloggedLSN`: counter for unlogged relations.
    pub unlogged_lsn: Lsn,
    /// `minRecoveryPoint`.
    pub min_recovery_point: Lsn,
    /// `minRecoveryPointTLI`.
    pub min_recovery_point_tli: Tli,
    /// `backupStartPoint`.
    pub backup_start_point: Lsn,
    /// `backupEndPoint`.
    pub backup_end_point: Lsn,
    /// `backupEndRequired`.
    pub backup_end_required: bool,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `MaxConnections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_xacts`: the setting `max_prepared_transactions`.
    pub max_prepared_xacts: i32,
    /// `max_locks_per_xact`: the setting `max_locks_per_transaction`.
    pub max_locks_per_xact: i32,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// `xlog_seg_size`.
    pub wal_segment_size: WalSegSize,
    /// The sizes that the server was built with.
    pub build: BuildSizes,
    /// `data_checksum_version`: 0 without checksums.
    pub data_checksum_version: u32,
    /// `mock_authentication_nonce`.
    pub mock_authentication_nonce: [u8; 32],
}

/// Build-time sizes that only need to be carried along; a server refuses those that are not its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BuildSizes {
    /// `maxAlign`.
    pub max_align: u32,
    /// `nameDataLen`.
    pub name_data_len: u32,
    /// `indexMaxKeys`.
    pub index_max_keys: u32,
    /// `toast_max_chunk_size`.
    pub toast_max_chunk_size: u32,
    /// `loblksize`.
    pub large_object_block: u32,
    /// `float8ByVal`.
    pub float8_by_val: bool,
}

/// Why bytes are no control file that this version can use.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ControlError {
    /// The file is cut.
    #[error("pg_control is cut: {0} bytes, expected {CONTROL_FILE_LEN}")]
    Cut(usize),
    /// Another PostgreSQL, or another byte order.
    #[error("pg_control has version {0}; only PostgreSQL 15's, {CONTROL_VERSION}, is supported")]
    Version(u32),
    /// Another major version with the same control file.
    #[error("pg_control names catalog version {0}; only PostgreSQL 15's, {CATALOG_VERSION}, is supported")]
    Catalog(u32),
    /// The checksum does not fit.
    #[error(
        "pg_control is damaged: its CRC is {stored:08X}, computed {computed:08X}; read it again or take another base image"
    )]
    Crc {
        /// What the file says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A server that was built with other sizes.
    #[error("pg_control says {field} = {found}; only {expected} is supported")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is supported.
        expected: String,
    },
}

fn unsupported(field: &'static str, found: &dyn Display, expected: &dyn Display) -> ControlError {
    ControlError::Unsupported { field, found: found.to_string(), expected: expected.to_string() }
}

impl ControlFile {
    /// Decodes and checks a control file: version, CRC-32C, and the sizes that Zenith depends on.
    ///
    /// As the server does, it looks at the version before the CRC, so that another version is named as such.
    pub fn decode(bytes: &[u8]) -> Result<ControlFile, ControlError> {
        let cut = || ControlError::Cut(bytes.len());
        let version = le::u32(bytes, 8).ok_or_else(cut)?;
        if version != CONTROL_VERSION {
            return Err(ControlError::Version(version));
        }
        let catalog = le::u32(bytes, 12).ok_or_else(cut)?;
        if catalog != CATALOG_VERSION {
            return Err(ControlError::Catalog(catalog));
        }
        let covered = bytes.get(..CRC_OFFSET).ok_or_else(cut)?;
        let stored = le::u32(bytes, CRC_OFFSET).ok_or_else(cut)?;
        let computed = crc32c::crc32c(covered);
        if stored != computed {
            return Err(ControlError::Crc { stored, computed });
        }
        check_sizes(bytes).ok_or_else(cut)??;
        ControlFile::fields(bytes).ok_or_else(cut)?
    }

    fn fields(bytes: &[u8]) -> Option<Result<ControlFile, ControlError>> {
        let state = le::u32(bytes, 16)?;
        let Some(state) = DbState::ALL.into_iter().find(|known| *known as u32 == state) else {
            return Some(Err(unsupported("state", &state, &"0 to 6")));
        };
        let wal_level = le::u32(bytes, 172)?;
        let Some(wal_level) = WalLevel::from_number(wal_level) else {
            return Some(Err(unsupported("wal_level", &wal_level, &"0 to 2")));
        };
        let segment = le::u32(bytes, 228)?;
        let Some(wal_segment_size) = WalSegSize::new(u64::from(segment)) else {
            return Some(Err(unsupported("xlog_seg_size", &segment, &"a power of two from 1 MB to 1 GB")));
        };
        let i32_at = |offset| le::u32(bytes, offset).map(u32::cast_signed);
        Some(Ok(ControlFile {
            system_identifier: le::u64(bytes, 0)?,
            state,
            time: le::u64(bytes, 24)?.cast_signed(),
            checkpoint: Lsn(le::u64(bytes, 32)?),
            checkpoint_copy: CheckPoint::decode(bytes.get(40..40 + CHECKPOINT_LEN)?).ok()?,
            unlogged_lsn: Lsn(le::u64(bytes, 128)?),
            min_recovery_point: Lsn(le::u64(bytes, 136)?),
            min_recovery_point_tli: le::u32(bytes, 144)?,
            backup_start_point: Lsn(le::u64(bytes, 152)?),
            backup_end_point: Lsn(le::u64(bytes, 160)?),
            backup_end_required: le::bool(bytes, 168)?,
            wal_level,
            wal_log_hints: le::bool(bytes, 176)?,
            max_connections: i32_at(180)?,
            max_worker_processes: i32_at(184)?,
            max_wal_senders: i32_at(188)?,
            max_prepared_xacts: i32_at(192)?,
            max_locks_per_xact: i32_at(196)?,
            track_commit_timestamp: le::bool(bytes, 200)?,
            wal_segment_size,
            build: BuildSizes {
                max_align: le::u32(bytes, 204)?,
                name_data_len: le::u32(bytes, 232)?,
                index_max_keys: le::u32(bytes, 236)?,
                toast_max_chunk_size: le::u32(bytes, 240)?,
                large_object_block: le::u32(bytes, 244)?,
                float8_by_val: le::bool(bytes, 248)?,
            },
            data_checksum_version: le::u32(bytes, 252)?,
            mock_authentication_nonce: le::array(bytes, 256)?,
        }))
    }

    /// The whole file, [`CONTROL_FILE_LEN`] bytes, with its CRC; padding is zero.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; CONTROL_FILE_LEN];
        self.encode_state(&mut bytes);
        self.encode_settings(&mut bytes);
        let crc = crc32c::crc32c(bytes.get(..CRC_OFFSET).unwrap_or_default());
        le::put(&mut bytes, CRC_OFFSET, &crc.to_le_bytes());
        bytes
    }

    fn encode_state(&self, bytes: &mut [u8]) {
        le::put(bytes, 0, &self.system_identifier.to_le_bytes());
        le::put(bytes, 8, &CONTROL_VERSION.to_le_bytes());
        le::put(bytes, 12, &CATALOG_VERSION.to_le_bytes());
        le::put(bytes, 16, &(self.state as u32).to_le_bytes());
        le::put(bytes, 24, &self.time.to_le_bytes());
        le::put(bytes, 32, &self.checkpoint.0.to_le_bytes());
        le::put(bytes, 40, &self.checkpoint_copy.encode());
        le::put(bytes, 128, &self.unlogged_lsn.0.to_le_bytes());
        le::put(bytes, 136, &self.min_recovery_point.0.to_le_bytes());
        le::put(bytes, 144, &self.min_recovery_point_tli.to_le_bytes());
        le::put(bytes, 152, &self.backup_start_point.0.to_le_bytes());
        le::put(bytes, 160, &self.backup_end_point.0.to_le_bytes());
        le::put(bytes, 168, &[u8::from(self.backup_end_required)]);
    }

    fn encode_settings(&self, bytes: &mut [u8]) {
        le::put(bytes, 172, &(self.wal_level as u32).to_le_bytes());
        le::put(bytes, 176, &[u8::from(self.wal_log_hints)]);
        le::put(bytes, 180, &self.max_connections.to_le_bytes());
        le::put(bytes, 184, &self.max_worker_processes.to_le_bytes());
        le::put(bytes, 188, &self.max_wal_senders.to_le_bytes());
        le::put(bytes, 192, &self.max_prepared_xacts.to_le_bytes());
        le::put(bytes, 196, &self.max_locks_per_xact.to_le_bytes());
        le::put(bytes, 200, &[u8::from(self.track_commit_timestamp)]);
        le::put(bytes, 204, &self.build.max_align.to_le_bytes());
        le::put(bytes, 208, &FLOAT_FORMAT.to_le_bytes());
        le::put(bytes, 216, &(BLCKSZ as u32).to_le_bytes());
        le::put(bytes, 220, &RELSEG_SIZE.to_le_bytes());
        le::put(bytes, 224, &(XLOG_BLCKSZ as u32).to_le_bytes());
        le::put(bytes, 228, &(self.wal_segment_size.bytes() as u32).to_le_bytes());
        le::put(bytes, 232, &self.build.name_data_len.to_le_bytes());
        le::put(bytes, 236, &self.build.index_max_keys.to_le_bytes());
        le::put(bytes, 240, &self.build.toast_max_chunk_size.to_le_bytes());
        le::put(bytes, 244, &self.build.large_object_block.to_le_bytes());
        le::put(bytes, 248, &[u8::from(self.build.float8_by_val)]);
        le::put(bytes, 252, &self.data_checksum_version.to_le_bytes());
        le::put(bytes, 256, &self.mock_authentication_nonce);
    }

    /// Whether data pages carry checksums.
    pub fn has_checksums(&self) -> bool {
        self.data_checksum_version != 0
    }
}

/// Sizes that the formats in this crate are written for. The outer `None` is a cut file.
fn check_sizes(bytes: &[u8]) -> Option<Result<(), ControlError>> {
    let float = f64::from_le_bytes(le::array(bytes, 208)?);
    if float.to_bits() != FLOAT_FORMAT.to_bits() {
        return Some(Err(unsupported("floatFormat", &float, &FLOAT_FORMAT)));
    }
    let sizes = [
        ("maxAlign", 204, 8),
        ("blcksz", 216, BLCKSZ as u32),
        ("relseg_size", 220, RELSEG_SIZE),
        ("xlog_blcksz", 224, XLOG_BLCKSZ as u32),
    ];
    for (field, offset, expected) in sizes {
        let found = le::u32(bytes, offset)?;
        if found != expected {
            return Some(Err(unsupported(field, &found, &expected)));
        }
    }
    let checksums = le::u32(bytes, 252)?;
    if checksums > DATA_CHECKSUM_VERSION {
        return Some(Err(unsupported("data_checksum_version", &checksums, &"0 or 1")));
    }
    Some(Ok(()))
}
