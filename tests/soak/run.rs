//! One run: starts a subject and its load, executes the script, and returns what it observed.
//!
//! ```text
//!   start, idle ─> load ─> warm-up ─> the steps, evenly over time ─> calm ─> load ends ─> settled? ─> stop, gone?
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tests::process::{Process, listening_sockets};
use tests::{Connection, Response, wait};

use crate::clients::{Crowd, Load};
use crate::ledger::{Kind, Ledger};
use crate::script::{Plan, Step};
use crate::setup::{CANARY_HOST, Change, Group, MARKER_HOST, Order, Origins, Setup};
use crate::subject::{LIMIT, Ordered, Shape, Subject, awaited};
use crate::watch::{Seen, Watch};

/// The time for which a drained backend must have no request before it is killed.
const QUIET: Duration = Duration::from_millis(300);
/// The time for which clients pause before memory is measured. Requests in flight end, and the allocator returns memory
/// to the system.
const REST: Duration = Duration::from_secs(3);
/// The time for which clients send load between two pauses.
const BETWEEN_RESTS: Duration = Duration::from_secs(1);
/// The time within which all processes and connections of the load must end. Idle connections to origins live for three
/// seconds.
const SETTLE: Duration = Duration::from_secs(20);

/// A change that was made to the subject.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// The time since the start at which it began.
    pub(crate) at: Duration,
    /// The time until it was in effect.
    pub(crate) took: Duration,
    /// The description for the report.
    pub(crate) text: String,
    /// The drain time of the processes that the change replaced. `None` if it replaced none.
    pub(crate) drain: Option<Duration>,
}

/// The resources that remain after the load.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leftovers {
    /// The number of processes after the load beyond those of an idle subject.
    pub(crate) processes: usize,
    /// The connections of all processes after the load. An idle subject has none, except during a health check.
    pub(crate) connections: Vec<String>,
    /// The number of listening sockets above or below one per listener.
    pub(crate) listeners: usize,
    /// The number of processes and listening sockets after the stop.
    pub(crate) after_stop: usize,
    /// The time until all of them were gone.
    pub(crate) settled: Duration,
}

/// The observations of one run.
pub(crate) struct Outcome {
    /// The name of the subject.
    pub(crate) subject: String,
    /// The processes of the subject.
    pub(crate) shape: Shape,
    /// The plan of the run.
    pub(crate) plan: Plan,
    /// The record of the load.
    pub(crate) ledger: Arc<Ledger>,
    /// The changes, in order.
    pub(crate) events: Vec<Event>,
    /// The number of successful changes of each kind.
    pub(crate) done: BTreeMap<&'static str, usize>,
    /// Processes and memory over time.
    pub(crate) seen: Seen,
    /// Memory of the main process while clients pause, in bytes: of the first process when it was warm, of the last
    /// process when it was warm, and at the end.
    pub(crate) weighed: Vec<u64>,
    /// The resources that remained.
    pub(crate) left: Leftovers,
    /// The time of the first change and the time at which the load ended.
    pub(crate) changing: (Duration, Duration),
}

/// The state of a run.
struct Run<'a> {
    subject: &'a mut dyn Subject,
    plan: Plan,
    origins: Origins,
    setup: Setup,
    random: fastrand::Rng,
    ledger: Arc<Ledger>,
    events: Vec<Event>,
    done: BTreeMap<&'static str, usize>,
    weighed: Vec<u64>,
    /// The origin of `frail` that is down, and the number of steps until it is started again.
    dead: Option<(usize, usize)>,
}

/// Executes a plan on a subject.
pub(crate) fn run(plan: &Plan, subject: &mut dyn Subject) -> Result<Outcome, String> {
    let origins = Origins::start();
    let setup = origins.setup(plan.short_drain);
    let random = fastrand::Rng::with_seed(plan.seed);
    let (events, done) = (Vec::new(), BTreeMap::new());
    let ledger = Arc::new(Ledger::new());
    let plan = plan.clone();
    Run { subject, plan, origins, setup, random, ledger, events, done, weighed: Vec::new(), dead: None }
        .carry_out()
}

// ===== impl Run =====

impl Run<'_> {
    fn carry_out(mut self) -> Result<Outcome, String> {
        self.subject.start(&self.setup)?;
        self.await_effect()?;
        let place = self.subject.place();
        let load = Load {
            addresses: self.setup.listeners.clone(),
            long_download: self.plan.long_download.clone(),
            latecomers: self.plan.changes_within,
            seed: self.plan.seed,
        };
        let watch = Watch::start(place, Arc::clone(&self.ledger));
        let crowd = Crowd::start(&load, &self.ledger);
        thread::sleep(self.plan.warm_up);
        self.weigh(&crowd);
        let began = self.ledger.now();
        self.all_steps(&crowd);
        thread::sleep(self.plan.calm);
        self.weigh(&crowd);
        let ended = self.ledger.now();
        let seen = watch.stop();
        crowd.stop();
        let left = self.leftovers();
        Ok(Outcome {
            subject: self.subject.name(),
            shape: self.subject.shape(),
            plan: self.plan,
            ledger: self.ledger,
            events: self.events,
            done: self.done,
            seen,
            weighed: self.weighed,
            left,
            changing: (began, ended),
        })
    }

    /// Executes all steps. Each begins at its time, or at the end of the previous one if that is later.
    fn all_steps(&mut self, crowd: &Crowd) {
        let steps = self.plan.steps();
        let last_upgrade = steps.iter().rposition(|step| *step == Step::Upgrade);
        let mut warm = None;
        let (began, count) = (Instant::now(), steps.len() as f64);
        for (number, step) in steps.into_iter().enumerate() {
            let due = began + self.plan.changes_within.mul_f64(number as f64 / count);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.revive();
            self.step(step);
            if Some(number) == last_upgrade {
                warm = Some(Instant::now() + self.plan.warm_up);
            }
            if warm.take_if(|warm| *warm <= Instant::now()).is_some() {
                self.weigh(crowd);
            }
        }
        if let Some(warm) = warm {
            thread::sleep(warm.saturating_duration_since(Instant::now()));
            self.weigh(crowd);
        }
        self.dead = self.dead.map(|(origin, _)| (origin, 0));
        self.revive();
    }

    /// Measures the memory of the main process while clients pause, because it varies with the requests in flight.
    fn weigh(&mut self, crowd: &Crowd) {
        let place = self.subject.place();
        let rest = |number: usize| {
            thread::sleep(BETWEEN_RESTS * u32::from(number > 0));
            crowd.at_rest(|| {
                thread::sleep(REST);
                place.main().map_or(0, Process::resident_bytes)
            })
        };
        let mut seen: Vec<u64> = (0..self.plan.rests).map(rest).collect();
        seen.sort_unstable();
        self.weighed.push(seen[seen.len() / 2]);
    }

    fn step(&mut self, step: Step) {
        let outcome = match step {
            Step::Reload(change) => self.reload(change),
            Step::Upgrade => self.upgrade(),
            Step::Rotate => self.rotate(),
            Step::Reweigh => self.reweigh(),
            Step::Guest => self.guest(),
            Step::Kill => self.kill(),
        };
        if let Err(error) = outcome {
            self.ledger.failed(Kind::Change, format!("{step:?}: {error}"));
        }
    }

    fn reload(&mut self, change: Change) -> Result<(), String> {
        let text = self.setup.change(change, &self.origins, &mut self.random);
        let drain = self.subject.shape().reload_replaces.then_some(self.setup.drain);
        self.doing("reloads", format!("reload: {text}"), drain, |run| {
            run.subject.reload(&run.setup)?;
            run.await_effect()?;
            run.look_at(change)
        })
    }

    /// Upgrades the subject. The first upgrade replaces a process with a short drain time. Later processes have a drain
    /// time longer than the run.
    fn upgrade(&mut self) -> Result<(), String> {
        let drain = self.setup.drain;
        self.setup.generation += 1;
        self.setup.drain = self.plan.long_drain;
        self.doing("upgrades", "upgrade".to_owned(), Some(drain), |run| {
            run.subject.upgrade(&run.setup)?;
            run.await_effect()
        })
    }

    fn rotate(&mut self) -> Result<(), String> {
        let member = self.any_member();
        self.order(Order::Drain(member))?;
        self.await_quiet(member.origin)?;
        let origin = self.origins.killable(Group::Web, member.origin);
        origin.refuse();
        thread::sleep(QUIET);
        origin.come_back();
        self.order(Order::Undrain(member))
    }

    fn reweigh(&mut self) -> Result<(), String> {
        let member = self.any_member();
        self.order(Order::Weight(member, 4))?;
        self.order(Order::Weight(member, member.weight))
    }

    /// Adds a backend that the configuration lacks, waits until it gets a request, and removes it.
    fn guest(&mut self) -> Result<(), String> {
        let members = &self.setup.pool(Group::Web).members;
        let known = |origin: usize| members.iter().any(|member| member.origin == origin);
        let Some(origin) = (0..4).find(|origin| !known(*origin)) else { return self.leave_and_return() };
        let guest = self.origins.member(Group::Web, origin);
        let before = self.origins.of(Group::Web, origin).requests();
        self.order(Order::Add(guest))?;
        let used = awaited("the added backend gets a request", || {
            (self.origins.of(Group::Web, origin).requests() > before).then_some(())
        });
        self.order(Order::Remove(guest))?;
        used
    }

    /// Removes a backend and adds it again, for when all backends are in the configuration.
    fn leave_and_return(&mut self) -> Result<(), String> {
        let member = self.any_member();
        self.order(Order::Remove(member))?;
        self.order(Order::Add(member))
    }

    fn kill(&mut self) -> Result<(), String> {
        if self.dead.is_some() {
            return Ok(());
        }
        let members = &self.setup.pool(Group::Frail).members;
        let origin = members[self.random.usize(..members.len())].origin;
        self.dead = Some((origin, 2));
        self.doing("kills", format!("backend {origin} of frail killed"), None, |run| {
            run.origins.killable(Group::Frail, origin).refuse();
            Ok(())
        })
    }

    /// Starts a killed origin again if its time has come.
    fn revive(&mut self) {
        let Some((origin, steps)) = self.dead.take() else { return };
        if steps > 0 {
            self.dead = Some((origin, steps - 1));
            return;
        }
        self.origins.killable(Group::Frail, origin).come_back();
    }

    fn order(&mut self, order: Order) -> Result<(), String> {
        self.setup.order(&order);
        self.setup.generation += 1;
        self.doing("orders", format!("order: {order}"), None, |run| {
            if run.subject.order(&order, &run.setup)? == Ordered::Live {
                return Ok(());
            }
            *run.done.entry("orders that were reloads").or_default() += 1;
            if let Some(event) = run.events.last_mut() {
                event.drain = Some(run.setup.drain);
            }
            run.await_effect()
        })
    }

    /// Makes a change and records it together with its duration.
    fn doing(
        &mut self,
        kind: &'static str,
        text: String,
        drain: Option<Duration>,
        what: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let at = self.ledger.now();
        self.events.push(Event { at, took: LIMIT, text, drain });
        let outcome = what(self);
        let took = self.ledger.now() - at;
        if let Some(event) = self.events.iter_mut().rev().find(|event| event.at == at) {
            event.took = took;
        }
        *self.done.entry(kind).or_default() += usize::from(outcome.is_ok());
        outcome
    }

    fn any_member(&mut self) -> crate::setup::Member {
        let members = &self.setup.pool(Group::Web).members;
        members[self.random.usize(..members.len())]
    }

    /// Waits until a drained backend has had no request for [`QUIET`].
    fn await_quiet(&self, origin: usize) -> Result<(), String> {
        let origin = self.origins.of(Group::Web, origin);
        let mut since = Instant::now();
        awaited("a drained backend has no request left", || {
            if origin.busy() > 0 {
                since = Instant::now();
            }
            (since.elapsed() > QUIET).then_some(())
        })
    }

    /// Waits until the newest setup serves a new connection.
    fn await_effect(&self) -> Result<(), String> {
        let wanted = format!("generation-{}.test", self.setup.generation);
        let mut last = String::new();
        let effect = wait::poll(LIMIT, || {
            last = match send(self.setup.listeners[0], MARKER_HOST) {
                Ok(response) => response.text(),
                Err(error) => error,
            };
            (last == wanted).then_some(())
        });
        effect.ok_or_else(|| {
            format!("{wanted} was not in effect within {LIMIT:?}; the last result was: {last}")
        })
    }

    /// Waits until a listener or a route that was changed is in effect. The old processes of a subject may accept
    /// connections for a short time after its reload.
    fn look_at(&self, change: Change) -> Result<(), String> {
        let extra = || Connection::open(self.setup.extra);
        let canary = || send(self.setup.listeners[1], CANARY_HOST);
        let responsible = if self.setup.has_canary { "sockets" } else { "web" };
        match change {
            Change::Listener if self.setup.has_extra => send(self.setup.extra, MARKER_HOST).map(drop),
            Change::Listener => awaited("the listener is gone", || extra().is_err().then_some(())),
            Change::Route => awaited("the route is in effect", || {
                canary().ok().filter(|response| response.origin().starts_with(responsible)).map(drop)
            }),
            _ => Ok(()),
        }
    }

    fn connections(&self) -> Vec<String> {
        self.subject.place().processes().into_iter().flat_map(Process::connections).collect()
    }

    fn listeners_off(&self) -> usize {
        let wanted = self.setup.addresses();
        let others = [self.setup.extra].into_iter().filter(|address| !wanted.contains(address));
        let missing_or_more: usize =
            wanted.iter().map(|address| listening_sockets(*address).abs_diff(1)).sum();
        missing_or_more + others.map(listening_sockets).sum::<usize>()
    }

    /// Waits until the resources of the load are gone, then stops the subject and waits until its resources are gone.
    fn leftovers(&mut self) -> Leftovers {
        let began = Instant::now();
        let rest = self.subject.shape().processes;
        let now = |run: &Self| Leftovers {
            processes: run.subject.place().processes().len().saturating_sub(rest),
            connections: run.connections(),
            listeners: run.listeners_off(),
            ..Leftovers::default()
        };
        let clean = |left: &Leftovers| left.processes + left.connections.len() + left.listeners == 0;
        let settled = wait::poll(SETTLE, || Some(now(self)).filter(clean));
        let mut left = settled.unwrap_or_else(|| now(self));
        left.settled = began.elapsed();
        self.subject.stop();
        let after = |run: &Self| {
            let listening: usize = run.setup.addresses().into_iter().map(listening_sockets).sum();
            run.subject.place().processes().len() + listening
        };
        let gone = wait::poll(SETTLE, || (after(self) == 0).then_some(()));
        left.after_stop = if gone.is_some() { 0 } else { after(self) };
        left
    }
}

/// Sends one `GET /host` on a new connection.
fn send(address: SocketAddr, host: &str) -> Result<Response, String> {
    let mut connection = Connection::open(address).map_err(|error| error.to_string())?;
    let headers = [("Host", host), ("Connection", "close")];
    let response = connection.request("GET", "/host", &headers, b"").map_err(|error| error.to_string())?;
    if response.status == 200 {
        Ok(response)
    } else {
        Err(format!("the response is {}", response.head.start))
    }
}
