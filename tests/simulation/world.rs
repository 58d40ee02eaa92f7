//! Virtual time: an agenda of events, and the loop of the proxy around the pool.
//!
//! This is a discrete-event simulation: the clock jumps from one event to the next. All random numbers come from the
//! seed of the scenario, so a scenario always gives the same report. There are two generators, one for arrivals and one
//! for the rest, so that the traffic does not depend on the pool.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use fastrand::Rng;
use futures::FutureExt;
use lb_service::PolicyConfig;
use lb_service::clock::{Clock, ManualClock};
use lb_service::policy::Algorithm;
use lb_service::pool::{
    Admission, AdmissionError, Attempt, Backend, BackendSettings, Dispatch, Now, Passed, PickRequest, Pool,
    PoolSettings, Tried, UpstreamAddress, UpstreamError, Weight,
};
use pingora::lb::HealthRegistry;
use pingora::lb::health_check::HealthCheck;

use crate::backend::{Job, Model, Origin, Reception, When, exponential};
use crate::client::{Request, SENT};
use crate::report::{Ending, Report};

/// A scenario to simulate.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) seed: u64,
    pub(crate) settings: PoolSettings,
    /// The models, in the order of the backends of `settings`, which is that of their addresses.
    pub(crate) models: Vec<Model>,
    /// Requests per second, as a Poisson process: clients do not wait for each other.
    pub(crate) rate: f64,
    /// The number of seconds in which requests arrive; requests that have arrived are completed.
    pub(crate) seconds: f64,
    /// The time at which measuring begins.
    pub(crate) warm_up: f64,
    /// The number of different keys.
    pub(crate) keys: usize,
    /// The share of requests that have the first key.
    pub(crate) hot: f64,
    /// The interval of the health checks of all backends; one check decides.
    pub(crate) probes: Option<Duration>,
}

/// A moment that a test can observe.
pub(crate) enum Moment<'a> {
    /// A request was placed at a backend; `before` is the number of requests in flight before.
    Placed { backend: &'a Backend, before: u64, first: bool },
    /// A retry took its place in the budget.
    Repeats,
    /// A request that waited in the queue for this time was placed; the number counts arrivals.
    Served { request: usize, waited: Duration },
    /// A request timed out in the queue after this time.
    GaveUp { waited: Duration },
    /// An event was handled.
    Settled,
}

/// An observer of the moments of a run.
pub(crate) type Witness<'a> = dyn FnMut(&Moment<'_>, &Pool, Instant) + 'a;

/// A running simulation.
pub(crate) struct World<'w> {
    scenario: Scenario,
    pub(crate) pool: Arc<Pool>,
    registry: Arc<HealthRegistry>,
    down: Down,
    manual: ManualClock,
    /// The time in nanoseconds since the beginning.
    now: u64,
    agenda: BinaryHeap<Reverse<(u64, u64, Event)>>,
    planned: u64,
    traffic: Rng,
    rng: Rng,
    origins: Vec<Origin>,
    clients: Vec<Client>,
    /// The requests in the queue, in the order of arrival.
    waiting: Vec<usize>,
    report: Report,
    witness: &'w mut Witness<'w>,
}

/// An event on the agenda.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    /// A backend completes a request.
    Done(usize, Job),
    /// A backend fails a request.
    Failure(Job, Trouble),
    /// A request is retried.
    Again(usize),
    /// A waiting request asks again whether it is placed.
    AskAgain(usize),
    Probe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Refused,
    Reset,
    Unavailable,
    /// The attempt timed out.
    TimedOut,
}

/// A request and its client.
struct Client {
    arrived: u64,
    /// The time when it last joined the queue.
    queued: u64,
    key: usize,
    /// The request; `None` after its response.
    request: Option<Request>,
}

/// The backends whose health checks fail.
#[derive(Clone, Debug, Default)]
pub(crate) struct Down(Arc<Mutex<BTreeSet<UpstreamAddress>>>);

/// A health check that only reads the set of failing backends.
struct Probe(Down);

/// The time in seconds that a backend takes to refuse, to break a connection, or to respond with 503.
const QUICK: f64 = 0.001;
/// One second in nanoseconds.
const SECOND: f64 = 1e9;

// === impl Scenario ===

impl Scenario {
    /// Returns a scenario with these backends, all of the same weight, at this utilisation, without health checks.
    pub(crate) fn new(name: &'static str, models: Vec<Model>, utilisation: f64) -> Self {
        let backends = (0..models.len()).map(|index| BackendSettings::new(address(index))).collect();
        let capacity: f64 = models.iter().map(Model::capacity).sum();
        Self {
            name,
            seed: 1,
            settings: PoolSettings::new("web", backends),
            // A hash cannot be more even than its keys.
            keys: 10_000.max(100 * models.len()),
            models,
            rate: utilisation * capacity,
            seconds: 10.0,
            warm_up: 0.0,
            hot: 0.0,
            probes: None,
        }
    }

    /// Returns a scenario with backends that serve two requests at once and have no faults.
    pub(crate) fn even(backends: usize, utilisation: f64) -> Self {
        Self::new("even", vec![Model::new(2); backends], utilisation)
    }

    /// Gives the first backend this fault.
    pub(crate) fn first_is(mut self, when: When) -> Self {
        self.models[0].when = when;
        self
    }

    /// Sets the weight of each backend.
    pub(crate) fn weights(mut self, weights: &[usize]) -> Self {
        for (backend, weight) in self.settings.backends.iter_mut().zip(weights) {
            backend.weight = Weight::new(*weight as u64).expect("the test gives valid weights");
        }
        self
    }

    pub(crate) fn policy(mut self, policy: Algorithm) -> Self {
        self.settings.policy = policy;
        self
    }

    /// Sets the duration to the time that this number of requests takes.
    pub(crate) fn requests(mut self, requests: usize) -> Self {
        self.seconds = requests as f64 / self.rate;
        self.warm_up = self.seconds / 10.0;
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn run(&self) -> Report {
        self.watch(&mut |_, _, _| {})
    }

    pub(crate) fn watch<'w>(&self, witness: &'w mut Witness<'w>) -> Report {
        World::new(self.clone(), witness).run()
    }
}

/// Returns the address of the backend with this index; the order of addresses is that of indexes.
pub(crate) fn address(index: usize) -> UpstreamAddress {
    ([10, 0, (index / 250) as u8, (index % 250) as u8], 80).into()
}

/// Returns a pool with a manual clock and seeded randomness, and the results of its health checks.
pub(crate) fn pool(
    settings: &PoolSettings,
    seed: u64,
) -> (Arc<Pool>, Arc<HealthRegistry>, Down, ManualClock) {
    let (clock, manual) = Clock::manual();
    let (registry, down) = (Arc::new(HealthRegistry::new()), Down::default());
    let policy = PolicyConfig::new(settings.policy).with_seed(seed);
    let check = Box::new(Probe(down.clone()));
    let pool = Pool::with_policy(settings, registry.clone(), Some(check), policy, &clock);
    (Arc::new(pool), registry, down, manual)
}

/// Places a request at a backend while the clock stands still.
pub(crate) fn place(pool: &Arc<Pool>, now: Instant, key: &[u8]) -> Attempt {
    let request = PickRequest { key, session: None, tried: &Tried::new(), now, draw: 0.5 };
    pool.place(&request, &mut Passed::new()).expect("a backend takes it")
}

/// Checks the health of all backends.
pub(crate) fn probe(registry: &HealthRegistry) {
    registry.run_health_check(false).now_or_never().expect("the check never waits");
}

// === impl World ===

impl<'w> World<'w> {
    fn new(scenario: Scenario, witness: &'w mut Witness<'w>) -> Self {
        let (pool, registry, down, manual) = pool(&scenario.settings, scenario.seed);
        let backends = scenario.models.len();
        Self {
            pool,
            registry,
            down,
            manual,
            now: 0,
            agenda: BinaryHeap::new(),
            planned: 0,
            traffic: Rng::with_seed(scenario.seed),
            rng: Rng::with_seed(scenario.seed ^ 0x5eed),
            origins: scenario.models.iter().cloned().map(Origin::new).collect(),
            clients: Vec::new(),
            waiting: Vec::new(),
            report: Report::new(backends),
            witness,
            scenario,
        }
    }

    fn run(mut self) -> Report {
        self.plan(0.0, Event::Arrival);
        if self.scenario.probes.is_some() {
            // The offset keeps the checks away from the moments of other changes.
            self.plan(0.0371, Event::Probe);
        }
        while let Some(Reverse((at, _, event))) = self.agenda.pop() {
            self.pass_time(at);
            self.happen(event);
            self.give_turns();
            self.see(&Moment::Settled);
        }
        assert_eq!(self.pool.in_flight(), 0, "every request has ended");
        assert_eq!((self.pool.retries_in_flight(), self.pool.queue().len()), (0, 0));
        self.report.finish(&self.pool);
        self.report
    }

    fn pass_time(&mut self, at: u64) {
        if self.is_measured() {
            self.report.in_flight_for(self.pool.in_flight(), (at - self.now) as f64 / SECOND);
        }
        self.manual.advance(Duration::from_nanos(at - self.now));
        self.now = at;
    }

    fn seconds(&self) -> f64 {
        self.now as f64 / SECOND
    }

    fn is_measured(&self) -> bool {
        self.seconds() >= self.scenario.warm_up && self.seconds() < self.scenario.seconds
    }

    fn plan(&mut self, after: f64, event: Event) {
        self.planned += 1;
        self.agenda.push(Reverse((self.now + (after * SECOND) as u64, self.planned, event)));
    }

    fn plan_at(&mut self, at: Instant, event: Event) {
        let after = u64::try_from((at - self.manual.now()).as_nanos()).expect("a run is short");
        self.planned += 1;
        self.agenda.push(Reverse((self.now + after, self.planned, event)));
    }

    fn see(&mut self, moment: &Moment<'_>) {
        (self.witness)(moment, &self.pool, self.manual.now());
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrival => self.arrive(),
            Event::Done(backend, job) => self.done(backend, job),
            Event::Failure(job, trouble) => self.fail(job, trouble),
            Event::Again(client) => self.place(client),
            Event::AskAgain(client) => self.ask_again(client),
            Event::Probe => self.probe(),
        }
    }

    fn arrive(&mut self) {
        if self.seconds() >= self.scenario.seconds {
            return;
        }
        let after = exponential(&mut self.traffic) / self.scenario.rate;
        self.plan(after, Event::Arrival);
        let is_hot = self.traffic.f64() < self.scenario.hot;
        let key = if is_hot { 0 } else { self.traffic.usize(..self.scenario.keys) };
        self.clients.push(Client {
            arrived: self.now,
            queued: self.now,
            key,
            request: Some(Request::default()),
        });
        self.place(self.clients.len() - 1);
    }

    /// Acts on the admission of a request, as the proxy does.
    fn place(&mut self, client: usize) {
        let Some(mut request) = self.clients[client].request.take() else { return };
        let was_waiting = self.waiting.contains(&client);
        match self.admit(client, &mut request) {
            Admission::Placed => {
                self.leave_queue(client, was_waiting, |waited| Moment::Served { request: client, waited });
                self.send(client, request);
            }
            Admission::Wait { until } => {
                self.clients[client].request = Some(request);
                if !was_waiting {
                    self.waiting.push(client);
                    self.clients[client].queued = self.now;
                }
                self.plan_at(until, Event::AskAgain(client));
            }
            Admission::Rejected(why) => {
                let gave_up = was_waiting && why == AdmissionError::QueueTimeout;
                self.leave_queue(client, gave_up, |waited| Moment::GaveUp { waited });
                self.end(client, Ending::Rejected(why));
            }
        }
    }

    /// Asks again for each request whose turn has come. The last one is first, so that the order comes from the queue.
    fn give_turns(&mut self) {
        let mut place = self.waiting.len();
        while place > 0 {
            place -= 1;
            let client = self.waiting[place];
            if self.has_turn(client) {
                self.place(client);
                // The request whose turn comes now can stand anywhere.
                place = self.waiting.len();
            }
        }
    }

    fn has_turn(&self, client: usize) -> bool {
        let turn = self.clients[client].request.as_ref().and_then(|request| request.dispatch.turn());
        turn.is_some_and(|turn| turn.is_given())
    }

    fn ask_again(&mut self, client: usize) {
        if self.waiting.contains(&client) {
            self.place(client);
        }
    }

    /// Removes a request from the waiting ones, and reports this moment if the request was seen to wait.
    fn leave_queue(
        &mut self,
        client: usize,
        is_seen: bool,
        moment: impl FnOnce(Duration) -> Moment<'static>,
    ) {
        self.waiting.retain(|waiting| *waiting != client);
        if is_seen {
            let waited = self.waited(client);
            self.see(&moment(waited));
        }
    }

    fn waited(&self, client: usize) -> Duration {
        Duration::from_nanos(self.now - self.clients[client].queued)
    }

    fn admit(&mut self, client: usize, request: &mut Request) -> Admission {
        let key = key(self.clients[client].key);
        let key: &[u8] = if self.pool.is_hashed() { &key } else { &[] };
        let before = self.pool.in_flight();
        let first = request.dispatch.tries == 0;
        let at = Now { time: self.manual.now(), draw: self.rng.f64() };
        let admission = request.dispatch.admit(&self.pool, key, at);
        if let Some(attempt) = request.dispatch.attempt.as_ref().filter(|_| admission == Admission::Placed) {
            let moment = Moment::Placed { backend: &attempt.backend, before, first };
            (self.witness)(&moment, &self.pool, self.manual.now());
        }
        admission
    }

    /// Sends a request to its backend.
    fn send(&mut self, client: usize, request: Request) {
        let Some(attempt) = &request.dispatch.attempt else { return };
        let backend = self.index(&attempt.backend);
        let job = (client, request.dispatch.tries);
        self.report.sent(backend, attempt.backend.load.in_flight(), self.seconds(), self.is_measured());
        self.clients[client].request = Some(request);
        let seconds = self.seconds();
        match self.origins[backend].receive(seconds, &mut self.rng) {
            Reception::Refused => self.plan(QUICK, Event::Failure(job, Trouble::Refused)),
            Reception::Reset => self.plan(QUICK, Event::Failure(job, Trouble::Reset)),
            Reception::Unavailable => self.plan(QUICK, Event::Failure(job, Trouble::Unavailable)),
            Reception::Hung => {}
            Reception::Taken => {
                if let Some(after) = self.origins[backend].take(job, seconds, &mut self.rng) {
                    self.plan(after, Event::Done(backend, job));
                }
            }
        }
        self.limit_attempt(backend, job);
    }

    fn limit_attempt(&mut self, backend: usize, job: Job) {
        let may_hang = self.origins[backend].model().when.may_hang();
        let limit = self.pool.per_try().or(may_hang.then_some(self.scenario.settings.timeouts.response));
        if let Some(limit) = limit {
            self.plan(limit.as_secs_f64(), Event::Failure(job, Trouble::TimedOut));
        }
    }

    fn index(&self, backend: &Backend) -> usize {
        let backends = self.pool.backends();
        backends
            .binary_search_by_key(&&backend.address, |backend| &backend.address)
            .expect("the backend belongs to the pool")
    }

    fn done(&mut self, backend: usize, job: Job) {
        let seconds = self.seconds();
        if let Some((next, after)) = self.origins[backend].next(seconds, &mut self.rng) {
            self.plan(after, Event::Done(backend, next));
        }
        self.judge(job, |dispatch, pool, at| dispatch.responded(pool, 200, None, SENT, at), None);
    }

    fn fail(&mut self, job: Job, trouble: Trouble) {
        let error = match trouble {
            Trouble::Refused => UpstreamError::Connect,
            Trouble::Reset => UpstreamError::Reset,
            Trouble::TimedOut => UpstreamError::Timeout,
            Trouble::Unavailable => {
                let tell = |dispatch: &mut Dispatch, pool: &Arc<Pool>, at| {
                    dispatch.responded(pool, 503, None, SENT, at)
                };
                return self.judge(job, tell, Some(Ending::Unavailable));
            }
        };
        let tell = |dispatch: &mut Dispatch, pool: &Arc<Pool>, at| dispatch.broke(pool, error, SENT, at);
        self.judge(job, tell, Some(Ending::Upstream(error)));
    }

    /// Decides about a request whose attempt is over: another attempt, or its end, which is good unless there is a
    /// `failure`. After a timeout, nothing waits for the backend any more.
    fn judge(
        &mut self,
        (client, attempt): Job,
        tell: impl FnOnce(&mut Dispatch, &Arc<Pool>, Now) -> bool,
        failure: Option<Ending>,
    ) {
        let is_awaited = |dispatch: &&mut Dispatch| dispatch.tries == attempt && dispatch.attempt.is_some();
        let draw = self.rng.f64();
        let dispatch = self.clients[client].request.as_mut().map(|request| &mut request.dispatch);
        let Some(dispatch) = dispatch.filter(is_awaited) else { return };
        let goes_on = tell(dispatch, &self.pool, Now { time: self.manual.now(), draw });
        if !goes_on {
            return self.end(client, failure.unwrap_or(Ending::Good));
        }
        if dispatch.is_retry() {
            (self.witness)(&Moment::Repeats, &self.pool, self.manual.now());
        }
        let pause = dispatch.end_attempt().unwrap_or_default();
        self.plan(pause.as_secs_f64(), Event::Again(client));
    }

    fn end(&mut self, client: usize, ending: Ending) {
        self.clients[client].request = None;
        let arrived = self.clients[client].arrived;
        let arrived_at = arrived as f64 / SECOND;
        if arrived_at >= self.scenario.warm_up {
            self.report.ended(ending, self.now - arrived);
        }
    }

    fn probe(&mut self) {
        let Some(interval) = self.scenario.probes.filter(|_| self.seconds() < self.scenario.seconds) else {
            return;
        };
        self.plan(interval.as_secs_f64(), Event::Probe);
        let (seconds, models) = (self.seconds(), &self.scenario.models);
        let down = (0..models.len()).filter(|index| models[*index].is_down(seconds));
        self.down.set(down.map(address));
        probe(&self.registry);
    }
}

/// Returns the bytes of a key.
pub(crate) fn key(number: usize) -> Vec<u8> {
    format!("/images/{number}.png").into_bytes()
}

// === impl Down ===

impl Down {
    /// Sets the backends that are down.
    pub(crate) fn set(&self, down: impl IntoIterator<Item = UpstreamAddress>) {
        *self.0.lock().unwrap() = down.into_iter().collect();
    }
}

// === impl Probe ===

#[async_trait]
impl HealthCheck for Probe {
    async fn check(&self, target: &pingora::lb::Backend) -> pingora::Result<()> {
        let address = UpstreamAddress::from_pingora(&target.addr);
        match address.filter(|address| self.0.0.lock().unwrap().contains(address)) {
            Some(_) => pingora::Error::e_explain(pingora::ErrorType::ConnectRefused, "it is down"),
            None => Ok(()),
        }
    }

    fn health_threshold(&self, _success: bool) -> usize {
        1
    }
}
