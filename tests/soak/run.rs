//! One run: starts a subject and its load, carries the script out, and says what was seen.
//!
//! ```text
//!   start, idle ─> load ─> warm-up ─> the steps, evenly over their time ─> calm ─> load ends ─> settled? ─> stop, gone?
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
use crate::subject::{Ordered, PATIENCE, Shape, Subject, awaited};
use crate::watch::{Seen, Watch};

/// How long a drained backend must have had nothing to do before it is killed.
const QUIET: Duration = Duration::from_millis(300);
/// How long clients rest before the memory is looked at: what was under way ends, and what was freed goes back to the system.
const REST: Duration = Duration::from_secs(3);
/// How long they are busy between two rests.
const BETWEEN_RESTS: Duration = Duration::from_secs(1);
/// How soon everything that belongs to the load must be gone after it: connections kept to origins live for three seconds.
const SETTLE: Duration = Duration::from_secs(20);

/// Something that was done to the subject.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// When it began, since the start.
    pub(crate) at: Duration,
    /// How long it took until it was in effect.
    pub(crate) took: Duration,
    /// What, in words.
    pub(crate) text: String,
    /// The time that the processes which it replaced had to finish; none when it replaced none.
    pub(crate) drain: Option<Duration>,
}

/// What is left when the load is over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leftovers {
    /// Processes beyond those of rest, after the load.
    pub(crate) processes: usize,
    /// Connections after the load, of all processes: in rest there are none, but for a health check now and then.
    pub(crate) connections: Vec<String>,
    /// Sockets that listen beyond one for each listener, or less than that.
    pub(crate) listeners: usize,
    /// Processes and listening sockets after the stop.
    pub(crate) after_stop: usize,
    /// How long all of that took to go.
    pub(crate) settled: Duration,
}

/// All that was seen of one subject.
pub(crate) struct Outcome {
    /// Its name.
    pub(crate) subject: String,
    /// What it is made of.
    pub(crate) shape: Shape,
    /// What was asked for.
    pub(crate) plan: Plan,
    /// What became of the load.
    pub(crate) ledger: Arc<Ledger>,
    /// What was done.
    pub(crate) events: Vec<Event>,
    /// How often each kind of thing was done.
    pub(crate) done: BTreeMap<&'static str, usize>,
    /// Processes and memory over time.
    pub(crate) seen: Seen,
    /// Memory of the process in charge at rest, in bytes: the first when it was warm, the last when it was, and at the end.
    pub(crate) weighed: Vec<u64>,
    /// What stayed.
    pub(crate) left: Leftovers,
    /// When the first change began, and when the load ended.
    pub(crate) changing: (Duration, Duration),
}

/// A run under way.
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
    /// The origin of `frail` that is dead, and for how many more steps.
    dead: Option<(usize, usize)>,
}

/// Carries a plan out on a subject.
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

    /// Each step begins at its time, or when the one before is over.
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

    /// Looks at the memory of the process in charge while nothing moves, since it goes up and down with what is under way.
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

    /// The first one replaces a process that has little time to finish; those after it have more than the run lasts.
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

    /// A backend that the configuration does not have comes, must be used, and goes.
    fn guest(&mut self) -> Result<(), String> {
        let members = &self.setup.pool(Group::Web).members;
        let known = |origin: usize| members.iter().any(|member| member.origin == origin);
        let Some(origin) = (0..4).find(|origin| !known(*origin)) else { return self.leave_and_return() };
        let guest = self.origins.member(Group::Web, origin);
        let before = self.origins.of(Group::Web, origin).requests();
        self.order(Order::Add(guest))?;
        let used = awaited("the backend that was added gets a request", || {
            (self.origins.of(Group::Web, origin).requests() > before).then_some(())
        });
        self.order(Order::Remove(guest))?;
        used
    }

    /// The same the other way round, when all are there.
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

    /// Starts a killed origin when its time has come.
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

    /// Does something and writes it down, with the time that it took.
    fn doing(
        &mut self,
        kind: &'static str,
        text: String,
        drain: Option<Duration>,
        what: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let at = self.ledger.now();
        self.events.push(Event { at, took: PATIENCE, text, drain });
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

    /// Waits until a drained backend has had nothing to do for a moment.
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

    /// Waits until a new connection is served by the newest setup.
    fn await_effect(&self) -> Result<(), String> {
        let wanted = format!("generation-{}.test", self.setup.generation);
        let mut last = String::new();
        let effect = wait::poll(PATIENCE, || {
            last = match ask(self.setup.listeners[0], MARKER_HOST) {
                Ok(answer) => answer.text(),
                Err(error) => error,
            };
            (last == wanted).then_some(())
        });
        effect.ok_or_else(|| format!("{wanted} was not in effect within {PATIENCE:?}, but {last}"))
    }

    /// Waits until those changes that can be seen from outside have come about: where new processes take over, the old ones
    /// may still accept for a moment.
    fn look_at(&self, change: Change) -> Result<(), String> {
        let extra = || Connection::open(self.setup.extra);
        let canary = || ask(self.setup.listeners[1], CANARY_HOST);
        let responsible = if self.setup.has_canary { "sockets" } else { "web" };
        match change {
            Change::Listener if self.setup.has_extra => ask(self.setup.extra, MARKER_HOST).map(drop),
            Change::Listener => awaited("the listener is gone", || extra().is_err().then_some(())),
            Change::Route => awaited("the route is in effect", || {
                canary().ok().filter(|answer| answer.origin().starts_with(responsible)).map(drop)
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

    /// Waits until nothing is left of the load, then of the subject.
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

/// One `GET /host` on a connection of its own.
fn ask(address: SocketAddr, host: &str) -> Result<Response, String> {
    let mut connection = Connection::open(address).map_err(|error| error.to_string())?;
    let headers = [("Host", host), ("Connection", "close")];
    let answer = connection.request("GET", "/host", &headers, b"").map_err(|error| error.to_string())?;
    if answer.status == 200 { Ok(answer) } else { Err(format!("answered {}", answer.head.start)) }
}
