//! This process's connection to the page service.
//!
//! One request at a time. While one is under way the connection belongs to it: a query that is cancelled meanwhile takes it along,
//! so that no later one meets an answer that is not its own.

use crate::wait::{self, For};
use crate::{directory, reader, settings};
use bytes::{Bytes, BytesMut};
use pgrx::prelude::*;
use rustix::io::{Errno, read, write};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use zenith_compute_dir::{Compute, FOLDER, PRIVATE_PORT, Reader};
use zenith_page_protocol::frontend::{self, Incoming, Refused};
use zenith_page_protocol::pagestream::{Answer, Code, MAX_BLOCKS, Request, Wanted};
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RELSEG_SIZE, RelNode, page};

/// Between two tries: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Received at once.
const RECEIVED: usize = 16 << 10;

/// A page stream.
struct Connection {
    socket: OwnedFd,
    received: BytesMut,
    /// The process that opened it: one that is forked later must not use it.
    process: u32,
    id: u64,
}

/// Kept between two requests.
static KEPT: Mutex<Option<Connection>> = Mutex::new(None);

/// Why there is no answer.
enum Trouble {
    /// It may pass.
    Wait(String),
    /// It will not.
    Fail(String),
}

impl Trouble {
    fn into_reason(self) -> String {
        match self {
            Trouble::Wait(reason) | Trouble::Fail(reason) => reason,
        }
    }
}

/// A request's time.
#[derive(Clone, Copy)]
struct Deadline {
    began: Instant,
    limit: Duration,
}

impl Deadline {
    fn left(&self) -> Option<Duration> {
        self.limit.checked_sub(self.began.elapsed()).filter(|left| !left.is_zero())
    }
}

/// Whether somebody listens.
pub(crate) fn answers() -> bool {
    directory::compute().is_some_and(|compute| open_socket(compute).is_ok())
}

/// A page as of the directory's LSN. Waits while the page service cannot give it, for `zenith.reader_timeout` at most.
///
/// Raises an error that names the block and what the service says, when it is cancelled, and when the server stops.
pub(crate) fn fetch(node: RelNode, fork: Fork, block: u32) -> Bytes {
    let Some(compute) = directory::compute() else {
        error!("zenith_compute: this data directory is not lazy");
    };
    let deadline = Deadline { began: wait::now(), limit: settings::reader_timeout() };
    let wanted = Wanted::Pages { node, fork, block, count: 1 };
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        let reason = match try_to_fetch(compute, wanted, deadline) {
            Ok(page) => {
                wait::give_wakes_back();
                return page;
            }
            Err(Trouble::Fail(reason)) => {
                refuse(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, compute, wanted, &reason)
            }
            Err(Trouble::Wait(reason)) => reason,
        };
        let Some(left) = deadline.left() else {
            let waited = deadline.limit.as_secs();
            let reason = format!("{reason} (waited for {waited} s: zenith.reader_timeout)");
            refuse(PgSqlErrorCode::ERRCODE_IO_ERROR, compute, wanted, &reason)
        };
        if !told {
            ereport!(
                LOG,
                PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!("zenith_compute: waiting for {}: {reason}", describe(wanted))
            );
            told = true;
        }
        reader::ensure();
        wait::pause(jittered(pause, deadline).min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Blocks of a fork that follow one another, or why they cannot be had.
pub(crate) struct Range {
    pub(crate) first: u32,
    pub(crate) pages: Result<Vec<Bytes>, String>,
}

/// Many blocks of a fork as of the directory's LSN, asked for all at once. Waits while the page service cannot give them, until the
/// server stops.
pub(crate) fn fetch_many(node: RelNode, fork: Fork, blocks: &[u32]) -> Vec<Range> {
    let Some(compute) = directory::compute() else { return Vec::new() };
    let wanted: Vec<Wanted> = blocks
        .chunk_by(|one, next| one + 1 == *next)
        .flat_map(|run| run.chunks(usize::from(MAX_BLOCKS)))
        .filter_map(|run| {
            let count = u16::try_from(run.len()).ok()?;
            Some(Wanted::Pages { node, fork, block: *run.first()?, count })
        })
        .collect();
    let mut told = false;
    let mut pause = FIRST_PAUSE;
    loop {
        let deadline = Deadline { began: wait::now(), limit: settings::reader_timeout() };
        let reason = match try_to_fetch_many(compute, &wanted, deadline) {
            Ok(ranges) => return ranges,
            Err(Trouble::Fail(reason) | Trouble::Wait(reason)) => reason,
        };
        if !told {
            ereport!(
                LOG,
                PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!("zenith_compute: the filler waits for pages: {reason}")
            );
            told = true;
        }
        reader::ensure();
        wait::pause(jittered(pause, deadline));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn try_to_fetch_many(
    compute: &Compute,
    wanted: &[Wanted],
    deadline: Deadline,
) -> Result<Vec<Range>, Trouble> {
    let mut connection = match take() {
        Some(connection) => connection,
        None => Connection::open(compute, deadline)?,
    };
    let answers = connection.ask_all(compute.lsn, wanted, deadline)?;
    keep(connection);
    let ranges = wanted.iter().zip(answers).map(|(wanted, answer)| {
        let Wanted::Pages { block: first, count, .. } = *wanted else {
            return Err(Trouble::Fail("no pages were asked for".to_owned()));
        };
        let pages = match answer {
            Answer::Pages(pages) if pages.len() == usize::from(count) => {
                let checked = pages.iter().map(|page| checked(page, compute.lsn));
                checked.collect::<Result<Vec<Bytes>, Trouble>>().map_err(Trouble::into_reason)
            }
            Answer::Error { code: Code::Retry | Code::NotYet, message } => {
                return Err(Trouble::Wait(message));
            }
            Answer::Error { message, .. } => Err(message),
            _ => Err("the page service answered another question".to_owned()),
        };
        Ok(Range { first, pages })
    });
    ranges.collect()
}

fn keep(connection: Connection) {
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
}

fn refuse(code: PgSqlErrorCode, compute: &Compute, wanted: Wanted, reason: &str) -> ! {
    let lsn = compute.lsn;
    let log = match &compute.reader {
        Reader::Private { .. } => format!("The page service's log is {}.", zenith_compute_dir::READER_LOG),
        Reader::Shared { host, .. } => format!("The page service is the one at {host}."),
    };
    ereport!(ERROR, code, format!("could not fetch {} as of LSN {lsn}: {reason}", describe(wanted)), log);
}

/// As PostgreSQL names blocks.
fn describe(wanted: Wanted) -> String {
    let (node, fork, block) = match wanted {
        Wanted::Pages { node, fork, block, .. } => (node, fork, block),
        Wanted::Relation { node, fork } => (node, fork, 0),
    };
    let path = RelFile { node, fork, segment: block / RELSEG_SIZE }.path();
    format!("block {block} in file \"{path}\"")
}

/// Between half and all of it: those who wait must not all come at once.
fn jittered(pause: Duration, deadline: Deadline) -> Duration {
    let seed = deadline.began.elapsed().subsec_nanos() ^ std::process::id().rotate_left(16);
    pause / 2 + pause.mul_f64(f64::from(seed % 1000) / 2000.0)
}

fn try_to_fetch(compute: &Compute, wanted: Wanted, deadline: Deadline) -> Result<Bytes, Trouble> {
    let mut connection = match take() {
        Some(connection) => connection,
        None => Connection::open(compute, deadline)?,
    };
    let answer = connection.ask(compute.lsn, wanted, deadline)?;
    // It is in step: whatever the answer, it can be used again.
    keep(connection);
    match answer {
        Answer::Pages(pages) => match pages.as_slice() {
            [page] => checked(page, compute.lsn),
            pages => Err(Trouble::Fail(format!("the page service gave {} pages", pages.len()))),
        },
        Answer::Error { code: Code::Retry | Code::NotYet, message } => Err(Trouble::Wait(message)),
        Answer::Error { code: Code::Gone | Code::Corrupt, message } => Err(Trouble::Fail(message)),
        Answer::Relation(_) => Err(Trouble::Fail("the page service answered another question".to_owned())),
    }
}

/// What would be wrong at any rate; checksums are PostgreSQL's to check.
fn checked(bytes: &Bytes, lsn: Lsn) -> Result<Bytes, Trouble> {
    let whole: &zenith_pgformat::Page = match bytes[..].try_into() {
        Ok(whole) => whole,
        Err(_) => {
            return Err(Trouble::Fail(format!("the page service gave {} bytes, not {BLCKSZ}", bytes.len())));
        }
    };
    match page::lsn(whole) {
        later if later > lsn => Err(Trouble::Fail(format!("the page service gave a page of LSN {later}"))),
        _ => Ok(bytes.clone()),
    }
}

/// The connection that is kept, if it is this process's own.
fn take() -> Option<Connection> {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).take();
    kept.filter(|connection| connection.process == std::process::id())
}

fn open_socket(compute: &Compute) -> Result<OwnedFd, Trouble> {
    let path = match &compute.reader {
        Reader::Private { .. } => format!("{FOLDER}/.s.PGSQL.{PRIVATE_PORT}"),
        Reader::Shared { host, port } => format!("{host}/.s.PGSQL.{port}"),
    };
    let lost = |error: Errno| Trouble::Wait(format!("the page service at {path} cannot be reached: {error}"));
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(lost)?;
    let address = SocketAddrUnix::new(path.as_str()).map_err(lost)?;
    connect(&socket, &address).map_err(lost)?;
    Ok(socket)
}

impl Connection {
    fn open(compute: &Compute, deadline: Deadline) -> Result<Connection, Trouble> {
        let socket = open_socket(compute)?;
        let process = std::process::id();
        let mut connection = Connection { socket, received: BytesMut::new(), process, id: 0 };
        connection.send(&frontend::startup("zenith_compute", &compute.timeline), deadline)?;
        connection.until(&Incoming::Ready, deadline)?;
        connection.send(&frontend::query(&format!("pagestream {}", compute.timeline)), deadline)?;
        connection.until(&Incoming::CopyBoth, deadline)?;
        Ok(connection)
    }

    /// The answer to a request.
    fn ask(&mut self, lsn: Lsn, wanted: Wanted, deadline: Deadline) -> Result<Answer, Trouble> {
        let answer = self.ask_all(lsn, &[wanted], deadline)?.pop();
        answer.ok_or_else(|| Trouble::Wait("the page service did not answer".to_owned()))
    }

    /// The answers to requests that do not wait for one another, in their order: no more of them than the service takes before
    /// its answers are taken.
    fn ask_all(&mut self, lsn: Lsn, wanted: &[Wanted], deadline: Deadline) -> Result<Vec<Answer>, Trouble> {
        let first = self.id;
        for wanted in wanted {
            let request = Request { id: self.id, lsn, wanted: *wanted }.encode();
            self.send(&frontend::copy_data(&request), deadline)?;
            self.id += 1;
        }
        let mut answers: Vec<Option<Answer>> = wanted.iter().map(|_| None).collect();
        let mut missing = answers.len();
        while missing > 0 {
            let Incoming::CopyData(content) = self.next(deadline)? else { continue };
            let (id, answer) = Answer::decode(&content).map_err(|error| Trouble::Wait(error.to_string()))?;
            let place =
                id.checked_sub(first).and_then(|number| answers.get_mut(usize::try_from(number).ok()?));
            let place = place.ok_or_else(|| Trouble::Wait("an answer to no request".to_owned()))?;
            missing -= usize::from(place.is_none());
            *place = Some(answer);
        }
        Ok(answers.into_iter().flatten().collect())
    }

    fn until(&mut self, wanted: &Incoming, deadline: Deadline) -> Result<(), Trouble> {
        while self.next(deadline)? != *wanted {}
        Ok(())
    }

    fn next(&mut self, deadline: Deadline) -> Result<Incoming, Trouble> {
        loop {
            match frontend::next(&mut self.received).map_err(|error| Trouble::Wait(error.to_string()))? {
                Some(Incoming::Error(refused)) => return Err(of_refusal(&refused)),
                Some(Incoming::CopyDone) => return Err(Trouble::Wait("the page service stops".to_owned())),
                Some(Incoming::Authentication(_)) => {
                    return Err(Trouble::Fail("the page service asks for a password".to_owned()));
                }
                Some(message) => return Ok(message),
                None => self.receive(deadline)?,
            }
        }
    }

    fn receive(&mut self, deadline: Deadline) -> Result<(), Trouble> {
        let mut bytes = [0; RECEIVED];
        loop {
            match read(&self.socket, &mut bytes) {
                Ok(0) => return Err(Trouble::Wait("the page service closed the connection".to_owned())),
                Ok(count) => {
                    self.received.extend_from_slice(&bytes[..count]);
                    return Ok(());
                }
                Err(Errno::AGAIN) => self.wait(For::Reading, deadline)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Deadline) -> Result<(), Trouble> {
        while !bytes.is_empty() {
            match write(&self.socket, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN) => self.wait(For::Writing, deadline)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(())
    }

    fn wait(&self, what: For, deadline: Deadline) -> Result<(), Trouble> {
        let left =
            deadline.left().ok_or_else(|| Trouble::Wait("the page service does not answer".to_owned()))?;
        wait::socket(self.socket.as_fd(), what, left);
        Ok(())
    }
}

fn broken(error: Errno) -> Trouble {
    Trouble::Wait(format!("the connection to the page service broke: {error}"))
}

/// Out of resources, or about to stop or to start: that passes. Anything else is an answer.
fn of_refusal(refused: &Refused) -> Trouble {
    match refused.sqlstate.get(..2) {
        Some("53" | "57" | "08") => Trouble::Wait(refused.to_string()),
        _ => Trouble::Fail(refused.to_string()),
    }
}
