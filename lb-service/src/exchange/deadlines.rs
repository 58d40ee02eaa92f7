//! Deadlines of the two directions of a request: which side each of them waits for, and for how long.

use std::time::{Duration, Instant};

use http::header::CONTENT_TYPE;

use super::Side;
use crate::pool::{Fields, Target};

/// What one direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// The side that has to act.
    pub(crate) side: Side,
    /// The longest pause of this side; `None` means no limit.
    pub(crate) pause: Option<Duration>,
    /// The lowest average speed of this side, in bytes per second; 0 means any.
    pub(crate) min_rate: u64,
}

/// One direction of a request: the body from the client to the backend, or the response from the backend to the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Direction {
    wait: Option<Wait>,
    /// The time of the last progress, or of the beginning of the wait.
    since: Instant,
    /// The steps of progress so far, in any unit.
    progress: u64,
    /// The bytes of the client so far.
    bytes: u64,
    /// The time for which the proxy has waited for the client, before `since`.
    waited: Duration,
}

/// The time for which the proxy waits for a client before the average speed counts.
const MIN_RATE_AFTER: Duration = Duration::from_secs(10);

impl Direction {
    pub(crate) fn new(now: Instant) -> Self {
        Self { wait: None, since: now, progress: 0, bytes: 0, waited: Duration::ZERO }
    }

    /// Records what the direction waits for now. `progress` grows with everything that happened in this direction, and
    /// `bytes` with the bytes that the client sent or read.
    pub(crate) fn update(&mut self, wait: Option<Wait>, progress: u64, bytes: u64, now: Instant) {
        if wait == self.wait && progress == self.progress {
            return;
        }
        if self.wait.is_some_and(|wait| wait.side == Side::Client) {
            self.waited += now.saturating_duration_since(self.since);
        }
        (self.wait, self.progress, self.bytes, self.since) = (wait, progress, bytes, now);
    }

    /// Returns the end of the wait, and the side that is then too slow; `None` if there is no limit.
    pub(crate) fn deadline(&self) -> Option<(Instant, Side)> {
        let wait = self.wait?;
        let pause = wait.pause.map(|pause| self.since + pause);
        let rate = (wait.min_rate > 0).then(|| self.since + self.allowed(wait.min_rate));
        let earliest = [pause, rate].into_iter().flatten().min()?;
        Some((earliest, wait.side))
    }

    /// Returns the time that is left until the average speed is too low without another byte.
    fn allowed(&self, min_rate: u64) -> Duration {
        let milliseconds = self.bytes.saturating_mul(1000) / min_rate;
        MIN_RATE_AFTER.max(Duration::from_millis(milliseconds)).saturating_sub(self.waited)
    }
}

/// Returns the longest pause of a backend in the body of this response; `None` means no limit. A stream of events or
/// calls may be quiet for as long as a tunnel.
pub(crate) fn body_pause(response: &impl Fields, target: &Target) -> Option<Duration> {
    if is_stream(response) { target.tunnel_timeout } else { target.body_timeout }
}

fn is_stream(response: &impl Fields) -> bool {
    let kind = response.first(&CONTENT_TYPE).unwrap_or_default().trim_ascii_start();
    let begins =
        |prefix: &[u8]| kind.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    begins(b"text/event-stream") || begins(b"application/grpc")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn client(pause: u32, min_rate: u64) -> Wait {
        Wait { side: Side::Client, pause: Some(SECOND * pause), min_rate }
    }

    fn backend(pause: u32) -> Wait {
        Wait { side: Side::Backend, pause: Some(SECOND * pause), min_rate: 0 }
    }

    /// Returns the seconds until the deadline from the beginning, after these updates: second, wait, progress, bytes.
    fn deadline(updates: &[(u32, Option<Wait>, u64, u64)]) -> Option<(u64, Side)> {
        let began = Instant::now();
        let mut direction = Direction::new(began);
        for (second, wait, progress, bytes) in updates {
            direction.update(*wait, *progress, *bytes, began + SECOND * *second);
        }
        direction.deadline().map(|(at, side)| ((at - began).as_secs(), side))
    }

    #[test]
    fn events_and_calls_are_streams() {
        let of = |kind: &'static str| {
            let line = (CONTENT_TYPE, http::HeaderValue::from_static(kind));
            is_stream(&http::HeaderMap::from_iter([line]))
        };
        assert!(of("text/event-stream") && of("Text/Event-Stream; charset=utf-8"));
        assert!(of("application/grpc") && of("application/grpc+proto"));
        assert!(!of("text/plain") && !of("") && !is_stream(&http::HeaderMap::new()));
    }

    #[test]
    fn progress_restarts_a_pause() {
        assert_eq!(deadline(&[(0, Some(client(60, 0)), 0, 0)]), Some((60, Side::Client)));
        assert_eq!(
            deadline(&[(0, Some(client(60, 0)), 0, 0), (50, Some(client(60, 0)), 0, 0)]),
            Some((60, Side::Client))
        );
        assert_eq!(
            deadline(&[(0, Some(client(60, 0)), 0, 0), (50, Some(client(60, 0)), 1, 1)]),
            Some((110, Side::Client))
        );
    }

    #[test]
    fn a_wait_for_another_side_begins_a_pause() {
        assert_eq!(
            deadline(&[(0, Some(client(60, 0)), 0, 0), (5, Some(backend(20)), 0, 0)]),
            Some((25, Side::Backend))
        );
        assert_eq!(deadline(&[(0, Some(client(60, 0)), 0, 0), (5, None, 0, 0)]), None);
    }

    #[test]
    fn a_client_must_reach_the_lowest_speed_after_ten_seconds() {
        // 1 byte every 5 seconds.
        let trickle = [(0, Some(client(60, 240)), 0, 0), (5, Some(client(60, 240)), 1, 1)];
        assert_eq!(deadline(&trickle), Some((10, Side::Client)));
        // 4800 bytes in 15 s are allowed to take 20.
        let faster = [(0, Some(client(60, 240)), 0, 0), (15, Some(client(60, 240)), 1, 4800)];
        assert_eq!(deadline(&faster), Some((20, Side::Client)));
    }

    #[test]
    fn the_time_of_the_backend_does_not_count_for_the_speed_of_the_client() {
        let updates = [
            (0, Some(client(60, 240)), 0, 0),
            (5, Some(backend(60)), 1, 100),
            (45, Some(client(60, 240)), 2, 100),
        ];
        assert_eq!(deadline(&updates), Some((50, Side::Client)));
    }
}
