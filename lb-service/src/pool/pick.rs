//! Which backend a request goes to, and why the others were passed over.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;

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

/// What a request asks of its pool. A [`Dispatch`](super::Dispatch) makes it.
#[derive(Debug)]
pub struct PickRequest<'a> {
    /// What its hash is made of; empty: nothing.
    pub key: &'a [u8],
    /// The backend that its cookie names, as an index of [`Pool::backends`].
    pub session: Option<usize>,
    /// Where it was sent before.
    pub tried: &'a Tried,
    /// The time.
    pub now: Instant,
    /// A random number from 0 to 1, without 1.
    pub draw: f64,
}

/// The backends that one request was sent to, and how each failed.
#[derive(Clone, Debug, Default)]
pub struct Tried(Vec<(Arc<Backend>, AttemptFailure)>);

/// The backends that a request could not go to, in the order of the policy. A backend that it was sent to is not among them.
#[derive(Clone, Debug, Default)]
pub struct Passed(Vec<(Arc<Backend>, SkipReason)>);

/// Why no backend takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickError {
    /// Every backend that would take it has reached `max_requests`.
    Full,
    /// No backend is available.
    Unavailable,
}

/// So many are remembered: a log line has an end.
const MAX_PASSED: usize = 16;

/// How strictly candidates are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pass {
    /// None that failed its latest request.
    sound: bool,
    /// Slow starts and bounds of hashed load, which only shift load, count.
    shifts: bool,
}

/// What a pick is for: to serve a request, or to say how one would be served. Both ask the same questions in the same order.
pub(super) trait Purpose {
    /// What the request has at the backend that it goes to.
    type Place;

    /// Offers the candidates for a key, best first, each with whether it passes its checks, until `accept` takes one.
    fn offer(&self, pool: &Pool, key: &[u8], accept: impl Fn(&pingora::lb::Backend, bool) -> bool);

    /// A place at a backend that may hold less than `bound`.
    fn reserve(&self, backend: &Backend, bound: u64) -> Result<Self::Place, SkipReason>;

    /// A candidate was passed over.
    fn note(&self, backend: &Arc<Backend>, skip_reason: SkipReason);

    /// Whether some were passed over only to shift load.
    fn has_shifted(&self) -> bool;
}

/// A request is served: its turn is taken, its place counted, and who is passed over as well.
struct Serve<'a>(RefCell<&'a mut Passed>);

// === impl Pool ===

impl Pool {
    /// Gives a request to the backend that its session or the policy names, and notes the backends that were passed over.
    ///
    /// A retry prefers, also in panic, a backend that is available and did not fail its latest request, then any that is
    /// available. Only then does panic offer it a backend that is not available.
    ///
    /// # Errors
    /// When no backend takes it: [`PickError::Full`] if one would, had it room; else [`PickError::Unavailable`].
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

    /// The backend that a request goes to, and its place there.
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
        // Better one that gets more than its share than none.
        picked.or_else(|| {
            let pass = Pass { shifts: false, ..any };
            purpose.has_shifted().then(|| self.choose(request, availability, pass, purpose)).flatten()
        })
    }

    /// Why nobody took a request.
    pub(super) fn unplaced(&self, request: &PickRequest<'_>, availability: Availability) -> PickError {
        if self.has_full(request, availability) { PickError::Full } else { PickError::Unavailable }
    }

    /// Whether a request that was sent to these would be taken by another backend.
    pub(super) fn has_another(&self, tried: &Tried, also: &Backend, now: Instant) -> bool {
        self.others(tried, also, now).next().is_some()
    }

    /// The backends that would take a request which was sent to these.
    pub(super) fn others(
        &self,
        tried: &Tried,
        also: &Backend,
        now: Instant,
    ) -> impl Iterator<Item = &Arc<Backend>> {
        let availability = self.availability(now);
        self.backends.iter().filter(move |backend| {
            backend.address != also.address
                && !tried.contains(backend.address)
                && self.skip_reason(backend, availability, now).is_none()
                && (self.shared.queue.places() > 0 || backend.load.in_flight() < backend.max_requests)
        })
    }

    /// Whether its policy hashes requests. One without a [`hash_key`](Self::hash_key) then takes turns, and is to be
    /// counted in [`keys_missing`](super::Counters::keys_missing).
    pub fn is_hashed(&self) -> bool {
        self.settings.hash_on.is_some()
    }

    /// The key of a request for the policy, if that hashes and the request has one. The address of the `client` is the one
    /// that a trusted proxy names, if there is such a proxy; it is missing on Unix sockets.
    pub fn hash_key<'a>(&self, client: Option<IpAddr>, head: &'a impl Head) -> Option<Key<'a>> {
        self.settings.hash_on.as_ref().and_then(|on| hash_key::key(on, client, head))
    }

    /// Whether clients are kept at their backends by a cookie.
    pub fn is_sticky(&self) -> bool {
        self.sticky.is_some()
    }

    /// The session that a cookie among these fields names; none: no cookie names a backend of this pool.
    pub fn session(&self, fields: &impl Fields) -> Option<Session> {
        self.sticky.as_ref()?.find(fields)
    }

    /// The cookie that a response of `backend` sets, given the `session` that the request came with. There is none when
    /// the client has it already, or when its own backend is only busy and will be there for the next request.
    pub fn set_cookie(
        &self,
        backend: &Backend,
        session: Option<Session>,
        secure: bool,
        now: Instant,
    ) -> Option<HeaderValue> {
        let sticky = self.sticky.as_ref()?;
        let index = self.index(backend.address)?;
        let is_elsewhere =
            |session: Session| session.backend != index && self.holds_session(session.backend, now);
        let stays = session.is_some_and(is_elsewhere);
        let has_it = session == Some(Session { backend: index, is_current: true }) && !sticky.renews();
        (!stays && !has_it).then(|| sticky.set_cookie(index, secure))
    }

    /// Whether a session stays with its backend, even if one request of it went elsewhere.
    fn holds_session(&self, session: usize, now: Instant) -> bool {
        let availability = self.availability(now);
        self.backends
            .get(session)
            .is_some_and(|backend| self.session_skip_reason(backend, availability, now).is_none())
    }

    fn continue_session<P: Purpose>(
        &self,
        request: &PickRequest<'_>,
        availability: Availability,
        purpose: &P,
    ) -> Option<(Arc<Backend>, P::Place)> {
        let backend = self.backends.get(request.session?)?;
        let skip_reason = if request.tried.contains(backend.address) {
            Some(SkipReason::Tried)
        } else {
            self.session_skip_reason(backend, availability, request.now)
        };
        match skip_reason.map_or_else(|| purpose.reserve(backend, u64::MAX), Err) {
            Ok(place) => Some((backend.clone(), place)),
            Err(skip_reason) => {
                purpose.note(backend, skip_reason);
                None
            }
        }
    }

    /// For a retry: a backend that is not known to fail, first by its latest request and its checks, then by its checks alone.
    /// In panic readiness is ignored because the checks may be wrong. If they are right after all, this attempt counts.
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
        // Without panic, the next pass of `pick` asks for the same.
        let is_left = sound.is_none() && availability.panic;
        sound.or_else(|| is_left.then(|| self.choose(request, checked, pass(false), purpose)).flatten())
    }

    /// Whether somebody would take the request, had it room.
    fn has_full(&self, request: &PickRequest<'_>, availability: Availability) -> bool {
        self.backends.iter().enumerate().any(|(index, backend)| {
            let skip_reason = match request.session == Some(index) {
                true => self.session_skip_reason(backend, availability, request.now),
                false => self.skip_reason(backend, availability, request.now),
            };
            skip_reason.is_none() && !request.tried.contains(backend.address)
        })
    }

    /// The policy's best candidate that may have the request.
    fn choose<P: Purpose>(
        &self,
        request: &PickRequest<'_>,
        availability: Availability,
        pass: Pass,
        purpose: &P,
    ) -> Option<(Arc<Backend>, P::Place)> {
        let taken = Cell::new(None);
        purpose.offer(self, request.key, |candidate, ready| {
            let Some(backend) = candidate.addr.as_inet().and_then(|address| self.backend(*address)) else {
                return false;
            };
            match self.take(backend, ready, availability, pass, request, purpose) {
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

    /// Why a backend would not take a request that the policy offers to it.
    pub(super) fn would_skip<P: Purpose>(
        &self,
        backend: &Backend,
        availability: Availability,
        request: &PickRequest<'_>,
        purpose: &P,
    ) -> Option<SkipReason> {
        let (ready, pass) = (self.is_ready(backend), Pass::any(availability));
        self.take(backend, ready, availability, pass, request, purpose).err()
    }

    /// A place at a candidate, or why there is none.
    fn take<P: Purpose>(
        &self,
        backend: &Backend,
        ready: bool,
        availability: Availability,
        pass: Pass,
        request: &PickRequest<'_>,
        purpose: &P,
    ) -> Result<P::Place, SkipReason> {
        if request.tried.contains(backend.address) {
            return Err(SkipReason::Tried);
        }
        skip_reason(backend, ready, availability, request.now).map_or(Ok(()), Err)?;
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

    /// The same for a session: it stays where it is while its backend drains, but not when that is gone as well.
    fn session_skip_reason(
        &self,
        backend: &Backend,
        availability: Availability,
        now: Instant,
    ) -> Option<SkipReason> {
        match self.skip_reason(backend, availability, now) {
            Some(SkipReason::Draining) if !self.is_ready(backend) => Some(SkipReason::Down),
            Some(SkipReason::Draining) if backend.history.record.is_ejected(now) => Some(SkipReason::Ejected),
            Some(SkipReason::Draining) => None,
            other => other,
        }
    }

    fn skip_reason(&self, backend: &Backend, availability: Availability, now: Instant) -> Option<SkipReason> {
        skip_reason(backend, self.is_ready(backend), availability, now)
    }

    /// The most that a backend may hold of hashed requests; the largest number: there is no bound.
    fn bound(&self, backend: &Backend, availability: Availability, request: &PickRequest<'_>) -> u64 {
        let percent = self.settings.bounded_load.filter(|_| !request.key.is_empty());
        percent.map_or(u64::MAX, |percent| {
            bound(percent, self.in_flight(), backend.weight(), availability.weight)
        })
    }

    /// Whether a backend that came back a moment ago takes this request. By its key, if it has one: a key that comes back
    /// to a backend stays there.
    fn is_admitted(&self, backend: &Backend, request: &PickRequest<'_>) -> bool {
        let share = self.share(backend, request.now);
        let draw = || match request.key {
            [] => request.draw,
            key => slow_start::draw_for_key(key, backend.address),
        };
        share >= 1.0 || slow_start::admits(share, draw())
    }

    /// The share of its weight, from 0.1 to 1, that a backend has while it starts slowly.
    pub(super) fn share(&self, backend: &Backend, now: Instant) -> f64 {
        self.settings.slow_start.map_or(1.0, |window| backend.history.comeback.share(now, window))
    }
}

/// Why a backend may not have a request, whatever the request is; `None` if it may.
fn skip_reason(
    backend: &Backend,
    ready: bool,
    availability: Availability,
    now: Instant,
) -> Option<SkipReason> {
    if backend.backup && availability.level == Level::Primary {
        Some(SkipReason::Backup)
    } else if let Some(skip_reason) = skipped_by_operator(backend) {
        Some(skip_reason)
    } else if availability.panic && backend.backup == (availability.level == Level::Backup) {
        None
    } else if !ready {
        Some(SkipReason::Down)
    } else {
        backend.history.record.is_ejected(now).then_some(SkipReason::Ejected)
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
    /// All that may have a request; in panic load is not shifted.
    fn any(availability: Availability) -> Self {
        Self { sound: false, shifts: !availability.panic }
    }
}

// === impl Serve ===

impl Purpose for Serve<'_> {
    type Place = InFlight;

    fn offer(&self, pool: &Pool, key: &[u8], accept: impl Fn(&pingora::lb::Backend, bool) -> bool) {
        pool.balancer.select_with(key, pool.backends.len(), accept);
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
    /// The requests that it may hold when it is to hold less than `bound`, and what it is called when it does.
    pub(super) fn room(&self, bound: u64) -> (u64, SkipReason) {
        let skip_reason = if bound < self.max_requests { SkipReason::AboveBound } else { SkipReason::Full };
        (bound.min(self.max_requests), skip_reason)
    }
}

// === impl Tried ===

impl Tried {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Remembers that the request was sent to this backend, and what came of it.
    pub fn insert(&mut self, backend: Arc<Backend>, failure: AttemptFailure) {
        self.0.push((backend, failure));
    }

    /// Whether the request was sent to this backend.
    pub fn contains(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|(backend, _)| backend.address == address)
    }

    /// How many backends were tried.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each with how it failed.
    pub fn iter(&self) -> impl Iterator<Item = (&Backend, AttemptFailure)> {
        self.0.iter().map(|(backend, failure)| (&**backend, *failure))
    }
}

// === impl Passed ===

impl Passed {
    /// Nobody yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Counts it at the backend, and remembers it for the log.
    fn note(&mut self, backend: &Arc<Backend>, skip_reason: SkipReason) {
        let is_known =
            self.0.iter().any(|(known, why)| *why == skip_reason && known.address == backend.address);
        if !is_known {
            backend.pass_over(skip_reason);
        }
        // The last place is for what decides what becomes of the request.
        if !is_known && (self.0.len() < MAX_PASSED || !self.contains(skip_reason)) {
            self.0.push((backend.clone(), skip_reason));
        }
    }

    /// The request goes to this backend after all: a later pass, or the queue, has found it.
    fn forget(&mut self, backend: &Backend) {
        self.0.retain(|(known, _)| known.address != backend.address);
    }

    /// Whether a backend was passed over for this reason.
    pub fn contains(&self, skip_reason: SkipReason) -> bool {
        self.0.iter().any(|(_, why)| *why == skip_reason)
    }

    fn only_shifted(&self) -> bool {
        self.0.iter().any(|(_, why)| why.only_shifts())
    }

    /// Whether no backend was passed over.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Each with the reason, without those that the request was sent to before.
    pub fn iter(&self) -> impl Iterator<Item = (&Backend, SkipReason)> {
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
    const NOBODY: &Tried = &Tried::new();

    /// A pool whose clock stands still, and whose health checks say what the test says.
    struct Bench {
        pool: Arc<Pool>,
        manual: ManualClock,
        draw: f64,
    }

    /// Backends 127.0.0.1:1 and following.
    fn settings(backends: u16) -> PoolSettings {
        let backend = |port| BackendSettings::new(SocketAddr::from(([127, 0, 0, 1], port)));
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
            self.pool.place(&self.request(key, None, NOBODY), &mut Passed::new())
        }

        /// The ports that so many requests go to, one after the other.
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
    fn a_tried_backend_is_not_picked_again() {
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
        assert!(passed.is_empty(), "a backend that was tried is not passed over as well");
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
        assert!(port(&attempt) > 2, "a backend whose checks fail is the last resort");
    }

    #[test]
    fn a_backend_that_gets_the_request_is_not_passed_over() {
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
    fn each_that_is_passed_over_has_its_reason() {
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
        let placed = bench.pool.place(&bench.request(b"", None, NOBODY), &mut passed);
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
    fn backups_are_used_when_no_other_is_available() {
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
    fn in_panic_all_are_used_but_those_that_drain() {
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
    fn a_backend_that_comes_back_starts_slowly_unless_it_is_alone() {
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
    fn a_bound_sends_hashed_requests_on_when_their_backend_holds_too_many() {
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
            let request = bench.request(b"", session.map(|session| session.backend), NOBODY);
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
        let request = bench.request(b"", Some(0), NOBODY);
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
    fn an_ejected_backend_comes_back_on_its_own() {
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
