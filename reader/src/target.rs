//! What a restore target means: an LSN (PROTOCOLS.md §4).

use crate::error::{ReadError, TargetError};
use crate::timeline::{Readable, Timeline};
use crate::wal::LastRecord;
use futures::{StreamExt, TryStreamExt};
use zenith_layers::{Event, EventFilter, EventKind, EventLayer};
use zenith_pgformat::{Lsn, Tli, Xid};

/// Events layers read ahead at the same time.
const LAYERS_AHEAD: usize = 4;
/// Restore points that an error lists.
const LISTED_POINTS: usize = 20;

/// A restore target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Everything that is archived.
    Latest,
    /// Every record whose end is at most this.
    Lsn(Lsn),
    /// Up to just before the first commit or abort, in LSN order, that is later than this (`TimestampTz`).
    Time(i64),
    /// Up to and with the restore point of this name.
    Name(String),
    /// Up to and with the end of this transaction.
    Xid(Xid),
}

/// The LSN that a target means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The end of the last record that is in.
    pub lsn: Lsn,
    /// PostgreSQL's timeline of that record.
    pub tli: Tli,
    /// That record.
    pub last_record: LastRecord,
    /// The last commit that is in; `None` if there is none since the base image.
    pub last_commit: Option<Event>,
    /// When the state was the current one: the time of the last commit, abort, restore point or checkpoint in it.
    pub time: Option<i64>,
}

/// A restore point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestorePoint {
    /// Its name.
    pub name: String,
    /// The end of its record.
    pub lsn: Lsn,
    /// When it was made (`TimestampTz`).
    pub time: i64,
}

impl Timeline {
    /// What `target` means in this timeline. Call [`Timeline::slice_tail`] first where WAL that is not sliced yet counts.
    ///
    /// # Errors
    /// [`TargetError`] says what can be restored instead.
    pub async fn resolve(&self, target: &Target) -> Result<Resolved, TargetError> {
        let lsn = match target {
            Target::Latest => self.end()?,
            Target::Lsn(lsn) => self.checked(*lsn)?,
            Target::Time(time) => self.before_time(*time).await?,
            Target::Name(name) => self.named(name).await?,
            Target::Xid(xid) => self.transaction(*xid).await?,
        };
        // No event ends between the last record and this LSN.
        let (last_record, events) = futures::join!(self.last_record(lsn), self.last_events(lsn));
        let last_record = last_record?;
        let lsn = last_record.end;
        self.check(lsn)?;
        let (last_commit, time) = events?;
        Ok(Resolved { lsn, tli: self.tli_at(lsn)?, last_record, last_commit, time })
    }

    /// The restore points that can be restored, in LSN order, the newest `limit` of them.
    pub async fn restore_points(&self, limit: usize) -> Result<Vec<RestorePoint>, ReadError> {
        let mut newest_first: Vec<RestorePoint> = Vec::new();
        let upto = self.end()?;
        for layer in self.layers().event_layers(Lsn::INVALID, upto).iter().rev() {
            if newest_first.len() >= limit {
                break;
            }
            let filter = EventFilter::RestorePoint;
            let points = self.layers().find_events(layer, Lsn::INVALID, upto, filter).await?;
            let readable = points.into_iter().rev().filter(|point| self.check(point.lsn).is_ok());
            newest_first.extend(readable.map(RestorePoint::from));
        }
        newest_first.truncate(limit);
        newest_first.reverse();
        Ok(newest_first)
    }

    async fn named(&self, name: &str) -> Result<Lsn, TargetError> {
        let found = self.collect(EventFilter::Named(name)).await?;
        let (found, outside) = self.readable(found);
        match (found.as_slice(), outside) {
            ([one], _) => Ok(one.lsn),
            ([], Some(refusal)) => Err(refusal.into()),
            ([], None) => {
                let known = self.restore_points(LISTED_POINTS).await?;
                Err(TargetError::NoSuchName { name: name.to_owned(), known })
            }
            _ => {
                let found = found.into_iter().map(RestorePoint::from).collect();
                Err(TargetError::AmbiguousName { name: name.to_owned(), found })
            }
        }
    }

    async fn transaction(&self, xid: Xid) -> Result<Lsn, TargetError> {
        let mut found = self.collect(EventFilter::Xid(xid)).await?;
        found.retain(ends_transaction);
        let (found, outside) = self.readable(found);
        match (found.as_slice(), outside) {
            ([one], _) => Ok(one.lsn),
            ([], outside) => Err(TargetError::NoSuchXid { xid, outside: outside.is_some() }),
            _ => Err(TargetError::AmbiguousXid { xid, lsns: found.iter().map(|event| event.lsn).collect() }),
        }
    }

    /// The events that can be restored to, and why one of the others cannot.
    fn readable(&self, found: Vec<Event>) -> (Vec<Event>, Option<ReadError>) {
        let mut outside = None;
        let readable = found
            .into_iter()
            .filter(|event| match self.check(event.lsn) {
                Ok(()) => true,
                Err(refusal) => {
                    outside = Some(refusal);
                    false
                }
            })
            .collect();
        (readable, outside)
    }

    /// All archived events of a kind, in LSN order. Only what may hold one is read: neither a name nor a transaction's number
    /// says where in the history it is.
    async fn collect(&self, filter: EventFilter<'_>) -> Result<Vec<Event>, ReadError> {
        let upto = self.end()?;
        let layers = self.layers().event_layers(Lsn::INVALID, upto);
        let mut found = Vec::new();
        let mut read = futures::stream::iter(layers)
            .map(|layer| async move { self.layers().find_events(&layer, Lsn::INVALID, upto, filter).await })
            .buffered(LAYERS_AHEAD);
        while let Some(events) = read.try_next().await? {
            found.extend(events);
        }
        Ok(found)
    }

    /// The start of the first commit or abort later than `time`; the end of the archive if there is none.
    async fn before_time(&self, time: i64) -> Result<Lsn, TargetError> {
        let end = self.end()?;
        let mut newest: Option<i64> = None;
        let mut before: Option<Readable> = None;
        for range in self.ranges() {
            let mut scan = TimeScan::new(time);
            let layers = self.layers().event_layers(range.base.redo, range.to);
            scan.newest = layers.iter().filter_map(|layer| layer.entry.max_time).max();
            newest = newest.max(scan.newest);
            if let Some(start) = self.scan(&layers, &range, &mut scan).await? {
                // The state just before that record is the one of `time` only if something in this range is older:
                // the base image's checkpoint at least.
                let within = start >= range.from && scan.older;
                return if within {
                    Ok(start)
                } else {
                    Err(outside(time, start, before.as_ref(), &range, self))
                };
            }
            before = Some(range);
        }
        match newest {
            Some(newest) if newest >= time => Ok(end),
            newest => Err(TargetError::TimePastEnd { wanted: time, newest }),
        }
    }

    /// The start of the first commit or abort in the range that is later than the scan's time. Layers without any later
    /// time are not read.
    async fn scan(
        &self,
        layers: &[EventLayer],
        range: &Readable,
        scan: &mut TimeScan,
    ) -> Result<Option<Lsn>, ReadError> {
        for layer in layers {
            if layer.entry.max_time.is_some_and(|newest| newest <= scan.time) {
                scan.older = true;
                continue;
            }
            let events = self.layers().read_events(layer, range.base.redo, range.to).await?;
            if let Some(start) = scan.first_later(&events) {
                return Ok(Some(start));
            }
        }
        Ok(None)
    }

    /// The last commit at or below `lsn`, and the time of the last event of any kind.
    async fn last_events(&self, lsn: Lsn) -> Result<(Option<Event>, Option<i64>), ReadError> {
        let ranges = self.ranges();
        let range = ranges.iter().rev().find(|range| range.from <= lsn);
        let after = range.map_or(Lsn::INVALID, |range| range.base.redo);
        let mut time = None;
        for layer in self.layers().event_layers(after, lsn).iter().rev() {
            let events = self.layers().read_events(layer, after, lsn).await?;
            time = time.or(events.last().map(|event| event.time));
            if let Some(commit) = events.into_iter().rev().find(|event| event.kind.is_commit()) {
                return Ok((Some(commit), time));
            }
        }
        Ok((None, time))
    }
}

/// Looks for the first end of a transaction that is later than a time.
#[derive(Debug)]
struct TimeScan {
    time: i64,
    /// Something at or before the time was seen.
    older: bool,
    newest: Option<i64>,
}

impl TimeScan {
    fn new(time: i64) -> TimeScan {
        TimeScan { time, older: false, newest: None }
    }

    fn first_later(&mut self, events: &[Event]) -> Option<Lsn> {
        for event in events {
            if event.time <= self.time {
                self.older = true;
            } else if ends_transaction(event) {
                return Some(event.start);
            }
        }
        None
    }
}

/// Why the state just before the record at `start` is not that of `time`.
fn outside(
    time: i64,
    start: Lsn,
    before: Option<&Readable>,
    range: &Readable,
    timeline: &Timeline,
) -> TargetError {
    match before {
        Some(before) => {
            ReadError::InGap { lsn: start, before: before.to, after: range.from, timeline: timeline.id() }
                .into()
        }
        None => TargetError::TimeBeforeBase { wanted: time, earliest: range.from },
    }
}

fn ends_transaction(event: &Event) -> bool {
    event.kind.is_commit() || matches!(event.kind, EventKind::Abort | EventKind::AbortPrepared)
}

impl From<Event> for RestorePoint {
    fn from(event: Event) -> RestorePoint {
        RestorePoint { name: event.name, lsn: event.lsn, time: event.time }
    }
}
