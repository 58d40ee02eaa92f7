//! A connection of a client, from accept to close: finds its listener, counts it, and feeds its requests to the proxy.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;

use crate::access_log::{AccessLog, Record};
use crate::listener::{ListenerId, Listeners};
use crate::proxy::Proxy;
use crate::traffic::{Connection, Rejection, Traffic};
use crate::watched::Watched;

/// Pingora's HTTP proxy behind our listeners.
pub struct Frontend {
    proxy: Arc<HttpProxy<Proxy>>,
    listeners: Listeners,
    traffic: Arc<Traffic>,
    access_logs: Box<[AccessLog]>,
}

/// How long a client may take to begin its first request, in seconds.
const FIRST_REQUEST_SECONDS: u64 = 60;

impl Frontend {
    pub(crate) fn new(
        proxy: HttpProxy<Proxy>,
        listeners: Listeners,
        traffic: Arc<Traffic>,
        access_logs: Box<[AccessLog]>,
    ) -> Self {
        Self { proxy: Arc::new(proxy), listeners, traffic, access_logs }
    }

    /// Feeds the requests of a connection to the proxy until there is none any more.
    async fn serve(
        &self,
        stream: Stream,
        connection: &Arc<Connection>,
        shutdown: &ShutdownWatch,
    ) -> Option<Infallible> {
        let mut session = ServerSession::new_http1(stream);
        session.set_keepalive(Some(FIRST_REQUEST_SECONDS));
        loop {
            connection.awaits_request();
            session.set_connection_user_context(Some(Box::new(connection.clone())));
            let (stream, settings) = self.proxy.process_new_http(session, shutdown).await?.consume();
            session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
        }
    }

    /// Counts and logs a request that Pingora refused by itself.
    fn refused(&self, listener: ListenerId, client: Option<IpAddr>, status: u16) {
        let traffic = self.traffic.listener(listener);
        traffic.reject(Rejection::Malformed);
        traffic.pool(None).answers.increment(status);
        self.access_logs[listener.0].record(&Record {
            client,
            status: Some(status),
            failure: Some(Rejection::Malformed.as_str()),
            ..Record::new(SystemTime::now(), &self.listeners.get(listener).name)
        });
    }

    fn listener(&self, stream: &Stream) -> Option<ListenerId> {
        let digest = stream.get_socket_digest()?;
        match digest.local_addr()? {
            PingoraAddr::Inet(address) => self.listeners.accepted_tcp(*address),
            PingoraAddr::Unix(address) => self.listeners.accepted_unix(address.as_pathname()?),
        }
    }
}

/// The address that a client connected from; none on a Unix socket.
fn client(stream: &Stream) -> Option<IpAddr> {
    stream.get_socket_digest()?.peer_addr()?.as_inet().map(SocketAddr::ip)
}

#[async_trait]
impl ServerApp for Frontend {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let Some(listener) = self.listener(&stream) else {
            log::error!("connection closed: its local address belongs to no listener");
            return None;
        };
        let connection = self.traffic.accept(listener);
        let client = client(&stream);
        self.serve(Box::new(Watched::new(stream, connection.clone())), &connection, shutdown).await;
        if let Some(status) = connection.refusal() {
            self.refused(listener, client, status);
        }
        None
    }

    /// The listeners are closed: lets what is on its way arrive, then closes the idle connections.
    async fn cleanup(&self) {
        self.traffic.settle().await;
        self.proxy.http_cleanup().await;
    }
}
