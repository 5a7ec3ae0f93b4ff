#![no_main]
libfuzzer_sys::fuzz_target!(
    init: zenith_hostile::write_seeds("edit"),
    |input: &[u8]| zenith_hostile::run("edit", input)
);
