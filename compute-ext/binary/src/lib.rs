//! What every library needs that a stock PostgreSQL loads ([`module_magic`]), and two places in the executable of a stock PostgreSQL 15 that a library loaded by it may change: the table of its storage
//! manager, and the slot by which it calls a function of the C library.
//!
//! Both lie in the executable's RELRO segment, which the dynamic linker makes read-only after relocation, and have no symbol. Each
//! is found by what it must hold, exactly once, else nothing is changed: a server that was built otherwise is refused.

pub mod imports;
mod magic;
pub mod smgr;

use std::ffi::{c_int, c_void};

/// The executable among what is loaded.
#[derive(Clone, Copy, Debug)]
struct Executable {
    /// What its addresses are relative to.
    base: usize,
    /// The RELRO segment: from, to.
    relro: (usize, usize),
    /// The dynamic section.
    dynamic: usize,
}

unsafe extern "C" fn first_object(info: *mut libc::dl_phdr_info, _: libc::size_t, out: *mut c_void) -> c_int {
    // SAFETY: the C library passes valid program headers; `out` is the one that `executable` passes.
    unsafe {
        let (info, out) = (&*info, &mut *out.cast::<Option<Executable>>());
        let is_executable = info.dlpi_name.is_null() || *info.dlpi_name == 0;
        if !is_executable || info.dlpi_phdr.is_null() {
            return 0;
        }
        let base = info.dlpi_addr as usize;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        let of_type = |wanted| headers.iter().find(|header| header.p_type == wanted);
        if let (Some(relro), Some(dynamic)) = (of_type(libc::PT_GNU_RELRO), of_type(libc::PT_DYNAMIC)) {
            let start = base + relro.p_vaddr as usize;
            let relro = (start, start + relro.p_memsz as usize);
            *out = Some(Executable { base, relro, dynamic: base + dynamic.p_vaddr as usize });
        }
        // The executable is the first entry, and the only one of interest.
        1
    }
}

fn executable() -> Result<Executable, String> {
    let mut found: Option<Executable> = None;
    // SAFETY: `found` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(first_object), (&raw mut found).cast()) };
    found
        .ok_or_else(|| "this server's executable has no RELRO segment: nothing can be found in it".to_owned())
}

/// Writes words into the RELRO segment.
///
/// # Safety
/// `place` is one of the executable's, as found here, and the words are what every user of it expects there.
unsafe fn write<const N: usize>(place: *mut *const c_void, words: [*const c_void; N]) -> Result<(), String> {
    let protect = |protection: c_int| {
        // SAFETY: plain system calls; the pages stay mapped.
        unsafe {
            let page_size = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(4096);
            let start = place as usize & !(page_size - 1);
            let end = place as usize + size_of::<[*const c_void; N]>();
            if libc::mprotect(start as *mut c_void, end - start, protection) == 0 {
                return Ok(());
            }
        }
        Err(format!("cannot change this server's executable in memory: {}", std::io::Error::last_os_error()))
    };
    protect(libc::PROT_READ | libc::PROT_WRITE)?;
    // SAFETY: the caller's; and it is writable now.
    unsafe { place.cast::<[*const c_void; N]>().write(words) };
    protect(libc::PROT_READ)
}
