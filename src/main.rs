//! The `leasehold` binary: see [`cli`] for its commands.

mod cli;

use std::process::ExitCode;

/// A replica keeps thousands of small objects between short-lived large ones: with glibc's allocator a third of its memory
/// is gaps, and it takes half as much time again.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
