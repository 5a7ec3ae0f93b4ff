//! The way past the guard: a file `backup_label` that is none ends every start, but PostgreSQL's start-up process does not find it
//! where this library is loaded.
//!
//! When a backend crashes, the postmaster runs recovery again without loading libraries anew; what was replaced in the postmaster is
//! so in every process that it forks.

use pgrx::prelude::*;
use std::ffi::{CStr, c_char, c_void};
use zenith_compute_dir::GUARD;
use zenith_server_binary::imports::Import;

/// Replaces the function by which the executable opens files.
pub(crate) fn replace(fopen: Import) -> Result<(), String> {
    // SAFETY: the signature is that of fopen(3); the postmaster has one thread.
    unsafe { fopen.replace(open_past_the_guard as *const c_void) }
}

/// The start-up process looks for the label before it does anything else, after a crash too: so this is where what the filler was
/// at is made whole.
#[pg_guard]
unsafe extern "C-unwind" fn open_past_the_guard(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    // SAFETY: as passed to fopen(3); the process's type is a plain number.
    unsafe {
        let is_startup = pg_sys::MyAuxProcType == pg_sys::AuxProcType::StartupProcess;
        if is_startup && !path.is_null() && CStr::from_ptr(path).to_bytes() == GUARD.as_bytes() {
            crate::fill::replay();
            *libc::__errno_location() = libc::ENOENT;
            return std::ptr::null_mut();
        }
        libc::fopen(path, mode)
    }
}
