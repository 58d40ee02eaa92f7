//! The configuration of a subject as a value, and its changes. Every subject writes the value in its own syntax.
//!
//! Requests are routed by host to three pools:
//!
//! - The backends of `web` are drained before they are killed.
//! - The backends of `frail` are killed without a drain. This pool serves only short responses.
//! - `sockets` serves WebSockets and long downloads. Its backends are added and removed, but never killed.
//!
//! A fourth pool, `marker`, sets the `Host` for its backend to the generation of the setup. The backend returns it, so
//! the harness can check from outside that a change is in effect.

use std::net::SocketAddr;
use std::time::Duration;

use tests::{Behaviour, Origin, ports};

/// The host whose requests go to the pool `web`.
pub(crate) const WEB_HOST: &str = "web.test";
/// The host whose requests go to the pool `frail`.
pub(crate) const FRAIL_HOST: &str = "frail.test";
/// The host whose requests go to the pool `sockets`.
pub(crate) const SOCKETS_HOST: &str = "sockets.test";
/// The host whose requests go to the pool `marker`.
pub(crate) const MARKER_HOST: &str = "marker.test";
/// The host whose requests go to `sockets` while there is a route for it, and to `web` otherwise.
pub(crate) const CANARY_HOST: &str = "canary.test";

/// A pool that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// `web`.
    Web,
    /// `frail`.
    Frail,
    /// `sockets`.
    Sockets,
}

/// The policy of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    RoundRobin,
    Random,
    LeastRequest,
    PeakEwma,
    ConsistentHash,
    Maglev,
}

/// A backend of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// The index among the origins of the pool.
    pub(crate) origin: usize,
    /// The address of the backend.
    pub(crate) address: SocketAddr,
    /// The weight, 1 to 4.
    pub(crate) weight: u32,
    /// Whether the backend is drained.
    pub(crate) drained: bool,
}

/// A pool.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    /// The name of the pool.
    pub(crate) name: &'static str,
    /// The policy.
    pub(crate) policy: Policy,
    /// The backends.
    pub(crate) members: Vec<Member>,
}

/// The configuration of a subject.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// A number that each change increments.
    pub(crate) generation: u32,
    /// The pools, in the order of [`Group`].
    pub(crate) pools: [Pool; 3],
    /// The backend of the pool `marker`.
    pub(crate) marker: SocketAddr,
    /// The addresses that clients connect to.
    pub(crate) listeners: Vec<SocketAddr>,
    /// The address of a listener that exists only at times.
    pub(crate) extra: SocketAddr,
    /// Whether that listener exists.
    pub(crate) has_extra: bool,
    /// Whether there is a route for [`CANARY_HOST`].
    pub(crate) has_canary: bool,
    /// Whether requests are logged.
    pub(crate) access_log: bool,
    /// The response timeout, in seconds.
    pub(crate) response_timeout: u32,
    /// The interval of health checks, in milliseconds.
    pub(crate) check_interval: u32,
    /// The drain time.
    pub(crate) drain: Duration,
}

/// The origins behind a setup.
pub(crate) struct Origins {
    pools: [Vec<Origin>; 3],
    marker: Origin,
}

/// A kind of change in a new configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Backends,
    Weights,
    Policy,
    Route,
    Listener,
    Timeout,
    AccessLog,
    Checks,
    Several,
}

/// A change of a backend of the pool `web` at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Drains the backend.
    Drain(Member),
    /// Undrains the backend.
    Undrain(Member),
    /// Changes the weight of the backend.
    Weight(Member, u32),
    /// Adds a backend.
    Add(Member),
    /// Removes the backend.
    Remove(Member),
}

// ===== impl Origins =====

impl Origins {
    /// Starts all origins.
    pub(crate) fn start() -> Self {
        let pools = [(Group::Web, 4), (Group::Frail, 4), (Group::Sockets, 4)].map(|(group, count)| {
            let name = |number| format!("{}-{number}", group.name());
            (0..count).map(|number| serving(&name(number))).collect()
        });
        Self { pools, marker: serving("marker") }
    }

    /// Returns an origin of a pool.
    pub(crate) fn of(&self, group: Group, number: usize) -> &Origin {
        &self.pools[group as usize][number]
    }

    /// Returns an origin of a pool that can be killed.
    pub(crate) fn killable(&mut self, group: Group, number: usize) -> &mut Origin {
        &mut self.pools[group as usize][number]
    }

    /// Returns the origin as a backend that is not yet in a pool.
    pub(crate) fn member(&self, group: Group, origin: usize) -> Member {
        Member { origin, address: self.of(group, origin).address, weight: 1, drained: false }
    }

    /// Returns the setup at the beginning of a run.
    pub(crate) fn setup(&self, drain: Duration) -> Setup {
        let pool = |group: Group| Pool {
            name: group.name(),
            policy: Policy::RoundRobin,
            members: (0..3).map(|origin| self.member(group, origin)).collect(),
        };
        Setup {
            generation: 0,
            pools: [pool(Group::Web), pool(Group::Frail), pool(Group::Sockets)],
            marker: self.marker.address,
            listeners: vec![ports::free(), ports::free()],
            extra: ports::free(),
            has_extra: false,
            has_canary: false,
            access_log: false,
            response_timeout: 60,
            check_interval: 500,
            drain,
        }
    }
}

fn serving(name: &str) -> Origin {
    let origin = Origin::start(name);
    origin.behave(Behaviour::Service);
    origin
}

// ===== impl Group =====

impl Group {
    /// All groups.
    pub(crate) const ALL: [Self; 3] = [Self::Web, Self::Frail, Self::Sockets];

    /// Returns the name of the pool.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Frail => "frail",
            Self::Sockets => "sockets",
        }
    }
}

// ===== impl Policy =====

impl Policy {
    const ALL: [Self; 6] = [
        Self::RoundRobin,
        Self::Random,
        Self::LeastRequest,
        Self::PeakEwma,
        Self::ConsistentHash,
        Self::Maglev,
    ];

    /// Returns the name in the daemon's configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::LeastRequest => "least_request",
            Self::PeakEwma => "peak_ewma",
            Self::ConsistentHash => "consistent_hash",
            Self::Maglev => "maglev",
        }
    }
}

// ===== impl Setup =====

impl Setup {
    /// Returns a pool.
    pub(crate) fn pool(&self, group: Group) -> &Pool {
        &self.pools[group as usize]
    }

    fn pool_mut(&mut self, group: Group) -> &mut Pool {
        &mut self.pools[group as usize]
    }

    /// Returns the addresses of all listeners.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let extra = self.has_extra.then_some(self.extra);
        self.listeners.iter().copied().chain(extra).collect()
    }

    /// Applies a change of this kind, and returns a description of it.
    pub(crate) fn change(&mut self, change: Change, origins: &Origins, random: &mut fastrand::Rng) -> String {
        self.generation += 1;
        let group = Group::ALL[random.usize(..3)];
        match change {
            Change::Backends => self.change_backends(group, origins, random),
            Change::Weights => self.change_weight(group, random),
            Change::Policy => self.change_policy(group, random),
            Change::Route => {
                self.has_canary = !self.has_canary;
                format!("route for {CANARY_HOST} {}", added_or_removed(self.has_canary))
            }
            Change::Listener => {
                self.has_extra = !self.has_extra;
                format!("a listener {}", added_or_removed(self.has_extra))
            }
            Change::Timeout => {
                self.response_timeout = random.u32(30..90);
                format!("response timeout {} s", self.response_timeout)
            }
            Change::AccessLog => {
                self.access_log = !self.access_log;
                format!("access log {}", if self.access_log { "on" } else { "off" })
            }
            Change::Checks => {
                self.check_interval = random.u32(3..9) * 100;
                format!("health checks every {} ms", self.check_interval)
            }
            Change::Several => {
                let changes = [
                    self.change_backends(Group::Web, origins, random),
                    self.change_weight(Group::Sockets, random),
                    self.change_policy(Group::Frail, random),
                ];
                changes.join("; ")
            }
        }
    }

    /// Adds a fourth backend to a pool of three, or removes one of four.
    fn change_backends(&mut self, group: Group, origins: &Origins, random: &mut fastrand::Rng) -> String {
        let pool = self.pool_mut(group);
        if pool.members.len() > 3 {
            let gone = pool.members.remove(random.usize(..pool.members.len()));
            return format!("backend {} of {} removed", gone.origin, pool.name);
        }
        let absent = (0..4).find(|origin| pool.members.iter().all(|member| member.origin != *origin));
        let origin = absent.expect("the pool has three of four origins");
        pool.members.push(origins.member(group, origin));
        format!("backend {origin} of {} added", pool.name)
    }

    fn change_weight(&mut self, group: Group, random: &mut fastrand::Rng) -> String {
        let pool = self.pool_mut(group);
        let index = random.usize(..pool.members.len());
        let member = &mut pool.members[index];
        member.weight = 1 + (member.weight + random.u32(0..3)) % 4;
        format!("backend {} of {} has weight {}", member.origin, pool.name, member.weight)
    }

    fn change_policy(&mut self, group: Group, random: &mut fastrand::Rng) -> String {
        let pool = self.pool_mut(group);
        let others: Vec<Policy> = Policy::ALL.into_iter().filter(|policy| *policy != pool.policy).collect();
        pool.policy = others[random.usize(..others.len())];
        format!("policy of {} is {}", pool.name, pool.policy.name())
    }

    /// Applies a change at run time to the setup.
    pub(crate) fn order(&mut self, order: &Order) {
        let members = &mut self.pool_mut(Group::Web).members;
        let position = |wanted: &Member| members.iter().position(|member| member.origin == wanted.origin);
        match order {
            Order::Add(member) => members.push(*member),
            Order::Remove(member) => members.retain(|known| known.origin != member.origin),
            Order::Drain(member) | Order::Undrain(member) => {
                let known = position(member).expect("it is a backend of the pool");
                members[known].drained = matches!(order, Order::Drain(_));
            }
            Order::Weight(member, weight) => {
                let known = position(member).expect("it is a backend of the pool");
                members[known].weight = *weight;
            }
        }
    }
}

fn added_or_removed(added: bool) -> &'static str {
    if added { "added" } else { "removed" }
}

// ===== impl Change =====

impl Change {
    /// Returns `count` changes of all kinds in a random order.
    pub(crate) fn some(count: usize, random: &mut fastrand::Rng) -> Vec<Self> {
        const ALL: [Change; 9] = [
            Change::Listener,
            Change::Backends,
            Change::Weights,
            Change::Route,
            Change::Policy,
            Change::Several,
            Change::AccessLog,
            Change::Timeout,
            Change::Checks,
        ];
        let mut changes: Vec<Self> = ALL.into_iter().cycle().take(count).collect();
        random.shuffle(&mut changes);
        changes
    }
}

impl std::fmt::Display for Order {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Drain(member) => write!(to, "backend {} of web drained", member.origin),
            Self::Undrain(member) => write!(to, "backend {} of web undrained", member.origin),
            Self::Weight(member, weight) => {
                write!(to, "backend {} of web has weight {weight}", member.origin)
            }
            Self::Add(member) => write!(to, "backend {} of web added", member.origin),
            Self::Remove(member) => write!(to, "backend {} of web removed", member.origin),
        }
    }
}
