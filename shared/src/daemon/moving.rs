//! Listeners of the process before this one whose addresses overlap with those that the configuration has now.
//!
//! This process accepts at the old socket too, from the moment when it accepts at all. When the old process has let go,
//! no connection begins there any more, and those that have begun are accepted before it is closed; see
//! [`moves`](crate::process::moves). As long as the upgrade may fail, nothing changes for the old process.

use std::os::fd::OwnedFd;

use lb_service::listener::{ListenAddress, Listener};
use lb_service::service::Doors;

use crate::config::Plan;
use crate::process::moves;
use crate::process::sockets::{Moved, Sockets};
use crate::process::upgrade::Hold;

/// The old sockets, at which this process accepts for a while.
#[derive(Default)]
pub(super) struct Moving {
    doors: Option<Doors>,
    old: Vec<(ListenAddress, OwnedFd)>,
}

// === impl Moving ===

impl Moving {
    /// Accepts at the sockets that the process before this one has and this one gives up.
    pub(super) fn begin(plan: &Plan, sockets: &Sockets, doors: &Doors) -> Self {
        let old = sockets.take_moved().into_iter().filter_map(|moved| open(plan, moved, doors)).collect();
        Self { doors: Some(doors.clone()), old }
    }

    /// The old process accepts no more. The hold ends with the move.
    pub(super) fn end(self, hold: Option<Hold>) {
        let Self { doors: Some(doors), old } = self else { return };
        for (address, socket) in &old {
            if let Err(error) = moves::deafen(socket) {
                log::warn!("listener {address}: connections may be cut while it moves: {error}");
            }
        }
        if old.is_empty() {
            return;
        }
        tokio::spawn(async move {
            tokio::time::sleep(moves::DEAF).await;
            old.into_iter().for_each(|(address, _)| doors.close(address));
            drop(hold);
        });
    }
}

/// Connections at the old address belong to the listener that takes its place.
fn open(plan: &Plan, Moved { from, to, fd }: Moved, doors: &Doors) -> Option<(ListenAddress, OwnedFd)> {
    let to = ListenAddress::Tcp(to);
    let (_, listener) = plan.listeners.iter().find(|(_, listener)| listener.address == to)?;
    let from = ListenAddress::Tcp(from);
    let copy = fd.try_clone().ok()?;
    doors.open_on(Listener { name: listener.name.clone(), address: from.clone() }, copy);
    Some((from, fd))
}
