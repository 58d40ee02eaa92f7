//! The selection of a backend for a request, and the reasons for skipping the others.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;
use pingora::lb::selection::BackendSelection;

use super::address::UpstreamAddress;
use super::attempt::Attempt;
use super::availability::{Availability, Level};
use super::backend::Backend;
use super::hash_key::{self, Key};
use super::head::{Fields, Head};
use super::reasons::{AttemptFailure, SkipReason};
use super::settings::Admin;
use super::sticky::Session;
use super::{Pool, slow_start};
use crate::policy::{InFlight, bound};

/// The input of a pick. A [`Dispatch`](super::Dispatch) makes it.
#[derive(Debug)]
pub struct PickRequest<'a> {
    /// The key to hash; empty if there is none.
    pub key: &'a [u8],
    /// The backend that the session cookie names, as an index of [`Pool::backends`].
    pub session: Option<usize>,
    /// The backends of the earlier attempts.
    pub tried: &'a Tried,
    /// The time.
    pub now: Instant,
    /// A random number from 0 to 1, without 1.
    pub draw: f64,
}

/// The backends of the earlier attempts of a request, each with its failure.
#[derive(Clone, Debug, Default)]
pub struct Tried(Vec<(Arc<Backend>, AttemptFailure)>);

/// The backends that were skipped for a request, in the order of the policy. Backends of earlier attempts are not
/// included.
#[derive(Clone, Debug, Default)]
pub struct Passed(Vec<(Arc<Backend>, SkipReason)>);

/// The reason why no backend was selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickError {
    /// Every suitable backend has reached `max_requests`.
    Full,
    /// No backend is available.
    Unavailable,
}

/// The maximum number of skipped backends that are stored. It bounds the length of a log line.
const MAX_PASSED: usize = 16;

/// The strictness of one pass over the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pass {
    /// Whether backends that failed their latest request are skipped.
    sound: bool,
    /// Whether slow starts and bounds of hashed load count, which only shift load.
    shifts: bool,
}

/// The purpose of a pick: to serve a request, or to explain how one would be served. Both apply the same checks in the
/// same order.
pub(super) trait Purpose {
    /// The place of the request at the selected backend.
    type Place;

    /// Offers the candidates for a key, best first, until `accept` takes one.
    fn offer(&self, pool: &Pool, key: &[u8], accept: impl Fn(&Arc<Backend>) -> bool);

    /// Takes a place at a backend that can hold fewer than `bound` requests.
    fn reserve(&self, backend: &Backend, bound: u64) -> Result<Self::Place, SkipReason>;

    /// Records that a candidate was skipped.
    fn note(&self, backend: &Arc<Backend>, skip_reason: SkipReason);

    /// Returns whether candidates were skipped only to shift load.
    fn has_shifted(&self) -> bool;
}

/// The purpose of serving a request: the policy advances, and the place and the skipped backends are counted.
struct Serve<'a>(RefCell<&'a mut Passed>);

// === impl Pool ===

impl Pool {
    /// Places a request at the backend that its session or the policy selects, and records the skipped backends.
    ///
    /// A retry prefers, also in panic, an available backend that did not fail its latest request, then any available
    /// one. Only after these does panic offer it a backend that is not available.
    ///
    /// # Errors
    /// If no backend is selected: [`PickError::Full`] if only the limits prevent it, else [`PickError::Unavailable`].
    pub fn place(
        self: &Arc<Self>,
        request: &PickRequest<'_>,
        passed: &mut Passed,
    ) -> Result<Attempt, PickError> {
        let availability = self.availability(request.now);
        match self.pick(request, availability, &Serve(RefCell::new(passed))) {
            Some((backend, place)) => {
                passed.forget(&backend);
                Ok(Attempt::new(self.clone(), backend, place, request.now))
            }
            None => Err(self.unplaced(request, availability)),
        }
    }

    /// Selects the backend for a request, and takes a place there.
    pub(super) fn pick<P: Purpose>(
        &self,
        request: &PickRequest<'_>,
        availability: Availability,
        purpose: &P,
    ) -> Option<(Arc<Backend>, P::Place)> {
        let any = Pass::any(availability);
        let picked = self.continue_session(request, availability, purpose);
        let picked = picked.or_else(|| self.choose_for_retry(request, availability, purpose));
        let picked = picked.or_else(|| self.choose(request, availability, any, purpose));
        // A backend that gets more than its share is better than none.
        picked.or_else(|| {
            let pass = Pass { shifts: false, ..any };
            purpose.has_shifted().then(|| self.choose(request, availability, pass, purpose)).flatten()
        })
    }

    /// Returns the reason why no backend was selected.
    pub(super) fn unplaced(&self, request: &PickRequest<'_>, availability: Availability) -> PickError {
        if self.has_full(request, availability) { PickError::Full } else { PickError::Unavailable }
    }

    /// Returns whether another backend would take a request after these attempts.
    pub(super) fn has_another(&self, tried: &Tried, also: &Backend, now: Instant) -> bool {
        self.others(tried, also, now).next().is_some()
    }

    /// Returns the backends that would take a request after these attempts.
    pub(super) fn others(
        &self,
        tried: &Tried,
        also: &Backend,
        now: Instant,
    ) -> impl Iterator<Item = &Arc<Backend>> {
        let availability = self.availability(now);
        self.backends.iter().filter(move |backend| {
            backend.address != also.address
                && !tried.contains(&backend.address)
                && skip_reason(backend, availability, now).is_none()
                && (self.shared.queue.places() > 0 || backend.load.in_flight() < backend.max_requests)
        })
    }

    /// Returns whether the policy hashes requests. A request without a [`hash_key`](Self::hash_key) then falls back to
    /// round robin, and the caller counts it in [`keys_missing`](super::Counters::keys_missing).
    pub fn is_hashed(&self) -> bool {
        self.settings.hash_on.is_some()
    }

    /// Returns the key of a request for the policy; `None` if the policy does not hash or the request has no key. The
    /// address of the `client` is the one that a trusted proxy reports, if there is such a proxy; it is missing on Unix
    /// sockets.
    pub fn hash_key<'a>(&self, client: Option<IpAddr>, head: &'a impl Head) -> Option<Key<'a>> {
        self.settings.hash_on.as_ref().and_then(|on| hash_key::key(on, client, head))
    }

    /// Returns whether a cookie keeps clients at their backends.
    pub(crate) fn is_sticky(&self) -> bool {
        self.sticky.is_some()
    }

    /// Returns the session that a cookie among these fields names; `None` if no cookie names a backend of this pool.
    pub fn session(&self, fields: &impl Fields) -> Option<Session> {
        self.sticky.as_ref()?.find(fields)
    }

    /// Returns the cookie that a response of `backend` sets, given the `session` of the request. It is `None` if the
    /// client has the cookie already, or if the backend of the session is only busy and can take the next request.
    pub fn set_cookie(
        &self,
        backend: &Backend,
        session: Option<Session>,
        secure: bool,
        now: Instant,
    ) -> Option<HeaderValue> {
        let sticky = self.sticky.as_ref()?;
        let index = self.index_of(backend)?;
        let is_elsewhere =
            |session: Session| session.backend != index && self.holds_session(session.backend, now);
        let stays = session.is_some_and(is_elsewhere);
        let has_it = session == Some(Session { backend: index, is_current: true }) && !sticky.renews();
        (!stays && !has_it).then(|| sticky.set_cookie(index, secure))
    }

    /// Returns whether a session stays with its backend although one of its requests went elsewhere.
    fn holds_session(&self, session: usize, now: Instant) -> bool {
        let availability = self.availability(now);
        self.backends
            .get(session)
            .is_some_and(|backend| session_skip_reason(backend, availability, now).is_none())
    }

    fn continue_session<P: Purpose>(
        &self,
        request: &PickRequest<'_>,
        availability: Availability,
        purpose: &P,
    ) -> Option<(Arc<Backend>, P::Place)> {
        let backend = self.backends.get(request.session?)?;
        let skip_reason = if request.tried.contains(&backend.address) {
            Some(SkipReason::Tried)
        } else {
            session_skip_reason(backend, availability, request.now)
        };
        match skip_reason.map_or_else(|| purpose.reserve(backend, u64::MAX), Err) {
            Ok(place) => Some((backend.clone(), place)),
            Err(skip_reason) => {
                purpose.note(backend, skip_reason);
                None
            }
        }
    }

    /// Selects a backend for a retry that is not known to fail: first by its latest request and its health checks, then
    /// by its health checks alone. Panic ignores the health checks because they might be wrong, but a retry first tries
    /// the case that they are right.
    fn choose_for_retry<P: Purpose>(
        &self,
        request: &PickRequest<'_>,
        availability: Availability,
        purpose: &P,
    ) -> Option<(Arc<Backend>, P::Place)> {
        if request.tried.is_empty() {
            return None;
        }
        let checked = Availability { panic: false, ..availability };
        let pass = |sound| Pass { sound, shifts: !availability.panic };
        let sound = self.choose(request, checked, pass(true), purpose);
        // Without panic, the next pass of `pick` does this.
        let is_left = sound.is_none() && availability.panic;
        sound.or_else(|| is_left.then(|| self.choose(request, checked, pass(false), purpose)).flatten())
    }

    /// Returns whether a backend would take the request if it were not full.
    fn has_full(&self, request: &PickRequest<'_>, availability: Availability) -> bool {
        self.backends.iter().enumerate().any(|(index, backend)| {
            let skip_reason = match request.session == Some(index) {
                true => session_skip_reason(backend, availability, request.now),
                false => skip_reason(backend, availability, request.now),
            };
            skip_reason.is_none() && !request.tried.contains(&backend.address)
        })
    }

    /// Selects the policy's best candidate that can take the request.
    fn choose<P: Purpose>(
        &self,
        request: &PickRequest<'_>,
        availability: Availability,
        pass: Pass,
        purpose: &P,
    ) -> Option<(Arc<Backend>, P::Place)> {
        let taken = Cell::new(None);
        purpose.offer(self, request.key, |backend| {
            match self.take(backend, availability, pass, request, purpose) {
                Ok(place) => taken.set(Some((backend.clone(), place))),
                Err(skip_reason) => {
                    purpose.note(backend, skip_reason);
                    return false;
                }
            }
            true
        });
        taken.into_inner()
    }

    /// Returns why a backend would be skipped; `None` if it would take the request.
    pub(super) fn would_skip<P: Purpose>(
        &self,
        backend: &Backend,
        availability: Availability,
        request: &PickRequest<'_>,
        purpose: &P,
    ) -> Option<SkipReason> {
        self.take(backend, availability, Pass::any(availability), request, purpose).err()
    }

    /// Takes a place at a candidate, or returns why it is skipped.
    fn take<P: Purpose>(
        &self,
        backend: &Backend,
        availability: Availability,
        pass: Pass,
        request: &PickRequest<'_>,
        purpose: &P,
    ) -> Result<P::Place, SkipReason> {
        if request.tried.contains(&backend.address) {
            return Err(SkipReason::Tried);
        }
        skip_reason(backend, availability, request.now).map_or(Ok(()), Err)?;
        if pass.sound && backend.consecutive_failures() > 0 {
            return Err(SkipReason::Failing);
        }
        if !pass.shifts {
            return purpose.reserve(backend, u64::MAX);
        }
        if !self.is_admitted(backend, request) {
            return Err(SkipReason::SlowStart);
        }
        purpose.reserve(backend, self.bound(backend, availability, request))
    }

    /// Returns the maximum of hashed requests that a backend can hold; `u64::MAX` means that there is no bound.
    fn bound(&self, backend: &Backend, availability: Availability, request: &PickRequest<'_>) -> u64 {
        let percent = self.settings.bounded_load.filter(|_| !request.key.is_empty());
        percent.map_or(u64::MAX, |percent| {
            bound(percent, self.in_flight(), backend.weight(), availability.weight)
        })
    }

    /// Returns whether a backend in slow start takes this request. If the request has a key, the key decides: a key
    /// that has returned to a backend stays there.
    fn is_admitted(&self, backend: &Backend, request: &PickRequest<'_>) -> bool {
        let share = self.share(backend, request.now);
        let draw = || match request.key {
            [] => request.draw,
            key => slow_start::draw_for_key(key, &backend.address),
        };
        share >= 1.0 || slow_start::admits(share, draw())
    }

    /// Returns the share of its weight, from 0.1 to 1, that a backend has during slow start.
    pub(super) fn share(&self, backend: &Backend, now: Instant) -> f64 {
        self.settings.slow_start.map_or(1.0, |window| backend.history.comeback.share(now, window))
    }
}

/// Returns why a backend is skipped for any request; `None` if it is not.
fn skip_reason(backend: &Backend, availability: Availability, now: Instant) -> Option<SkipReason> {
    if backend.backup && availability.level == Level::Primary {
        Some(SkipReason::Backup)
    } else if let Some(skip_reason) = skipped_by_operator(backend) {
        Some(skip_reason)
    } else if availability.panic && backend.backup == (availability.level == Level::Backup) {
        None
    } else if !backend.is_ready() {
        Some(SkipReason::Down)
    } else {
        backend.history.record.is_ejected(now).then_some(SkipReason::Ejected)
    }
}

/// Returns why the backend of a session is skipped. A session stays while its backend drains, but moves if that
/// backend is also down or ejected.
fn session_skip_reason(backend: &Backend, availability: Availability, now: Instant) -> Option<SkipReason> {
    match skip_reason(backend, availability, now) {
        Some(SkipReason::Draining) if !backend.is_ready() => Some(SkipReason::Down),
        Some(SkipReason::Draining) if backend.history.record.is_ejected(now) => Some(SkipReason::Ejected),
        Some(SkipReason::Draining) => None,
        other => other,
    }
}

fn skipped_by_operator(backend: &Backend) -> Option<SkipReason> {
    match backend.admin() {
        Admin::InService => None,
        Admin::Draining => Some(SkipReason::Draining),
        Admin::Disabled => Some(SkipReason::Disabled),
    }
}

// === impl Pass ===

impl Pass {
    /// Accepts every backend that can take a request; in panic, load is not shifted.
    fn any(availability: Availability) -> Self {
        Self { sound: false, shifts: !availability.panic }
    }
}

// === impl Serve ===

impl Purpose for Serve<'_> {
    type Place = InFlight;

    fn offer(&self, pool: &Pool, key: &[u8], accept: impl Fn(&Arc<Backend>) -> bool) {
        pool.offer(&mut pool.selector.iter(key), accept);
    }

    fn reserve(&self, backend: &Backend, bound: u64) -> Result<InFlight, SkipReason> {
        let (bound, skip_reason) = backend.room(bound);
        backend.load.try_enter(bound).ok_or(skip_reason)
    }

    fn note(&self, backend: &Arc<Backend>, skip_reason: SkipReason) {
        self.0.borrow_mut().note(backend, skip_reason);
    }

    fn has_shifted(&self) -> bool {
        self.0.borrow().only_shifted()
    }
}

// === impl Backend ===

impl Backend {
    /// Returns the maximum of requests for a bound of `bound`, and the reason that applies when it is reached.
    pub(super) fn room(&self, bound: u64) -> (u64, SkipReason) {
        let skip_reason = if bound < self.max_requests { SkipReason::AboveBound } else { SkipReason::Full };
        (bound.min(self.max_requests), skip_reason)
    }
}

// === impl Tried ===

impl Tried {
    /// Returns an empty list.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Records a failed attempt at this backend.
    pub(crate) fn insert(&mut self, backend: Arc<Backend>, failure: AttemptFailure) {
        self.0.push((backend, failure));
    }

    /// Returns whether an attempt was made at this backend.
    pub fn contains(&self, address: &UpstreamAddress) -> bool {
        self.0.iter().any(|(backend, _)| backend.address == *address)
    }

    /// Returns the number of backends with an attempt.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether no attempt was made.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the backends, each with its failure.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Backend, AttemptFailure)> {
        self.0.iter().map(|(backend, failure)| (&**backend, *failure))
    }
}

// === impl Passed ===

impl Passed {
    /// Returns an empty list.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Counts the skip at the backend, and stores it for the log.
    fn note(&mut self, backend: &Arc<Backend>, skip_reason: SkipReason) {
        let is_known =
            self.0.iter().any(|(known, why)| *why == skip_reason && known.address == backend.address);
        if !is_known {
            backend.pass_over(skip_reason);
        }
        // A full list still takes a reason that it does not contain, because that reason can decide the result.
        if !is_known && (self.0.len() < MAX_PASSED || !self.contains(skip_reason)) {
            self.0.push((backend.clone(), skip_reason));
        }
    }

    /// Removes a backend that was selected after all, in a later pass or after waiting.
    fn forget(&mut self, backend: &Backend) {
        self.0.retain(|(known, _)| known.address != backend.address);
    }

    /// Returns whether a backend was skipped for this reason.
    pub fn contains(&self, skip_reason: SkipReason) -> bool {
        self.0.iter().any(|(_, why)| *why == skip_reason)
    }

    fn only_shifted(&self) -> bool {
        self.0.iter().any(|(_, why)| why.only_shifts())
    }

    /// Returns whether no backend was skipped.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Returns the skipped backends, each with its reason, without those of earlier attempts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Backend, SkipReason)> {
        let listed = self.0.iter().filter(|(_, skip_reason)| *skip_reason != SkipReason::Tried);
        listed.map(|(backend, skip_reason)| (&**backend, *skip_reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::clock::{Clock, ManualClock};
    use crate::policy::{Algorithm, PolicyConfig};
    use crate::pool::{BackendSettings, PoolSettings, StickySettings, UpstreamError};
    use pingora::lb::HealthRegistry;

    const SECOND: Duration = Duration::from_secs(1);
    const UNTRIED: &Tried = &Tried::new();

    /// A pool with a manual clock and manual results of health checks.
    struct Bench {
        pool: Arc<Pool>,
        manual: ManualClock,
        draw: f64,
    }

    /// Returns the settings of backends 127.0.0.1:1 and following.
    fn settings(backends: u16) -> PoolSettings {
        let backend = |port| BackendSettings::new(([127, 0, 0, 1], port).into());
        PoolSettings::new("web", (1..=backends).map(backend).collect())
    }

    impl Bench {
        fn new(settings: &PoolSettings) -> Self {
            let (clock, manual) = Clock::manual();
            let policy = PolicyConfig::new(settings.policy).with_seed(7);
            let pool = Pool::with_policy(settings, Arc::new(HealthRegistry::new()), None, policy, &clock);
            Self { pool: Arc::new(pool), manual, draw: 0.5 }
        }

        fn request<'a>(&self, key: &'a [u8], session: Option<usize>, tried: &'a Tried) -> PickRequest<'a> {
            PickRequest { key, session, tried, now: self.manual.now(), draw: self.draw }
        }

        fn place(&self, key: &[u8]) -> Result<Attempt, PickError> {
            self.pool.place(&self.request(key, None, UNTRIED), &mut Passed::new())
        }

        /// Returns the ports that this number of requests go to, one after the other.
        fn ports(&self, requests: usize) -> Vec<u16> {
            (0..requests).map(|_| port(&self.place(b"").unwrap())).collect()
        }

        fn set_ready(&self, port: u16, ready: bool) {
            let backend = &self.pool.backends()[usize::from(port) - 1];
            self.pool.balancer.backends().set_enable(&backend.identity, ready);
            self.pool.shared.changes.note();
        }

        fn set_admin(&self, index: usize, admin: Admin) {
            self.pool.backends()[index].history.set_admin(admin, self.manual.now());
            self.pool.shared.changes.note();
        }

        fn fail(&self, port: u16) {
            let mut others = Tried::new();
            for backend in self.pool.backends().iter().filter(|backend| backend.address.port() != port) {
                others.insert(backend.clone(), AttemptFailure::Error(UpstreamError::Connect));
            }
            // An ejected backend takes no request that could fail.
            if let Ok(mut attempt) = self.pool.place(&self.request(b"", None, &others), &mut Passed::new()) {
                attempt.failed(UpstreamError::Connect, self.manual.now());
            }
        }
    }

    fn port(attempt: &Attempt) -> u16 {
        attempt.backend.address.port()
    }

    #[test]
    fn a_tried_backend_is_not_selected_again() {
        let bench = Bench::new(&settings(2));
        let mut tried = Tried::new();
        for expected in [1, 2] {
            let attempt = bench.pool.place(&bench.request(b"", None, &tried), &mut Passed::new()).unwrap();
            assert_eq!(port(&attempt), expected);
            tried.insert(attempt.backend.clone(), AttemptFailure::Status(503));
        }
        let mut passed = Passed::new();
        let placed = bench.pool.place(&bench.request(b"", None, &tried), &mut passed);
        assert_eq!(placed.unwrap_err(), PickError::Unavailable);
        assert!(passed.is_empty(), "a backend that was tried is not skipped as well");
    }

    #[test]
    fn in_panic_a_retry_prefers_a_failing_backend_to_one_whose_checks_fail() {
        let bench = Bench::new(&settings(4));
        for port in 2..=4 {
            bench.set_ready(port, false);
        }
        bench.fail(1);
        assert!(bench.pool.availability(bench.manual.now()).panic);
        let mut tried = Tried::new();
        tried.insert(bench.pool.backends()[1].clone(), AttemptFailure::Status(503));
        let mut passed = Passed::new();
        let attempt = bench.pool.place(&bench.request(b"", None, &tried), &mut passed).unwrap();
        assert_eq!(port(&attempt), 1);
        assert!(passed.iter().all(|(backend, why)| backend.address.port() > 2 && why == SkipReason::Down));
        tried.insert(attempt.backend.clone(), AttemptFailure::Status(503));
        let attempt = bench.pool.place(&bench.request(b"", None, &tried), &mut passed).unwrap();
        assert!(port(&attempt) > 2, "a backend whose checks fail is the last choice");
    }

    #[test]
    fn a_backend_that_gets_the_request_is_not_skipped() {
        let bench = Bench::new(&settings(2));
        bench.fail(2);
        let mut tried = Tried::new();
        tried.insert(bench.pool.backends()[0].clone(), AttemptFailure::Status(503));
        let mut passed = Passed::new();
        let attempt = bench.pool.place(&bench.request(b"", None, &tried), &mut passed).unwrap();
        assert_eq!(port(&attempt), 2, "it is failing, and no other is left");
        assert!(passed.is_empty(), "{passed:?}");
    }

    #[test]
    fn each_skipped_backend_has_its_reason() {
        let mut settings = settings(5);
        settings.backends[4].backup = true;
        settings.backends[3].max_requests = std::num::NonZeroU32::new(1);
        settings.panic_threshold = 0;
        let bench = Bench::new(&settings);
        let _full = bench.pool.backends()[3].load.try_enter(1).unwrap();
        bench.set_ready(1, false);
        bench.set_admin(1, Admin::Draining);
        for _ in 0..5 {
            bench.fail(3);
        }
        let mut passed = Passed::new();
        let placed = bench.pool.place(&bench.request(b"", None, UNTRIED), &mut passed);
        assert_eq!(placed.unwrap_err(), PickError::Full);
        let mut reasons: Vec<_> = passed.iter().map(|(b, why)| (b.address.port(), why)).collect();
        reasons.sort_by_key(|(port, _)| *port);
        let expected = [
            (1, SkipReason::Down),
            (2, SkipReason::Draining),
            (3, SkipReason::Ejected),
            (4, SkipReason::Full),
            (5, SkipReason::Backup),
        ];
        assert_eq!(reasons, expected);
    }

    #[test]
    fn backups_are_used_if_no_primary_is_available() {
        let mut settings = settings(3);
        settings.backends[2].backup = true;
        let bench = Bench::new(&settings);
        assert_eq!(bench.ports(4), [1, 2, 1, 2]);
        bench.set_ready(1, false);
        assert!(bench.ports(4).iter().all(|port| *port == 2));
        bench.set_ready(2, false);
        assert!(bench.ports(4).iter().all(|port| *port == 3));
        bench.set_ready(1, true);
        assert!(bench.ports(4).iter().all(|port| *port == 1));
    }

    #[test]
    fn in_panic_all_backends_are_used_except_draining_ones() {
        let bench = Bench::new(&settings(5));
        for port in 1..=3 {
            bench.set_ready(port, false);
        }
        bench.set_admin(4, Admin::Draining);
        // One of the four that do not drain is ready.
        assert!(bench.pool.availability(bench.manual.now()).panic);
        let mut ports = bench.ports(8);
        ports.sort_unstable();
        assert_eq!(ports, [1, 1, 2, 2, 3, 3, 4, 4]);
    }

    #[test]
    fn a_backend_that_returns_starts_slowly_unless_it_is_alone() {
        let mut settings = settings(2);
        settings.slow_start = Some(10 * SECOND);
        let mut bench = Bench::new(&settings);
        assert_eq!(bench.ports(2), [1, 2], "never at process start");
        bench.pool.backends()[0].history.comeback.came_back(bench.manual.now());
        assert_eq!(bench.ports(2), [2, 2]);
        bench.draw = 0.05;
        assert_eq!(bench.ports(2), [1, 2], "a tenth of its requests");
        bench.draw = 0.5;
        bench.manual.advance(6 * SECOND);
        assert_eq!(bench.ports(2), [1, 2]);
        bench.pool.backends()[0].history.comeback.came_back(bench.manual.now());
        bench.set_ready(2, false);
        assert_eq!(bench.ports(2), [1, 1]);
    }

    #[test]
    fn a_bound_moves_hashed_requests_from_a_backend_that_holds_too_many() {
        let mut settings = settings(4);
        settings.policy = Algorithm::ConsistentHash;
        settings.bounded_load = Some(150);
        let bench = Bench::new(&settings);
        let held: Vec<_> = (0..40).map(|_| bench.place(b"one key").unwrap()).collect();
        let most = bench.pool.backends().iter().map(|backend| backend.load.in_flight()).max();
        assert_eq!(most, Some(15), "150 % of the average of 10");
        drop(held);
        assert_eq!(bench.pool.in_flight(), 0);
    }

    #[test]
    fn a_session_stays_while_its_backend_drains_and_moves_when_it_is_ejected() {
        let mut settings = settings(3);
        settings.sticky = Some(StickySettings::new("lb"));
        let bench = Bench::new(&settings);
        let session = Some(Session { backend: 1, is_current: true });
        let next = || {
            let request = bench.request(b"", session.map(|session| session.backend), UNTRIED);
            bench.pool.place(&request, &mut Passed::new()).unwrap()
        };
        let moved = |attempt: &Attempt| {
            bench.pool.set_cookie(&attempt.backend, session, false, bench.manual.now()).is_some()
        };
        let attempt = next();
        assert_eq!((port(&attempt), moved(&attempt)), (2, false));
        bench.set_admin(1, Admin::Draining);
        let attempt = next();
        assert_eq!((port(&attempt), moved(&attempt)), (2, false));
        assert!(bench.ports(6).iter().all(|port| *port != 2), "no new sessions");
        bench.set_admin(1, Admin::InService);
        for _ in 0..5 {
            bench.fail(2);
        }
        let attempt = next();
        assert!(port(&attempt) != 2 && moved(&attempt));
    }

    #[test]
    fn a_session_whose_backend_is_only_busy_does_not_move() {
        let mut settings = settings(2);
        settings.sticky = Some(StickySettings::new("lb"));
        settings.backends[0].max_requests = std::num::NonZeroU32::new(1);
        let bench = Bench::new(&settings);
        let _busy = bench.pool.backends()[0].load.try_enter(1).unwrap();
        let request = bench.request(b"", Some(0), UNTRIED);
        let attempt = bench.pool.place(&request, &mut Passed::new()).unwrap();
        assert_eq!(port(&attempt), 2);
        let session = Some(Session { backend: 0, is_current: true });
        assert_eq!(bench.pool.set_cookie(&attempt.backend, session, false, bench.manual.now()), None);
    }

    #[test]
    fn a_cookie_of_a_former_key_is_replaced_at_the_same_backend() {
        let mut settings = settings(2);
        settings.sticky = Some(StickySettings::new("lb"));
        let bench = Bench::new(&settings);
        let backend = &bench.pool.backends()[1];
        let is_set = |is_current| {
            let session = Some(Session { backend: 1, is_current });
            bench.pool.set_cookie(backend, session, false, bench.manual.now()).is_some()
        };
        assert_eq!((is_set(true), is_set(false)), (false, true));
    }

    #[test]
    fn an_ejected_backend_returns_after_its_ejection() {
        let bench = Bench::new(&settings(2));
        for _ in 0..5 {
            bench.fail(1);
        }
        assert_eq!(bench.ports(3), [2, 2, 2]);
        assert_eq!(bench.pool.backends()[0].ejections(), 1);
        bench.manual.advance(34 * SECOND);
        assert!(bench.ports(2).contains(&1));
        for _ in 0..20 {
            bench.fail(2);
        }
        for _ in 0..20 {
            bench.fail(1);
        }
        let now = bench.manual.now();
        let ejected = bench.pool.backends().iter().filter(|b| b.ejected_until(now).is_some()).count();
        assert_eq!(ejected, 1, "never the last");
    }
}
