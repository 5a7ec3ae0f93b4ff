//! What is asked of a server before its base image is taken, and what it must answer.

use super::libpq::{Connection, PgError};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{BLCKSZ, Tli, XLOG_BLCKSZ};

/// What the server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// `system_identifier` of pg_control.
    pub system_identifier: u64,
    /// PostgreSQL's timeline number.
    pub tli: Tli,
    /// `in_hot_standby`.
    pub in_recovery: bool,
    /// `wal_level`.
    pub wal_level: String,
    /// `block_size`.
    pub block_size: String,
    /// `wal_block_size`.
    pub wal_block_size: String,
    /// `segment_size`, of relation files.
    pub segment_size: String,
    /// `wal_segment_size`.
    pub wal_segment_size: String,
    /// `archive_mode`.
    pub archive_mode: String,
    /// `data_checksums`.
    pub data_checksums: bool,
}

/// A server that no base image can be taken of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another major version.
    #[error("the server is PostgreSQL {0}; Zenith reads the formats of PostgreSQL 15 only")]
    Version(String),
    /// A standby.
    #[error(
        "the server is a standby: its base image would lack what its primary does meanwhile; take the base image of the primary"
    )]
    Standby,
    /// Too little WAL.
    #[error(
        "wal_level is {0}: the WAL would not hold every change; set wal_level = replica, restart the server and run this again"
    )]
    WalLevel(String),
    /// A size that PostgreSQL was compiled with.
    #[error("the server was compiled with {name} {found}; Zenith supports {expected} only")]
    Size {
        /// The parameter.
        name: &'static str,
        /// Its value.
        found: String,
        /// The value supported.
        expected: String,
    },
    /// An answer that does not read.
    #[error("the server answered {command} with \"{answer}\"")]
    Answer {
        /// The command.
        command: &'static str,
        /// The answer.
        answer: String,
    },
    /// Another cluster.
    #[error(
        "the server has system identifier {server}, but {timeline} belongs to {stored}: this is another cluster; give it a --cluster of its own"
    )]
    AnotherCluster {
        /// The server's.
        server: u64,
        /// The timeline's.
        stored: u64,
        /// Which timeline.
        timeline: String,
    },
}

/// Refuses a server of another version, which libpq knows before any command is sent.
pub fn check_version(number: i32) -> Result<(), Refusal> {
    match number {
        150_000..160_000 => Ok(()),
        100_000.. => Err(Refusal::Version(format!("{}.{}", number / 10_000, number % 10_000))),
        _ => Err(Refusal::Version(format!("{}.{}", number / 10_000, number / 100 % 100))),
    }
}

/// Asks a server.
pub fn ask(connection: &mut Connection) -> Result<ServerFacts, AskError> {
    check_version(connection.server_version())?;
    let rows = connection.query("IDENTIFY_SYSTEM")?;
    let field =
        |index: usize| rows.first().and_then(|row| row.get(index)).cloned().flatten().unwrap_or_default();
    let answer = |answer: String| Refusal::Answer { command: "IDENTIFY_SYSTEM", answer };
    let system_identifier = field(0).parse().map_err(|_| answer(field(0)))?;
    let tli = field(1).parse().map_err(|_| answer(field(1)))?;
    let in_recovery = connection.parameter(c"in_hot_standby").as_deref() == Some("on");
    Ok(ServerFacts {
        system_identifier,
        tli,
        in_recovery,
        wal_level: connection.query_value("SHOW wal_level")?,
        block_size: connection.query_value("SHOW block_size")?,
        wal_block_size: connection.query_value("SHOW wal_block_size")?,
        segment_size: connection.query_value("SHOW segment_size")?,
        wal_segment_size: connection.query_value("SHOW wal_segment_size")?,
        archive_mode: connection.query_value("SHOW archive_mode")?,
        data_checksums: connection.query_value("SHOW data_checksums")? == "on",
    })
}

/// Why asking failed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The server did not answer.
    #[error(transparent)]
    Server(#[from] PgError),
    /// It answered something that is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl ServerFacts {
    /// Whether a base image can be taken; gives the size of WAL segments.
    pub fn check(&self) -> Result<WalSegSize, Refusal> {
        if self.in_recovery {
            return Err(Refusal::Standby);
        }
        if !["replica", "logical"].contains(&self.wal_level.as_str()) {
            return Err(Refusal::WalLevel(self.wal_level.clone()));
        }
        let same = |name, found: &str, expected: String| {
            if found == expected {
                Ok(())
            } else {
                Err(Refusal::Size { name, found: found.to_owned(), expected })
            }
        };
        same("block_size", &self.block_size, BLCKSZ.to_string())?;
        same("wal_block_size", &self.wal_block_size, XLOG_BLCKSZ.to_string())?;
        same("segment_size", &self.segment_size, "1GB".to_owned())?;
        parse_size(&self.wal_segment_size).and_then(WalSegSize::new).ok_or_else(|| Refusal::Answer {
            command: "SHOW wal_segment_size",
            answer: self.wal_segment_size.clone(),
        })
    }
}

/// A size as `SHOW` prints one with GUC_UNIT_BYTE: `16MB`, `1GB`.
fn parse_size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at_checked(end)?;
    let unit: u64 = match unit {
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> ServerFacts {
        ServerFacts {
            system_identifier: 7,
            tli: 1,
            in_recovery: false,
            wal_level: "replica".to_owned(),
            block_size: "8192".to_owned(),
            wal_block_size: "8192".to_owned(),
            segment_size: "1GB".to_owned(),
            wal_segment_size: "16MB".to_owned(),
            archive_mode: "on".to_owned(),
            data_checksums: true,
        }
    }

    #[test]
    fn a_primary_of_version_15_is_accepted() {
        assert_eq!(check_version(150_000), Ok(()));
        assert_eq!(check_version(150_020), Ok(()));
        assert_eq!(facts().check(), Ok(WalSegSize::DEFAULT));
    }

    #[test]
    fn other_versions_are_refused_by_name() {
        for (number, name) in
            [(140_011, "14.11"), (160_000, "16.0"), (90_603, "9.6"), (0, "0.0"), (-1, "0.0")]
        {
            assert_eq!(check_version(number), Err(Refusal::Version(name.to_owned())));
        }
    }

    #[test]
    fn a_standby_too_little_wal_and_other_block_sizes_are_refused() {
        let standby = ServerFacts { in_recovery: true, ..facts() };
        assert_eq!(standby.check(), Err(Refusal::Standby));
        let minimal = ServerFacts { wal_level: "minimal".to_owned(), ..facts() };
        assert_eq!(minimal.check(), Err(Refusal::WalLevel("minimal".to_owned())));
        let blocks = ServerFacts { block_size: "16384".to_owned(), ..facts() };
        assert!(matches!(blocks.check(), Err(Refusal::Size { name: "block_size", .. })));
        let segment = ServerFacts { wal_segment_size: "3MB".to_owned(), ..facts() };
        assert!(matches!(segment.check(), Err(Refusal::Answer { .. })));
    }
}
