//! Puts WAL files and base images into the store.

fn main() -> std::process::ExitCode {
    zenith_tools::push::command::main()
}
