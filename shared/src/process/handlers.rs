//! Where signals come from: handlers in the runtime, and before there is one, notes of those that came early.
//!
//! HUP, USR1 and USR2 end a process that has not said otherwise: the rotation of logs, in the milliseconds between the pid file and
//! the handlers, would end the daemon. From [`Early::expect`] on they are noted, and carried out once there are handlers. TERM, INT
//! and QUIT do end a process that has not come to serve.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::{SigId, flag, low_level};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
}

/// Where signals come from.
pub(super) trait Source: Send {
    fn next(&mut self) -> impl Future<Output = Came> + Send;
}

/// Notes signals that come before the handlers. Clones are the same notes.
#[derive(Debug, Clone, Default)]
pub struct Early(Vec<Note>);

#[derive(Debug, Clone)]
struct Note {
    signal: Came,
    came: Arc<AtomicBool>,
    handler: SigId,
}

/// The signal handlers of the process; installed for good, whatever becomes of this value.
pub(super) struct Handlers {
    early: Vec<Came>,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

impl Early {
    /// From now on HUP, USR1 and USR2 do not end the process.
    ///
    /// # Errors
    /// The system's.
    pub fn expect() -> io::Result<Self> {
        let kinds = [
            (Came::Hup, SignalKind::hangup()),
            (Came::Usr1, SignalKind::user_defined1()),
            (Came::Usr2, SignalKind::user_defined2()),
        ];
        kinds.into_iter().map(|(signal, kind)| Note::of(signal, kind)).collect::<io::Result<_>>().map(Self)
    }

    /// Those that came. Nothing is noted from now on.
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
    /// What was noted early comes first. A signal that comes just now may come twice; one that comes is never lost.
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
