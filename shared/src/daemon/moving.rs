//! Listeners of the old process whose addresses overlap with those of the new configuration.
//!
//! The new process also accepts connections on the old socket, from the moment at which it accepts connections at all.
//! After the old process has released the socket, no new connection starts there, and the pending ones are accepted
//! before the socket closes; see [`moves`](crate::process::moves). Nothing changes for the old process while the
//! upgrade can still fail.

use std::os::fd::OwnedFd;

use lb_service::listener::{ListenAddress, Listener};
use lb_service::service::Acceptors;

use crate::config::Plan;
use crate::process::files::reason;
use crate::process::moves;
use crate::process::sockets::{Moved, Sockets};
use crate::process::upgrade::Hold;

/// Old sockets on which this process accepts connections for a short time.
pub(super) struct Moving {
    acceptors: Acceptors,
    old: Vec<(ListenAddress, OwnedFd)>,
}

// === impl Moving ===

impl Moving {
    /// Starts to accept connections on the sockets of the old process that this process will close.
    pub(super) fn begin(plan: &Plan, sockets: &Sockets, acceptors: &Acceptors) -> Self {
        let old = sockets.take_moved().into_iter().filter_map(|moved| open(plan, moved, acceptors)).collect();
        Self { acceptors: acceptors.clone(), old }
    }

    /// Ends the move after the old process has stopped accepting connections. `hold` is dropped at the end of the move.
    pub(super) fn end(self, hold: Hold) {
        let Self { acceptors, old } = self;
        for (address, socket) in &old {
            if let Err(error) = moves::deafen(socket) {
                log::warn!(
                    "listener {address}: connections might be reset while it moves: {}",
                    reason(&error)
                );
            }
        }
        if old.is_empty() {
            return;
        }
        tokio::spawn(async move {
            tokio::time::sleep(moves::DEAF).await;
            old.into_iter().for_each(|(address, _)| acceptors.close(address));
            drop(hold);
        });
    }
}

/// Assigns connections at the old address to the listener that replaces the old one.
fn open(
    plan: &Plan,
    Moved { from, to, fd }: Moved,
    acceptors: &Acceptors,
) -> Option<(ListenAddress, OwnedFd)> {
    let to = ListenAddress::Tcp(to);
    let (_, listener) = plan.listeners.iter().find(|(_, listener)| listener.address == to)?;
    let from = ListenAddress::Tcp(from);
    let copy = fd.try_clone().ok()?;
    acceptors.open_on(Listener { address: from.clone(), ..listener.clone() }, copy);
    Some((from, fd))
}
