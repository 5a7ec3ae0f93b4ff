//! Where PostgreSQL's programs and our library are.

use crate::start::StartError;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library's file name, as Cargo builds it.
pub const LIBRARY_NAME: &str = "libzenith_redo_worker.so";
/// Where Debian's and PGDG's packages put PostgreSQL 15.
const PACKAGED: [&str; 3] = ["/usr/lib/postgresql/15/bin", "/usr/pgsql-15/bin", "/usr/local/pgsql/bin"];

/// The `postgres` program and what it says of its version.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) bin_dir: PathBuf,
    /// Such as `15.20 (Debian 15.20-0+deb12u1)`.
    pub(crate) version: String,
}

impl Server {
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// Finds PostgreSQL 15.
pub(crate) fn server(wanted: Option<&Path>) -> Result<Server, StartError> {
    let mut looked = Vec::new();
    let named =
        wanted.map(Path::to_path_buf).or_else(|| std::env::var_os("ZENITH_PG_BIN_DIR").map(PathBuf::from));
    match named {
        Some(directory) => looked.push(directory),
        None => {
            looked.extend(PACKAGED.map(PathBuf::from));
            looked.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
        }
    }
    let has_programs = |dir: &&PathBuf| dir.join("postgres").is_file() && dir.join("initdb").is_file();
    let Some(bin_dir) = looked.iter().find(has_programs).cloned() else {
        return Err(StartError::NoPostgres { looked });
    };
    let path = bin_dir.join("postgres");
    let output = Command::new(&path).arg("-V").env_clear().output();
    let output =
        output.map_err(|source| StartError::Io { what: format!("run {}", path.display()), source })?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match said.strip_prefix("postgres (PostgreSQL) ") {
        Some(version) if version.starts_with("15.") => Ok(Server { bin_dir, version: version.to_owned() }),
        _ => Err(StartError::WrongVersion { path, version: said }),
    }
}

/// Finds our library.
pub(crate) fn library(wanted: Option<&Path>) -> Result<PathBuf, StartError> {
    let mut looked = Vec::new();
    let named =
        wanted.map(Path::to_path_buf).or_else(|| std::env::var_os("ZENITH_REDO_LIBRARY").map(PathBuf::from));
    match named {
        Some(path) => looked.push(path),
        None => looked.extend(std::env::current_exe().iter().flat_map(|program| beside(program))),
    }
    match newest(&looked) {
        Some(path) => Ok(path.clone()),
        None => Err(StartError::NoLibrary { name: LIBRARY_NAME, looked }),
    }
}

/// Of several files the newest: Cargo has two copies, and refreshes only the one that it was asked for.
fn newest(paths: &[PathBuf]) -> Option<&PathBuf> {
    let modified = |path: &&PathBuf| path.metadata().and_then(|about| about.modified()).ok();
    paths.iter().filter(|path| path.is_file()).max_by_key(modified)
}

/// The places relative to a program: its directory, the library directory of an installation, and Cargo's: a test lies
/// in `deps/`, where Cargo puts the libraries that a test's package depends on, and an example or test program one below.
fn beside(program: &Path) -> Vec<PathBuf> {
    let Some(directory) = program.parent() else { return Vec::new() };
    [".", "../lib/zenith", "deps", "..", "../deps"]
        .iter()
        .map(|place| directory.join(place).join(LIBRARY_NAME))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_every_place_that_was_looked_at() {
        let error = library(Some(Path::new("/nowhere/lib.so"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/lib.so") && error.contains("ZENITH_REDO_LIBRARY"), "{error}");
        let error = server(Some(Path::new("/nowhere/bin"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/bin") && error.contains("postgresql-15"), "{error}");
    }

    #[test]
    fn of_two_copies_the_newer_one_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        std::fs::create_dir(directory.path().join("deps")).unwrap();
        let copies = [directory.path().join(LIBRARY_NAME), directory.path().join("deps").join(LIBRARY_NAME)];
        let old = std::time::SystemTime::UNIX_EPOCH;
        for copy in &copies {
            std::fs::write(copy, "").unwrap();
        }
        for (older, newer) in [(0, 1), (1, 0)] {
            let day = std::time::Duration::from_hours(24);
            std::fs::File::options().write(true).open(&copies[older]).unwrap().set_modified(old).unwrap();
            std::fs::File::options()
                .write(true)
                .open(&copies[newer])
                .unwrap()
                .set_modified(old + day)
                .unwrap();
            assert_eq!(
                newest(&beside(&program)).unwrap().canonicalize().unwrap(),
                copies[newer].canonicalize().unwrap()
            );
        }
    }

    #[test]
    fn a_test_looks_in_cargos_directories() {
        let places = beside(Path::new("/t/debug/deps/test-0123"));
        assert!(places.contains(&PathBuf::from("/t/debug/deps/.").join(LIBRARY_NAME)));
        assert!(places.contains(&PathBuf::from("/t/debug/deps/..").join(LIBRARY_NAME)));
    }
}
