//! The storage manager of a redo process: it stores one page, the wanted one, and lets redo believe that all others exist
//! and need nothing.
//!
//! PostgreSQL finds its storage manager in a table of function pointers, `smgrsw[0]` (smgr.c), which has no symbol but whose
//! entries are the exported functions of md.c. It lies in the executable's RELRO segment, is found there by its contents, and
//! is used by every call site at run time.

use pgrx_pg_sys::{BLCKSZ, SMgrRelation};
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use zenith_pgformat::Page;
use zenith_redo::page;

/// The functions of `f_smgr`, in its order (smgr.c); md.c has none for `smgr_shutdown`.
const NAMES: [Option<&CStr>; 15] = [
    Some(c"mdinit"),
    None,
    Some(c"mdopen"),
    Some(c"mdclose"),
    Some(c"mdcreate"),
    Some(c"mdexists"),
    Some(c"mdunlink"),
    Some(c"mdextend"),
    Some(c"mdprefetch"),
    Some(c"mdread"),
    Some(c"mdwrite"),
    Some(c"mdwriteback"),
    Some(c"mdnblocks"),
    Some(c"mdtruncate"),
    Some(c"mdimmedsync"),
];

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

/// Replaces the server's storage manager. Its initialisation stays md.c's, which the server calls directly.
///
/// # Safety
/// While the process has one thread and has not used its storage manager.
pub(crate) unsafe fn install() -> Result<(), String> {
    // SAFETY: nothing else runs.
    let storage = unsafe { &mut *STORAGE.0.get() };
    // "Already applied" to every record; nothing to clear, nothing free, and never new.
    page::init(&mut storage.other);
    page::set_lsn(&mut storage.other, zenith_pgformat::Lsn::MAX);

    let table = find_table()?;
    let replacement: [*const c_void; 15] = [
        // SAFETY: the table is the one that `find_table` matched, which begins with `mdinit`.
        unsafe { *table },
        std::ptr::null(),
        open as *const c_void,
        close as *const c_void,
        create as *const c_void,
        exists as *const c_void,
        unlink as *const c_void,
        extend as *const c_void,
        prefetch as *const c_void,
        read as *const c_void,
        write as *const c_void,
        writeback as *const c_void,
        nblocks as *const c_void,
        truncate as *const c_void,
        immedsync as *const c_void,
    ];
    // SAFETY: `find_table` found exactly this table of the running server, mapped and aligned.
    unsafe {
        protect(table, libc::PROT_READ | libc::PROT_WRITE)?;
        table.cast::<[*const c_void; 15]>().cast_mut().write(replacement);
        protect(table, libc::PROT_READ)
    }
}

/// Changes the protection of the pages that hold the table.
unsafe fn protect(table: *const *const c_void, protection: c_int) -> Result<(), String> {
    // SAFETY: plain system calls; the table's pages stay mapped.
    unsafe {
        let page_size = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(4096);
        let start = table as usize & !(page_size - 1);
        let end = table as usize + size_of::<[*const c_void; 15]>();
        if libc::mprotect(start as *mut c_void, end - start, protection) == 0 {
            return Ok(());
        }
    }
    Err(format!("cannot change the server's storage manager table: {}", std::io::Error::last_os_error()))
}

/// The part of the executable that the dynamic linker made read-only after relocation.
unsafe extern "C" fn find_relro(info: *mut libc::dl_phdr_info, _: libc::size_t, out: *mut c_void) -> c_int {
    // SAFETY: the C library passes valid program headers; `out` is the pair that `find_table` passes.
    unsafe {
        let info = &*info;
        let is_executable = info.dlpi_name.is_null() || *info.dlpi_name == 0;
        if !is_executable || info.dlpi_phdr.is_null() {
            return 0;
        }
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        if let Some(relro) = headers.iter().find(|header| header.p_type == libc::PT_GNU_RELRO) {
            let start = (info.dlpi_addr + relro.p_vaddr) as usize;
            *out.cast::<(usize, usize)>() = (start, start + relro.p_memsz as usize);
        }
        // The executable is the first entry, and the only one of interest.
        1
    }
}

/// Finds `smgrsw[0]`: the one place in the executable's RELRO segment with the addresses of md.c's functions in order.
fn find_table() -> Result<*const *const c_void, String> {
    let mut wanted = [std::ptr::null::<c_void>(); 15];
    for (address, name) in wanted.iter_mut().zip(NAMES) {
        let Some(name) = name else { continue };
        // SAFETY: a look-up by name.
        *address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        if address.is_null() {
            return Err(format!(
                "this server does not export {}: it is not a stock PostgreSQL 15",
                name.to_string_lossy()
            ));
        }
    }
    let mut range = (0_usize, 0_usize);
    // SAFETY: `range` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(find_relro), (&raw mut range).cast()) };
    let (start, end) = range;
    let first = start.next_multiple_of(align_of::<*const c_void>()) as *const *const c_void;
    let count = end.saturating_sub(first as usize) / size_of::<*const c_void>();
    if start == 0 || count < wanted.len() {
        return Err(
            "this server's executable has no RELRO segment: its storage manager cannot be found".to_owned()
        );
    }
    // SAFETY: the segment is mapped and readable for as long as the executable is.
    let words = unsafe { std::slice::from_raw_parts(first, count) };
    let mut places = words.windows(wanted.len()).filter(|window| *window == wanted);
    match (places.next(), places.next()) {
        (Some(table), None) => Ok(table.as_ptr()),
        (None, _) => {
            Err("this server's storage manager table was not found: it is not a stock PostgreSQL 15"
                .to_owned())
        }
        (Some(_), Some(_)) => {
            Err("this server has more than one storage manager table: not a stock PostgreSQL 15".to_owned())
        }
    }
}
