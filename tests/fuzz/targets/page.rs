#![no_main]
libfuzzer_sys::fuzz_target!(
    init: zenith_hostile::write_seeds("page"),
    |input: &[u8]| zenith_hostile::run("page", input)
);
