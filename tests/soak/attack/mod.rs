//! The soak run under attack: thousands of hostile clients, one kind after the other, beside well-behaved clients.
//!
//! ```text
//!   Siege: 5,000 attackers ──> daemon ──> Origins
//!   Crowd: a fixed rate ─────────^           ^
//!     └───── direct requests, the control ───┘
//!   Gauge: memory and descriptors of the daemon ──> Outcome ──> report, faults
//! ```
//!
//! `make soak SOAK=attack` runs it in about eight minutes, and replaces its part of `RESULTS.md`. A run with some of
//! the attacks, such as `SOAK="attack slow-readers garbage"`, only prints its results. `make test` runs it with a few
//! attackers, which shows that the attacks take place and that no request fails.
//!
//! Attackers never close their connections before the end of their attack, so the daemon must release its side by its
//! own deadlines. The load has a fixed rate, so that a slow response does not reduce it. The attackers, the clients and
//! the origins run on the same processors as the daemon. The control shows how much slower requests get for that reason
//! alone.

mod attackers;
mod crowd;
mod gauge;
mod origin;
mod report;
mod wire;

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tests::{Daemon, Lab, wait};
use tokio::runtime::{Builder, Runtime};

use self::attackers::{Attack, Ends, Siege};
use self::crowd::{Crowd, Page};
use self::gauge::{Gauge, Reading};
use self::origin::Origins;
use crate::subject::fill;

/// The configuration. Names between `@` are replaced by values.
const TEMPLATE: &str = include_str!("../attack.yaml");
/// The time after its deadline in which the daemon must release the last connection of an attack.
const SLACK: Duration = Duration::from_secs(10);
/// The largest segment of a connection, in bytes, as on Ethernet. The system would size the buffers of a connection by
/// the much larger segments of the loopback interface, and a few hundred slow readers would use up its memory for TCP.
const SEGMENT: u32 = 1460;
/// The share of the descriptors and the memory at the start that may be in use after an attack, in percent.
const BACK: u64 = 110;

/// The size of a run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The kinds of attackers, in order.
    pub(crate) attacks: Vec<Attack>,
    /// The number of attackers of each kind.
    pub(crate) attackers: usize,
    /// The number of attackers that begin in a second.
    pub(crate) per_second: u32,
    /// The time under load before anything is measured.
    pub(crate) warm_up: Duration,
    /// The time under load that the attacks are compared with.
    pub(crate) baseline: Duration,
    /// The time after which attackers leave, although the daemon has not released their connections. `None` means that
    /// the deadlines of the daemon decide.
    pub(crate) patience: Option<Duration>,
    /// The time within which memory and descriptors must be back after an attack.
    pub(crate) recovery: Duration,
}

/// The observations of one attack.
pub(crate) struct Round {
    /// The kind of attackers.
    pub(crate) attack: Attack,
    /// The attackers that connected, and how the daemon ended their connections.
    pub(crate) ends: Ends,
    /// The requests of the well-behaved clients during the attack.
    pub(crate) during: Arc<Page>,
    /// The requests of the well-behaved clients after the attackers had left, until everything was back.
    pub(crate) after: Arc<Page>,
    /// The most memory and the most descriptors.
    pub(crate) most: Reading,
    /// The time from the connection of the last attacker until the daemon had released the descriptors. `None` if it
    /// did not release them before the attackers left.
    pub(crate) released: Option<Duration>,
    /// The time from the end of the attack until memory and descriptors were back. `None` if they were not in time.
    pub(crate) back: Option<Duration>,
    /// Memory and descriptors at that time.
    pub(crate) end: Reading,
}

/// The observations of a run.
pub(crate) struct Outcome {
    /// The size of the run.
    pub(crate) plan: Plan,
    /// Memory and descriptors before the first attack.
    pub(crate) start: Reading,
    /// The requests before the first attack.
    pub(crate) baseline: Arc<Page>,
    /// The attacks, in order.
    pub(crate) rounds: Vec<Round>,
    /// The duration of the run.
    pub(crate) took: Duration,
    /// Whether the daemon still ran, and its log has no panic.
    pub(crate) is_sound: bool,
}

/// The parts of a run that last from its beginning to its end.
struct Run {
    plan: Plan,
    attackers: Runtime,
    crowd: Crowd,
    gauge: Gauge,
    listener: SocketAddr,
    start: Reading,
}

#[test]
fn a_few_attackers_of_each_kind_do_not_disturb_other_clients() {
    let outcome = run(&Plan::short());
    println!("{}", report::markdown(&outcome));
    let faults = report::failures(&outcome);
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
#[ignore = "takes eight minutes: `make soak SOAK=attack`"]
fn attackers_do_not_disturb_other_clients() {
    let plan = Plan::wanted(&std::env::var("SOAK").unwrap_or_default());
    let is_complete = plan.attacks == Attack::ALL;
    let outcome = run(&plan);
    println!("\n{}", report::markdown(&outcome));
    crate::write_files("attack", &report::markdown(&outcome), &report::json(&outcome));
    let faults = report::faults(&outcome);
    assert!(faults.is_empty(), "{faults:#?}");
    if is_complete && std::env::var_os("SOAK_WRITE").is_some() {
        crate::publish_attack(&report::section(&outcome, &crate::today(), &crate::machine()));
    }
}

/// Executes all attacks on a daemon of their own.
pub(crate) fn run(plan: &Plan) -> Outcome {
    let began = Instant::now();
    raise_open_files(plan);
    let (lab, origins) = (Lab::new(), Origins::start());
    let daemon = lab.start_file(&configuration(&lab, &origins));
    let (crowd, gauge) = (Crowd::start(daemon.listener, &origins), Gauge::start(daemon.process));
    thread::sleep(plan.warm_up);
    crowd.turn_page();
    thread::sleep(plan.baseline);
    let (start, baseline) = (gauge.over(plan.baseline), crowd.turn_page());
    let (plan, listener) = (plan.clone(), daemon.listener);
    let run = Run { plan, attackers: runtime("attackers"), crowd, gauge, listener, start };
    let rounds = run.plan.attacks.iter().map(|attack| run.round(*attack)).collect();
    let is_sound = is_sound(&daemon);
    Outcome { plan: run.plan, start, baseline, rounds, took: began.elapsed(), is_sound }
}

fn is_sound(daemon: &Daemon) -> bool {
    daemon.process.alive() && !daemon.log().contains("panicked")
}

/// Allows the test and the daemon, which inherits the limit, to open two descriptors for each attacker.
fn raise_open_files(plan: &Plan) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files can be read");
    let needed = 1000 + 2 * plan.attackers as u64;
    assert!(
        hard >= needed,
        "the hard limit of open files is {hard}; run `ulimit -Hn {needed}` or more as root"
    );
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a process can use its hard limit");
}

fn configuration(lab: &Lab, origins: &Origins) -> std::path::PathBuf {
    let listeners = format!("listeners: [{{address: \"{}\"}}]\n", lab.listener);
    let mut backends = String::new();
    for address in &origins.addresses {
        let comma = if backends.is_empty() { "" } else { ", " };
        write!(backends, "{comma}\"{address}\"").expect("a string accepts everything");
    }
    let values = [("DIRECTORY", lab.directory().display().to_string()), ("BACKENDS", backends)];
    lab.config_with(&listeners, &fill(TEMPLATE, &values))
}

/// Starts a runtime with one thread.
fn runtime(name: &str) -> Runtime {
    let started = Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build();
    started.expect("a thread can be started")
}

// ===== impl Plan =====

impl Plan {
    /// Returns the run of `make soak SOAK=attack`.
    pub(crate) fn long() -> Self {
        Self {
            attacks: Attack::ALL.to_vec(),
            attackers: 5000,
            per_second: 500,
            warm_up: Duration::from_secs(20),
            baseline: Duration::from_secs(20),
            patience: None,
            recovery: Duration::from_secs(60),
        }
    }

    /// Returns the long run with the kinds of attackers that `SOAK` names after the word `attack`, or with all kinds if
    /// it names none.
    #[expect(clippy::panic, reason = "a wrong name ends the run")]
    fn wanted(soak: &str) -> Self {
        let named = |name| Attack::named(name).unwrap_or_else(|| panic!("unknown attack {name} in SOAK"));
        let attacks: Vec<Attack> = soak.split_whitespace().skip(1).map(named).collect();
        let long = Self::long();
        if attacks.is_empty() { long } else { Self { attacks, ..long } }
    }

    /// Returns the run of `make test`.
    pub(crate) fn short() -> Self {
        let second = Duration::from_secs(1);
        let (warm_up, baseline, patience, recovery) = (second, second, Some(2 * second), second);
        let attacks = Attack::ALL.to_vec();
        Self { attacks, attackers: 40, per_second: 200, warm_up, baseline, patience, recovery }
    }
}

// ===== impl Run =====

impl Run {
    fn round(&self, attack: Attack) -> Round {
        self.crowd.turn_page();
        self.gauge.forget_most();
        let siege = Siege::begin(attack, &self.attackers, &self.plan, self.listener);
        siege.wait_connected();
        let connected = Instant::now();
        self.gauge.refresh();
        let patience = self.plan.patience.unwrap_or(attack.deadline() + SLACK);
        let released = wait::poll(patience, || self.has_few_descriptors().then(|| connected.elapsed()));
        let (during, most) = (self.crowd.turn_page(), self.gauge.most());
        let ends = siege.end();
        let left = Instant::now();
        let back = wait::poll(self.plan.recovery, || self.is_back().then(|| left.elapsed()));
        let (after, end) = (self.crowd.turn_page(), self.gauge.now());
        let round = Round { attack, ends, during, after, most, released, back, end };
        println!("{}", report::row(&round, self.start));
        round
    }

    fn has_few_descriptors(&self) -> bool {
        self.gauge.now().descriptors * 100 <= self.start.descriptors * BACK
    }

    fn is_back(&self) -> bool {
        self.has_few_descriptors() && self.gauge.now().memory * 100 <= self.start.memory * BACK
    }
}
