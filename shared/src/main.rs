//! The daemon `load_balancer`.

use std::process::ExitCode;

use clap::Parser;
use shared::cli::Cli;
use shared::process::limits;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    limits::refuse_huge_pages();
    shared::run(Cli::parse())
}
