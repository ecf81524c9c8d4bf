//! The executable: everything is in the library, so that tests and this run the same code.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    ringpair_bench::cli::main()
}
