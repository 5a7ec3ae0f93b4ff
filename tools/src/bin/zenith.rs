//! Looks into a store.

fn main() -> std::process::ExitCode {
    zenith_tools::admin::main()
}
