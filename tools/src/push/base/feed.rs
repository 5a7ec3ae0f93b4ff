//! From the messages of a running server's BASE_BACKUP to a base image.

use super::copydata::{self, CopyDataError, Message};
use super::image::{WalTail, WalTailError};
use super::tar_stream::{Entry, EntryKind, Event, TarError, TarStream};
use bytes::Bytes;
use zenith_ingest::base::{BaseBuilder, BaseError, FinishedBase};
use zenith_pgformat::backup_label::{BackupLabel, BackupLabelError};
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_pgformat::{Lsn, Oid, Tli};

/// Longer backup labels do not exist.
const LABEL_MAX: u64 = 64 * 1024;

/// Why a server's backup is no base image.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// A message.
    #[error(transparent)]
    Message(#[from] CopyDataError),
    /// An archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A file.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The WAL that goes with it.
    #[error(transparent)]
    Wal(#[from] WalTailError),
    /// `backup_label`.
    #[error("the server sent a damaged backup label: {0}")]
    Label(#[from] BackupLabelError),
    /// Something else than PostgreSQL 15 sends.
    #[error("the server sent {0}; is it PostgreSQL 15?")]
    Unexpected(String),
    /// A standby.
    #[error("the backup label says BACKUP FROM: {0}; take the base image of the primary")]
    NotPrimary(String),
    /// The server and its label contradict each other.
    #[error(
        "the server announced a backup from {announced}, its label says {label}; run zenith_push base again"
    )]
    Position {
        /// In its first answer.
        announced: Lsn,
        /// In the label.
        label: Lsn,
    },
}

/// Where the bytes of the current member go.
#[derive(Debug)]
enum Current {
    /// Into the image.
    File,
    /// Into the image, and kept: `backup_label`.
    Label,
    /// Beside the image.
    Wal { segment: u64, content: Vec<u8> },
    /// Nowhere.
    Skipped,
}

/// What [`Feed`] needs to know before the first archive.
#[derive(Clone, Copy, Debug)]
pub struct FeedStart {
    /// As the server announced it: redo of the backup begins here.
    pub redo: Lsn,
    /// PostgreSQL's timeline number.
    pub tli: Tli,
    /// Size of WAL segments.
    pub segment_size: WalSegSize,
}

/// Takes messages one after another.
#[derive(Debug)]
pub struct Feed {
    start: FeedStart,
    builder: BaseBuilder,
    archive: Option<(String, TarStream)>,
    current: Current,
    label: Vec<u8>,
    wal: WalTail,
}

/// An event of an archive that waits until the image takes it.
enum Step {
    Begin(Entry),
    Data(Bytes),
    End,
}

impl Feed {
    /// Before the first message.
    pub fn new(start: FeedStart, builder: BaseBuilder) -> Feed {
        let wal = WalTail::new(start.redo, start.segment_size);
        Feed { start, builder, archive: None, current: Current::Skipped, label: Vec::new(), wal }
    }

    /// Takes one CopyData message.
    pub async fn message(&mut self, message: Bytes) -> Result<(), FeedError> {
        match copydata::parse(&message)? {
            Message::Progress(_) => Ok(()),
            Message::Manifest => {
                Err(FeedError::Unexpected("a backup manifest that was not asked for".to_owned()))
            }
            Message::NewArchive { name, .. } => {
                self.end_archive()?;
                self.archive = Some((prefix_of(name)?, TarStream::new()));
                Ok(())
            }
            Message::Data(data) => {
                let Some((prefix, stream)) = &mut self.archive else {
                    return Err(FeedError::Unexpected("data before the first archive".to_owned()));
                };
                let mut steps = Vec::new();
                stream.feed::<TarError>(data, |event| {
                    steps.push(match event {
                        Event::Begin(entry) => {
                            Step::Begin(Entry { path: format!("{prefix}{}", entry.path), ..entry })
                        }
                        Event::Data(bytes) => Step::Data(message.slice_ref(bytes)),
                        Event::End => Step::End,
                    });
                    Ok(())
                })?;
                for step in steps {
                    self.step(step).await?;
                }
                Ok(())
            }
        }
    }

    /// The server said that the backup ends at `end`; stores what is left of the image.
    pub async fn finish(mut self, end: Lsn, taken_at: &str) -> Result<FinishedBase, FeedError> {
        self.end_archive()?;
        let label = BackupLabel::parse(&self.label)?;
        if label.from != "primary" {
            return Err(FeedError::NotPrimary(label.from));
        }
        if label.start != self.start.redo || label.tli != self.start.tli {
            return Err(FeedError::Position { announced: self.start.redo, label: label.start });
        }
        self.wal.finish(&mut self.builder, end).await?;
        let mut finished = self.builder.finish(end, taken_at).await?;
        finished.image.checkpoint = label.checkpoint;
        Ok(finished)
    }

    /// How far the image is.
    pub fn progress(&self) -> zenith_ingest::base::BaseProgress {
        self.builder.progress()
    }

    fn end_archive(&mut self) -> Result<(), FeedError> {
        match self.archive.take() {
            Some((_, stream)) => Ok(stream.finish()?),
            None => Ok(()),
        }
    }

    async fn step(&mut self, step: Step) -> Result<(), FeedError> {
        match step {
            Step::Begin(entry) => self.begin(entry),
            Step::Data(bytes) => {
                match &mut self.current {
                    Current::Skipped => {}
                    Current::Wal { content, .. } => content.extend_from_slice(&bytes),
                    Current::Label => {
                        self.label.extend_from_slice(&bytes);
                        self.builder.chunk(&bytes).await?;
                    }
                    Current::File => self.builder.chunk(&bytes).await?,
                }
                Ok(())
            }
            Step::End => {
                match std::mem::replace(&mut self.current, Current::Skipped) {
                    Current::Skipped => {}
                    Current::File | Current::Label => self.builder.end_file().await?,
                    Current::Wal { segment, content } => {
                        self.wal.add(&mut self.builder, segment, content).await?
                    }
                }
                Ok(())
            }
        }
    }

    fn begin(&mut self, entry: Entry) -> Result<(), FeedError> {
        let Entry { path, kind, mode } = entry;
        self.current = Current::Skipped;
        let size = match kind {
            EntryKind::File { size } => size,
            EntryKind::Directory => {
                // A tablespace made with allow_in_place_tablespaces comes with the data directory.
                if let Some(oid) = path.strip_prefix("pg_tblspc/").and_then(|oid| oid.parse::<Oid>().ok()) {
                    self.builder.add_tablespace(oid, "");
                }
                return Ok(());
            }
            EntryKind::Symlink { .. } => return Ok(()),
        };
        if let Some(name) = path.strip_prefix("pg_wal/") {
            self.current = self.wal_file(name, size)?;
            return Ok(());
        }
        self.builder.begin_file(&path, mode, size)?;
        self.current = match path.as_str() {
            "backup_label" if size > LABEL_MAX => {
                return Err(FeedError::Unexpected(format!("a backup label of {size} bytes")));
            }
            "backup_label" => Current::Label,
            _ => Current::File,
        };
        Ok(())
    }

    fn wal_file(&self, name: &str, size: u64) -> Result<Current, FeedError> {
        let FeedStart { tli, segment_size, .. } = self.start;
        match WalFile::parse(name, segment_size) {
            Some(WalFile::Segment { tli: found, segment })
                if found == tli && size == segment_size.bytes() =>
            {
                Ok(Current::Wal { segment, content: Vec::new() })
            }
            Some(WalFile::Segment { .. }) => Err(FeedError::Unexpected(format!(
                "WAL segment {name} of {size} bytes in a backup on timeline {tli}"
            ))),
            _ => Ok(Current::Skipped),
        }
    }
}

/// Where an archive's members lie below the data directory.
fn prefix_of(archive: &str) -> Result<String, FeedError> {
    if archive == "base.tar" {
        return Ok(String::new());
    }
    match archive.strip_suffix(".tar").and_then(|oid| oid.parse::<Oid>().ok()) {
        Some(oid) => Ok(format!("pg_tblspc/{oid}/")),
        None => Err(FeedError::Unexpected(format!("an archive \"{archive}\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_lie_where_the_data_directory_has_them() {
        assert_eq!(prefix_of("base.tar").expect("known"), "");
        assert_eq!(prefix_of("16400.tar").expect("known"), "pg_tblspc/16400/");
        assert!(prefix_of("evil.tar").is_err());
        assert!(prefix_of("../x.tar").is_err());
    }
}
