//! Waiting for conditions, each with a deadline and a name.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for anything that should happen at once. Long, for loaded machines: a passing test never
/// waits this long.
pub const LONG: Duration = Duration::from_secs(20);

/// Pause between two looks at a condition.
const STEP: Duration = Duration::from_millis(10);

/// Waits until `condition` holds.
///
/// # Panics
///
/// Panics with `what` when `deadline` passes first.
#[track_caller]
pub fn until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    until_some(deadline, what, || condition().then_some(()));
}

/// Waits until `attempt` returns something, and returns that.
///
/// # Panics
///
/// Panics with `what` when `deadline` passes first.
#[track_caller]
pub fn until_some<T>(deadline: Duration, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    match poll(deadline, &mut attempt) {
        Some(value) => value,
        None => panic!("waited {deadline:?} in vain until {what}"),
    }
}

/// As [`until_some`], for callers that have more to say than a name when the deadline passes.
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

/// Checks again and again, for the whole of `span`, that `condition` holds.
///
/// # Panics
///
/// Panics with `what` the first time that it does not.
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
    fn returns_what_the_attempt_found() {
        let mut looks = 0;
        let found = until_some(LONG, "the third look", || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found, 3);
    }

    #[test]
    fn gives_up_at_the_deadline() {
        assert_eq!(poll(Duration::from_millis(20), || None::<()>), None);
    }
}
