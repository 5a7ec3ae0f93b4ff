#![no_main]
libfuzzer_sys::fuzz_target!(
    init: zenith_hostile::write_seeds("pg_control"),
    |input: &[u8]| zenith_hostile::run("pg_control", input)
);
