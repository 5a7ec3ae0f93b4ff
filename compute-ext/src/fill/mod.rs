//! The filler: a background worker that fetches the pages that nobody has asked for, until all are here. Then it removes the guard,
//! and the directory is a plain one.
//!
//! A batch is blocks of one file. Under the locks of its blocks, what of it is still zeros goes to the journal, then into the file, and
//! is retired from the journal before the locks are released: whatever the server writes to those blocks comes before or after, so
//! that replaying a batch that is not retired never puts an old page over a newer one.

mod files;

use crate::locks::Lock;
use crate::{client, directory, limits, settings, wait};
use files::{Journal, Segment, segment_of};
use pgrx::prelude::*;
use std::ffi::{CStr, c_char, c_int};
use std::io::{Error, ErrorKind};
use std::time::Duration;
use zenith_compute_dir::journal::{Entry, JOURNAL, MAX_PAGES};
use zenith_compute_dir::limits::Limit;
use zenith_compute_dir::{COMPUTE, FILLED, FOLDER, GUARD, LIMITS, NO_COPIES, PIN};
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::{BLCKSZ, Fork, RELSEG_SIZE, RelNode, page};

const NAME: &CStr = c"zenith filler";
const MAIN: &CStr = c"zenith_fill_main";
/// The postmaster starts it again after so many seconds.
const RESTART: c_int = 5;
/// Between two looks at a setting, and two passes over what could not be filled.
const SWITCHED_OFF: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(30);

unsafe extern "C-unwind" {
    // tcop/tcopprot.h and postmaster/interrupt.h: handlers, to be passed on as they are.
    fn die(signal: c_int);
    fn SignalHandlerForConfigReload(signal: c_int);
}

pub(crate) fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(16).all(|part| part == [0; 16])
}

/// Has the postmaster start the filler once recovery is over.
pub(crate) fn register() -> Result<(), String> {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: pg_sys::BGWORKER_SHMEM_ACCESS as c_int,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
        bgw_restart_time: RESTART,
        ..Default::default()
    };
    put(&mut worker.bgw_name, NAME)?;
    put(&mut worker.bgw_type, NAME)?;
    put(&mut worker.bgw_library_name, own_path()?)?;
    put(&mut worker.bgw_function_name, MAIN)?;
    // SAFETY: a whole description, which is copied.
    unsafe { pg_sys::RegisterBackgroundWorker(&raw mut worker) };
    Ok(())
}

fn put(place: &mut [c_char; 96], text: &CStr) -> Result<(), String> {
    let bytes = text.to_bytes_with_nul();
    if bytes.len() > place.len() {
        return Err(format!(
            "{} is longer than the {} bytes that PostgreSQL takes",
            text.to_string_lossy(),
            95
        ));
    }
    place.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte.cast_signed());
    Ok(())
}

/// Where this library was loaded from.
fn own_path() -> Result<&'static CStr, String> {
    // SAFETY: an address of this library, which stays loaded, and with it its name.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(zenith_fill_main as *const libc::c_void, &raw mut info) == 0
            || info.dli_fname.is_null()
        {
            return Err("this library's own path is not known".to_owned());
        }
        Ok(CStr::from_ptr(info.dli_fname))
    }
}

/// The background worker's entry point.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn zenith_fill_main(_argument: pg_sys::Datum) {
    // SAFETY: handlers that PostgreSQL has for this.
    unsafe {
        pg_sys::pqsignal(libc::SIGTERM, Some(die));
        pg_sys::pqsignal(libc::SIGHUP, Some(SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
    let journal = Journal::open().unwrap_or_else(|error| stop(&format!("cannot open {JOURNAL}"), &error));
    while !fill_all(&journal) {
        pause(AGAIN);
    }
    finish().unwrap_or_else(|error| stop("cannot remove the guard", &error));
}

/// Ends the worker; the postmaster starts it again.
fn stop(what: &str, error: &Error) -> ! {
    ereport!(ERROR, PgSqlErrorCode::ERRCODE_IO_ERROR, format!("zenith_compute: {what}: {error}"));
}

/// A state that only recovery can mend.
fn crash(what: &str, error: &Error) -> ! {
    ereport!(PANIC, PgSqlErrorCode::ERRCODE_IO_ERROR, format!("zenith_compute: {what}: {error}"));
}

fn pause(most: Duration) {
    wait::pause(most);
    // SAFETY: plain globals; the configuration is read as by any background worker.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Fills what it can of every fork, catalogs first: each connection reads those. Whether all are filled.
fn fill_all(journal: &Journal) -> bool {
    let mut forks: Vec<Limit> = limits::all().filter(|limit| limit.get() > 0).collect();
    forks.sort_by_key(|limit| limit.node().rel >= pg_sys::FirstNormalObjectId);
    let mut all = true;
    for limit in forks {
        let Some(fork) = limit.fork() else { continue };
        match fill_fork(journal, &limit, fork) {
            Ok(()) => {
                limits::lower(limit.node(), fork, 0);
            }
            Err(reason) => {
                all = false;
                ereport!(
                    WARNING,
                    PgSqlErrorCode::ERRCODE_IO_ERROR,
                    format!(
                        "zenith_compute: {} is not filled: {reason}",
                        RelFile { node: limit.node(), fork, segment: 0 }.path()
                    )
                );
            }
        }
    }
    all
}

/// Fetches every page of a fork that is not here.
fn fill_fork(journal: &Journal, limit: &Limit, fork: Fork) -> Result<(), String> {
    let node = limit.node();
    let mut missed = None;
    for start in (0..limit.get()).step_by(MAX_PAGES) {
        while !settings::fill() {
            pause(SWITCHED_OFF);
        }
        let began = wait::now();
        let place = RelFile { node, fork, segment: start / RELSEG_SIZE };
        let Some(segment) = Segment::open(&place).map_err(|error| error.to_string())? else {
            // Dropped: its limit is 0 then.
            return if limit.get() == 0 { Ok(()) } else { Err("its file is gone".to_owned()) };
        };
        let end = start.saturating_add(MAX_PAGES as u32).min(limit.get());
        let holes = if end > start {
            segment.holes(start, end).map_err(|error| error.to_string())?
        } else {
            Vec::new()
        };
        let fetched = fill_batch(journal, &segment, limit, fork, &holes).unwrap_or_else(|reason| {
            missed = Some(reason);
            0
        });
        if let Some(rate) = settings::fill_rate() {
            let due = Duration::from_micros(fetched * 1_000_000 / rate);
            due.checked_sub(began.elapsed()).into_iter().for_each(pause);
        }
        pgrx::check_for_interrupts!();
    }
    missed.map_or(Ok(()), Err)
}

/// Fills holes of one segment. The bytes that were fetched.
fn fill_batch(
    journal: &Journal,
    segment: &Segment,
    limit: &Limit,
    fork: Fork,
    holes: &[u32],
) -> Result<u64, String> {
    if holes.is_empty() {
        return Ok(0);
    }
    let node = limit.node();
    let (mut batch, mut missed) = (Vec::with_capacity(holes.len()), None);
    for range in client::fetch_many(node, fork, holes) {
        match range.pages {
            Ok(pages) => {
                for (bytes, block) in pages.iter().zip(range.first..) {
                    batch.extend(entry(node, fork, block, bytes)?);
                }
            }
            Err(reason) => missed = Some(reason),
        }
    }
    if let (Some(first), Some(last)) = (batch.first(), batch.last()) {
        segment.make_room(first.block, last.block).map_err(|error| error.to_string())?;
        let bytes = batch.len() as u64 * BLCKSZ as u64;
        let held = lock(&batch);
        let written = write_batch(journal, segment, limit, batch);
        held.into_iter().rev().for_each(Lock::release);
        written.map_err(|error| format!("{JOURNAL}: {error}"))?;
        return missed.map_or(Ok(bytes), Err);
    }
    missed.map_or(Ok(0), Err)
}

/// A page to be written; none for one that is zeros.
fn entry(node: RelNode, fork: Fork, block: u32, bytes: &[u8]) -> Result<Option<Entry>, String> {
    if is_zero(bytes) {
        return Ok(None);
    }
    let page: Box<zenith_pgformat::Page> =
        Box::new(bytes.try_into().map_err(|_| format!("block {block} came with {} bytes", bytes.len()))?);
    // SAFETY: a plain flag of shared memory.
    let checksums = unsafe { pg_sys::DataChecksumsEnabled() };
    page::verify(&page, block, checksums).map_err(|error| format!("block {block}: {error}"))?;
    Ok(Some(Entry { node, fork, block, page }))
}

/// Into the journal, and from there into the file. A batch that has reached the journal must not be seen by halves: what fails from
/// then on ends in recovery, which replays it.
fn write_batch(
    journal: &Journal,
    segment: &Segment,
    limit: &Limit,
    mut batch: Vec<Entry>,
) -> Result<(), Error> {
    batch.retain(|entry| {
        entry.block < limit.get()
            && segment.holes(entry.block, entry.block + 1).is_ok_and(|holes| holes == [entry.block])
    });
    let retire = || {
        journal.retire().unwrap_or_else(|error| crash(&format!("could not write {JOURNAL}"), &error));
    };
    if let Err(error) = journal.write(&batch) {
        // Perhaps it is there all the same.
        retire();
        return Err(error);
    }
    let written = batch.iter().try_for_each(|entry| segment.write(entry)).and_then(|()| segment.sync());
    written.unwrap_or_else(|error| crash("could not write a relation's file", &error));
    retire();
    Ok(())
}

/// The batch's lock, and those of its blocks.
fn lock(batch: &[Entry]) -> Vec<Lock> {
    let mut locks: Vec<Lock> =
        batch.iter().map(|entry| Lock::of(entry.node, entry.fork, entry.block)).collect();
    locks.sort_unstable();
    locks.dedup();
    locks.insert(0, Lock::BATCH);
    locks.iter().for_each(|lock| lock.exclusive());
    locks
}

/// Makes whole what the filler was at when the server crashed: in the start-up process, before anything else touches those blocks.
pub(crate) fn replay() {
    if directory::compute().is_none() {
        return;
    }
    let failed = |error: Error| {
        ereport!(
            FATAL,
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("zenith_compute: could not replay {JOURNAL}: {error}")
        );
    };
    replay_journal().unwrap_or_else(failed);
}

fn replay_journal() -> Result<(), Error> {
    let journal = Journal::open()?;
    let batch = journal.read()?;
    for entry in &batch {
        if entry.block >= limits::limit(entry.node, entry.fork) {
            continue;
        }
        if let Some(segment) = Segment::open(&segment_of(entry))? {
            segment.write(entry)?;
            segment.sync()?;
        }
    }
    if batch.is_empty() { Ok(()) } else { journal.retire() }
}

/// All pages are here, durably: nothing of this is needed any more. The guard goes first: without what comes after it the library
/// would do this again.
fn finish() -> Result<(), Error> {
    let remove = |path: &str| match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let sync = |directory: &str| std::fs::File::open(directory)?.sync_all();
    remove(GUARD)?;
    remove(NO_COPIES)?;
    sync(".")?;
    std::fs::rename(COMPUTE, FILLED)?;
    sync(FOLDER)?;
    remove(JOURNAL)?;
    remove(LIMITS)?;
    sync(FOLDER)?;
    let pin = std::fs::read_to_string(PIN).map_or(String::new(), |pin| {
        format!(" Its history in the store is not needed any more: zenith pin end {}.", pin.trim())
    });
    ereport!(
        LOG,
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        format!(
            "zenith_compute: all pages of this data directory are here: take the library out of shared_preload_libraries.{pin}"
        )
    );
    Ok(())
}
