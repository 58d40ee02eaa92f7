//! Explanations: the backend that a request would go to and the reasons against the others, without sending the
//! request.
//!
//! An explanation is a pick ([`Pool::pick`]) with another purpose: the checks, their order and the candidates are those
//! of a request, but the policy does not advance, no place is counted, and no event is reported. So the next request
//! goes to the explained backend, unless something changes in between or random numbers decide ([`Explanation::draw`]).
//!
//! Invariant: an explanation changes nothing that a request, a metric or a log could see.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::Pool;
use super::availability::Availability;
use super::backend::{Backend, BackendState};
use super::pick::{PickError, PickRequest, Purpose};
use super::reasons::SkipReason;
use crate::policy::{Policy, Preference};

/// The explained choice of a pool.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The backends that are in use.
    pub availability: Availability,
    /// The backend that would be selected, or the reason why none would. If [`draw`](Self::draw) is true, a random
    /// number decides it.
    pub taken: Result<Arc<Backend>, PickError>,
    /// Whether the session decides.
    pub by_session: bool,
    /// Whether random numbers decide among several.
    pub draw: bool,
    /// All backends: in the order in which they would be offered, or by address if it is a draw.
    pub backends: Vec<Judged>,
}

/// The state of a backend as a request would find it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The backend.
    pub backend: Arc<Backend>,
    /// The current state.
    pub state: BackendState,
    /// The reason for skipping the backend; `None` means that it is a candidate.
    pub skip_reason: Option<SkipReason>,
    /// The share of its weight, from 0.1 to 1; it is less than 1 during slow start.
    pub share: f64,
    /// The value that the policy compares.
    pub score: Score,
}

/// The value that a policy compares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Score {
    /// The position in the rotation; 1 is next.
    Rotation(usize),
    /// The position for the key; 1 is the backend of the key.
    Position(usize),
    /// The probability that the candidate is drawn, from 0 to 1; it is approximate during slow starts.
    Chance(f64),
    /// Requests in flight divided by the weight; the lowest value is selected.
    InFlight(f64),
    /// The expected cost of a response, in seconds; the lowest value is selected.
    Cost(f64),
}

/// The purpose of a pick that changes nothing.
struct Rehearse {
    policy: Arc<Policy>,
    /// The next step of the policy.
    step: Cell<usize>,
    /// The skipped backends, in order.
    passed: RefCell<Vec<(Arc<Backend>, SkipReason)>>,
}

// === impl Pool ===

impl Pool {
    /// Returns the backend that this request would go to, and the reasons against the others. Requests that wait in the
    /// queue are ignored.
    pub fn explain(&self, request: &PickRequest<'_>) -> Explanation {
        let policy = &self.selector;
        let availability = self.assessed(request.now);
        let rehearsal = Rehearse::new(policy.clone());
        let taken = self.pick(request, availability, &rehearsal).map(|(backend, ())| backend);
        let judge =
            |place, backend| self.judge(request, availability, &rehearsal, taken.as_ref(), place, backend);
        let offered = self.in_order(policy, request.key);
        let mut backends: Vec<_> =
            offered.into_iter().enumerate().map(|(index, backend)| judge(index + 1, backend)).collect();
        if policy.is_drawn() {
            share_chances(&mut backends);
            backends.sort_by(|one, other| one.backend.address.cmp(&other.backend.address));
        }
        let home = request.session.and_then(|session| self.backends.get(session));
        let by_session = taken.as_ref().zip(home).is_some_and(|(taken, home)| Arc::ptr_eq(taken, home));
        let draw = !by_session
            && (policy.is_drawn()
                && backends.iter().filter(|judged| judged.skip_reason.is_none()).count() > 1
                || self.slow_start_draws(request, availability, taken.as_ref(), &rehearsal));
        let taken = taken.ok_or_else(|| self.unplaced(request, availability));
        Explanation { availability, taken, by_session, draw, backends }
    }

    /// Returns all backends in the order in which the next request with this key would be offered them.
    fn in_order(&self, policy: &Arc<Policy>, key: &[u8]) -> Vec<Arc<Backend>> {
        let backends = RefCell::new(Vec::new());
        self.offer(&mut policy.ahead(key), |backend| {
            backends.borrow_mut().push(backend.clone());
            false
        });
        backends.into_inner()
    }

    fn judge(
        &self,
        request: &PickRequest<'_>,
        availability: Availability,
        rehearsal: &Rehearse,
        taken: Option<&Arc<Backend>>,
        place: usize,
        backend: Arc<Backend>,
    ) -> Judged {
        let is_taken = taken.is_some_and(|taken| Arc::ptr_eq(taken, &backend));
        let skip_reason = (!is_taken).then(|| {
            // Backends after the selected one were not evaluated before, so they are evaluated now.
            let noted = rehearsal.skip_reason(&backend);
            noted.or_else(|| self.would_skip(&backend, availability, request, rehearsal))
        });
        let score = match rehearsal.policy.preference(&backend.identity.addr) {
            Some(Preference::InFlight(value)) => Score::InFlight(value),
            Some(Preference::Cost(seconds)) => Score::Cost(seconds),
            Some(Preference::Draw) => Score::Chance(0.0),
            Some(Preference::Order) | None if request.key.is_empty() => Score::Rotation(place),
            Some(Preference::Order) | None => Score::Position(place),
        };
        Judged {
            state: self.state(&backend, request.now),
            skip_reason: skip_reason.flatten(),
            share: self.share(&backend, request.now),
            score,
            backend,
        }
    }

    /// Returns whether the draw of a slow start decides this choice. For a key there is no draw: the result is always
    /// the same.
    fn slow_start_draws(
        &self,
        request: &PickRequest<'_>,
        availability: Availability,
        taken: Option<&Arc<Backend>>,
        rehearsal: &Rehearse,
    ) -> bool {
        let starts_slowly = |backend: &Arc<Backend>| self.share(backend, request.now) < 1.0;
        let passed = rehearsal.passed.borrow();
        let was_skipped = passed.iter().any(|(_, skip_reason)| *skip_reason == SkipReason::SlowStart);
        request.key.is_empty() && !availability.panic && (was_skipped || taken.is_some_and(starts_slowly))
    }
}

/// Divides the probability between the candidates by weight.
fn share_chances(backends: &mut [Judged]) {
    let part = |judged: &Judged| match judged.skip_reason {
        None => judged.backend.weight() as f64 * judged.share,
        Some(_) => 0.0,
    };
    let whole: f64 = backends.iter().map(part).sum();
    for judged in backends.iter_mut().filter(|judged| judged.skip_reason.is_none()) {
        let chance = part(judged) / whole;
        if let Score::Chance(value) = &mut judged.score {
            *value = chance;
        }
    }
}

// === impl Rehearse ===

impl Rehearse {
    fn new(policy: Arc<Policy>) -> Self {
        Self { step: Cell::new(policy.next_step()), policy, passed: RefCell::default() }
    }

    /// Returns the last reason for skipping a backend.
    fn skip_reason(&self, backend: &Arc<Backend>) -> Option<SkipReason> {
        let passed = self.passed.borrow();
        passed
            .iter()
            .rev()
            .find(|(known, _)| Arc::ptr_eq(known, backend))
            .map(|(_, skip_reason)| *skip_reason)
    }
}

impl Purpose for Rehearse {
    type Place = ();

    fn offer(&self, pool: &Pool, key: &[u8], accept: impl Fn(&Arc<Backend>) -> bool) {
        let mut candidates = self.policy.ahead_from(key, self.step.get());
        pool.offer(&mut candidates, accept);
        if let Some(step) = candidates.next_step() {
            self.step.set(step);
        }
    }

    fn reserve(&self, backend: &Backend, bound: u64) -> Result<(), SkipReason> {
        let (bound, skip_reason) = backend.room(bound);
        if backend.load.in_flight() < bound { Ok(()) } else { Err(skip_reason) }
    }

    fn note(&self, backend: &Arc<Backend>, skip_reason: SkipReason) {
        self.passed.borrow_mut().push((backend.clone(), skip_reason));
    }

    fn has_shifted(&self) -> bool {
        self.passed.borrow().iter().any(|(_, skip_reason)| skip_reason.only_shifts())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::policy::{Algorithm, InFlight, PolicyConfig};
    use crate::pool::reasons::AttemptFailure;
    use crate::pool::{
        Admin, Attempt, BackendSettings, Passed, PoolSettings, StickySettings, Tried, UpstreamAddress,
        UpstreamError, Weight,
    };
    use pingora::lb::HealthRegistry;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
    use proptest::sample::select;

    const SECOND: Duration = Duration::from_secs(1);

    /// The possible states of a backend.
    #[derive(Clone, Debug)]
    struct Lot {
        weight: u64,
        backup: bool,
        down: bool,
        admin: Admin,
        held: u64,
        most: Option<u32>,
        fails: bool,
        came_back: bool,
        responds_after: u64,
    }

    impl Lot {
        const WELL: Self = Self {
            weight: 1,
            backup: false,
            down: false,
            admin: Admin::InService,
            held: 0,
            most: None,
            fails: false,
            came_back: false,
            responds_after: 0,
        };

        fn settings(&self, index: usize) -> BackendSettings {
            BackendSettings {
                weight: Weight::new(self.weight).unwrap(),
                backup: self.backup,
                max_requests: self.most.and_then(NonZeroU32::new),
                admin: self.admin,
                ..BackendSettings::new(address(index))
            }
        }
    }

    fn address(index: usize) -> UpstreamAddress {
        ([127, 0, 0, 1], u16::try_from(index + 1).unwrap()).into()
    }

    fn any_lot() -> impl Strategy<Value = Lot> {
        let admin =
            prop_oneof![4 => Just(Admin::InService), 1 => Just(Admin::Draining), 1 => Just(Admin::Disabled)];
        let rarely = || any::<u8>().prop_map(|number| number < 50);
        (
            prop_oneof![3 => 1u64..4, 1 => 1u64..100],
            (rarely(), rarely(), rarely(), rarely()),
            admin,
            0u64..4,
            option::of(1u32..4),
            0u64..200,
        )
            .prop_map(
                |(weight, (backup, down, fails, came_back), admin, held, most, responds_after)| Lot {
                    weight,
                    backup,
                    down,
                    admin,
                    held,
                    most,
                    fails,
                    came_back,
                    responds_after,
                },
            )
    }

    fn any_rules() -> impl Strategy<Value = PoolSettings> {
        (select(Algorithm::ALL.to_vec()), option::of(Just(150u32)), select(vec![0u8, 50, 100]), any::<bool>())
            .prop_map(|(policy, bounded_load, panic_threshold, slow)| PoolSettings {
                policy,
                bounded_load,
                panic_threshold,
                slow_start: slow.then_some(10 * SECOND),
                sticky: Some(StickySettings::new("lb")),
                ..PoolSettings::new("web", vec![])
            })
    }

    struct Bench {
        pool: Arc<Pool>,
        manual: ManualClock,
        _held: Vec<InFlight>,
    }

    impl Bench {
        fn new(rules: &PoolSettings, lots: &[Lot]) -> Self {
            let backends = lots.iter().enumerate().map(|(index, lot)| lot.settings(index)).collect();
            let settings = PoolSettings { backends, ..rules.clone() };
            let (clock, manual) = Clock::manual();
            let policy = PolicyConfig::new(settings.policy).with_seed(7);
            let pool = Pool::with_policy(&settings, Arc::new(HealthRegistry::new()), None, policy, &clock);
            let mut bench = Self { pool: Arc::new(pool), manual, _held: Vec::new() };
            for (index, lot) in lots.iter().enumerate() {
                bench.befall(index, lot);
            }
            bench.pool.shared.changes.note();
            bench.manual.advance(SECOND);
            bench
        }

        fn befall(&mut self, index: usize, lot: &Lot) {
            let (backend, now) = (self.pool.backends()[index].clone(), self.manual.now());
            self._held.extend((0..lot.held).map(|_| backend.load.enter()));
            self.pool.balancer.backends().set_enable(&backend.identity, !lot.down);
            if lot.responds_after > 0 {
                backend.load.responded(Duration::from_millis(lot.responds_after), now);
            }
            for _ in 0..if lot.fails { 5 } else { 0 } {
                let place = backend.load.enter();
                let mut attempt = Attempt::new(self.pool.clone(), backend.clone(), place, now);
                attempt.failed(UpstreamError::Connect, now);
            }
            if lot.came_back {
                backend.history.comeback.came_back(now);
            }
        }

        fn request<'a>(
            &self,
            key: &'a [u8],
            session: Option<usize>,
            tried: &'a Tried,
            draw: f64,
        ) -> PickRequest<'a> {
            PickRequest { key, session, tried, now: self.manual.now(), draw }
        }

        /// Returns all counters.
        fn counts(&self) -> Vec<u64> {
            let of_backend = |backend: &Arc<Backend>| {
                let passed_over = backend.passed_over().map(|(_, count)| count);
                passed_over.chain([backend.load.in_flight(), backend.ejections()]).collect::<Vec<_>>()
            };
            let counters = self.pool.counters();
            let of_pool =
                [self.pool.in_flight(), counters.panics.get(), self.pool.selector.next_step() as u64];
            self.pool.backends().iter().flat_map(of_backend).chain(of_pool).collect()
        }

        fn explain(&self, key: &[u8]) -> Explanation {
            self.pool.explain(&self.request(key, None, &Tried::new(), 0.0))
        }
    }

    fn three(policy: Algorithm) -> (PoolSettings, Vec<Lot>) {
        (PoolSettings { policy, ..PoolSettings::new("web", vec![]) }, vec![Lot::WELL; 3])
    }

    fn skip_reasons(explanation: &Explanation) -> Vec<(u16, Option<&'static str>)> {
        let one =
            |judged: &Judged| (judged.backend.address.port(), judged.skip_reason.map(SkipReason::as_str));
        let mut skip_reasons: Vec<_> = explanation.backends.iter().map(one).collect();
        skip_reasons.sort_unstable();
        skip_reasons
    }

    #[test]
    fn each_backend_has_the_reason_that_a_request_would_find() {
        let (mut rules, mut lots) = three(Algorithm::RoundRobin);
        rules.panic_threshold = 0;
        lots.extend(vec![Lot::WELL; 3]);
        lots[0].down = true;
        lots[1].admin = Admin::Draining;
        lots[2] = Lot { held: 2, most: Some(2), ..Lot::WELL };
        lots[3].backup = true;
        let explanation = Bench::new(&rules, &lots).explain(b"");
        let expected = [(1, Some("down")), (2, Some("draining")), (3, Some("full")), (4, Some("backup"))];
        assert_eq!(skip_reasons(&explanation)[..4], expected);
        assert_eq!(skip_reasons(&explanation)[4..], [(5, None), (6, None)]);
        assert_eq!(explanation.taken.unwrap().address.port(), 5);
        assert!(!explanation.draw);
    }

    #[test]
    fn the_rotation_is_explained_in_order() {
        let (rules, mut lots) = three(Algorithm::RoundRobin);
        lots[0].weight = 5;
        let bench = Bench::new(&rules, &lots);
        let explanation = bench.explain(b"");
        let turns: Vec<_> =
            explanation.backends.iter().map(|judged| (judged.backend.address.port(), judged.score)).collect();
        assert_eq!(turns, [(1, Score::Rotation(1)), (2, Score::Rotation(2)), (3, Score::Rotation(3))]);
    }

    #[test]
    fn a_draw_has_probabilities_and_names_only_a_single_candidate() {
        let (rules, mut lots) = three(Algorithm::Random);
        lots[0].weight = 3;
        lots[1].down = true;
        let explanation = Bench::new(&rules, &lots).explain(b"");
        let scores: Vec<_> = explanation.backends.iter().map(|judged| judged.score).collect();
        assert_eq!(scores, [Score::Chance(0.75), Score::Chance(0.0), Score::Chance(0.25)]);
        assert!(explanation.draw);
        lots[0].down = true;
        rules_without_panic(&rules, &lots);
    }

    fn rules_without_panic(rules: &PoolSettings, lots: &[Lot]) {
        let rules = PoolSettings { panic_threshold: 0, ..rules.clone() };
        let explanation = Bench::new(&rules, lots).explain(b"");
        assert!(!explanation.draw);
        assert_eq!(explanation.taken.unwrap().address.port(), 3);
    }

    #[test]
    fn a_slow_start_is_a_draw_for_a_rotation_but_not_for_a_key() {
        let (mut rules, mut lots) = three(Algorithm::Maglev);
        rules.slow_start = Some(10 * SECOND);
        lots.iter_mut().for_each(|lot| lot.came_back = true);
        let bench = Bench::new(&rules, &lots);
        assert!(bench.explain(b"").draw && !bench.explain(b"key").draw);
        assert!(bench.explain(b"").backends.iter().all(|judged| judged.share < 1.0));
    }

    #[test]
    fn an_explanation_without_a_backend_gives_the_reason() {
        let (mut rules, mut lots) = three(Algorithm::LeastRequest);
        rules.panic_threshold = 0;
        lots.iter_mut().for_each(|lot| lot.down = true);
        assert_eq!(Bench::new(&rules, &lots).explain(b"").taken.unwrap_err(), PickError::Unavailable);
        lots[1] = Lot { held: 1, most: Some(1), ..Lot::WELL };
        assert_eq!(Bench::new(&rules, &lots).explain(b"").taken.unwrap_err(), PickError::Full);
    }

    proptest! {
        #[test]
        fn the_next_request_goes_to_the_explained_backend_and_nothing_else_changes(
            rules in any_rules(),
            lots in vec(any_lot(), 1..8),
            before in 0usize..20,
            (key, session, draw) in (select(vec!["", "a", "b", "another key"]), option::of(0usize..9), 0.0..1.0f64),
            tried in any::<bool>(),
        ) {
            let mut lots = lots;
            lots[0].backup = false;
            let bench = Bench::new(&rules, &lots);
            let mut others = Tried::new();
            if tried {
                others.insert(bench.pool.backends()[0].clone(), AttemptFailure::Status(503));
            }
            let key = if rules.policy.is_hash() { key.as_bytes() } else { b"" };
            for _ in 0..before {
                let _ = bench.pool.place(&bench.request(key, None, &others, draw), &mut Passed::new());
            }
            let request = bench.request(key, session, &others, draw);
            let counts = bench.counts();
            let explanation = bench.pool.explain(&request);
            let again = bench.pool.explain(&request);
            prop_assert_eq!(bench.counts(), counts);
            prop_assert_eq!(format!("{again:?}"), format!("{explanation:?}"));
            prop_assert_eq!(explanation.backends.len(), lots.len());

            let mut passed = Passed::new();
            let placed = bench.pool.place(&request, &mut passed);
            let said = explanation.taken.map(|backend| backend.address.port());
            prop_assert_eq!(placed.map(|attempt| attempt.backend.address.port()), said);
            for (backend, _) in passed.iter() {
                let explained = explanation.backends.iter().find(|judged| judged.backend.address == backend.address);
                let reasons: Vec<_> =
                    passed.iter().filter(|(b, _)| b.address == backend.address).map(|(_, why)| Some(why)).collect();
                let is_taken = said == Ok(backend.address.port());
                prop_assert_eq!(reasons.contains(&explained.unwrap().skip_reason), !is_taken);
            }
        }
    }
}
