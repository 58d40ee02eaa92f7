//! Skips tests that need root when another user runs them, with a message.
//!
//! `.ci/run` sets `LB_TEST_SKIP=never`. A test that would be skipped then fails, so that CI cannot pass without it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

/// The variable whose value `never` forbids skipped tests.
const VARIABLE: &str = "LB_TEST_SKIP";

/// Whether the test is run by root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Whether the test must be skipped because it is not run by root. If so, prints a message with the reason `why`.
///
/// # Panics
///
/// Panics instead if `LB_TEST_SKIP` is `never`.
#[track_caller]
pub fn unless_root(why: &str) -> bool {
    if !is_root() {
        skip(std::env::var(VARIABLE).is_ok_and(|value| value == "never"), why);
    }
    !is_root()
}

#[track_caller]
fn skip(is_forbidden: bool, why: &str) {
    assert!(!is_forbidden, "{why}: run the tests as root, or without {VARIABLE}=never");
    let test = std::thread::current();
    // The test runner would capture the output of `println!`.
    let line = format!("test {} is skipped: {why}\n", test.name().unwrap_or("?"));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_allowed_by_default() {
        skip(false, "a test of skips");
    }

    #[test]
    #[should_panic(expected = "only root can do this: run the tests as root")]
    fn a_forbidden_skip_fails_the_test() {
        skip(true, "only root can do this");
    }
}
