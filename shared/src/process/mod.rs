//! The process: how the daemon starts, ends, and hands its sockets to its successor.
//!
//! This module stands around Pingora's `Server` and uses neither its daemonizing nor its pid file, socket hand-over
//! and grace period: those rename the pid file of a live process, shut down even when nobody took the sockets, carry
//! at most 32 sockets, and sleep the whole grace period with nothing left to wait for. Pingora is told
//! `ServerConf.daemon = false` and `Opt.upgrade = false`, gets [listeners that are already bound](sockets), and is
//! ended by [our own signal watch](lifecycle::Signals).
//!
//! # Start
//!
//! 1. The configuration is read and checked: nothing below happens with one that is wrong.
//! 2. With `-d`, [`background::enter`] runs the program a second time, detached, and waits for it; what follows
//!    happens in that second process.
//! 3. The [error log](logging) is opened, the working directory entered.
//! 4. Without `-u`: the [pid file](pid_file) is locked, then every [listener](sockets) is bound.
//!    With `-u`: the running process's sockets are [taken](upgrade::Search::take), and only the new ones bound.
//! 5. [Privileges](privileges) are dropped.
//! 6. Pingora's `Server` starts the services; the signal handlers are installed; the first health checks run. HUP, USR1 and USR2 that
//!    came before, from step 4 on, are [carried out now](handlers::Early).
//! 7. With `-u`: [`upgrade::Claim::ready`] tells the old process, which then drains; after its acknowledgement the pid
//!    file is taken over and the socket files become ours ([`sockets::Sockets::own_files`]).
//! 8. Readiness is announced: to systemd ([`systemd::Supervisor`]), with the number of this process, and to who waits for `-d`
//!    ([`background::Announcer`]), which then returns.
//!
//! # Drain (TERM or INT)
//!
//! 1. `/readyz` answers 503; for `shutdown.delay` traffic is still accepted.
//! 2. The traffic listeners close; the metrics listener stays. Requests in flight go on.
//! 3. Answers say `Connection: close`. Idle connections are closed after a tenth of a second, in which a request that is on its way
//!    arrives.
//! 4. When no request is left, or after `shutdown.drain`, `Server::run` returns at once.
//! 5. The pid file and the socket files are removed; the exit code is 0, or 3 when requests were cut.
//!
//! A second TERM or INT ends the process at once. The command `stop` drains as the first one does, however often it is given, and
//! `stop --now` ends the process at once; both are answered when step 5 is over.
//!
//! # Upgrade (USR2 or an [order](lifecycle::Upgrades); or QUIT, then a process started with `-u`)
//!
//! 1. The old process listens on `upgrade_sock` and goes on serving, for up to a minute. On USR2 it also starts the new one, as it
//!    was started itself, with `-u` ([`successor`]).
//! 2. The new process connects; both name their protocol version; the old one sends its listening sockets. From here on
//!    both hold the same kernel sockets, so no connection can be refused whatever happens to either.
//! 3. The new process starts as above and says that it is ready. It is, when each pool that has a ready backend in the old process has
//!    one in the new.
//! 4. The old process withdraws its offer, acknowledges, closes all its listeners and drains. Idle connections stay for up to five
//!    seconds, or half of `shutdown.drain`: almost all clients are then told `Connection: close` in an answer before their
//!    connection is closed. WebSockets and downloads go on until `shutdown.drain`.
//! 5. If the new one ends, or nobody comes, the old one withdraws its offer and goes on as before; a later QUIT or USR2 begins
//!    again. A new process that the old one has started is ended and waited for, and why it failed is logged and told to who asked.
//!
//! A process that gave up root (`user`) starts its successor as the user that it has become: what is inherited needs no more than
//! that. Where something new needs root, the attempt fails, and QUIT with a start by root is the way. Process 1 of a container
//! starts no successor, since the container ends with it.
//!
//! # Under systemd
//!
//! The unit is `Type=notify`. `READY=1` comes with step 8 of the start and `STOPPING=1` with a drain; in an upgrade the new process
//! says `MAINPID=` itself, and the old one is silent from the hand-over on. `WATCHDOG=1` comes from the loop of the lifecycle as long
//! as the runtime of the proxy answers it.
//!
//! # Invariants
//!
//! - The pid file names a live process that serves, or does not exist. Nobody removes or rewrites one that another
//!   live process holds.
//! - There is at most one successor at a time, and none is left of an upgrade that failed.
//! - At any moment of an upgrade at least one process accepts on every listener that both configurations have.
//! - A socket file is removed only by the process that owns it and only while it is still the same file.
//! - A process killed during its start (by TERM, INT or QUIT before the handlers of step 6) leaves a pid file whose lock is free and socket
//!   files that nobody answers on; the next start recognises both and takes them over silently.

pub mod background;
pub mod files;
pub mod handlers;
mod input;
pub mod lifecycle;
pub mod limits;
pub mod logging;
pub mod moves;
pub mod pid_file;
pub mod privileges;
pub mod runtime;
pub mod sockets;
pub mod successor;
pub mod systemd;
pub mod upgrade;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long a message to the terminal may take.
const MESSAGE: Duration = Duration::from_secs(1);

/// Writes a message in a thread of its own and waits for it, but not for ever: a full pipe without a reader would hold up the end of the
/// process.
pub fn write_message(write: impl FnOnce() + Send + 'static) {
    let (done, written) = mpsc::channel();
    thread::spawn(move || {
        write();
        // The receiver is gone when the write took too long.
        let _ = done.send(());
    });
    let _ = written.recv_timeout(MESSAGE);
}

/// Creates a directory and its missing parents, open to nobody but this user. One that exists is left as it is.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The device and inode of what a path names, without following a symbolic link: tells whether a file that we made is
/// still the one that stands there.
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
