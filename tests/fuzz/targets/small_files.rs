#![no_main]
libfuzzer_sys::fuzz_target!(
    init: zenith_hostile::write_seeds("small_files"),
    |input: &[u8]| zenith_hostile::run("small_files", input)
);
