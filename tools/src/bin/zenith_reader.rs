//! Serves pages at any LSN.

fn main() -> std::process::ExitCode {
    zenith_tools::page_service::main()
}
