//! Every decoder over damaged samples: no panic, and no more memory than its bound. The damage is the same in every run.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use zenith_hostile::mutate::{Numbers, damaged};
use zenith_hostile::{INPUT_BYTES_MAX, TARGETS, Target, find};

/// Counts what each thread holds; decoders run on one thread.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends frees what it holds when its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        MOST.with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call is the system allocator's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller's.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What an input ended in.
#[derive(Clone, Copy)]
struct Ran {
    decoded: bool,
    /// The most memory that it held.
    bytes: usize,
}

fn run(target: &Target, input: &[u8]) -> Ran {
    let before = HELD.get();
    MOST.set(before);
    let ended = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let most = (MOST.get() - before) as usize;
    let Ok(decoded) = ended else {
        panic!("{target:?} panicked; keep this as findings/{target:?}/NAME.hex:\n{}", hex(input))
    };
    let bound = target.memory_base + target.memory_factor * input.len();
    assert!(
        most <= bound,
        "{target:?} took {most} bytes for {} (at most {bound}); keep this as findings/{target:?}/NAME.hex:\n{}",
        input.len(),
        hex(input)
    );
    Ran { decoded, bytes: most }
}

fn check(name: &str) {
    let target = find(name);
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    // What a decoder keeps for the whole life of its thread is not this input's.
    let _ = (target.run)(&seeds[0]);
    let mut most = 0;
    for (number, seed) in seeds.iter().enumerate() {
        let ran = run(target, seed);
        assert!(ran.decoded, "sample {number} of {name} is not sound: {}", hex(seed));
        most = most.max(ran.bytes);
    }
    for part in 0..CUTS {
        let seed = &seeds[part % seeds.len()];
        run(target, &seed[..seed.len() * part / CUTS]);
    }
    let mut numbers =
        Numbers::new(name.bytes().fold(1u64, |seed, byte| seed.rotate_left(5) ^ u64::from(byte)));
    let mut decoded = 0;
    for case in 0..target.cases as usize {
        let other = &seeds[numbers.below(seeds.len())];
        let input = damaged(&seeds[case % seeds.len()], other, &mut numbers, INPUT_BYTES_MAX);
        let ran = run(target, &input);
        most = most.max(ran.bytes);
        decoded += u32::from(ran.decoded);
    }
    let (cases, seeds) = (target.cases, seeds.len());
    println!("{name}: {cases} cases of {seeds} samples, {decoded} decoded, at most {most} bytes");
    assert!(decoded > 0, "nothing that is damaged is decoded: the checks in front hide what is behind them");
}

/// So many places at which samples are cut.
const CUTS: usize = 200;

macro_rules! targets {
    ($($name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )+

        #[test]
        fn every_target_is_tried() {
            let tried = [$(stringify!($name)),+];
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), tried);
        }
    };
}

targets!(
    wal_page,
    wal_stream,
    wal_record,
    wal_image,
    pg_control,
    relation_map,
    two_phase,
    history,
    backup_label,
    names,
    page,
    edit,
    model,
    manifest_root,
    manifest_small,
    manifest_index,
    archive,
    small_files,
    layer,
);

fn findings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("findings")
}

/// What was found once, by these tests or by a fuzzer: `findings/TARGET/NAME.hex`.
#[test]
fn what_was_found_once_stays_mended() {
    for folder in std::fs::read_dir(findings()).into_iter().flatten() {
        let folder = folder.expect("listed").path();
        let name = folder.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        let target = find(&name);
        let _ = (target.run)(&(target.seeds)()[0]);
        for file in std::fs::read_dir(folder).expect("listed") {
            let file = file.expect("listed").path();
            let text = std::fs::read_to_string(&file).expect("read");
            let (pairs, rest) = text.trim().as_bytes().as_chunks::<2>();
            assert!(rest.is_empty(), "{} is no hexadecimal text", file.display());
            let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let input: Option<Vec<u8>> = pairs.iter().map(byte).collect();
            run(target, &input.expect("hexadecimal digits"));
        }
    }
}
