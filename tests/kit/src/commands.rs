//! Zenith's own commands, as cargo built them.

use std::path::{Path, PathBuf};

/// Where cargo put a command: beside the directory of the test that asks.
pub fn zenith_bin(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    let target = test.parent().and_then(Path::parent).expect("target directory");
    let path = target.join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace` first", path.display());
    path
}
