//! The proxy as a Pingora service whose sockets are opened and closed while it runs.
//!
//! Pingora's own services listen on the addresses that they get at the start. This one follows the [`Acceptors`]:
//!
//! ```text
//! ProxyService                one runtime, one connector to backends
//! ├── listen::accept          a socket: accepts until it is closed
//! └── listen::accept          another one, opened by a reload
//! ```

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, ShutdownWatch};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::listener::{ListenAddress, Listener};
use crate::snapshot::{CurrentSnapshot, Snapshot};
use crate::traffic::{Acceptor, Traffic};
pub use crate::transport::dialer::{DialError, Dialer};
use crate::transport::listen::{self, Acceptance, ListenSocket};
use crate::transport::upstream;
pub use crate::transport::upstream::Connector;

/// A service that accepts on the sockets that its [`Acceptors`] open, and proxies by the current snapshot.
pub struct ProxyService {
    current: CurrentSnapshot,
    traffic: Arc<Traffic>,
    connector: Connector,
    commands: mpsc::UnboundedReceiver<Command>,
    open: HashMap<ListenAddress, Open>,
}

/// Opens and closes the sockets of a [`ProxyService`]. Clones control the same service.
#[derive(Clone, Debug)]
pub struct Acceptors(mpsc::UnboundedSender<Command>);

/// A command for a [`ProxyService`].
#[derive(Debug)]
enum Command {
    Open(Listener, Option<OwnedFd>),
    Close(ListenAddress),
    Retire(Vec<ListenAddress>, Arc<Snapshot>, oneshot::Sender<()>),
}

/// A socket that accepts.
struct Open {
    acceptor: Arc<Acceptor>,
    closing: watch::Sender<bool>,
}

/// A socket that no longer accepts. Another one may have been opened at its address.
struct Ended {
    address: ListenAddress,
    acceptor: Arc<Acceptor>,
}

/// Returns a service that proxies by the `current` snapshot, and the handle that opens and closes its sockets. The
/// service binds the addresses of the snapshot's listeners when it starts.
pub fn service(
    conf: &ServerConf,
    current: &CurrentSnapshot,
    traffic: &Arc<Traffic>,
) -> (ProxyService, Acceptors) {
    let (service, acceptors) = service_without_sockets(conf, current, traffic);
    current.load().listeners.iter().for_each(|(_, listener)| acceptors.open(listener.clone()));
    (service, acceptors)
}

/// Returns a service as [`service`] does, except that it has no sockets until [`Acceptors::open`] or
/// [`Acceptors::open_on`] adds them.
pub fn service_without_sockets(
    conf: &ServerConf,
    current: &CurrentSnapshot,
    traffic: &Arc<Traffic>,
) -> (ProxyService, Acceptors) {
    let (sender, commands) = mpsc::unbounded_channel();
    let service = ProxyService {
        current: current.clone(),
        traffic: traffic.clone(),
        connector: Connector::of(conf),
        commands,
        open: HashMap::new(),
    };
    (service, Acceptors(sender))
}

// === impl Acceptors ===

impl Acceptors {
    /// Binds the address of `listener`, which must be in the current snapshot, and accepts on it.
    pub fn open(&self, listener: Listener) {
        self.send(Command::Open(listener, None));
    }

    /// Starts accepting on an already listening socket.
    pub fn open_on(&self, listener: Listener, socket: OwnedFd) {
        self.send(Command::Open(listener, Some(socket)));
    }

    /// Stops accepting on this address. Open connections end with their next response, idle ones after a moment.
    pub fn close(&self, address: ListenAddress) {
        self.send(Command::Close(address));
    }

    /// Makes requests that still arrive at these addresses use the snapshot `last`. Call it before a snapshot without
    /// their listeners becomes the current one. Returns when the change is in effect.
    pub async fn retire(&self, addresses: Vec<ListenAddress>, last: Arc<Snapshot>) {
        let (done, is_done) = oneshot::channel();
        self.send(Command::Retire(addresses, last, done));
        // It fails if the service has ended; then no requests arrive.
        let _ = is_done.await;
    }

    fn send(&self, command: Command) {
        // It fails if the service has ended, which has closed all sockets.
        let _ = self.0.send(command);
    }
}

// === impl ProxyService ===

impl ProxyService {
    fn follow(&mut self, command: Command, accepting: &mut JoinSet<io::Result<Ended>>, tasks: usize) {
        match command {
            Command::Open(listener, socket) => {
                accepting.spawn(self.open(listener, socket, tasks));
            }
            Command::Close(address) => {
                if let Some(open) = self.open.remove(&address) {
                    open.close();
                }
            }
            Command::Retire(addresses, last, done) => {
                let open = addresses.iter().filter_map(|address| self.open.get(address));
                open.for_each(|open| open.acceptor.retire(&last));
                // The caller may no longer wait for it.
                let _ = done.send(());
            }
        }
    }

    /// Returns whether the socket ended although nothing has closed it.
    fn is_open(&self, ended: &Ended) -> bool {
        self.open.get(&ended.address).is_some_and(|open| Arc::ptr_eq(&open.acceptor, &ended.acceptor))
    }

    /// Returns the future that accepts on one socket until it is closed. It ends when idle connections may be closed as
    /// well.
    fn open(
        &mut self,
        listener: Listener,
        socket: Option<OwnedFd>,
        tasks: usize,
    ) -> impl Future<Output = io::Result<Ended>> + use<> {
        let acceptor = self.traffic.open(&listener.name);
        let (closing, closes) = watch::channel(false);
        self.open.insert(listener.address.clone(), Open { acceptor: acceptor.clone(), closing });
        let acceptance = Acceptance {
            current: self.current.clone(),
            acceptor: acceptor.clone(),
            connector: self.connector.clone(),
        };
        async move {
            let socket = socket.map_or_else(|| ListenSocket::bind(&listener), ListenSocket::from_fd);
            let address = listener.address;
            let socket = socket
                .inspect_err(|error| log::error!("cannot listen on {address}: {}", values::reason(error)))?;
            listen::accept(socket, acceptance, closes, tasks).await;
            Ok(Ended { address, acceptor })
        }
    }
}

impl Open {
    fn close(&self) {
        self.acceptor.close();
        self.closing.send_replace(true);
    }
}

#[async_trait]
impl pingora::services::Service for ProxyService {
    /// Runs until `shutdown` asks for the end, or until a socket cannot be opened.
    ///
    /// The descriptors of Pingora's own upgrade are not used: they are numbers, which safe code cannot own.
    async fn start_service(
        &mut self,
        _: Option<ListenFds>,
        mut shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        let mut accepting = JoinSet::new();
        let sweeper = tokio::spawn(upstream::sweep(self.current.clone()));
        loop {
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|closes| *closes) => break,
                Some(command) = self.commands.recv() => {
                    self.follow(command, &mut accepting, listeners_per_fd);
                }
                Some(ended) = accepting.join_next() => match ended {
                    Ok(Ok(ended)) if !self.is_open(&ended) => {}
                    _ => break,
                }
            }
        }
        self.open.drain().for_each(|(_, open)| open.close());
        while accepting.join_next().await.is_some() {}
        sweeper.abort();
    }

    fn name(&self) -> &str {
        "proxy"
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        let snapshot = self.current.load();
        Some(snapshot.listeners.iter().map(|(_, listener)| listener.address.bind_key()).collect())
    }
}
