//! Finds out which signatures the storage manager of the server has that this is built against: minor releases change them,
//! and pgrx has no bindings of md.h.

use std::process::Command;

fn main() {
    println!("cargo:rustc-check-cfg=cfg(truncate_takes_old_blocks)");
    println!("cargo:rerun-if-env-changed=PGRX_PG_CONFIG_PATH");
    let pg_config = std::env::var("PGRX_PG_CONFIG_PATH").unwrap_or_else(|_| "pg_config".to_owned());
    let output = Command::new(&pg_config).arg("--includedir-server").output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {pg_config}: {error}"));
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let header = format!("{directory}/storage/md.h");
    println!("cargo:rerun-if-changed={header}");
    let text = std::fs::read_to_string(&header).unwrap_or_else(|error| panic!("{header}: {error}"));
    let declaration = text.split("mdtruncate(").nth(1).and_then(|rest| rest.split(");").next());
    let declaration = declaration.unwrap_or_else(|| panic!("{header} declares no mdtruncate"));
    // Relation, fork and the new length; releases since 2025 also say the old one, before it.
    match declaration.split(',').count() {
        3 => {}
        4 if declaration.contains("old_blocks") => println!("cargo:rustc-cfg=truncate_takes_old_blocks"),
        count => panic!("{header} declares mdtruncate with {count} parameters, which this does not know"),
    }
}
