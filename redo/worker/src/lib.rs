//! The library that a redo process loads: `postgres --single` that never becomes a server, but answers page requests from
//! shared memory with the server's own redo functions.
//!
//! 1. `_PG_init` (from `shared_preload_libraries`) replaces the storage manager by one that holds a single page.
//! 2. PostgreSQL goes on until its shared memory is complete, and calls `shmem_startup_hook`: that is
//!    [`serve::shared_memory_is_ready`], which takes the remaining steps of a startup process and never returns. Recovery
//!    never runs and no catalogue exists: the process stays where a server is *during* recovery, which is what redo
//!    functions expect.
//!
//! Anything that is not as expected ends the process with a sentence on stderr (fail closed): nothing is ever guessed.

mod redo;
mod serve;
mod smgr;

use std::ffi::CStr;

zenith_server_binary::module_magic!(pgrx_pg_sys);

/// Ends the process, saying why. Also used before PostgreSQL's own error handling can be relied on.
fn refuse(reason: &str) -> ! {
    let line = format!("zenith redo: {reason}\n");
    // SAFETY: a plain write, then the end; no exit handler of PostgreSQL shall run.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::_exit(1)
    }
}

/// PostgreSQL's entry point of a library.
#[unsafe(no_mangle)]
pub extern "C" fn _PG_init() {
    // SAFETY: single-threaded start-up; the globals are set long before libraries are loaded.
    unsafe {
        if pgrx_pg_sys::IsPostmasterEnvironment || pgrx_pg_sys::IsUnderPostmaster {
            refuse("this library is for Zenith's redo processes; a server must not preload it");
        }
        let name = c"server_version_num";
        let text = pgrx_pg_sys::GetConfigOption(name.as_ptr(), true, false);
        let version =
            if text.is_null() { "unknown" } else { CStr::from_ptr(text).to_str().unwrap_or("unknown") };
        if version.parse::<u32>().ok().map(|number| number / 10_000) != Some(15) {
            refuse(&format!("server_version_num is {version}: this library is for PostgreSQL 15"));
        }
        if let Err(reason) = smgr::install() {
            refuse(&reason);
        }
        pgrx_pg_sys::shmem_startup_hook = Some(serve::shared_memory_is_ready);
    }
}
