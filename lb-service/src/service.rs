//! The proxy as a Pingora service whose sockets come and go while it runs.
//!
//! Pingora's services listen on what they are told at the start. Here each socket is a service of Pingora's own, with an end of
//! its own, inside one that outlives them and that the [`Acceptors`] tell what to open and to close:
//!
//! ```text
//! ProxyService                      one runtime, one HttpProxy, one pool of connections to backends
//! ├── Service<Frontend>             a socket: accepts until it is closed
//! └── Service<Frontend>             another one, opened by a reload
//! ```

use std::collections::HashMap;
use std::fs::Permissions;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::listeners::ListenerConfig;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use pingora::server::{Fds, ListenFds, ShutdownWatch};
use pingora::services::Service as _;
use pingora::services::listening::Service;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::frontend::Frontend;
use crate::listener::{ListenAddress, Listener};
use crate::proxy::Proxy;
use crate::snapshot::{CurrentSnapshot, Snapshot};
use crate::traffic::{Acceptor, Traffic};
use crate::upgraded::Sources;

/// Accepts on the sockets that its [`Acceptors`] open, and proxies by the current plan.
pub struct ProxyService {
    proxy: Arc<HttpProxy<Proxy>>,
    current: CurrentSnapshot,
    traffic: Arc<Traffic>,
    orders: mpsc::UnboundedReceiver<Order>,
    acceptors: HashMap<ListenAddress, Open>,
}

/// Opens and closes the sockets of a [`ProxyService`]. Clones do so for the same one.
#[derive(Clone, Debug)]
pub struct Acceptors(mpsc::UnboundedSender<Order>);

/// What a [`ProxyService`] is told.
#[derive(Debug)]
enum Order {
    Open(Listener, Option<OwnedFd>),
    Close(ListenAddress),
    Retire(Vec<ListenAddress>, Arc<Snapshot>, oneshot::Sender<()>),
}

/// A socket that accepts.
struct Open {
    acceptor: Arc<Acceptor>,
    closing: watch::Sender<bool>,
}

/// A socket that does not accept any more. Another one may have been opened at its address.
struct Ended {
    address: ListenAddress,
    acceptor: Arc<Acceptor>,
}

/// Buffers of a client connection, in bytes. Pingora's 64 KiB for reading would be most of the memory of an idle connection,
/// and everything that reads has a buffer of its own. What is written is gathered, so that the head of an answer does not
/// travel alone.
const READ_BUFFER: usize = 0;
const WRITE_BUFFER: usize = 1460;

/// The mode of Unix socket files: whoever may enter their directory may connect, as with a TCP port.
pub const UNIX_SOCKET_MODE: u32 = 0o666;

/// A service that proxies by the `current` plan, and what opens and closes its sockets. Those of the plan are opened when it
/// starts.
///
/// A socket is looked for by its address among those that the service is started with ([`ListenFds`]), and bound when it is
/// not there.
pub fn service(
    conf: &Arc<ServerConf>,
    current: &CurrentSnapshot,
    traffic: &Arc<Traffic>,
) -> (ProxyService, Acceptors) {
    let (sender, orders) = mpsc::unbounded_channel();
    let acceptors = Acceptors(sender);
    current.load().listeners.iter().for_each(|(_, listener)| acceptors.open(listener.clone()));
    let service = ProxyService {
        proxy: Arc::new(http_proxy(conf, Proxy { sources: Sources::of(conf) })),
        current: current.clone(),
        traffic: traffic.clone(),
        orders,
        acceptors: HashMap::new(),
    };
    (service, acceptors)
}

// === impl Acceptors ===

impl Acceptors {
    /// Accepts on the address of `listener`, which the current plan should have.
    pub fn open(&self, listener: Listener) {
        self.order(Order::Open(listener, None));
    }

    /// The same, on a socket that listens there already.
    pub fn open_on(&self, listener: Listener, socket: OwnedFd) {
        self.order(Order::Open(listener, Some(socket)));
    }

    /// Accepts no more on this address. Connections that are open end with their next answer, idle ones in a moment.
    pub fn close(&self, address: ListenAddress) {
        self.order(Order::Close(address));
    }

    /// To be called before a plan without the listeners at these addresses becomes the current one: what comes through them
    /// from then on is served by `last`. Returns when that is so.
    pub async fn retire(&self, addresses: Vec<ListenAddress>, last: Arc<Snapshot>) {
        let (done, is_done) = oneshot::channel();
        self.order(Order::Retire(addresses, last, done));
        // Without a service nothing comes through them.
        let _ = is_done.await;
    }

    fn order(&self, order: Order) {
        // A service that has ended has closed everything.
        let _ = self.0.send(order);
    }
}

// === impl ProxyService ===

impl ProxyService {
    fn follow(
        &mut self,
        order: Order,
        tasks: &mut JoinSet<Ended>,
        fds: Option<&ListenFds>,
        tasks_per_fd: usize,
    ) {
        match order {
            Order::Open(listener, socket) => {
                // What others have is none of its business: an entry that was taken once names a descriptor that may be another's
                // by now.
                let own = socket.map(|socket| table(&listener.address, socket));
                let task = self.open(listener, own.or_else(|| fds.cloned()), tasks_per_fd);
                tasks.spawn(task);
            }
            Order::Close(address) => {
                if let Some(open) = self.acceptors.remove(&address) {
                    open.close();
                }
            }
            Order::Retire(addresses, last, done) => {
                let acceptors = addresses.iter().filter_map(|address| self.acceptors.get(address));
                acceptors.for_each(|open| open.acceptor.retire(&last));
                // Whoever does not wait any more need not know.
                let _ = done.send(());
            }
        }
    }

    /// Whether it ended although nobody closed it.
    fn is_open(&self, ended: &Ended) -> bool {
        self.acceptors.get(&ended.address).is_some_and(|open| Arc::ptr_eq(&open.acceptor, &ended.acceptor))
    }

    /// What accepts on one socket until it is told to stop; it ends when the idle connections may be closed, too.
    fn open(
        &mut self,
        listener: Listener,
        fds: Option<ListenFds>,
        tasks_per_fd: usize,
    ) -> impl Future<Output = Ended> + use<> {
        let acceptor = self.traffic.open(&listener.name);
        let (closing, closes) = watch::channel(false);
        let frontend = Frontend::new(self.proxy.clone(), self.current.clone(), acceptor.clone());
        let mut service = Service::new(listener.name.to_string(), frontend);
        service.add_listener(endpoint(&listener.address));
        self.acceptors.insert(listener.address.clone(), Open { acceptor: acceptor.clone(), closing });
        async move {
            service.start_service(fds, closes, tasks_per_fd).await;
            Ended { address: listener.address, acceptor }
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
    /// Ends when `shutdown` says so, or when a socket could not be opened.
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        mut shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|closes| *closes) => break,
                Some(order) = self.orders.recv() => {
                    self.follow(order, &mut tasks, fds.as_ref(), listeners_per_fd);
                }
                Some(ended) = tasks.join_next() => match ended {
                    Ok(ended) if !self.is_open(&ended) => {}
                    _ => break,
                }
            }
        }
        self.acceptors.drain().for_each(|(_, open)| open.close());
        while tasks.join_next().await.is_some() {}
    }

    fn name(&self) -> &str {
        "proxy"
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        let plan = self.current.load();
        Some(plan.listeners.iter().map(|(_, listener)| listener.address.bind_key()).collect())
    }
}

/// In which Pingora finds one socket.
fn table(address: &ListenAddress, socket: OwnedFd) -> ListenFds {
    let mut fds = Fds::new();
    fds.add(address.bind_key(), socket.into_raw_fd());
    Arc::new(fds.into())
}

fn endpoint(address: &ListenAddress) -> ListenerConfig {
    let key = address.bind_key();
    let config = match address {
        ListenAddress::Tcp(_) => ListenerConfig::tcp(key),
        ListenAddress::Unix(_) => {
            ListenerConfig::uds(key).permissions(Permissions::from_mode(UNIX_SOCKET_MODE))
        }
    };
    config.l4_buffer(L4BufferSettings::new(READ_BUFFER, WRITE_BUFFER))
}
