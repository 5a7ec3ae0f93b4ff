#![no_main]
libfuzzer_sys::fuzz_target!(
    init: zenith_hostile::write_seeds("wal_record"),
    |input: &[u8]| zenith_hostile::run("wal_record", input)
);
