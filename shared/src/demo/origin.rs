//! A backend inside the process: a small HTTP server that can be broken and repaired while it runs.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use http::Response;
use pingora::apps::ServerApp;
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::{BackgroundService, GenBackgroundService};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::process::files::reason;

/// One origin; a Pingora background service.
pub(crate) struct Origin {
    name: &'static str,
    address: SocketAddr,
    /// A bound socket that does not listen: it reserves the port while the broken origin refuses connections.
    _reservation: Socket,
    broken: watch::Sender<bool>,
}

/// The response of an origin.
struct Greeting(&'static str);

impl Origin {
    /// Creates an origin on a loopback port that the system chooses.
    ///
    /// # Errors
    /// When no port is free.
    pub(crate) fn new(name: &'static str) -> std::io::Result<Self> {
        let reservation = bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = reservation.local_addr()?.as_socket().ok_or(std::io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { name, address, _reservation: reservation, broken: watch::Sender::new(false) })
    }

    /// Returns the origin as a service of a Pingora server.
    pub(crate) fn service(self: Arc<Self>) -> GenBackgroundService<Self> {
        GenBackgroundService::new(format!("origin {}", self.name), self)
    }

    /// Returns the address, which refuses connections while the origin is broken.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the name in its responses.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Returns whether the origin is broken.
    pub(crate) fn is_broken(&self) -> bool {
        *self.broken.borrow()
    }

    /// Breaks the origin, which cuts its connections and refuses new ones, or repairs it.
    pub(crate) fn set_broken(&self, broken: bool) {
        self.broken.send_replace(broken);
    }

    fn listen(&self) -> std::io::Result<TcpListener> {
        let socket = bind(self.address)?;
        socket.listen(128)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket.into())
    }

    /// Serves until the origin breaks, then cuts its connections.
    async fn serve(&self, listener: TcpListener, shutdown: &ShutdownWatch) -> std::io::Result<()> {
        let app = Arc::new(Greeting(self.name));
        let mut broken = self.broken.subscribe();
        // Dropping the set closes the connections.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let stream: Stream = Box::new(L4Stream::from(accepted?.0));
                    let (app, shutdown) = (app.clone(), shutdown.clone());
                    connections.spawn(async move { app.process_new(stream, &shutdown).await });
                }
                _ = broken.wait_for(|broken| *broken) => return Ok(()),
            }
        }
    }

    /// Serves whenever the origin is not broken.
    async fn run(&self, shutdown: &ShutdownWatch, ready: ServiceReadyNotifier) -> std::io::Result<()> {
        let mut listener = self.listen()?;
        ready.notify_ready();
        let mut broken = self.broken.subscribe();
        loop {
            self.serve(listener, shutdown).await?;
            if broken.wait_for(|broken| !*broken).await.is_err() {
                return Ok(());
            }
            listener = self.listen()?;
        }
    }
}

#[async_trait]
impl BackgroundService for Origin {
    async fn start_with_ready_notifier(&self, shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        if let Err(error) = self.run(&shutdown, ready).await {
            log::error!("demo: backend {} on {}: {}", self.name, self.address, reason(&error));
        }
    }
}

#[async_trait]
impl ServeHttp for Greeting {
    async fn response(&self, _session: &mut ServerSession) -> Response<Vec<u8>> {
        let body = format!("hello from {}\n", self.0).into_bytes();
        let mut response = Response::new(body);
        let length = response.body().len();
        response.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
        response
    }
}

/// Binds a socket with SO_REUSEPORT, because the reservation and the listening socket share the port.
fn bind(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
