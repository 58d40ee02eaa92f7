//! The daemon `load_balancer`.

use std::process::ExitCode;

use shared::cli::Cli;
use shared::process::limits;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    limits::refuse_huge_pages();
    match Cli::read(std::env::args_os()) {
        Ok(cli) => shared::run(cli),
        Err(error) => {
            // That standard error is gone is no reason to fail in another way.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}
