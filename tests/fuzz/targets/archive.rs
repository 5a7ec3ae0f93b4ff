#![no_main]
libfuzzer_sys::fuzz_target!(
    init: zenith_hostile::write_seeds("archive"),
    |input: &[u8]| zenith_hostile::run("archive", input)
);
