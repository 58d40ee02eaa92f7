//! The daemon `load_balancer`.

use std::process::ExitCode;

use clap::Parser;
use shared::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shared::run(Cli::parse())
}
