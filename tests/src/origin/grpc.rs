//! An origin that has a gRPC health service, over HTTP/2 in plain text or with TLS.
//!
//! It implements `grpc.health.v1.Health/Check` like other implementations. For a registered service it returns the
//! status. For any other service it returns NOT_FOUND in a response that consists of headers only. It serves no other
//! path.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::{future, io};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::{listen, lock};
use crate::ports;

const CHECK: &str = "/grpc.health.v1.Health/Check";

const NOT_FOUND: u8 = 5;
const UNIMPLEMENTED: u8 = 12;

/// The status of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    /// The status is not known.
    Unknown = 0,
    /// The service is healthy.
    Serving = 1,
    /// The service is not healthy.
    NotServing = 2,
}

/// How a gRPC origin handles health checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcBehaviour {
    /// Responds with the status of the service.
    Respond,
    /// Responds like a server without a health service.
    Unimplemented,
    /// Accepts the request and never responds.
    Hang,
}

/// A health check that a gRPC origin has received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedCheck {
    /// The service; empty for the whole server.
    pub service: String,
    /// The `:authority` of the request.
    pub authority: String,
    /// The TLS server name of the connection.
    pub sni: Option<String>,
}

/// A running gRPC origin. Dropping it closes all its connections.
pub struct GrpcOrigin {
    /// The address that it listens on.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    running: Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>,
}

struct Shared {
    tls: Option<TlsAcceptor>,
    services: Mutex<HashMap<String, Serving>>,
    behaviour: Mutex<GrpcBehaviour>,
    checks: Mutex<Vec<ReceivedCheck>>,
    open: AtomicUsize,
}

/// Counts a connection while it is open.
struct Open(Arc<Shared>);

// ===== impl GrpcOrigin =====

impl GrpcOrigin {
    /// Starts an origin whose whole server is healthy and that has no named service.
    ///
    /// # Panics
    ///
    /// Panics if it cannot listen.
    #[track_caller]
    pub fn start() -> Self {
        Self::at(ports::free(), None)
    }

    /// Starts an origin like [`GrpcOrigin::start`], with TLS and HTTP/2 as its only ALPN protocol.
    ///
    /// # Panics
    ///
    /// Panics if it cannot listen.
    #[track_caller]
    pub fn start_tls(server: &ServerConfig) -> Self {
        Self::start_at(ports::free(), Some(server))
    }

    /// Starts an origin at a given address, with TLS if `server` is set.
    ///
    /// # Panics
    ///
    /// Panics if it cannot listen.
    #[track_caller]
    pub fn start_at(address: SocketAddr, server: Option<&ServerConfig>) -> Self {
        let acceptor = |server: &ServerConfig| {
            let mut server = server.clone();
            server.alpn_protocols = vec![b"h2".to_vec()];
            TlsAcceptor::from(Arc::new(server))
        };
        Self::at(address, server.map(acceptor))
    }

    /// Sets the status of a service. The empty name means the whole server.
    pub fn set(&self, service: &str, serving: Serving) {
        lock(&self.shared.services).insert(service.to_owned(), serving);
    }

    /// Changes the behaviour, from the next request on.
    pub fn behave(&self, behaviour: GrpcBehaviour) {
        *lock(&self.shared.behaviour) = behaviour;
    }

    /// Returns the health checks so far, the oldest first.
    pub fn checks(&self) -> Vec<ReceivedCheck> {
        lock(&self.shared.checks).clone()
    }

    /// Returns the number of open connections.
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    #[track_caller]
    fn at(address: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let shared = Arc::new(Shared {
            tls,
            services: Mutex::new(HashMap::from([(String::new(), Serving::Serving)])),
            behaviour: Mutex::new(GrpcBehaviour::Respond),
            checks: Mutex::default(),
            open: AtomicUsize::new(0),
        });
        let listener = std::net::TcpListener::from(listen(address).expect("no other test uses the address"));
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let (stop, stopped) = oneshot::channel();
        let accepting = Arc::clone(&shared);
        let thread =
            thread::spawn(move || run(listener, &accepting, stopped).expect("a runtime can be built"));
        Self { address, shared, running: Some((stop, thread)) }
    }
}

impl Drop for GrpcOrigin {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            // The thread has printed its panic. A second panic during a drop would abort the process.
            let _ = thread.join();
        }
    }
}

/// Serves until `stopped` completes. The tasks of the connections end with the runtime.
fn run(
    listener: std::net::TcpListener,
    shared: &Arc<Shared>,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        tokio::select! {
            () = accept(&listener, shared) => {}
            _ = stopped => {}
        }
        Ok(())
    })
}

async fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, Open::new(shared)));
    }
}

/// Serves one connection. An error means that the peer has closed it, which the test observes at its own end.
async fn connection(stream: TcpStream, open: Open) {
    let Some(tls) = &open.0.tls else {
        return serve(stream, None, &open.0).await.unwrap_or_default();
    };
    if let Ok(stream) = tls.accept(stream).await {
        let sni = stream.get_ref().1.server_name().map(str::to_owned);
        serve(stream, sni, &open.0).await.unwrap_or_default();
    }
}

async fn serve<S>(stream: S, sni: Option<String>, shared: &Arc<Shared>) -> Result<(), h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        tokio::spawn(respond_to(request, respond, sni.clone(), Arc::clone(shared)));
    }
    Ok(())
}

async fn respond_to(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    sni: Option<String>,
    shared: Arc<Shared>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let mut message = Vec::new();
    while let Some(part) = body.data().await {
        message.extend_from_slice(&part?);
    }
    let service = service(&message);
    let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
    lock(&shared.checks).push(ReceivedCheck { service: service.clone(), authority, sni });
    let behaviour = *lock(&shared.behaviour);
    let serving = lock(&shared.services).get(&service).copied();
    match (behaviour, serving) {
        (GrpcBehaviour::Hang, _) => future::pending().await,
        (GrpcBehaviour::Unimplemented, _) => refuse(&mut respond, UNIMPLEMENTED),
        _ if head.uri.path() != CHECK => refuse(&mut respond, UNIMPLEMENTED),
        (GrpcBehaviour::Respond, None) => refuse(&mut respond, NOT_FOUND),
        (GrpcBehaviour::Respond, Some(serving)) => say(&mut respond, serving),
    }
}

/// Returns the text in field 1 of the message. Names in tests are short, so their length is one byte.
fn service(message: &[u8]) -> String {
    message.get(7..).map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default()
}

fn say(respond: &mut SendResponse<Bytes>, serving: Serving) -> Result<(), h2::Error> {
    let message: &[u8] = match serving {
        // A field with the value zero is omitted.
        Serving::Unknown => &[0, 0, 0, 0, 0],
        Serving::Serving => &[0, 0, 0, 0, 2, 8, 1],
        Serving::NotServing => &[0, 0, 0, 0, 2, 8, 2],
    };
    let mut stream = respond.send_response(head(), false)?;
    stream.send_data(Bytes::from_static(message), false)?;
    stream.send_trailers(HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), 0.into())]))
}

fn refuse(respond: &mut SendResponse<Bytes>, status: u8) -> Result<(), h2::Error> {
    let mut head = head();
    head.headers_mut().insert("grpc-status", u16::from(status).into());
    respond.send_response(head, true).map(drop)
}

fn head() -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    head
}

// ===== impl Open =====

impl Open {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::client::{Connection, Failure};

    #[test]
    fn a_grpc_origin_rejects_http_1() {
        let origin = GrpcOrigin::start();
        let mut client = Connection::open(origin.address).unwrap();
        assert!(matches!(client.get("/"), Err(Failure::Broken(_) | Failure::Closed)));
    }

    #[test]
    fn a_dropped_grpc_origin_closes_its_connections() {
        let origin = GrpcOrigin::start();
        let mut client = std::net::TcpStream::connect(origin.address).unwrap();
        client.set_read_timeout(Some(crate::wait::LONG)).unwrap();
        crate::wait::until(crate::wait::LONG, "the connection is open", || origin.open_connections() == 1);
        drop(origin);
        let ended = client.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        assert!(!matches!(ended, Err(io::ErrorKind::WouldBlock)), "still open");
    }

    #[test]
    fn the_service_name_follows_the_prefixes_of_the_message() {
        assert_eq!(service(b"\0\0\0\0\x06\x0a\x04shop"), "shop");
        assert_eq!(service(&[0; 5]), "");
    }
}
