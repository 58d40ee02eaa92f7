//! The process: how the daemon starts, ends, and hands its sockets over to a new process.
//!
//! This module wraps Pingora's `Server` but does not use its daemonizing, PID file, socket handover and grace period.
//! Pingora's variants rename the PID file of a live process, shut down even when no process took the sockets, carry at
//! most 32 sockets, and sleep for the whole grace period when there is nothing left to wait for. Pingora runs with
//! `ServerConf.daemon = false` and `Opt.upgrade = false`, receives [listeners that are already bound](sockets), and
//! ends when [our own signal watch](lifecycle::Signals) says so.
//!
//! # Start
//!
//! 1. The daemon reads and checks the configuration. If the configuration is invalid, none of the following happens.
//! 2. With `-d`, `background::enter` runs the program a second time, detached, and waits for it. The second process
//!    carries out the following steps.
//! 3. The daemon opens the [error log](logging) and enters the working directory.
//! 4. Without `-u`, it locks the [PID file](pid_file), then binds every [listener](sockets). With `-u`, it
//!    [takes](upgrade::Search::take) the sockets of the running process and binds only the new ones.
//! 5. It drops [privileges].
//! 6. Pingora's `Server` starts the services, the signal handlers are installed, and the first health checks run. If
//!    SIGHUP, SIGUSR1 or SIGUSR2 arrived since step 4, it is [carried out now](handlers::Early).
//! 7. With `-u`, `upgrade::PredecessorLink::ready` notifies the old process, which then drains. After its
//!    acknowledgement the new process takes over the PID file and the socket files (`sockets::Sockets::own_files`).
//! 8. The daemon announces that it is ready: to systemd, with its PID (`systemd::Supervisor`), and to the parent
//!    process that waits because of `-d` (`background::Announcer`), which then returns.
//!
//! # Drain (SIGTERM or SIGINT)
//!
//! 1. `/readyz` responds with 503. The daemon still accepts traffic for `shutdown.delay`.
//! 2. The traffic listeners close; the metrics listener stays open. Requests in flight continue.
//! 3. Responses contain `Connection: close`. Idle connections close after a tenth of a second, so that a request that
//!    is on its way can arrive.
//! 4. When no request is left, or after `shutdown.drain`, `Server::run` returns at once.
//! 5. The daemon removes the PID file and the socket files. The exit code is 0, or 3 if requests were cut.
//!
//! A second SIGTERM or SIGINT ends the process at once. The subcommand `stop` drains as the first signal does, however
//! often it is given; `stop --now` ends the process at once. Both get their response after step 5.
//!
//! # Upgrade (SIGUSR2 or an [order](lifecycle::Upgrades); or SIGQUIT, then a process started with `-u`)
//!
//! 1. The old process listens on `upgrade_sock` for up to a minute and continues to serve. After SIGUSR2 it also starts
//!    the new process with its own arguments and `-u` (`successor`).
//! 2. The new process connects, both name their protocol version, and the old process sends its listening sockets. From
//!    here on both hold the same kernel sockets, so no connection can be refused, whatever happens to either process.
//! 3. The new process starts as above and reports that it is ready once each pool that has a ready backend in the old
//!    process also has one in the new process.
//! 4. The old process withdraws its offer, acknowledges, closes all its listeners and drains. Idle connections stay
//!    open for up to five seconds, or half of `shutdown.drain`, so that almost all clients receive a response with
//!    `Connection: close` before their connection closes. WebSockets and downloads continue until `shutdown.drain`.
//! 5. If the new process ends, or if none connects, the old process withdraws its offer and continues as before; a
//!    later SIGQUIT or SIGUSR2 starts another upgrade. If the old process has started the new one, it ends it, waits
//!    for its end, logs the reason and reports it to the caller.
//! 6. If the old process is killed before step 4, the new process serves without it: with the sockets if it has
//!    received them, otherwise as after a start without `-u`. A connection that a [living process](other) closes does
//!    not have this effect.
//!
//! A process that gave up root (`user`) starts the new process as the user that it has become, which is enough for
//! everything that is inherited. If something new needs root, the upgrade fails; SIGQUIT and a start with `-u` as root
//! is the remedy. Process 1 of a container does not start a new process, because the container ends with process 1.
//!
//! # Under systemd
//!
//! The unit is `Type=notify`. `READY=1` is sent at step 8 of the start and `STOPPING=1` at a drain. In an upgrade the
//! new process sends `MAINPID=` itself, and the old process sends nothing after the handover. The loop of the lifecycle
//! sends `WATCHDOG=1` as long as the runtime of the proxy responds to it.
//!
//! # Invariants
//!
//! - The PID file names a live process that serves, or does not exist. No process removes or rewrites a PID file that
//!   another live process holds.
//! - There is at most one new process at a time, and none remains after a failed upgrade.
//! - At any moment of an upgrade at least one process accepts on every listener that both configurations have.
//! - A socket file is removed only by the process that owns it, and only while the path still names this file.
//! - A process that is killed during its start (by SIGTERM, SIGINT or SIGQUIT before step 6) leaves a PID file whose
//!   lock is free and socket files that refuse connections. The next start recognises both and takes them over
//!   silently.

pub(crate) mod background;
pub(crate) mod files;
pub(crate) mod handlers;
mod input;
pub(crate) mod lifecycle;
pub mod limits;
mod locks;
pub(crate) mod logging;
pub(crate) mod moves;
pub(crate) mod other;
pub(crate) mod pid_file;
pub(crate) mod privileges;
pub mod runtime;
pub(crate) mod sockets;
pub(crate) mod successor;
pub(crate) mod systemd;
pub(crate) mod upgrade;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

/// The time limit for writing a message to the terminal.
const MESSAGE: Duration = Duration::from_secs(1);

/// Writes a message in a thread of its own and waits for it, for a second at most: otherwise a full pipe without a
/// reader would delay the end of the process. If no thread can be started, this thread writes it.
pub(crate) fn write_message(write: impl Fn() + Send + Sync + 'static) {
    let (done, written) = mpsc::channel();
    let write = Arc::new(write);
    let started = thread::Builder::new().spawn({
        let write = write.clone();
        move || {
            write();
            // The receiver is gone if the write took too long.
            let _ = done.send(());
        }
    });
    match started {
        Ok(_) => drop(written.recv_timeout(MESSAGE)),
        Err(_) => write(),
    }
}

/// Creates a directory and its missing parents with mode 0700. A directory that exists keeps its mode.
pub(crate) fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The device and inode of a file, by which we recognise whether a path still names a file that we made. Symbolic links
/// are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    fn at(path: &Path) -> io::Result<Self> {
        std::fs::symlink_metadata(path).map(|metadata| Self::of(&metadata))
    }
}
