//! What the new server's machine has, as far as configuration depends on it.

use std::ffi::CString;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// The machine that the restored server will run on.
pub trait Host: Send + Sync {
    /// Whether a path exists.
    fn exists(&self, path: &Path) -> bool;
    /// Whether a library of that name (as in `shared_preload_libraries`) can be found; `None` when there is no
    /// PostgreSQL here to ask.
    fn has_library(&self, name: &str) -> Option<bool>;
    /// Whether a server could listen on an address.
    fn can_listen(&self, address: &str) -> bool;
    /// Whether the C library knows a locale.
    fn has_locale(&self, name: &str) -> bool;
}

/// This machine.
#[derive(Clone, Debug)]
pub struct ThisHost {
    /// The server's `pkglibdir`, where one is installed.
    library_directory: Option<PathBuf>,
}

impl ThisHost {
    /// This machine with PostgreSQL's libraries in `library_directory` (`pg_config --pkglibdir`).
    pub fn new(library_directory: Option<PathBuf>) -> ThisHost {
        ThisHost { library_directory }
    }
}

impl Host for ThisHost {
    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn has_library(&self, name: &str) -> Option<bool> {
        let directory = self.library_directory.as_deref()?;
        let name = name.strip_prefix("$libdir/").unwrap_or(name);
        let found = |path: PathBuf| path.is_file() || path.with_added_extension("so").is_file();
        Some(found(directory.join(name)))
    }

    fn can_listen(&self, address: &str) -> bool {
        TcpListener::bind((address, 0)).is_ok()
    }

    fn has_locale(&self, name: &str) -> bool {
        let Ok(name) = CString::new(name) else { return false };
        // SAFETY: the name ends with a zero byte; a locale object that was made is freed and not used otherwise.
        unsafe {
            let locale = libc::newlocale(libc::LC_ALL_MASK, name.as_ptr(), std::ptr::null_mut());
            if locale.is_null() {
                return false;
            }
            libc::freelocale(locale);
        }
        true
    }
}
