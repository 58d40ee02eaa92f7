//! An origin in a process of its own, for tests that kill one: `origin NAME DELAY`.
//!
//! It prints its address and responds to every request after `DELAY` milliseconds. It exits at the end of its standard
//! input, so it never outlives its test.

use std::io::{self, Read, Write};
use std::time::Duration;

use tests::{Behaviour, CannedResponse, Origin};

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let delay =
        arguments.next().and_then(|delay| delay.parse().ok()).map_or(Duration::ZERO, Duration::from_millis);
    let origin = Origin::start(&name);
    origin.behave(Behaviour::Slow(delay, CannedResponse::ok(name)));
    writeln!(io::stdout(), "{}", origin.address)?;
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
