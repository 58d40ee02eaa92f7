//! Tests that need root: they run as root, and otherwise say that they are skipped.
//!
//! `.ci/run` sets `LB_TEST_SKIP=never`. A test that would be skipped then fails, so that CI cannot pass without it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

/// The variable that forbids to skip tests, when it is `never`.
const VARIABLE: &str = "LB_TEST_SKIP";

/// Whether the test is run by root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Whether the test is run by root. If it is not, the output says that it is skipped, and `why`.
///
/// # Panics
///
/// Panics instead when `LB_TEST_SKIP` is `never`.
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
    // The test harness would keep what `println!` writes.
    let line = format!("test {} is skipped: {why}\n", test.name().unwrap_or("?"));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_allowed_unless_it_is_forbidden() {
        skip(false, "a test of skips");
    }

    #[test]
    #[should_panic(expected = "only root can do this: run the tests as root")]
    fn a_skip_that_is_forbidden_fails() {
        skip(true, "only root can do this");
    }
}
