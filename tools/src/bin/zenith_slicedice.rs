//! Turns archived WAL into layers.

fn main() -> std::process::ExitCode {
    zenith_tools::slicedice::main()
}
