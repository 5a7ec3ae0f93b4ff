//! The storage manager of a redo process: it stores one page, the wanted one, and lets redo believe that all others exist
//! and need nothing.

use pgrx_pg_sys::{BLCKSZ, SMgrRelation};
use std::cell::UnsafeCell;
use std::ffi::{c_char, c_int, c_void};
use zenith_pgformat::Page;
use zenith_redo::page;
use zenith_server_binary::smgr::{StorageManager, entry};

/// How many relations one request may touch: a record refers to at most 33 blocks, normally of one relation.
const MAX_OPENED: usize = 64;
/// Every block that redo may ask for lies below this (`MaxBlockNumber`).
pub(crate) const BLOCKS: u32 = 0xFFFF_FFFE;

/// A relation, a fork and a block as PostgreSQL numbers them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) node: (u32, u32, u32),
    pub(crate) fork: i32,
    pub(crate) block: u32,
}

/// What the storage manager knows; a redo process has one thread.
struct Storage {
    target: Block,
    page: *mut Page,
    opened: [SMgrRelation; MAX_OPENED],
    opened_count: usize,
    other: Page,
}

struct Single(UnsafeCell<Storage>);
// A redo process has one thread.
unsafe impl Sync for Single {}

static STORAGE: Single = Single(UnsafeCell::new(Storage {
    target: Block { node: (0, 0, 0), fork: 0, block: BLOCKS },
    page: std::ptr::null_mut(),
    opened: [std::ptr::null_mut(); MAX_OPENED],
    opened_count: 0,
    other: [0; BLCKSZ as usize],
}));

/// Names the wanted block and where its page lies until the next call.
pub(crate) fn set_target(target: Block, page: *mut Page) {
    // SAFETY: one thread, and no reference to the storage is held anywhere across this call.
    let storage = unsafe { &mut *STORAGE.0.get() };
    storage.target = target;
    storage.page = page;
}

/// The relations that PostgreSQL used since the last call.
pub(crate) fn take_opened(into: &mut [SMgrRelation; MAX_OPENED]) -> usize {
    // SAFETY: as above.
    let storage = unsafe { &mut *STORAGE.0.get() };
    *into = storage.opened;
    std::mem::take(&mut storage.opened_count)
}

/// Forgets what [`take_opened`] would return.
pub(crate) fn forget_opened() {
    // SAFETY: as above.
    unsafe { (*STORAGE.0.get()).opened_count = 0 };
}

/// Room for [`take_opened`].
pub(crate) const fn no_relations() -> [SMgrRelation; MAX_OPENED] {
    [std::ptr::null_mut(); MAX_OPENED]
}

/// Whether this is the wanted block, and its page.
unsafe fn target_page(reln: SMgrRelation, fork: c_int, block: u32) -> Option<*mut Page> {
    // SAFETY: PostgreSQL passes a valid relation; the storage as above.
    let (node, storage) = unsafe { ((*reln).smgr_rnode.node, &*STORAGE.0.get()) };
    let node = (node.spcNode.to_u32(), node.dbNode.to_u32(), node.relNode.to_u32());
    (storage.target == Block { node, fork, block }).then_some(storage.page)
}

extern "C" fn open(_: SMgrRelation) {}
extern "C" fn close(_: SMgrRelation, _: c_int) {}
extern "C" fn unlink(_: *const c_void, _: c_int, _: bool) {}
extern "C" fn writeback(_: SMgrRelation, _: c_int, _: u32, _: u32) {}
extern "C" fn truncate(_: SMgrRelation, _: c_int, _: u32) {}
extern "C" fn immedsync(_: SMgrRelation, _: c_int) {}

extern "C" fn prefetch(_: SMgrRelation, _: c_int, _: u32) -> bool {
    true
}

extern "C" fn create(reln: SMgrRelation, _: c_int, _: bool) {
    note(reln);
}

extern "C" fn exists(reln: SMgrRelation, _: c_int) -> bool {
    note(reln);
    true
}

/// As large as a relation can be, so that redo never believes a block to be missing and never extends anything.
extern "C" fn nblocks(reln: SMgrRelation, _: c_int) -> u32 {
    note(reln);
    BLOCKS
}

/// Remembers a relation. Whoever uses one asks for its size or creates it first; opening it is a call that the server's
/// compiler has made direct.
fn note(reln: SMgrRelation) {
    // SAFETY: as in `set_target`.
    let storage = unsafe { &mut *STORAGE.0.get() };
    let known = storage.opened.get(..storage.opened_count).unwrap_or_default();
    if known.contains(&reln) {
        return;
    }
    match storage.opened.get_mut(storage.opened_count) {
        Some(place) => *place = reln,
        None => crate::refuse("one record touches more than 64 relations"),
    }
    storage.opened_count += 1;
}

extern "C" fn extend(_: SMgrRelation, _: c_int, _: u32, _: *mut c_char, _: bool) {
    crate::refuse("redo tried to extend a relation");
}

extern "C" fn read(reln: SMgrRelation, fork: c_int, block: u32, buffer: *mut c_char) {
    // SAFETY: PostgreSQL passes a buffer of a block's size; the target's page is one, too.
    unsafe {
        note(reln);
        let source = match target_page(reln, fork, block) {
            Some(page) => page.cast_const(),
            None => &raw const (*STORAGE.0.get()).other,
        };
        std::ptr::copy_nonoverlapping(source.cast::<u8>(), buffer.cast(), BLCKSZ as usize);
    }
}

/// Only when buffers run short: the wanted page must survive that, the others must not.
extern "C" fn write(reln: SMgrRelation, fork: c_int, block: u32, buffer: *mut c_char, _: bool) {
    // SAFETY: as in `read`.
    unsafe {
        if let Some(page) = target_page(reln, fork, block) {
            std::ptr::copy_nonoverlapping(buffer.cast_const().cast::<u8>(), page.cast(), BLCKSZ as usize);
        }
    }
}

/// Replaces the server's storage manager.
///
/// # Safety
/// While the process has one thread and has not used its storage manager.
pub(crate) unsafe fn install() -> Result<(), String> {
    // SAFETY: nothing else runs.
    let storage = unsafe { &mut *STORAGE.0.get() };
    // "Already applied" to every record; nothing to clear, nothing free, and never new.
    page::init(&mut storage.other);
    page::set_lsn(&mut storage.other, zenith_pgformat::Lsn::MAX);

    let manager = StorageManager::find()?;
    // Its initialisation stays md.c's, which the server calls directly.
    let mut functions = manager.functions();
    for (number, function) in [
        (entry::OPEN, open as *const c_void),
        (entry::CLOSE, close as *const c_void),
        (entry::CREATE, create as *const c_void),
        (entry::EXISTS, exists as *const c_void),
        (entry::UNLINK, unlink as *const c_void),
        (entry::EXTEND, extend as *const c_void),
        (entry::PREFETCH, prefetch as *const c_void),
        (entry::READ, read as *const c_void),
        (entry::WRITE, write as *const c_void),
        (entry::WRITEBACK, writeback as *const c_void),
        (entry::NBLOCKS, nblocks as *const c_void),
        (entry::TRUNCATE, truncate as *const c_void),
        (entry::IMMEDSYNC, immedsync as *const c_void),
    ] {
        functions[number] = function;
    }
    // SAFETY: the signatures are those of md.c's functions, as far as they are used; the process has one thread.
    unsafe { manager.replace(functions) }
}
