//! A connection of a client, from accept to close: finds its listener, counts it, and feeds its requests to the proxy.

use std::convert::Infallible;
use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio::io::{AsyncRead, ReadBuf};

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

/// How long a client may take to begin its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(60);
/// How long it may take to begin another one: nginx's default.
pub(crate) const IDLE: Duration = Duration::from_secs(75);
/// As much of a request as is read before Pingora takes over: more than the head of most, in one system call.
const FIRST_READ: usize = 4096;

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
    ///
    /// Between two requests only this future is alive. Pingora would wait inside its proxy's, which with its buffers is
    /// most of what an idle connection costs there.
    async fn serve(
        &self,
        mut stream: Stream,
        connection: &Arc<Connection>,
        shutdown: &ShutdownWatch,
    ) -> Option<Infallible> {
        let mut patience = FIRST_REQUEST;
        let mut settings: Option<HttpPersistentSettings> = None;
        loop {
            connection.awaits_request();
            let begun = self.first_bytes(&mut stream, patience).await?;
            let mut session = ServerSession::new_http1(stream);
            match settings {
                Some(settings) => settings.apply_to_session(&mut session),
                None => session.set_keepalive(Some(FIRST_REQUEST.as_secs())),
            }
            session.set_pipelined_prefix(begun);
            session.set_connection_user_context(Some(Box::new(connection.clone())));
            (stream, settings) = self.proxy.process_new_http(session, shutdown).await?.consume();
            patience = IDLE;
        }
    }

    /// The first bytes of a request; `None` when the client leaves, takes too long, or has to be sent away.
    async fn first_bytes(&self, stream: &mut Stream, patience: Duration) -> Option<BytesMut> {
        tokio::select! {
            biased;
            read = tokio::time::timeout(patience, poll_fn(|cx| poll_first_bytes(cx, stream))) => read.ok()?,
            () = self.traffic.settled() => None,
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

/// Reads into the stack, so that a connection has no buffer while it waits.
fn poll_first_bytes(cx: &mut Context<'_>, stream: &mut Stream) -> Poll<Option<BytesMut>> {
    let mut space = [const { MaybeUninit::uninit() }; FIRST_READ];
    let mut read = ReadBuf::uninit(&mut space);
    Pin::new(stream).poll_read(cx, &mut read).map(|result| {
        let bytes = read.filled();
        (result.is_ok() && !bytes.is_empty()).then(|| BytesMut::from(bytes))
    })
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
