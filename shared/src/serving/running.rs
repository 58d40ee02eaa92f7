//! Running daemon and its change to another plan. Everything that can fail is staged without a visible effect, and is
//! then committed by steps that cannot fail.
//!
//! ```text
//! stage     bind new addresses, create pools, check their new backends, open the access log, take over addresses
//!           that overlap with those of listeners that close
//! commit    health checks continue with the new pools ─> closed listeners keep the last plan that has them
//!           ─> pools take over from their predecessors ─> requests use the new plan ─> listeners open and close
//! ```
//!
//! A listener that moves to an overlapping address has two sockets for a second; see
//! [`moves`](crate::process::moves).
//!
//! Dropping a [`Staged`] closes everything that it bound and opened.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use health_service::Checks;
use lb_service::access_log::AccessLog;
use lb_service::explain::Token;
use lb_service::forwarded::TrustedProxies;
use lb_service::listener::{ListenAddress, Listener};
use lb_service::pool::{Backend, Pool, UpstreamAddress};
use lb_service::route::RouteTable;
use lb_service::service::{Acceptors, Connector};
use lb_service::snapshot::{Snapshot, SnapshotParts};
use lb_service::traffic::{ResponseCounts, Traffic};
use parking_lot::Mutex;

use super::core::Core;
use super::diff::Diff;
use super::logs::{AccessLogs, Opened};
use super::pools::Checked;
use crate::config::Plan;
use crate::process::files::Unusable;
use crate::process::files::reason;
use crate::process::lifecycle::{Timing, Timings};
use crate::process::moves;
use crate::process::sockets::{self, Bound, Class, Endpoint, ListenSpec, Sockets};

/// Parts of the daemon that a change of the plan affects. Clones share them.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) core: Core,
    /// The time limits for the end of the process.
    pub(crate) timings: Timings,
    pub(crate) acceptors: Acceptors,
    pub(crate) checks: Checks,
    /// Makes the connections of the health checks.
    pub(crate) connector: Connector,
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) logs: AccessLogs,
    pub(crate) token: Token,
    /// Removed backends that still have requests in flight.
    pub(crate) leaving: Arc<Mutex<Vec<Leaving>>>,
}

/// A backend with the name of the pool that it was in.
type Leaving = (Arc<str>, Arc<Backend>);

/// Everything that a new plan needs, created but not in use yet.
pub(crate) struct Staged {
    /// The listeners to open, with their sockets.
    opened: Vec<(Listener, OwnedFd)>,
    closed: Vec<Listener>,
    log: Option<Opened>,
    bound: Bound,
    /// The closed addresses that overlap with opened ones.
    moved: Vec<ListenAddress>,
    /// The listeners whose socket file gets another mode.
    modes: Vec<Listener>,
    pools: Vec<Checked>,
    checks: health_service::StagedChecks,
    /// The pools that replace others.
    successions: Vec<Succession>,
    served: Snapshot,
}

/// Addresses to bind.
struct New {
    free: Vec<ListenSpec>,
    /// The addresses that overlap with closed ones.
    beside: Vec<ListenSpec>,
    /// The addresses to close.
    leaving: Vec<String>,
}

/// Returns the listeners whose address closes, without those that are only renamed.
fn left(diff: &Diff) -> impl Iterator<Item = &Listener> {
    let is_kept = |closed: &&Listener| diff.opened.iter().any(|opened| opened.address == closed.address);
    diff.closed.iter().filter(move |closed| !is_kept(closed))
}

/// Returns the closed addresses that overlap with an opened one.
fn moved(diff: &Diff) -> Vec<ListenAddress> {
    let overlap = |one: &ListenAddress, other: &ListenAddress| match (one, other) {
        (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) => moves::overlap(*one, *other),
        _ => false,
    };
    let is_moved =
        |left: &&Listener| diff.opened.iter().any(|opened| overlap(&left.address, &opened.address));
    left(diff).filter(is_moved).map(|listener| listener.address.clone()).collect()
}

/// Pool that replaces another one, and the pool that it replaces.
type Succession = (Arc<Pool>, Arc<Pool>);

/// Interval between checks whether a backend is idle.
const POLL: Duration = Duration::from_millis(10);

fn no_log(error: &Unusable) -> String {
    format!("cannot open the access log {error}")
}

// === impl Running ===

impl Running {
    /// Creates everything that `new` needs in addition to `old`. Nothing changes for requests.
    ///
    /// # Errors
    /// If a resource is not available.
    pub(crate) async fn stage(&self, old: &Plan, new: &Plan, diff: &Diff) -> Result<Staged, String> {
        let New { free, beside, leaving } = self.new_addresses(diff);
        let mut bound = self.sockets.bind_more(&free).map_err(|error| error.to_string())?;
        self.sockets.check_take_over(&beside, &leaving).map_err(|error| error.to_string())?;
        let (pools, successions) = self.create_pools(old, new);
        let checks = pools.iter().map(|pool| pool.to_check(&self.connector));
        let checks = self.checks.stage(checks).await;
        // The log comes last of the steps that can fail, because opening it creates a file that a later failure would
        // leave behind.
        let log =
            (old.access_log != new.access_log).then(|| self.logs.open(&new.access_log, None)).transpose();
        let log = log.map_err(|error| no_log(&error))?;
        let logs = self.logs.of(new, log.as_ref());
        let served = served(new, &pools, logs, &self.core.traffic, &self.token);
        // From here on connections can arrive at these sockets; they would be lost without a commit.
        let taken = self.sockets.take_over(&beside, &leaving).map_err(|error| error.to_string())?;
        bound.append(taken);
        let opened = self.with_sockets(&diff.opened, &bound)?;
        let (closed, moved, modes) = (diff.closed.clone(), moved(diff), diff.modes.clone());
        Ok(Staged { opened, closed, log, bound, moved, modes, pools, checks, successions, served })
    }

    /// Returns the pools of `new`, and each new pool with its predecessor.
    fn create_pools(&self, old: &Plan, new: &Plan) -> (Vec<Checked>, Vec<Succession>) {
        let before = self.core.pools.now();
        let (mut pools, mut successions) = (Vec::new(), Vec::new());
        for (pool, check) in &new.pools {
            let predecessor = before.iter().find(|known| known.pool.name == pool.name);
            let was = old.pools.iter().find(|(known, _)| known.name == pool.name);
            let checked = match predecessor.zip(was) {
                None => Checked::new(pool, check, self.core.pools.observer()),
                Some((known, (was, _))) => known.successor(was, pool, check),
            };
            if let Some(known) = predecessor.filter(|known| !Arc::ptr_eq(&known.pool, &checked.pool)) {
                successions.push((checked.pool.clone(), known.pool.clone()));
            }
            pools.push(checked);
        }
        (pools, successions)
    }

    /// Checks whether [`stage`](Self::stage) would succeed, without health checks and without lasting effects.
    ///
    /// # Errors
    /// If a resource is not available.
    pub(crate) fn rehearse(&self, old: &Plan, new: &Plan, diff: &Diff) -> Result<(), String> {
        let New { free, beside, leaving } = self.new_addresses(diff);
        sockets::check(&free).map_err(|error| error.to_string())?;
        self.sockets.check_take_over(&beside, &leaving).map_err(|error| error.to_string())?;
        if old.access_log != new.access_log {
            self.logs.check(&new.access_log).map_err(|error| no_log(&error))?;
        }
        Ok(())
    }

    /// Puts the staged plan into effect.
    pub(crate) async fn commit(&self, staged: Staged) {
        let Staged { opened, closed, log, bound, moved, modes, pools, checks, successions, served } = staged;
        // The health checks come first, so that the new pools receive the results. An error means that the process is
        // about to end.
        let _ = self.checks.commit(checks).await;
        self.note_leaving(&pools);
        self.sockets.add(bound);
        modes.iter().for_each(|listener| self.sockets.set_mode(&listener.address.bind_key(), listener.mode));
        let closed: Vec<_> = closed.into_iter().map(|listener| listener.address).collect();
        self.acceptors.retire(closed.clone(), self.core.current.load()).await;
        successions.iter().for_each(|(pool, predecessor)| pool.enter(predecessor));
        self.core.pools.replace(pools);
        self.core.current.replace(served);
        if let Some(log) = log {
            self.logs.replace(log);
        }
        self.close(closed.into_iter().filter(|address| !moved.contains(address)), &opened);
        opened.into_iter().for_each(|(listener, socket)| self.acceptors.open_on(listener, socket));
        self.leave(moved).await;
        if self.core.traffic.is_draining() {
            // The drain started in the meantime and closed only the older sockets.
            self.sockets.close(Class::Traffic);
        }
    }

    /// Closes listeners. The socket of a listener that is opened under another name stays.
    fn close(&self, closed: impl Iterator<Item = ListenAddress>, opened: &[(Listener, OwnedFd)]) {
        for address in closed {
            if !opened.iter().any(|(listener, _)| listener.address == address) {
                self.sockets.remove(&address.bind_key());
            }
            self.acceptors.close(address);
        }
    }

    /// Adopts the keys of a new plan that have an effect outside of the snapshot.
    pub(crate) fn adopt(&self, plan: &Plan) {
        self.timings.set(timing(plan));
        self.core.adopt(plan);
    }

    /// Closes the old sockets of moved listeners after all their pending connections have been accepted.
    async fn leave(&self, moved: Vec<ListenAddress>) {
        if moved.is_empty() {
            return;
        }
        moved.iter().for_each(|address| self.sockets.deafen(&address.bind_key()));
        tokio::time::sleep(moves::DEAF).await;
        for address in moved {
            self.sockets.remove(&address.bind_key());
            self.acceptors.close(address);
        }
    }

    /// Returns the addresses to bind.
    fn new_addresses(&self, diff: &Diff) -> New {
        let is_bound = |listener: &&Listener| self.sockets.is_reachable(&listener.address.bind_key());
        let unbound = diff.opened.iter().filter(|listener| !is_bound(listener));
        let leaving: Vec<_> = left(diff).map(|listener| listener.address.bind_key()).collect();
        let specs = unbound.map(listen_spec);
        let (beside, free) = specs.partition(|spec| self.sockets.overlaps(spec, &leaving));
        New { free, beside, leaving }
    }

    fn with_sockets(&self, opened: &[Listener], bound: &Bound) -> Result<Vec<(Listener, OwnedFd)>, String> {
        let with_socket = |listener: &Listener| {
            let socket = self.sockets.copy_for(&listener.address.bind_key(), bound);
            let socket = socket
                .map_err(|error| format!("cannot listen on {}: {}", listener.address, reason(&error)))?;
            Ok((listener.clone(), socket))
        };
        opened.iter().map(with_socket).collect()
    }

    /// Returns whether the process is about to end.
    pub(crate) fn is_draining(&self) -> bool {
        self.core.traffic.is_draining()
    }

    /// Returns the number of requests in flight of a backend, even if it was removed from its pool.
    pub(crate) fn in_flight(&self, pool: &str, address: &UpstreamAddress) -> u64 {
        self.backends(pool, address).iter().map(|backend| backend.load.in_flight()).max().unwrap_or(0)
    }

    /// Returns when a backend is idle. A backend that does not exist counts as idle. In a process that has handed over,
    /// clients can still send requests over idle connections, so this function waits for their end as well.
    ///
    /// # Errors
    /// If the pool does not exist.
    pub(crate) async fn idle(&self, pool: &str, address: &UpstreamAddress) -> Result<(), String> {
        if !self.core.pools.now().iter().any(|checked| *checked.pool.name == *pool) {
            return Err(format!("there is no pool {pool}"));
        }
        while self.in_flight(pool, address) > 0 || !self.core.traffic.is_settled() {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Returns whether a pool has no backend in service.
    pub(crate) fn is_out_of_service(&self, pool: &str) -> bool {
        let pools = self.core.pools.now();
        let pool = pools.iter().find(|checked| *checked.pool.name == *pool);
        pool.is_some_and(|checked| {
            let mut backends = checked.pool.backends().iter();
            backends.all(|backend| backend.admin() != lb_service::pool::Admin::InService)
        })
    }

    /// Returns the counts of all responses since the start.
    pub(crate) fn responses(&self) -> ResponseCounts {
        self.core.traffic.responses()
    }

    /// Releases everything that no request uses any more. This function can wait for a disk.
    pub(crate) fn tidy(&self) {
        self.logs.end_unused();
        self.core.traffic.forget_unused();
        self.leaving().retain(|(_, backend)| backend.load.in_flight() > 0);
    }

    fn backends(&self, pool: &str, address: &UpstreamAddress) -> Vec<Arc<Backend>> {
        let pools = self.core.pools.now();
        let there = pools.iter().filter(|checked| *checked.pool.name == *pool);
        let there = there.filter_map(|checked| checked.pool.backend(address).cloned());
        let leaving = self.leaving();
        let left = leaving.iter().filter(|(name, backend)| **name == *pool && backend.address == *address);
        there.chain(left.map(|(_, backend)| backend.clone())).collect()
    }

    fn note_leaving(&self, after: &[Checked]) {
        let mut leaving = self.leaving();
        for checked in self.core.pools.now().iter() {
            let pool = after.iter().find(|known| known.pool.name == checked.pool.name);
            let stays = |backend: &Backend| pool.is_some_and(|p| p.pool.backend(&backend.address).is_some());
            let left = checked.pool.backends().iter().filter(|backend| !stays(backend));
            leaving.extend(left.map(|backend| (checked.pool.name.clone(), backend.clone())));
        }
    }

    fn leaving(&self) -> parking_lot::MutexGuard<'_, Vec<Leaving>> {
        self.leaving.lock()
    }
}

/// Returns the time limits for the end of the process under `plan`.
pub(crate) fn timing(plan: &Plan) -> Timing {
    Timing { delay: plan.shutdown.delay, drain: plan.shutdown.drain }
}

/// Returns the snapshot with which requests are served under `plan`.
pub(crate) fn served(
    plan: &Plan,
    pools: &[Checked],
    logs: Vec<AccessLog>,
    traffic: &Traffic,
    token: &Token,
) -> Snapshot {
    let parts = SnapshotParts {
        listeners: plan.listeners.clone(),
        routes: RouteTable::new(plan.routes.clone()),
        pools: pools.iter().map(|checked| checked.pool.clone()).collect(),
        trusted_proxies: TrustedProxies::new(plan.trusted_proxies.clone()),
        explain_token: Some(token.clone()),
        access_logs: logs,
    };
    Snapshot::new(parts, traffic)
}

/// Returns the socket to bind for a listener.
pub(crate) fn listen_spec(listener: &Listener) -> ListenSpec {
    let spec = ListenSpec::traffic(match &listener.address {
        ListenAddress::Tcp(address) => Endpoint::Tcp(*address),
        ListenAddress::Unix(path) => Endpoint::Unix { path: path.clone(), mode: listener.mode },
    });
    // A listener without a name is called by its address.
    match *listener.name == *listener.address.to_string() {
        true => spec,
        false => spec.called(format!("listener `{}`", listener.name)),
    }
}
