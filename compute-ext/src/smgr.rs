//! Four functions of the storage manager, around those of md.c: everything else is PostgreSQL's own, on its own files.

use crate::locks::Lock;
use crate::{client, limits};
use pgrx::prelude::*;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;
use zenith_pgformat::{BLCKSZ, Fork, RelNode};
use zenith_server_binary::smgr::{StorageManager, entry};

// The signatures of md.h.
type Read = unsafe extern "C-unwind" fn(pg_sys::SMgrRelation, c_int, u32, *mut c_char);
type Write = unsafe extern "C-unwind" fn(pg_sys::SMgrRelation, c_int, u32, *mut c_char, bool);
type Unlink = unsafe extern "C-unwind" fn(pg_sys::RelFileNodeBackend, c_int, bool);
#[cfg(truncate_takes_old_blocks)]
type Truncate = unsafe extern "C-unwind" fn(pg_sys::SMgrRelation, c_int, u32, u32);
#[cfg(not(truncate_takes_old_blocks))]
type Truncate = unsafe extern "C-unwind" fn(pg_sys::SMgrRelation, c_int, u32);

/// What was there before.
struct Original {
    read: Read,
    write: Write,
    unlink: Unlink,
    truncate: Truncate,
}

static ORIGINAL: OnceLock<Original> = OnceLock::new();

/// `InvalidForkNumber`: all of them.
const ALL_FORKS: c_int = -1;
const FORKS: [Fork; 4] = [Fork::Main, Fork::Fsm, Fork::Vm, Fork::Init];

/// Puts them in their place.
pub(crate) fn replace(manager: StorageManager) -> Result<(), String> {
    let mut functions = manager.functions();
    // SAFETY: the functions are this server's, whose headers these signatures were compiled against.
    let original = unsafe {
        Original {
            read: std::mem::transmute::<*const c_void, Read>(functions[entry::READ]),
            write: std::mem::transmute::<*const c_void, Write>(functions[entry::WRITE]),
            unlink: std::mem::transmute::<*const c_void, Unlink>(functions[entry::UNLINK]),
            truncate: std::mem::transmute::<*const c_void, Truncate>(functions[entry::TRUNCATE]),
        }
    };
    ORIGINAL.set(original).map_err(|_| "loaded twice".to_owned())?;
    functions[entry::READ] = read as *const c_void;
    functions[entry::WRITE] = write as *const c_void;
    functions[entry::UNLINK] = unlink as *const c_void;
    functions[entry::TRUNCATE] = truncate as *const c_void;
    // SAFETY: the signatures are the same; the postmaster has one thread.
    unsafe { manager.replace(functions) }
}

/// The functions are in the table only after this was set.
fn original() -> &'static Original {
    match ORIGINAL.get() {
        Some(original) => original,
        None => error!("zenith_compute: the storage manager was replaced by somebody else"),
    }
}

/// A relation that other processes see; temporary ones are never restored.
fn shared(relation: &pg_sys::RelFileNodeBackend) -> Option<RelNode> {
    let node = relation.node;
    let node = RelNode { spc: node.spcNode.to_u32(), db: node.dbNode.to_u32(), rel: node.relNode.to_u32() };
    (relation.backend == pg_sys::InvalidBackendId).then_some(node)
}

fn fork_of(number: c_int) -> Option<Fork> {
    u8::try_from(number).ok().and_then(Fork::from_number)
}

/// The lock of a block that may have to be fetched.
unsafe fn lock_of(relation: pg_sys::SMgrRelation, fork_number: c_int, block: u32) -> Option<Lock> {
    // SAFETY: PostgreSQL passes a relation.
    let node = unsafe { shared(&(*relation).smgr_rnode) }?;
    let fork = fork_of(fork_number)?;
    (block < limits::limit(node, fork)).then(|| Lock::of(node, fork, block))
}

/// `smgr_read`: a page that is all zeros here and lies below its fork's limit is fetched. The file is not written: only what
/// PostgreSQL itself writes, and the filler, do that.
///
/// The limit is looked at first: the filler lowers it once the file has every page, so that zeros that are read then are what the
/// page is. A limit may also be lowered while the page is on its way, by whoever holds the relation's AccessExclusiveLock, or
/// replays what its holder did: nobody then reads what is cut off.
///
/// md.c's functions are called outside of every guard, here and below: caught and raised again, their errors would lose something. No
/// frame here has anything to clean up, and locks are PostgreSQL's, which releases them after an error.
unsafe extern "C-unwind" fn read(
    relation: pg_sys::SMgrRelation,
    fork_number: c_int,
    block: u32,
    buffer: *mut c_char,
) {
    // SAFETY: PostgreSQL passes a relation, and a buffer of a block's size.
    unsafe {
        let Some(lock) = lock_of(relation, fork_number, block) else {
            return (original().read)(relation, fork_number, block, buffer);
        };
        acquire(lock);
        (original().read)(relation, fork_number, block, buffer);
        release(lock);
        if crate::fill::is_zero(std::slice::from_raw_parts(buffer.cast::<u8>(), BLCKSZ)) {
            fetch(relation, fork_number, block, buffer);
        }
    }
}

/// Fetches a page into a buffer.
#[pg_guard]
unsafe extern "C-unwind" fn fetch(
    relation: pg_sys::SMgrRelation,
    fork_number: c_int,
    block: u32,
    buffer: *mut c_char,
) {
    // SAFETY: as above.
    let (node, page) = unsafe {
        let page = std::slice::from_raw_parts_mut(buffer.cast::<u8>(), BLCKSZ);
        (shared(&(*relation).smgr_rnode), page)
    };
    if let (Some(node), Some(fork)) = (node, fork_of(fork_number)) {
        page.copy_from_slice(&client::fetch(node, fork, block));
    }
}

#[pg_guard]
extern "C-unwind" fn acquire(lock: Lock) {
    lock.shared();
}

#[pg_guard]
extern "C-unwind" fn release(lock: Lock) {
    lock.release();
}

/// `smgr_write`: not while the filler is at that block.
unsafe extern "C-unwind" fn write(
    relation: pg_sys::SMgrRelation,
    fork_number: c_int,
    block: u32,
    buffer: *mut c_char,
    skip_fsync: bool,
) {
    // SAFETY: as PostgreSQL passed them.
    unsafe {
        let lock = lock_of(relation, fork_number, block);
        if let Some(lock) = lock {
            acquire(lock);
        }
        (original().write)(relation, fork_number, block, buffer, skip_fsync);
        if let Some(lock) = lock {
            release(lock);
        }
    }
}

/// `smgr_unlink`: what had that name is never fetched again.
unsafe extern "C-unwind" fn unlink(relation: pg_sys::RelFileNodeBackend, fork_number: c_int, is_redo: bool) {
    before_unlink(relation, fork_number);
    // SAFETY: as PostgreSQL passed them.
    unsafe { (original().unlink)(relation, fork_number, is_redo) };
}

#[pg_guard]
extern "C-unwind" fn before_unlink(relation: pg_sys::RelFileNodeBackend, fork_number: c_int) {
    let Some(node) = shared(&relation) else { return };
    let forks =
        FORKS.into_iter().filter(|fork| fork_number == ALL_FORKS || fork_of(fork_number) == Some(*fork));
    let lowered = forks.filter(|fork| limits::lower(node, *fork, 0)).count();
    wait_for_the_filler(lowered > 0);
}

/// Before a fork is truncated to `blocks`.
#[pg_guard]
unsafe extern "C-unwind" fn before_truncation(
    relation: pg_sys::SMgrRelation,
    fork_number: c_int,
    blocks: u32,
) {
    // SAFETY: PostgreSQL passes a relation.
    let node = unsafe { shared(&(*relation).smgr_rnode) };
    if let (Some(node), Some(fork)) = (node, fork_of(fork_number)) {
        wait_for_the_filler(limits::lower(node, fork, blocks));
    }
}

/// A batch that was begun before a limit was lowered may still write what lies above it.
fn wait_for_the_filler(lowered: bool) {
    if lowered {
        Lock::BATCH.shared();
        Lock::BATCH.release();
    }
}

/// `smgr_truncate`: what is cut off is never fetched again. In a critical section.
#[cfg(truncate_takes_old_blocks)]
unsafe extern "C-unwind" fn truncate(
    relation: pg_sys::SMgrRelation,
    fork_number: c_int,
    old_blocks: u32,
    blocks: u32,
) {
    // SAFETY: as PostgreSQL passed them.
    unsafe {
        before_truncation(relation, fork_number, blocks);
        (original().truncate)(relation, fork_number, old_blocks, blocks);
    }
}

/// `smgr_truncate` of older minor releases.
#[cfg(not(truncate_takes_old_blocks))]
unsafe extern "C-unwind" fn truncate(relation: pg_sys::SMgrRelation, fork_number: c_int, blocks: u32) {
    // SAFETY: as PostgreSQL passed them.
    unsafe {
        before_truncation(relation, fork_number, blocks);
        (original().truncate)(relation, fork_number, blocks);
    }
}
