//! One request at one backend. It is counted while it lasts and judged when it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backend::Backend;
use super::outlier::{Candidate, Cause};
use super::reasons::{AttemptFailure, UpstreamError};
use super::settings::{Admin, RetryCause};
use super::{Pool, PoolEvent, slow_start};
use crate::policy::InFlight;

/// One attempt at a backend. It counts as in flight there until it is dropped.
#[derive(Debug)]
pub struct Attempt {
    /// The backend.
    pub backend: Arc<Backend>,
    /// Whether the connection was kept alive from an earlier request; `None` until there is a connection.
    pub reused: Option<bool>,
    started: Instant,
    /// The time from which the delay is attributed to the backend; `None` while the client is still sending the body.
    sent: Option<Instant>,
    first_byte: Option<Duration>,
    /// Whether the head of the response counts as a success, which is recorded when the body is complete.
    promises: bool,
    place: Option<InFlight>,
    pool: Arc<Pool>,
}

/// The minimum cost, for [`peak_ewma`](crate::policy), of a backend that fails or asks for a pause: a quick failure
/// must not look like a quick response.
const PENALTY: Duration = Duration::from_secs(1);
/// The status after which another protocol follows, which can last for hours and is not part of the response.
const SWITCHING_PROTOCOLS: u16 = 101;
/// The longest pause that a backend can ask for.
const MAX_PENALTY: Duration = Duration::from_secs(60);

// === impl Attempt ===

impl Attempt {
    pub(super) fn new(pool: Arc<Pool>, backend: Arc<Backend>, place: InFlight, now: Instant) -> Self {
        pool.shared.counters.in_flight.enter();
        backend.history.attempts.increment();
        Self {
            backend,
            reused: None,
            started: now,
            sent: Some(now),
            first_byte: None,
            promises: false,
            place: Some(place),
            pool,
        }
    }

    /// Records that a connection was made; `reused` is true if it was kept alive from an earlier request.
    pub fn connected(&mut self, reused: bool) {
        self.reused = Some(reused);
        if reused {
            self.backend.history.connections_reused.increment();
        } else {
            self.backend.history.connections_new.increment();
        }
    }

    /// Records that the client has yet to send the body. Until it is [`sent`](Self::sent), the delay is not attributed
    /// to the backend.
    pub(crate) fn uploading(&mut self) {
        self.sent = None;
    }

    /// Returns whether the client has yet to send the body.
    pub(crate) fn is_uploading(&self) -> bool {
        self.sent.is_none()
    }

    /// Records that the whole request was passed on.
    pub fn sent(&mut self, now: Instant) {
        if self.first_byte.is_none() {
            self.sent.get_or_insert(now);
        }
    }

    /// Records the head of the final response, or of a 101. `retry_after` is the value of the header with that name;
    /// more than 60 s count as 60 s. A 502, 503 or 504 is a failure of the backend.
    pub fn responded(&mut self, status: u16, retry_after: Option<Duration>, now: Instant) {
        self.first_byte = Some(now.saturating_duration_since(self.started));
        self.backend.history.responses.increment(status);
        if let Some(sent) = self.sent {
            self.took(now.saturating_duration_since(sent), now);
        }
        if let Some(penalty) = penalty(status, retry_after) {
            self.backend.load.penalize(penalty, now);
        }
        self.promises = !is_failure(status);
        if !self.promises {
            self.pool.judge_failure(&self.backend, AttemptFailure::Status(status), self.started, now);
        } else if status == SWITCHING_PROTOCOLS {
            self.finished();
        }
    }

    /// Records the time that is attributed to the backend.
    fn took(&self, time: Duration, now: Instant) {
        self.backend.history.time_to_first_byte.observe(time);
        self.backend.load.responded(time, now);
        self.pool.compare(&self.backend, time, now);
    }

    /// Records that the response is complete. This is a success if its head was one, and resets the failures of the
    /// backend. Dropping the attempt has the same effect unless it [`failed`](Self::failed) before: the response had no
    /// body, or its client disconnected.
    pub fn finished(&mut self) {
        if std::mem::take(&mut self.promises) {
            self.backend.history.record.succeeded(self.started);
        }
    }

    /// Records that the response ended before its end through no fault of the backend. This is no success either.
    pub(crate) fn cancelled(&mut self) {
        self.promises = false;
    }

    /// Records a failure of the backend, which can eject it.
    pub fn failed(&mut self, error: UpstreamError, now: Instant) {
        let time = self.sent.map_or(Duration::ZERO, |sent| now.saturating_duration_since(sent));
        self.promises = false;
        self.pool.charge(&self.backend, error, self.started, time, now);
    }

    /// Records that another attempt was connected first. This is no failure, but it has cost time.
    pub(super) fn overtaken(&self, now: Instant) {
        self.backend.load.penalize(now.saturating_duration_since(self.started), now);
    }

    /// Returns the beginning of the attempt.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// Returns the pool that has placed the attempt.
    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Returns the time from the beginning of the attempt to the head of the response; `None` if there was none.
    pub(crate) fn time_to_first_byte(&self) -> Option<Duration> {
        self.first_byte
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // The response had no body, or its client disconnected.
        self.finished();
        // Free the place before waking a request that waits for it.
        self.place = None;
        self.pool.shared.counters.in_flight.leave();
        self.pool.shared.queue.wake();
    }
}

/// Returns whether a response counts as a failure of its backend.
fn is_failure(status: u16) -> bool {
    RetryCause::of_status(status).is_some()
}

/// Returns the minimum cost of the backend after this response.
fn penalty(status: u16, retry_after: Option<Duration>) -> Option<Duration> {
    let requested = retry_after.map(|pause| pause.min(MAX_PENALTY));
    requested.or((status == 429 || is_failure(status)).then_some(PENALTY))
}

// === impl Pool ===

impl Pool {
    /// Records that an attempt that began at `began` and took `time` of the backend has failed.
    pub(super) fn charge(
        &self,
        backend: &Arc<Backend>,
        error: UpstreamError,
        began: Instant,
        time: Duration,
        now: Instant,
    ) {
        backend.failed(error);
        backend.load.penalize(time.max(PENALTY), now);
        self.judge_failure(backend, AttemptFailure::Error(error), began, now);
    }

    /// Records that a backend failed an attempt, and ejects the backend if the threshold is reached.
    fn judge_failure(&self, backend: &Arc<Backend>, failure: AttemptFailure, began: Instant, now: Instant) {
        backend.history.note_failure(failure);
        if backend.history.record.failed(&self.settings.outlier_detection, began) {
            self.eject(backend, Cause::Failures, now);
        }
    }

    /// Compares the times of the backends once per window.
    fn compare(&self, backend: &Backend, time: Duration, now: Instant) {
        let Some(slow_backends) = &self.shared.slow_backends else { return };
        backend.history.times.observe(time);
        let members = self.backends.iter().map(|backend| (&backend.history.times, &backend.history.record));
        for index in slow_backends.close_window(now, members) {
            if let Some(backend) = self.backends.get(index) {
                self.eject(backend, Cause::Slowness, now);
            }
        }
    }

    fn eject(&self, backend: &Arc<Backend>, why: Cause, now: Instant) {
        let Some(which) = self.index_of(backend) else { return };
        let members: Vec<_> = self
            .backends
            .iter()
            .map(|backend| Candidate {
                ready: self.is_ready(backend),
                draining: backend.admin() != Admin::InService,
                record: &backend.history.record,
            })
            .collect();
        let settings = &self.settings.outlier_detection;
        match self.shared.ejector.eject(settings, &members, which, why, now, self.jitter(backend, now)) {
            Ok(time) => {
                // The backend counts as returned when the ejection ends, and starts slowly then.
                backend.history.comeback.came_back(now + time);
                self.shared.changes.note();
                let why = backend.ejected_for();
                log::warn!(
                    "pool {}: backend {} is ejected for the next {time:.1?}: {why}",
                    self.name,
                    backend.label
                );
                self.tell(&PoolEvent::Ejected { backend: &backend.label, time, why: &why });
                // The effect on the pool is evaluated now, and not with the next request.
                self.look(now);
            }
            Err(reason) => {
                log::debug!("pool {}: backend {} is not ejected: {reason:?}", self.name, backend.label);
            }
        }
    }

    /// Returns a number from 0 to 1 that differs between backends that are ejected together.
    fn jitter(&self, backend: &Backend, now: Instant) -> f64 {
        slow_start::draw_for_key(&self.cache.nanoseconds(now).to_le_bytes(), &backend.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gateway_errors_count_as_failures() {
        for status in [502, 503, 504] {
            assert!(is_failure(status));
        }
        for status in [200, 404, 429, 500, 501, 505] {
            assert!(!is_failure(status));
        }
    }

    #[test]
    fn a_backend_that_asks_for_a_pause_gets_one() {
        let seconds = Duration::from_secs;
        assert_eq!(penalty(200, None), None);
        assert_eq!(penalty(429, None), Some(PENALTY));
        assert_eq!(penalty(502, None), Some(PENALTY));
        assert_eq!(penalty(429, Some(seconds(7))), Some(seconds(7)));
        assert_eq!(penalty(503, Some(seconds(3600))), Some(MAX_PENALTY));
    }
}
