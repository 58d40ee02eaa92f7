//! A connection of a client, from accept to close: finds its listener, counts it, and feeds its requests to the proxy.

use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;

use crate::listener::{ListenerId, Listeners};
use crate::proxy::Proxy;
use crate::traffic::Traffic;

/// Pingora's HTTP proxy behind our listeners.
pub struct Frontend {
    proxy: Arc<HttpProxy<Proxy>>,
    listeners: Listeners,
    traffic: Arc<Traffic>,
}

/// How long a client may take to begin its first request, in seconds.
const FIRST_REQUEST_SECONDS: u64 = 60;

impl Frontend {
    pub(crate) fn new(proxy: HttpProxy<Proxy>, listeners: Listeners, traffic: Arc<Traffic>) -> Self {
        Self { proxy: Arc::new(proxy), listeners, traffic }
    }

    fn listener(&self, stream: &Stream) -> Option<ListenerId> {
        let digest = stream.get_socket_digest()?;
        match digest.local_addr()? {
            SocketAddr::Inet(address) => self.listeners.accepted_tcp(*address),
            SocketAddr::Unix(address) => self.listeners.accepted_unix(address.as_pathname()?),
        }
    }
}

#[async_trait]
impl ServerApp for Frontend {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let Some(listener) = self.listener(&stream) else {
            log::error!("connection closed: its local address belongs to no listener");
            return None;
        };
        let connection = self.traffic.accept(listener);
        let mut session = ServerSession::new_http1(stream);
        session.set_keepalive(Some(FIRST_REQUEST_SECONDS));
        loop {
            session.set_connection_user_context(Some(Box::new(connection.clone())));
            let (stream, settings) = self.proxy.process_new_http(session, shutdown).await?.consume();
            session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
        }
    }

    /// The listeners are closed: lets what is on its way arrive, then closes the idle connections.
    async fn cleanup(&self) {
        self.traffic.settle().await;
        self.proxy.http_cleanup().await;
    }
}
