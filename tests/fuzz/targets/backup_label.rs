#![no_main]
libfuzzer_sys::fuzz_target!(
    init: zenith_hostile::write_seeds("backup_label"),
    |input: &[u8]| zenith_hostile::run("backup_label", input)
);
