#![no_main]
libfuzzer_sys::fuzz_target!(
    init: zenith_hostile::write_seeds("wal_page"),
    |input: &[u8]| zenith_hostile::run("wal_page", input)
);
