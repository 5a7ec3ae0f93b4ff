//! Hostile bytes: one entry for every decoder that takes bytes from outside. Each does with what was decoded what the
//! product does with it, and asserts what must hold of it. None may panic, or take more memory than its bound.
//!
//! `tests/mutations.rs` runs them over damaged samples, the same ones every time; `tests/fuzz` lets libFuzzer look for
//! more. What either found lies in `findings/` and is run again by `cargo test`.

#![allow(clippy::unwrap_used, reason = "only tests use this: a broken expectation is a failed test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use zenith_testkit::outcome::panicked;

mod files;
mod layer;
pub mod mutate;
mod objects;
mod seeds;
mod values;
mod wal;

/// One decoder.
#[derive(Clone, Copy)]
pub struct Target {
    /// What it is called here, in `findings/` and in `tests/fuzz`.
    pub name: &'static str,
    /// Decodes, and uses what came out; whether anything did.
    pub run: fn(&[u8]) -> bool,
    /// Sound samples.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many damaged samples a test run tries: less than a second's worth.
    pub cases: u32,
    /// Memory that it may take at once, for every byte of input ...
    pub memory_factor: usize,
    /// ... and beside that.
    pub memory_base: usize,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The longest input that is tried.
pub const INPUT_BYTES_MAX: usize = 1 << 18;

const KB: usize = 1 << 10;
const MB: usize = 1 << 20;

const fn target(
    name: &'static str,
    run: fn(&[u8]) -> bool,
    seeds: fn() -> Vec<Vec<u8>>,
    cases: u32,
) -> Target {
    Target { name, run, seeds, cases, memory_factor: 16, memory_base: 64 * KB }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("wal_page", wal::page, seeds::wal_pages, 40_000),
    Target { memory_factor: 24, ..target("wal_stream", wal::stream, seeds::wal_streams, 5000) },
    Target { memory_base: 256 * KB, ..target("wal_record", wal::record, seeds::records, 8000) },
    target("wal_image", wal::image, seeds::images, 30_000),
    target("pg_control", files::control, seeds::control, 6000),
    target("relation_map", files::relation_map, seeds::relation_map, 30_000),
    target("two_phase", files::two_phase, seeds::two_phase, 30_000),
    target("history", files::history, seeds::histories, 30_000),
    target("backup_label", files::backup_label, seeds::backup_labels, 40_000),
    target("names", files::names, seeds::names, 40_000),
    target("page", files::page, seeds::pages, 6000),
    target("edit", values::edit, seeds::edits, 20_000),
    target("model", values::model, seeds::models, 40_000),
    Target { memory_factor: 64, ..target("manifest_root", objects::manifest_root, seeds::roots, 6000) },
    Target { memory_base: 256 * KB, ..target("manifest_small", objects::manifest_small, seeds::small, 3000) },
    Target { memory_base: MB, ..target("manifest_index", objects::manifest_index, seeds::index_pages, 2000) },
    Target { memory_base: 8 * MB, ..target("archive", objects::archive, seeds::archived, 500) },
    Target { memory_base: MB, ..target("small_files", objects::small_files, seeds::small_files, 4000) },
    Target { memory_base: 4 * MB, ..target("layer", layer::layer, seeds::layers, 300) },
];

/// The one with this name.
///
/// # Panics
/// If there is none.
pub fn find(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap()
}

/// Runs the one with this name on this input: what a fuzzer calls. A panic that the product catches is none.
pub fn run(name: &str, input: &[u8]) {
    static HOOK: Once = Once::new();
    // libFuzzer's own ends the process at every panic, and one that prints would make the log too long.
    HOOK.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (find(name).run)(input))) {
        eprintln!("{name} panicked: {}", panicked(&*panic));
        std::process::abort();
    }
}

/// Writes the samples of one of them, a file each, into the folder that `ZENITH_SEEDS` names: what a fuzzer begins with.
///
/// # Panics
/// If they cannot be written.
pub fn write_seeds(name: &str) {
    let Some(folder) = std::env::var_os("ZENITH_SEEDS") else { return };
    for (number, seed) in (find(name).seeds)().into_iter().enumerate() {
        std::fs::write(std::path::Path::new(&folder).join(format!("sample-{number}")), seed).unwrap();
    }
}
