//! The source of signals: handlers in the runtime, and a record of the signals that arrive before there is a runtime.
//!
//! By default, SIGHUP, SIGUSR1 and SIGUSR2 end a process. The rotation of logs would end the daemon if it sent SIGUSR1
//! in the milliseconds between the creation of the PID file and the installation of the handlers. From
//! [`Early::expect`] on these signals are recorded, and they are carried out once the handlers are installed. SIGTERM,
//! SIGINT and SIGQUIT do end a process that does not serve yet.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::{SigId, flag, low_level};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
}

/// A source of signals.
pub(super) trait Source: Send {
    fn next(&mut self) -> impl Future<Output = Came> + Send;
}

/// The record of signals that arrive before the handlers are installed. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Early(Vec<Note>);

#[derive(Debug, Clone)]
struct Note {
    signal: Came,
    came: Arc<AtomicBool>,
    handler: SigId,
}

/// The signal handlers of the process. They stay installed after this value is dropped.
pub(super) struct Handlers {
    early: Vec<Came>,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Term => "SIGTERM",
            Self::Int => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Hup => "SIGHUP",
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
        })
    }
}

impl Early {
    /// Records SIGHUP, SIGUSR1 and SIGUSR2 from now on, so that they do not end the process.
    ///
    /// # Errors
    /// Fails if the system refuses a handler.
    pub(crate) fn expect() -> io::Result<Self> {
        let kinds = [
            (Came::Hup, SignalKind::hangup()),
            (Came::Usr1, SignalKind::user_defined1()),
            (Came::Usr2, SignalKind::user_defined2()),
        ];
        kinds.into_iter().map(|(signal, kind)| Note::of(signal, kind)).collect::<io::Result<_>>().map(Self)
    }

    /// Stops recording, and returns the signals that have arrived.
    fn end(&self) -> Vec<Came> {
        self.0.iter().filter(|note| note.end()).map(|note| note.signal).collect()
    }
}

impl Note {
    fn of(signal: Came, kind: SignalKind) -> io::Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        let handler = flag::register(kind.as_raw_value(), Arc::clone(&came))?;
        Ok(Self { signal, came, handler })
    }

    fn end(&self) -> bool {
        low_level::unregister(self.handler);
        self.came.load(Ordering::Acquire)
    }
}

impl Handlers {
    /// Installs the handlers. Recorded signals are returned first. A signal that arrives during the installation might
    /// be returned twice, but no signal is lost.
    pub(super) fn install(early: &Early) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            early: early.end(),
        })
    }
}

impl Source for Handlers {
    async fn next(&mut self) -> Came {
        if let Some(came) = self.early.pop() {
            return came;
        }
        tokio::select! {
            _ = self.terminate.recv() => Came::Term,
            _ = self.interrupt.recv() => Came::Int,
            _ = self.quit.recv() => Came::Quit,
            _ = self.hangup.recv() => Came::Hup,
            _ = self.user1.recv() => Came::Usr1,
            _ = self.user2.recv() => Came::Usr2,
        }
    }
}
