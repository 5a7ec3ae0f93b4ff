#![no_main]
libfuzzer_sys::fuzz_target!(
    init: zenith_hostile::write_seeds("two_phase"),
    |input: &[u8]| zenith_hostile::run("two_phase", input)
);
