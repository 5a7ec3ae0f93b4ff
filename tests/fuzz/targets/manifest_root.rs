#![no_main]
libfuzzer_sys::fuzz_target!(
    init: zenith_hostile::write_seeds("manifest_root"),
    |input: &[u8]| zenith_hostile::run("manifest_root", input)
);
