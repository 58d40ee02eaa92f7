//! A daemon that serves, and how it comes to serve by another plan: everything that may fail is staged where nobody sees it, and
//! is then put in place by steps that cannot fail.
//!
//! ```text
//! stage     new addresses bound, pools made, who is new in them checked, access log opened, addresses taken over that
//!           overlap with those of listeners that close
//! commit    the checks go on with the new pools, and tell them who is up ─> closed listeners keep the last plan that has them
//!           ─> pools take over from their predecessors ─> requests take the new plan ─> listeners open and close
//! ```
//!
//! A listener that moves to an address that overlaps with its old one has two sockets for a second, see
//! [`moves`](crate::process::moves).
//!
//! A [`Staged`] that is dropped leaves no trace: what it bound and opened is closed with it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use health_service::Checks;
use lb_service::explain::Token;
use lb_service::listener::{ListenAddress, Listener};
use lb_service::pool::{Backend, Pool};
use lb_service::service::Doors;
use lb_service::snapshot::{CurrentSnapshot, Snapshot};
use lb_service::traffic::{Answers, Traffic};
use parking_lot::Mutex;

use super::logs::{AccessLogs, Opened};
use super::pools::{Checked, Pools};
use super::{listen_spec, services};
use crate::config::Plan;
use crate::operator::Diff;
use crate::process::files::Unusable;
use crate::process::moves;
use crate::process::sockets::{self, Bound, Class, ListenSpec, Sockets};

/// What a change of the plan touches. Clones share it.
#[derive(Clone)]
pub struct Running {
    pub(super) current: CurrentSnapshot,
    pub(super) traffic: Arc<Traffic>,
    pub(super) pools: Pools,
    pub(super) doors: Doors,
    pub(super) checks: Checks,
    pub(super) sockets: Arc<Sockets>,
    pub(super) logs: AccessLogs,
    pub(super) token: Token,
    /// Backends that are in no pool any more and still work on requests.
    pub(super) leaving: Arc<Mutex<Vec<Leaving>>>,
}

/// A backend with the name of the pool that it was in.
type Leaving = (Arc<str>, Arc<Backend>);

/// Everything that a new plan needs, made and not in use.
pub struct Staged {
    /// With the sockets that they are to listen on.
    opened: Vec<(Listener, OwnedFd)>,
    closed: Vec<Listener>,
    log: Option<Opened>,
    bound: Bound,
    /// Closed addresses that overlap with opened ones.
    moved: Vec<ListenAddress>,
    pools: Vec<Checked>,
    checks: health_service::StagedChecks,
    /// Each pool that takes the place of another, with that.
    successions: Vec<(Arc<Pool>, Arc<Pool>)>,
    served: Snapshot,
}

/// Addresses that are to be bound.
struct New {
    free: Vec<ListenSpec>,
    /// Those that overlap with addresses that are given up.
    beside: Vec<ListenSpec>,
    /// The addresses that are given up.
    leaving: Vec<String>,
}

/// The listeners whose address is given up: those that are not only called otherwise.
fn left(diff: &Diff) -> impl Iterator<Item = &Listener> {
    let is_kept = |closed: &&Listener| diff.opened.iter().any(|opened| opened.address == closed.address);
    diff.closed.iter().filter(move |closed| !is_kept(closed))
}

/// The addresses that are given up and overlap with one that is opened.
fn moved(diff: &Diff) -> Vec<ListenAddress> {
    let overlap = |one: &ListenAddress, other: &ListenAddress| match (one, other) {
        (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) => moves::overlap(*one, *other),
        _ => false,
    };
    let is_moved =
        |left: &&Listener| diff.opened.iter().any(|opened| overlap(&left.address, &opened.address));
    left(diff).filter(is_moved).map(|listener| listener.address.clone()).collect()
}

/// How often a backend is looked at that is to become idle.
const POLL: Duration = Duration::from_millis(10);

fn no_log(error: &Unusable) -> String {
    format!("cannot open the access log {error}")
}

// === impl Running ===

impl Running {
    /// Makes everything that `new` needs beside what serves `old`. Nothing changes for any request.
    ///
    /// # Errors
    /// What cannot be had, in words.
    pub async fn stage(&self, old: &Plan, new: &Plan, diff: &Diff) -> Result<Staged, String> {
        let New { free, beside, leaving } = self.new_addresses(diff);
        let mut bound = self.sockets.bind_more(&free).map_err(|error| error.to_string())?;
        self.sockets.check_take_over(&beside, &leaving).map_err(|error| error.to_string())?;
        let before = self.pools.now();
        let (mut pools, mut successions) = (Vec::new(), Vec::new());
        for (pool, check) in &new.pools {
            let predecessor = before.iter().find(|known| known.pool.name == pool.name);
            let was = old.pools.iter().find(|(known, _)| known.name == pool.name);
            let checked = match predecessor.zip(was) {
                None => Checked::new(pool, check, self.pools.observer()),
                Some((known, was)) => known.successor(was, pool, check),
            };
            if let Some(known) = predecessor.filter(|known| !Arc::ptr_eq(&known.pool, &checked.pool)) {
                successions.push((checked.pool.clone(), known.pool.clone()));
            }
            pools.push(checked);
        }
        let checks = self.checks.stage(pools.iter().filter_map(Checked::to_check)).await;
        // Last of what may fail: a file that was opened is there, whatever becomes of the rest.
        let log =
            (old.access_log != new.access_log).then(|| self.logs.open(&new.access_log, None)).transpose();
        let log = log.map_err(|error| no_log(&error))?;
        let logs = self.logs.of(new, log.as_ref());
        let served = services::served(new, &pools, logs, &self.traffic, &self.token);
        // From here on connections may arrive at these, and they are lost if this is not put in place.
        let taken = self.sockets.take_over(&beside, &leaving).map_err(|error| error.to_string())?;
        bound.append(taken);
        let opened = self.with_sockets(&diff.opened, &bound)?;
        let (closed, moved) = (diff.closed.clone(), moved(diff));
        Ok(Staged { opened, closed, log, bound, moved, pools, checks, successions, served })
    }

    /// Says what [`stage`](Self::stage) would fail at, beside what comes of checks, and leaves nothing behind.
    ///
    /// # Errors
    /// What cannot be had, in words.
    pub fn rehearse(&self, old: &Plan, new: &Plan, diff: &Diff) -> Result<(), String> {
        let New { free, beside, leaving } = self.new_addresses(diff);
        sockets::check(&free).map_err(|error| error.to_string())?;
        self.sockets.check_take_over(&beside, &leaving).map_err(|error| error.to_string())?;
        if old.access_log != new.access_log {
            self.logs.check(&new.access_log).map_err(|error| no_log(&error))?;
        }
        Ok(())
    }

    /// Puts it in place of what was staged against.
    pub async fn commit(&self, staged: Staged) {
        let Staged { opened, closed, log, bound, moved, pools, checks, successions, served } = staged;
        // First, so that the new balancers know who is up. Without a prober the process is about to end.
        let _ = self.checks.commit(checks).await;
        self.note_leaving(&pools);
        self.sockets.add(bound);
        let closed: Vec<_> = closed.into_iter().map(|listener| listener.address).collect();
        self.doors.retire(closed.clone(), self.current.load()).await;
        successions.iter().for_each(|(pool, predecessor)| pool.enter(predecessor));
        self.pools.replace(pools);
        self.current.replace(served);
        if let Some(log) = log {
            self.logs.replace(log);
        }
        let is_renamed =
            |address: &ListenAddress| opened.iter().any(|(listener, _)| listener.address == *address);
        for address in closed.into_iter().filter(|address| !moved.contains(address)) {
            if !is_renamed(&address) {
                self.sockets.remove(&address.bind_key());
            }
            self.doors.close(address);
        }
        opened.into_iter().for_each(|(listener, socket)| self.doors.open_on(listener, socket));
        self.leave(moved).await;
        if self.traffic.is_draining() {
            // That has begun meanwhile, and has closed only what was there.
            self.sockets.close(Class::Traffic);
        }
    }

    /// Closes the old sockets of listeners that have moved, when each connection that has begun there is accepted.
    async fn leave(&self, moved: Vec<ListenAddress>) {
        if moved.is_empty() {
            return;
        }
        moved.iter().for_each(|address| self.sockets.deafen(&address.bind_key()));
        tokio::time::sleep(moves::DEAF).await;
        for address in moved {
            self.sockets.remove(&address.bind_key());
            self.doors.close(address);
        }
    }

    /// The addresses to be bound.
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
            let socket = socket.map_err(|error| format!("cannot listen on {}: {error}", listener.address))?;
            Ok((listener.clone(), socket))
        };
        opened.iter().map(with_socket).collect()
    }

    /// Whether the process is about to end.
    pub fn is_draining(&self) -> bool {
        self.traffic.is_draining()
    }

    /// Requests that a backend works on, whether it is still in its pool or not.
    pub fn in_flight(&self, pool: &str, address: SocketAddr) -> u64 {
        self.backends(pool, address).iter().map(|backend| backend.load.in_flight()).max().unwrap_or(0)
    }

    /// Returns when a backend works on no request. One that is not there, or not any more, works on none. In a process that has
    /// handed over, clients may still send over connections that are idle; so it waits for their end, too.
    ///
    /// # Errors
    /// When there is no such pool.
    pub async fn idle(&self, pool: &str, address: SocketAddr) -> Result<(), String> {
        if !self.pools.now().iter().any(|checked| *checked.pool.name == *pool) {
            return Err(format!("there is no pool {pool}"));
        }
        while self.in_flight(pool, address) > 0 || !self.traffic.is_settled() {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Whether a pool has nobody in service.
    pub fn is_out_of_service(&self, pool: &str) -> bool {
        let pools = self.pools.now();
        let pool = pools.iter().find(|checked| *checked.pool.name == *pool);
        pool.is_some_and(|checked| {
            let mut backends = checked.pool.backends().iter();
            backends.all(|backend| backend.admin() != lb_service::pool::Admin::InService)
        })
    }

    /// All answers so far.
    pub fn answers(&self) -> Answers {
        self.traffic.answers()
    }

    /// Lets go what no request uses any more. It may wait for a disk.
    pub fn tidy(&self) {
        self.logs.end_unused();
        self.traffic.forget_unused();
        self.leaving().retain(|(_, backend)| backend.load.in_flight() > 0);
    }

    fn backends(&self, pool: &str, address: SocketAddr) -> Vec<Arc<Backend>> {
        let pools = self.pools.now();
        let there = pools.iter().filter(|checked| *checked.pool.name == *pool);
        let there = there.filter_map(|checked| checked.pool.backend(address).cloned());
        let leaving = self.leaving();
        let left = leaving.iter().filter(|(name, backend)| **name == *pool && backend.address == address);
        there.chain(left.map(|(_, backend)| backend.clone())).collect()
    }

    fn note_leaving(&self, after: &[Checked]) {
        let mut leaving = self.leaving();
        for checked in self.pools.now().iter() {
            let pool = after.iter().find(|known| known.pool.name == checked.pool.name);
            let stays = |backend: &Backend| pool.is_some_and(|p| p.pool.backend(backend.address).is_some());
            let left = checked.pool.backends().iter().filter(|backend| !stays(backend));
            leaving.extend(left.map(|backend| (checked.pool.name.clone(), backend.clone())));
        }
    }

    fn leaving(&self) -> parking_lot::MutexGuard<'_, Vec<Leaving>> {
        self.leaving.lock()
    }
}
