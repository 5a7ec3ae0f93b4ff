//! Restores a data directory, or one WAL file for `restore_command`.

fn main() -> std::process::ExitCode {
    zenith_tools::restore_command::main()
}
