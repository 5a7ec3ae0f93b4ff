//! The extension of a lazy compute: a stock PostgreSQL 15 whose relation files are sparse, and whose pages come from a page
//! service when they are read (docs/lazy-computes.md).
//!
//! Loaded by `shared_preload_libraries`. On a directory that is not lazy it does nothing. On one that is, everything that it needs
//! is found and checked before anything is changed, and whatever is not as expected ends the start (fail closed):
//!
//! - [`directory`]: what the directory is of;
//! - [`limits`]: up to which block each fork's pages are to be fetched, lowered before files get shorter;
//! - [`smgr`]: read, write, truncate and unlink of the storage manager, replaced;
//! - [`fill`]: the background worker that fetches what nobody asks for, and ends all of this; [`locks`]: what keeps it and the server
//!   apart;
//! - [`databases`]: what changes files past the storage manager;
//! - [`guard`]: the way past the file that keeps every other server from starting here;
//! - [`client`]: the connection to the page service; [`reader`]: starting one.

mod client;
mod databases;
mod directory;
mod fill;
mod guard;
mod limits;
mod locks;
mod reader;
mod settings;
mod smgr;
mod wait;

use pgrx::prelude::*;
use zenith_server_binary::imports::Import;
use zenith_server_binary::smgr::StorageManager;

zenith_server_binary::module_magic!(pgrx::pg_sys);

/// PostgreSQL's entry point of a library.
#[allow(non_snake_case)]
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // Before anything can panic: a panic must become PostgreSQL's error, and never leave this library as one.
    pg_sys::panic::register_pg_guard_panic_hook();
    // SAFETY: plain globals, set long before libraries are loaded.
    let (preloading, is_postmaster) =
        unsafe { (pg_sys::process_shared_preload_libraries_in_progress, pg_sys::IsPostmasterEnvironment) };
    if !preloading {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "zenith_compute must be loaded by shared_preload_libraries"
        );
    }
    settings::define();
    // Without a postmaster there is nobody to serve pages: the guard ends such a start.
    if !is_postmaster {
        return;
    }
    match start() {
        Ok(true) => {}
        Ok(false) => {
            ereport!(
                LOG,
                PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
                "zenith_compute: all pages of this data directory are here: the library is not needed any more"
            );
        }
        Err(reason) => {
            ereport!(
                FATAL,
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("zenith_compute: {reason}")
            );
        }
    }
}

/// Makes the server a lazy compute; `false` if its directory is none.
fn start() -> Result<bool, String> {
    if !directory::open()? {
        return Ok(false);
    }
    limits::map()?;
    let manager = StorageManager::find()?;
    let fopen = Import::find(c"fopen")?;
    smgr::replace(manager)?;
    guard::replace(fopen)?;
    databases::watch()?;
    directory::pin_full_page_writes();
    locks::request();
    fill::register()?;
    reader::ensure();
    Ok(true)
}
