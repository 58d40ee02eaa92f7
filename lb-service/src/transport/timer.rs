//! The timer of a connection.
//!
//! A connection has one timer, whatever it waits for. A later deadline only changes a number: the timer is set again
//! when it rings too early, so most waits cost no timer operation.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer whose deadline moves.
#[derive(Debug)]
pub(crate) struct Timer {
    deadline: Option<Instant>,
    /// Created with the first deadline that is waited for. It rings at the deadline or before it.
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whether `sleep` will wake the task, because it was polled since it was set. A timer belongs to one task, whose
    /// waker stays the same.
    is_armed: bool,
}

// === impl Timer ===

impl Timer {
    /// Returns a timer without a deadline.
    pub(crate) fn new() -> Self {
        Self { deadline: None, sleep: None, is_armed: false }
    }

    /// Sets the deadline to this time from now; `None` means that there is none.
    pub(crate) fn set(&mut self, after: Option<Duration>) {
        self.deadline = after.map(|after| Instant::now() + after);
    }

    /// Sets the deadline to this moment.
    pub(crate) fn set_at(&mut self, at: std::time::Instant) {
        self.deadline = Some(at.into());
    }

    /// Is ready once the deadline has passed; never without a deadline.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
            self.is_armed = false;
        }
        loop {
            if self.is_armed && !sleep.is_elapsed() {
                return Poll::Pending;
            }
            self.is_armed = true;
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
            self.is_armed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn waited(timer: &mut Timer) -> Duration {
        let began = Instant::now();
        poll_fn(|cx| timer.poll_expired(cx)).await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_can_move_in_both_directions() {
        let mut timer = Timer::new();
        timer.set(Some(10 * SECOND));
        assert!(futures::poll!(std::pin::pin!(poll_fn(|cx| timer.poll_expired(cx)))).is_pending());
        timer.set(Some(SECOND));
        assert_eq!(waited(&mut timer).await, SECOND);
        timer.set(Some(SECOND));
        assert!(futures::poll!(std::pin::pin!(poll_fn(|cx| timer.poll_expired(cx)))).is_pending());
        timer.set(Some(5 * SECOND));
        assert_eq!(waited(&mut timer).await, 5 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_deadline_nothing_expires() {
        let mut timer = Timer::new();
        timer.set(Some(SECOND));
        timer.set(None);
        let waited = tokio::time::timeout(10 * SECOND, poll_fn(|cx| timer.poll_expired(cx))).await;
        assert!(waited.is_err());
    }
}
