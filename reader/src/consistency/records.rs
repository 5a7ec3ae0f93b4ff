//! The records of a stretch of archived WAL, in order, along a timeline's history.

use crate::error::ReadError;
use crate::timeline::Timeline;
use crate::wal::LastRecord;
use zenith_pgformat::wal::{Record, StreamStart, WalStream};
use zenith_pgformat::{Lsn, Tli};

/// See the module. Memory: one segment, up to four over a record that crosses them.
pub(super) struct Records<'a> {
    timeline: &'a Timeline,
    stream: WalStream,
    tli: Tli,
    /// The last segment that was fed.
    fed: Option<Lsn>,
    to: Lsn,
}

impl<'a> Records<'a> {
    /// The records that begin at or behind `begin.end` and end at or below `to`. `begin`: the record before them; of it
    /// [`LastRecord::start`] may be invalid where it is not known.
    pub(super) fn new(timeline: &'a Timeline, begin: LastRecord, to: Lsn) -> Records<'a> {
        let start = StreamStart {
            lsn: begin.end,
            prev: begin.start,
            tli: begin.tli,
            seg_size: timeline.segment_size(),
            system_identifier: timeline.identity().system_identifier,
        };
        Records { timeline, stream: WalStream::new(start), tli: begin.tli, fed: None, to }
    }

    /// The timeline of the segment that is being read.
    pub(super) fn tli(&self) -> Tli {
        self.tli
    }

    /// The next record; `None` after the last one.
    ///
    /// # Errors
    /// A segment that is missing, and WAL that is not sound: all of it was sliced once.
    pub(super) async fn next(&mut self) -> Result<Option<Record>, ReadError> {
        while self.stream.position() < self.to {
            match self.stream.next() {
                Ok(Some(record)) if record.end > self.to => return Ok(None),
                Ok(Some(record)) => return Ok(Some(record)),
                Ok(None) => self.feed().await?,
                Err(source) => {
                    let lsn = self.stream.position();
                    return Err(ReadError::Wal { tli: self.tli, lsn, source });
                }
            }
        }
        Ok(None)
    }

    async fn feed(&mut self) -> Result<(), ReadError> {
        let wants = self.stream.wants();
        let size = self.timeline.segment_size();
        if self.fed == Some(wants) || wants >= self.to {
            // A segment that is cut off, or a record that is: what was sliced once is not there any more.
            return Err(ReadError::NoRecord { lsn: self.to });
        }
        let segment_end = size.start_of(size.segment_of(wants).saturating_add(1));
        let (tli, bytes) = self.timeline.segment_before(segment_end.min(self.to)).await?;
        self.tli = tli;
        self.stream.enter_timeline(tli);
        self.fed = Some(wants);
        self.stream.feed(wants, bytes).map_err(|source| ReadError::Wal { tli, lsn: wants, source })
    }
}
