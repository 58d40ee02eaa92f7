//! Condition of a backend: the reason for its state, and since when it has this state, in one wording for all outputs.

use std::time::{Duration, Instant, SystemTime};

use health_service::{CheckKind, HealthVerdict};
use lb_service::pool::{Backend, BackendState};

/// Moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// The time on the monotonic clock.
    pub instant: Instant,
    /// The time on the system clock.
    pub time: SystemTime,
}

/// Condition of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// The reason for the state: `3 checks failed: connection refused`.
    pub reason: String,
    /// The time since which the backend has this state.
    pub since: SystemTime,
}

/// Information about a backend that its pool does not have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    /// The kind of health check.
    pub kind: &'a CheckKind,
    /// The result of its health checks; `None` before the first check.
    pub verdict: Option<&'a HealthVerdict>,
    /// The time at which an operator drained or disabled it, possibly in an old process.
    pub changed: Option<SystemTime>,
}

// === impl Known ===

impl Known<'_> {
    /// No information.
    pub(crate) const NOTHING: Self = Self { kind: &CheckKind::None, verdict: None, changed: None };
}

// === impl Moment ===

impl Moment {
    /// Returns the current moment.
    pub(crate) fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    /// Returns the system time at `instant`, which must be in the past.
    pub(crate) fn time_of(&self, instant: Instant) -> SystemTime {
        self.time - self.instant.saturating_duration_since(instant)
    }

    /// Returns the duration since `time`.
    pub(crate) fn since(&self, time: SystemTime) -> Duration {
        self.time.duration_since(time).unwrap_or_default()
    }
}

// === impl Condition ===

impl Condition {
    /// Returns the condition of a backend in this `state` at the moment `at`.
    pub(crate) fn of(backend: &Backend, state: BackendState, known: Known<'_>, at: Moment) -> Self {
        Self { reason: reason(backend, state, known, at), since: since(backend, state, known, at) }
    }
}

fn reason(backend: &Backend, state: BackendState, known: Known<'_>, at: Moment) -> String {
    match (state, backend.ejected_until(at.instant), known.verdict) {
        (BackendState::Ejected, Some(until), _) => {
            let left = until.saturating_duration_since(at.instant).as_secs_f64();
            format!("{}; back in {left:.1} s", backend.ejected_for())
        }
        (BackendState::Draining, ..) => "it is draining".into(),
        (BackendState::Disabled, ..) => "it is disabled".into(),
        (_, _, Some(verdict)) => judged(verdict),
        (_, _, None) if *known.kind == CheckKind::None => "no health check".into(),
        (_, _, None) => "not checked yet".into(),
    }
}

/// Returns the reason from health checks. It includes the latest check if that one contradicts the state or failed in
/// another way.
fn judged(verdict: &HealthVerdict) -> String {
    let HealthVerdict { up, reason, last_failure, .. } = verdict;
    match last_failure {
        Some(failure) if *up || !reason.ends_with(failure.as_str()) => {
            format!("{reason}; its latest check failed: {failure}")
        }
        None if !up => format!("{reason}; its latest check passed"),
        _ => reason.clone(),
    }
}

/// Returns the time of the latest change that led to the state.
fn since(backend: &Backend, state: BackendState, known: Known<'_>, at: Moment) -> SystemTime {
    let settled = at.time_of(backend.since(at.instant));
    let judged = known.verdict.map(|verdict| verdict.since);
    match state {
        BackendState::Up => judged.map_or(settled, |judged| judged.max(settled)),
        BackendState::Down => judged.unwrap_or(settled),
        BackendState::Ejected => backend.ejected_since(at.instant).map_or(settled, |since| at.time_of(since)),
        // An upgrade passes on the time of the operator's change, so the new process reports the same time.
        BackendState::Draining | BackendState::Disabled => known.changed.unwrap_or(settled),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lb_service::pool::{Admin, BackendSettings, Pool, PoolSettings};
    use pingora::lb::HealthRegistry;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pool(admin: Admin) -> Pool {
        let backend = BackendSettings { admin, ..BackendSettings::new(([10, 0, 0, 1], 80).into()) };
        Pool::new(&PoolSettings::new("web", vec![backend]), Arc::new(HealthRegistry::new()), None)
    }

    fn verdict(up: bool, since: SystemTime, last_failure: Option<&str>) -> HealthVerdict {
        let reason = if up { "2 checks passed" } else { "3 checks failed: connection refused" };
        let last_failure = last_failure.map(str::to_owned);
        HealthVerdict { up, reason: reason.into(), since, checked: since, last_failure }
    }

    fn condition(
        pool: &Pool,
        state: BackendState,
        verdict: Option<&HealthVerdict>,
        changed: Option<SystemTime>,
    ) -> Condition {
        let at = Moment::now();
        Condition::of(&pool.backends()[0], state, Known { kind: &CheckKind::Tcp, verdict, changed }, at)
    }

    #[test]
    fn the_condition_of_a_down_backend_contains_reason_and_time() {
        let since = SystemTime::now() - 12 * SECOND;
        let down = verdict(false, since, Some("connection refused"));
        let found = condition(&pool(Admin::InService), BackendState::Down, Some(&down), None);
        assert_eq!(found, Condition { reason: "3 checks failed: connection refused".into(), since });
    }

    #[test]
    fn a_latest_check_that_contradicts_the_state_is_reported() {
        let now = SystemTime::now();
        let reason = |up, failure| {
            condition(&pool(Admin::InService), BackendState::Up, Some(&verdict(up, now, failure)), None)
                .reason
        };
        assert_eq!(reason(true, None), "2 checks passed");
        assert_eq!(reason(true, Some("timed out")), "2 checks passed; its latest check failed: timed out");
        let down = "3 checks failed: connection refused";
        assert_eq!(reason(false, None), format!("{down}; its latest check passed"));
        assert_eq!(reason(false, Some("connection refused")), down);
        assert_eq!(reason(false, Some("timed out")), format!("{down}; its latest check failed: timed out"));
    }

    #[test]
    fn a_backend_is_up_since_it_was_added_or_its_checks_passed_whichever_is_later() {
        let pool = pool(Admin::InService);
        let earlier = verdict(true, SystemTime::now() - 60 * SECOND, None);
        let joined = condition(&pool, BackendState::Up, Some(&earlier), None).since;
        assert!(joined > earlier.since + 50 * SECOND, "{joined:?}");
        let later = verdict(true, SystemTime::now() + SECOND, None);
        assert_eq!(condition(&pool, BackendState::Up, Some(&later), None).since, later.since);
    }

    #[test]
    fn a_drain_keeps_its_start_time_over_an_upgrade() {
        let changed = SystemTime::now() - 60 * SECOND;
        assert_eq!(
            condition(&pool(Admin::Draining), BackendState::Draining, None, Some(changed)).since,
            changed
        );
    }
}
