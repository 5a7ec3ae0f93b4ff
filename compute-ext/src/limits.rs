//! The limits of this directory's forks, mapped into the memory of every process.
//!
//! Lowering one happens in critical sections: it allocates nothing, and what fails there is a PANIC, as PostgreSQL's own truncation
//! would be. It is durable before the file changes; else a crash could bring pages back that were truncated away.

use pgrx::prelude::*;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync};
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::fs::File;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use zenith_compute_dir::LIMITS;
use zenith_compute_dir::limits::{Limit, Limits};
use zenith_pgformat::{Fork, Oid, RelNode};

static MAPPED: OnceLock<Limits<'static>> = OnceLock::new();
static BASE: OnceLock<(usize, usize)> = OnceLock::new();

/// Maps and checks the file, in the postmaster: the processes that it forks share the mapping.
pub(crate) fn map() -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot map {LIMITS}: {error}");
    let file = File::options().read(true).write(true).open(LIMITS).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let length = usize::try_from(length).ok().filter(|length| *length > 0);
    let length = length.ok_or_else(|| format!("{LIMITS} is damaged (empty): restore the directory anew"))?;
    // SAFETY: a new mapping, which is never unmapped. Only processes of this server change the file, through it.
    let words: &'static [AtomicU32] = unsafe {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let base = mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, &file, 0);
        let base = base.map_err(|error| failed(error.into()))?;
        std::slice::from_raw_parts(base.cast(), length / size_of::<AtomicU32>())
    };
    let limits = Limits::check(words).map_err(|error| error.to_string())?;
    let twice = |_| "loaded twice".to_owned();
    BASE.set((words.as_ptr() as usize, length)).map_err(|_| "loaded twice".to_owned())?;
    MAPPED.set(limits).map_err(twice)
}

fn slot(node: RelNode, fork: Fork) -> Option<Limit<'static>> {
    MAPPED.get()?.find(node, fork)
}

/// Blocks from here on are never fetched.
pub(crate) fn limit(node: RelNode, fork: Fork) -> u32 {
    slot(node, fork).map_or(0, |slot| slot.get())
}

/// Lowers a fork's limit, durably. `false`: it never had pages to be fetched.
pub(crate) fn lower(node: RelNode, fork: Fork, to: u32) -> bool {
    let Some(slot) = slot(node, fork) else { return false };
    slot.lower(to);
    // Also one that was as low already: whoever lowered it may have died before it was durable.
    sync(slot.offset, 4);
    true
}

/// Every fork that was not empty when the directory was written.
pub(crate) fn all() -> impl Iterator<Item = Limit<'static>> {
    MAPPED.get().into_iter().flat_map(|limits| limits.iter())
}

/// Forks of a database that still have pages to be fetched.
pub(crate) fn unfilled(db: Oid) -> usize {
    let slots = MAPPED.get().into_iter().flat_map(|limits| limits.of_database(db));
    slots.filter(|slot| slot.get() > 0).count()
}

/// The databases that have forks with pages to be fetched.
pub(crate) fn databases() -> BTreeSet<Oid> {
    all().filter(|slot| slot.get() > 0 && slot.node().db != 0).map(|slot| slot.node().db).collect()
}

/// Sets the limits of a database to 0, durably: of its files in one tablespace, or in all.
pub(crate) fn retire(db: Oid, tablespace: Option<Oid>) {
    let Some(limits) = MAPPED.get() else { return };
    let mut lowered = false;
    for slot in limits.of_database(db) {
        if tablespace.is_none_or(|tablespace| slot.node().spc == tablespace) {
            slot.lower(0);
            lowered = true;
        }
    }
    if let (true, Some((_, length))) = (lowered, BASE.get()) {
        sync(0, *length);
    }
}

/// Makes bytes of the file durable.
fn sync(offset: usize, length: usize) {
    let Some((base, _)) = BASE.get() else { return };
    let page_size = rustix::param::page_size();
    let start = (base + offset) & !(page_size - 1);
    // SAFETY: within the mapping, which is never unmapped.
    let synced = unsafe { msync(start as *mut c_void, base + offset + length - start, MsyncFlags::SYNC) };
    if let Err(error) = synced {
        ereport!(PANIC, PgSqlErrorCode::ERRCODE_IO_ERROR, format!("could not sync {LIMITS}: {error}"));
    }
}
