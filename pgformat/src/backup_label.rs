//! The label that a base backup carries, and its history file (`do_pg_backup_start` and `read_backup_label`,
//! xlog.c and xlogrecovery.c).

use crate::{Lsn, Tli};
use std::fmt::Write as _;

/// A backup label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupLabel {
    /// Where redo starts: the redo position of the backup's start checkpoint.
    pub start: Lsn,
    /// The name of the WAL file that holds it.
    pub start_file: String,
    /// Position of that checkpoint's record.
    pub checkpoint: Lsn,
    /// `BACKUP METHOD`: `streamed`, in PostgreSQL 15 always.
    pub method: String,
    /// `BACKUP FROM`: `primary` or `standby`.
    pub from: String,
    /// `START TIME`, as the server printed it.
    pub start_time: String,
    /// `LABEL`: the name that was given to the backup.
    pub label: String,
    /// `START TIMELINE`.
    pub tli: Tli,
}

/// Why a text is no backup label.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BackupLabelError {
    /// A line is missing or cannot be read.
    #[error("backup_label has no readable line \"{0}\"")]
    Line(&'static str),
    /// The timeline and the WAL file's name contradict each other.
    #[error("backup_label: timeline {tli}, but WAL file {file}")]
    Timeline {
        /// `START TIMELINE`.
        tli: Tli,
        /// The file's name.
        file: String,
    },
}

impl BackupLabel {
    /// Parses a label as PostgreSQL 15 writes it.
    pub fn parse(text: &[u8]) -> Result<BackupLabel, BackupLabelError> {
        let text = String::from_utf8_lossy(text);
        let value = |name: &'static str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .ok_or(BackupLabelError::Line(name))
        };
        let start_line = value("START WAL LOCATION")?;
        let (start, start_file) = location(start_line).ok_or(BackupLabelError::Line("START WAL LOCATION"))?;
        let checkpoint = value("CHECKPOINT LOCATION")?;
        let checkpoint =
            checkpoint.trim_end().parse().map_err(|_| BackupLabelError::Line("CHECKPOINT LOCATION"))?;
        let tli = value("START TIMELINE")?.trim_end().parse();
        let tli: Tli = tli.map_err(|_| BackupLabelError::Line("START TIMELINE"))?;
        if !start_file.starts_with(&format!("{tli:08X}")) {
            return Err(BackupLabelError::Timeline { tli, file: start_file });
        }
        Ok(BackupLabel {
            start,
            start_file,
            checkpoint,
            method: value("BACKUP METHOD")?.to_owned(),
            from: value("BACKUP FROM")?.to_owned(),
            start_time: value("START TIME")?.to_owned(),
            label: value("LABEL")?.to_owned(),
            tli,
        })
    }

    /// The text as PostgreSQL 15 writes it.
    pub fn format(&self) -> String {
        let mut text = format!("START WAL LOCATION: {} (file {})\n", self.start, self.start_file);
        let lines = [
            ("CHECKPOINT LOCATION", self.checkpoint.to_string()),
            ("BACKUP METHOD", self.method.clone()),
            ("BACKUP FROM", self.from.clone()),
            ("START TIME", self.start_time.clone()),
            ("LABEL", self.label.clone()),
            ("START TIMELINE", self.tli.to_string()),
        ];
        for (name, value) in lines {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}: {value}");
        }
        text
    }
}

/// `X/X (file NAME)`.
fn location(text: &str) -> Option<(Lsn, String)> {
    let (lsn, file) = text.trim_end().split_once(" (file ")?;
    let file = file.strip_suffix(')')?;
    let name = file.len() == 24 && file.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    name.then_some((lsn.parse().ok()?, file.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2026-11-22 14:02:59 CET\n\
        LABEL: pg_basebackup base backup\n\
        START TIMELINE: 1\n";

    #[test]
    fn a_label_reads_back_as_written() {
        let label = BackupLabel::parse(LABEL.as_bytes()).expect("valid");
        assert_eq!(label.start, Lsn(0x200_0028));
        assert_eq!(label.checkpoint, Lsn(0x200_0060));
        assert_eq!(label.tli, 1);
        assert_eq!(label.format(), LABEL);
    }

    #[test]
    fn a_missing_or_damaged_line_is_named() {
        for (line, name) in LABEL.lines().zip([
            "START WAL LOCATION",
            "CHECKPOINT LOCATION",
            "BACKUP METHOD",
            "BACKUP FROM",
            "START TIME",
            "LABEL",
            "START TIMELINE",
        ]) {
            let without = LABEL.replace(line, "");
            assert_eq!(BackupLabel::parse(without.as_bytes()), Err(BackupLabelError::Line(name)));
        }
        let damaged = LABEL.replace("0/2000028", "x");
        assert!(BackupLabel::parse(damaged.as_bytes()).is_err());
    }

    #[test]
    fn a_file_of_another_timeline_is_refused() {
        let other = LABEL.replace("START TIMELINE: 1", "START TIMELINE: 2");
        assert!(matches!(
            BackupLabel::parse(other.as_bytes()),
            Err(BackupLabelError::Timeline { tli: 2, .. })
        ));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(BackupLabel::parse(&bytes));
        }

        #[test]
        fn a_cut_label_never_panics(length in 0usize..260) {
            let length = length.min(LABEL.len());
            drop(BackupLabel::parse(&LABEL.as_bytes()[..length]));
        }
    }
}
