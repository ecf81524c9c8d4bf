//! The executable: everything is in the library, so that tests and this run the same code.
#![forbid(unsafe_code)]

/// The system's takes a fifth of the processor where changes stream (ARCHITECTURE.md has the figures).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    ringpair::cli::main()
}
