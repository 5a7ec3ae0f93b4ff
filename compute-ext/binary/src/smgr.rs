//! The table of the storage manager's functions: `smgrsw[0]` (smgr.c), whose entries are the exported functions of md.c. Every
//! call site loads the function from the table, those of `mdinit` and `mdopen` aside, which the compiler has made direct.

use std::ffi::{CStr, c_void};

/// How many functions there are (`f_smgr`, smgr.c).
pub const ENTRIES: usize = 15;
/// The functions, in the order of `f_smgr`.
pub type Table = [*const c_void; ENTRIES];

/// Where each function stands in the table.
pub mod entry {
    /// `mdinit`, which the server calls directly.
    pub const INIT: usize = 0;
    /// `mdopen`, which the server calls directly.
    pub const OPEN: usize = 2;
    /// `mdclose`
    pub const CLOSE: usize = 3;
    /// `mdcreate`
    pub const CREATE: usize = 4;
    /// `mdexists`
    pub const EXISTS: usize = 5;
    /// `mdunlink`
    pub const UNLINK: usize = 6;
    /// `mdextend`
    pub const EXTEND: usize = 7;
    /// `mdprefetch`
    pub const PREFETCH: usize = 8;
    /// `mdread`
    pub const READ: usize = 9;
    /// `mdwrite`
    pub const WRITE: usize = 10;
    /// `mdwriteback`
    pub const WRITEBACK: usize = 11;
    /// `mdnblocks`
    pub const NBLOCKS: usize = 12;
    /// `mdtruncate`
    pub const TRUNCATE: usize = 13;
    /// `mdimmedsync`
    pub const IMMEDSYNC: usize = 14;
}

/// md.c has none for `smgr_shutdown`.
const NAMES: [Option<&CStr>; ENTRIES] = [
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

/// The running server's storage manager.
#[derive(Debug)]
pub struct StorageManager {
    place: *mut *const c_void,
    functions: Table,
}

impl StorageManager {
    /// Finds it: the one place in the executable's RELRO segment with the addresses of md.c's functions in order.
    ///
    /// # Errors
    /// What makes this no stock PostgreSQL 15.
    pub fn find() -> Result<StorageManager, String> {
        let mut functions = [std::ptr::null::<c_void>(); ENTRIES];
        for (address, name) in functions.iter_mut().zip(NAMES) {
            let Some(name) = name else { continue };
            // SAFETY: a look-up by name.
            *address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            if address.is_null() {
                let name = name.to_string_lossy();
                return Err(format!("this server does not export {name}: it is not a stock PostgreSQL 15"));
            }
        }
        let (start, end) = crate::executable()?.relro;
        let first = start.next_multiple_of(align_of::<*const c_void>()) as *const *const c_void;
        let count = end.saturating_sub(first as usize) / size_of::<*const c_void>();
        // SAFETY: the segment is mapped and readable for as long as the executable is.
        let words = unsafe { std::slice::from_raw_parts(first, count) };
        let mut places = words.windows(ENTRIES).filter(|window| *window == functions);
        match (places.next(), places.next()) {
            (Some(place), None) => Ok(StorageManager { place: place.as_ptr().cast_mut(), functions }),
            (None, _) => {
                Err("this server's storage manager table was not found: it is not a stock PostgreSQL 15"
                    .to_owned())
            }
            (Some(_), Some(_)) => {
                Err("this server has more than one storage manager table: it is not a stock PostgreSQL 15"
                    .to_owned())
            }
        }
    }

    /// md.c's functions.
    pub fn functions(&self) -> Table {
        self.functions
    }

    /// Puts other functions in their place.
    ///
    /// # Safety
    /// They have the signatures of this server's `f_smgr`, and the process has one thread.
    pub unsafe fn replace(self, functions: Table) -> Result<(), String> {
        // SAFETY: the place is the table that `find` matched; the rest is the caller's.
        unsafe { crate::write(self.place, functions) }
    }
}
