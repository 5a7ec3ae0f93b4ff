//! BASE_BACKUP of a running server: the command, and its answer as a bounded stream of frames.
//!
//! The answer (protocol-replication.html): a row with the start LSN and TLI, rows of tablespaces, one COPY of all
//! archives, a row with the end LSN and TLI.

use super::libpq::{Answer, Connection, CopyData, PgError};
use crate::push::command::Checkpoint;
use tokio::sync::mpsc;
use zenith_pgformat::{Lsn, Tli};

/// Messages on the way from the server; each is at most 32 kB.
const FRAMES: usize = 128;

/// A tablespace as the server announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// `None` for the data directory.
    pub oid: Option<u32>,
    /// Where it lies on the server.
    pub location: Option<String>,
    /// Estimated size.
    pub kilobytes: u64,
}

/// What arrives.
pub enum Frame {
    /// The backup has begun.
    Start {
        /// Where redo of the backup begins.
        lsn: Lsn,
        /// PostgreSQL's timeline number.
        tli: Tli,
        /// What will be sent.
        tablespaces: Vec<Tablespace>,
    },
    /// A message of the COPY.
    Copy(CopyData),
    /// The backup is over.
    End {
        /// The end of the backup.
        lsn: Lsn,
        /// PostgreSQL's timeline number.
        tli: Tli,
    },
}

/// Why the stream ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The server, or the connection.
    #[error(transparent)]
    Server(#[from] PgError),
    /// Something else than PostgreSQL 15 sends.
    #[error("the server answered BASE_BACKUP with {0}; is it PostgreSQL 15?")]
    Unexpected(&'static str),
}

/// The BASE_BACKUP command. WAL from the start to the end of the backup comes with it, so that the base image can
/// be restored without the archive; the server need not wait until that WAL is archived too. No TABLESPACE_MAP: with it
/// the server leaves out all of `pg_tblspc`, tablespaces inside the data directory too (`sendDir`, basebackup.c).
pub fn command(checkpoint: Checkpoint, max_rate: Option<u32>) -> String {
    let checkpoint = match checkpoint {
        Checkpoint::Fast => "fast",
        Checkpoint::Spread => "spread",
    };
    let rate = max_rate.map(|rate| format!(", MAX_RATE {rate}")).unwrap_or_default();
    format!(
        "BASE_BACKUP (LABEL 'zenith', PROGRESS, CHECKPOINT '{checkpoint}', WAL, WAIT 0{rate}, \
         VERIFY_CHECKSUMS 1)"
    )
}

/// Keeps the server from removing WAL that the end of the backup will send. The slot goes with the connection.
///
/// Without a free slot the backup goes on, and fails at its end if the server removed WAL meanwhile.
pub fn hold_wal(connection: &mut Connection) -> Result<(), PgError> {
    let slot = format!("zenith_base_{}", connection.server_pid());
    connection.query(&format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY PHYSICAL (RESERVE_WAL)"))?;
    Ok(())
}

/// Runs the command in a thread of its own: libpq blocks. The thread ends when the receiver is dropped or the
/// stream ends; a frame is read only when there is room for it.
pub fn start(
    mut connection: Connection,
    command: String,
) -> std::io::Result<mpsc::Receiver<Result<Frame, StreamError>>> {
    let (sender, receiver) = mpsc::channel(FRAMES);
    std::thread::Builder::new().name("base-backup".to_owned()).spawn(move || {
        let result = run(&mut connection, &command, &mut |frame| sender.blocking_send(Ok(frame)).is_ok());
        if let Err(error) = result {
            let _ = sender.blocking_send(Err(error));
        }
    })?;
    Ok(receiver)
}

/// Feeds frames to `send` until the end, or until it returns `false`.
fn run(
    connection: &mut Connection,
    command: &str,
    send: &mut impl FnMut(Frame) -> bool,
) -> Result<(), StreamError> {
    connection.send(command)?;
    let (lsn, tli) = position(&rows(connection.next_answer()?, "no start position")?)?;
    let tablespaces = tablespaces(&rows(connection.next_answer()?, "no tablespaces")?)?;
    if !send(Frame::Start { lsn, tli, tablespaces }) {
        return Ok(());
    }
    if connection.next_answer()? != Answer::CopyOut {
        return Err(StreamError::Unexpected("no archives"));
    }
    while let Some(data) = connection.copy_data()? {
        if !send(Frame::Copy(data)) {
            return Ok(());
        }
    }
    let (lsn, tli) = position(&rows(connection.next_answer()?, "no end position")?)?;
    while connection.next_answer()? != Answer::Done {}
    send(Frame::End { lsn, tli });
    Ok(())
}

type Rows = Vec<Vec<Option<String>>>;

fn rows(answer: Answer, otherwise: &'static str) -> Result<Rows, StreamError> {
    match answer {
        Answer::Rows(rows) => Ok(rows),
        _ => Err(StreamError::Unexpected(otherwise)),
    }
}

fn position(rows: &Rows) -> Result<(Lsn, Tli), StreamError> {
    let wrong = StreamError::Unexpected("a malformed position");
    match rows.first().map(Vec::as_slice) {
        Some([Some(lsn), Some(tli), ..]) => match (lsn.parse(), tli.parse()) {
            (Ok(lsn), Ok(tli)) => Ok((lsn, tli)),
            _ => Err(wrong),
        },
        _ => Err(wrong),
    }
}

fn tablespaces(rows: &Rows) -> Result<Vec<Tablespace>, StreamError> {
    let wrong = StreamError::Unexpected("a malformed list of tablespaces");
    let tablespace = |row: &Vec<Option<String>>| match row.as_slice() {
        [oid, location, kilobytes, ..] => Some(Tablespace {
            oid: oid.as_ref().map(|oid| oid.parse()).transpose().ok()?,
            location: location.clone(),
            kilobytes: kilobytes.as_ref().map_or(Ok(0), |kb| kb.parse()).ok()?,
        }),
        _ => None,
    };
    rows.iter().map(tablespace).collect::<Option<Vec<_>>>().ok_or(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[Option<&str>]) -> Vec<Option<String>> {
        values.iter().map(|value| value.map(str::to_owned)).collect()
    }

    #[test]
    fn the_command_says_what_the_user_chose() {
        let text = command(Checkpoint::Fast, Some(2048));
        assert!(text.contains("CHECKPOINT 'fast'") && text.contains("MAX_RATE 2048"), "{text}");
        let text = command(Checkpoint::Spread, None);
        assert!(text.contains("CHECKPOINT 'spread'") && !text.contains("MAX_RATE"), "{text}");
    }

    #[test]
    fn positions_and_tablespaces_are_read() {
        let rows = vec![row(&[Some("0/2000028"), Some("1")])];
        assert_eq!(position(&rows), Ok((Lsn(0x200_0028), 1)));
        let rows = vec![row(&[Some("16400"), Some("/srv/ts"), Some("12")]), row(&[None, None, Some("400")])];
        let found = tablespaces(&rows).expect("valid");
        assert_eq!(found[0].oid, Some(16400));
        assert_eq!(found[1], Tablespace { oid: None, location: None, kilobytes: 400 });
    }

    #[test]
    fn answers_of_another_shape_are_errors() {
        assert!(position(&vec![]).is_err());
        assert!(position(&vec![row(&[Some("x"), Some("1")])]).is_err());
        assert!(position(&vec![row(&[None, None])]).is_err());
        assert!(tablespaces(&vec![row(&[Some("x"), None, None])]).is_err());
        assert!(tablespaces(&vec![row(&[])]).is_err());
    }
}
