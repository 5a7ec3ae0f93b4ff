#![no_main]
libfuzzer_sys::fuzz_target!(
    init: zenith_hostile::write_seeds("relation_map"),
    |input: &[u8]| zenith_hostile::run("relation_map", input)
);
