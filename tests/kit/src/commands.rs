//! Zenith's own commands, as cargo built them.

use std::path::PathBuf;

/// Where cargo put a command: beside the program that asks or, as a test lies a folder deeper, beside that folder.
pub fn zenith_bin(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("no {name} near {}: run `cargo build --workspace` first", own.display()))
}
