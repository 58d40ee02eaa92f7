//! Waiting for conditions, each with a deadline and a name.

use std::thread;
use std::time::{Duration, Instant};

/// The deadline for anything that should happen at once. It is long because test machines can be loaded. A passing test
/// never waits this long.
pub const LONG: Duration = Duration::from_secs(20);

/// The pause between two checks of a condition.
const STEP: Duration = Duration::from_millis(10);

/// Waits until `condition` holds.
///
/// # Panics
///
/// Panics with `what` if `deadline` passes first.
#[track_caller]
pub fn until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    until_some(deadline, what, || condition().then_some(()));
}

/// Waits until `attempt` returns a value, and returns it.
///
/// # Panics
///
/// Panics with `what` if `deadline` passes first.
#[track_caller]
pub fn until_some<T>(deadline: Duration, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    match poll(deadline, &mut attempt) {
        Some(value) => value,
        None => panic!("timed out after {deadline:?} while waiting until {what}"),
    }
}

/// Waits like [`until_some`], but returns `None` at the deadline, for callers that panic with a longer message.
pub fn poll<T>(deadline: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = attempt() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(STEP);
    }
}

/// Checks repeatedly during `span` that `condition` holds.
///
/// # Panics
///
/// Panics with `what` as soon as it does not hold.
#[track_caller]
pub fn throughout(span: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        assert!(condition(), "did not hold throughout {span:?}: {what}");
        thread::sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_returns_the_value_of_the_attempt() {
        let mut checks = 0;
        let found = until_some(LONG, "the third check", || {
            checks += 1;
            (checks == 3).then_some(checks)
        });
        assert_eq!(found, 3);
    }

    #[test]
    fn a_wait_ends_at_the_deadline() {
        assert_eq!(poll(Duration::from_millis(20), || None::<()>), None);
    }
}
