//! Where PostgreSQL's own files are on this machine.

use std::path::PathBuf;

/// Where packages of Debian, PGDG and the sources put the programs of PostgreSQL 15.
const PACKAGED: [&str; 3] = ["/usr/lib/postgresql/15/bin", "/usr/pgsql-15/bin", "/usr/local/pgsql/bin"];

/// The directory that `shared_preload_libraries` are looked for in (`pkglibdir`), if PostgreSQL 15 is installed here.
pub fn library_directory() -> Option<PathBuf> {
    let named = std::env::var_os("ZENITH_PG_BIN_DIR").map(PathBuf::from);
    let packaged = PACKAGED.iter().map(PathBuf::from);
    let programs = named.into_iter().chain(packaged);
    let libraries = programs.flat_map(|bin| [bin.join("../lib"), bin.join("../lib/postgresql")]);
    libraries
        .filter(|directory| directory.join("plpgsql.so").is_file())
        .find_map(|found| found.canonicalize().ok())
}
