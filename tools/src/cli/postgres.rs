//! Where PostgreSQL's own files are on this machine.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where packages of Debian, PGDG and the sources put the programs of PostgreSQL 15.
const PACKAGED: [&str; 3] = ["/usr/lib/postgresql/15/bin", "/usr/pgsql-15/bin", "/usr/local/pgsql/bin"];

/// The directory that `shared_preload_libraries` are looked for in (`pkglibdir`), if PostgreSQL 15 is installed here.
pub fn library_directory() -> Option<PathBuf> {
    let libraries = program_directories().flat_map(|bin| [bin.join("../lib"), bin.join("../lib/postgresql")]);
    libraries
        .filter(|directory| directory.join("plpgsql.so").is_file())
        .find_map(|found| found.canonicalize().ok())
}

/// Where its programs may be.
fn program_directories() -> impl Iterator<Item = PathBuf> {
    let named = std::env::var_os("ZENITH_PG_BIN_DIR").map(PathBuf::from);
    named.into_iter().chain(PACKAGED.iter().map(PathBuf::from))
}

/// The number of the server that is installed here (`PG_VERSION_NUM`), such as 150018.
///
/// # Errors
/// None is, or it is not PostgreSQL 15.
pub fn server_version_num() -> anyhow::Result<u32> {
    let server =
        program_directories().map(|directory| directory.join("postgres")).find(|path| path.is_file());
    let server = server.context("PostgreSQL 15 is not installed here; ZENITH_PG_BIN_DIR says where it is")?;
    let said = Command::new(&server).arg("-V").env_clear().output();
    let said = said.with_context(|| format!("cannot run {}", server.display()))?.stdout;
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    match number_of(&said) {
        Some(number) if number / 10_000 == 15 => Ok(number),
        _ => bail!("{} is \"{said}\", and not PostgreSQL 15", server.display()),
    }
}

/// `postgres (PostgreSQL) 15.18 (Debian …)` is 150018.
fn number_of(said: &str) -> Option<u32> {
    let version = said.strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
    let (major, minor) = version.split_once('.')?;
    Some(major.parse::<u32>().ok()?.checked_mul(10_000)? + minor.parse::<u32>().ok()?.min(9_999))
}

/// One of Zenith's own files: as the variable names it, else beside this program, else where an installation has libraries, else
/// where Cargo puts them.
pub fn beside(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(variable) {
        return std::path::absolute(named).ok().filter(|path| path.is_file());
    }
    let program = std::env::current_exe().ok()?;
    let places = [".", "../lib/zenith", "deps", ".."]
        .map(|place| program.parent().unwrap_or(Path::new("/")).join(place));
    // Cargo has two copies of a library, and refreshes only the one that it was asked for.
    let found = places.iter().map(|place| place.join(name)).filter(|path| path.is_file());
    let newest = found.max_by_key(|path| path.metadata().and_then(|about| about.modified()).ok());
    newest.and_then(|path| path.canonicalize().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_of_its_version_is_its_number() {
        assert_eq!(number_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(150_018));
        assert_eq!(number_of("postgres (PostgreSQL) 15.2"), Some(150_002));
        for other in ["postgres (PostgreSQL) 16beta1", "postgres 15.2", "", "postgres (PostgreSQL) 15"] {
            assert_eq!(number_of(other), None, "{other}");
        }
    }
}
