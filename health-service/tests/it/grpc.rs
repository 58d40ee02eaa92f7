//! Checks with the gRPC health protocol, against servers that use the crate `h2`.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use health_service::{
    CheckError, CheckKind, Checker, GrpcCheck, HttpCheck, Metrics, PeerConnect, Prober, Settings,
};
use http::uri::Authority;
use http::{HeaderMap, Request, Response};
use pingora::upstreams::peer::HttpPeer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::origin::{Manner, Origin, eventually, refusing};
use crate::prober::{RunningProber, TestPool, fast};
use crate::tls;

/// The reaction of a server to a request.
#[derive(Clone, Debug)]
enum Reply {
    /// Sends this serving status.
    Serving(u8),
    /// Sends a response that consists of a head only.
    OnlyHead(u16, Vec<(&'static str, &'static str)>),
    /// Sends a head and a message without trailers.
    NoTrailers,
    /// Sends an endless body.
    Endless,
    /// Resets the stream.
    Reset(Reason),
    /// Ends the connection with a GOAWAY.
    GoAway(Reason),
    /// Responds, and then ends the connection with a GOAWAY, like servers that limit the age of connections.
    ServingThenGoAway,
    /// Closes the connection without a response.
    Hangup,
    /// Never responds.
    Never,
}

/// A server on a free loopback port. It ends when it is dropped.
struct Server {
    address: SocketAddr,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<(Request<()>, Vec<u8>)>>,
    /// All bytes received on all connections, before TLS decrypts them.
    bytes: Mutex<Vec<u8>>,
    /// The number of connections that have ended.
    ended: Mutex<usize>,
}

impl Server {
    async fn start(reply: Reply) -> Self {
        Self::with(reply, None).await
    }

    async fn start_tls(reply: Reply, config: rustls::ServerConfig) -> Self {
        Self::with(reply, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn with(reply: Reply, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen = Arc::<Seen>::default();
        let task = tokio::spawn(accept(listener, tls, reply, Arc::clone(&seen)));
        Self { address, seen, task }
    }

    fn request(&self) -> (Request<()>, Vec<u8>) {
        let requests = self.seen.requests.lock().expect("not poisoned");
        let (request, message) = requests.last().expect("the server has received a request");
        (request.clone(), message.clone())
    }

    fn ended(&self) -> usize {
        *self.seen.ended.lock().expect("not poisoned")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, reply: Reply, seen: Arc<Seen>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, reply, seen) = (tls.clone(), reply.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            let stream = Recording { stream, seen: Arc::clone(&seen) };
            match tls {
                None => serve(stream, &reply, &seen).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, &reply, &seen).await,
                    Err(_) => None,
                },
            };
            *seen.ended.lock().expect("not poisoned") += 1;
        });
    }
}

/// Serves until the client closes the connection. Returns `None` if the connection ends in any other way.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, reply: &Reply, seen: &Arc<Seen>) -> Option<()> {
    let mut connection: Connection<S, Bytes> = h2::server::handshake(stream).await.ok()?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request.ok()?;
        match reply {
            Reply::GoAway(reason) => connection.abrupt_shutdown(*reason),
            Reply::ServingThenGoAway => connection.graceful_shutdown(),
            Reply::Hangup => return None,
            _ => {}
        }
        tokio::spawn(reply_to(request, respond, reply.clone(), Arc::clone(seen)));
    }
    Some(())
}

async fn reply_to(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    reply: Reply,
    seen: Arc<Seen>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let mut message = Vec::new();
    while let Some(part) = body.data().await {
        message.extend_from_slice(&part?);
    }
    seen.requests.lock().expect("not poisoned").push((Request::from_parts(head, ()), message));
    match reply {
        Reply::Serving(status) => send(&mut respond, &[0, 0, 0, 0, 2, 8, status], true),
        Reply::ServingThenGoAway => send(&mut respond, &[0, 0, 0, 0, 2, 8, 1], true),
        Reply::NoTrailers => send(&mut respond, &[0, 0, 0, 0, 2, 8, 1], false),
        Reply::OnlyHead(status, headers) => {
            let head = headers
                .iter()
                .fold(Response::builder().status(status), |head, (name, value)| head.header(*name, *value));
            respond.send_response(head.body(()).expect("valid headers"), true).map(drop)
        }
        Reply::Endless => {
            let mut stream = respond.send_response(grpc(), false)?;
            loop {
                stream.send_data(Bytes::from_static(&[0; 1000]), false)?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Reply::Reset(reason) => {
            respond.send_reset(reason);
            Ok(())
        }
        Reply::GoAway(_) | Reply::Hangup | Reply::Never => std::future::pending().await,
    }
}

fn send(respond: &mut SendResponse<Bytes>, message: &[u8], with_trailers: bool) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(grpc(), false)?;
    stream.send_data(Bytes::copy_from_slice(message), !with_trailers)?;
    if with_trailers {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a valid value"));
        stream.send_trailers(trailers)?;
    }
    Ok(())
}

fn grpc() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).expect("valid headers")
}

/// A connection that records the bytes that it receives.
struct Recording {
    stream: TcpStream,
    seen: Arc<Seen>,
}

impl AsyncRead for Recording {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.seen.bytes.lock().expect("not poisoned").extend_from_slice(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recording {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    /// After a failed handshake, rustls sends the alert and all pending bytes in one write.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const SERVING: Reply = Reply::Serving(1);

fn about(service: &str) -> Settings {
    let check = GrpcCheck { service: service.to_owned(), host: None };
    Settings { kind: CheckKind::Grpc(check), timeout: Duration::from_secs(10), ..Settings::default() }
}

fn plain() -> HttpPeer {
    HttpPeer::new("0.0.0.0:1", false, String::new())
}

async fn check_as(peer: HttpPeer, settings: Settings, address: SocketAddr) -> Result<(), CheckError> {
    Checker::new(Arc::new(PeerConnect::new(peer)), settings).check(&address.into()).await
}

async fn check(settings: Settings, address: SocketAddr) -> Result<(), CheckError> {
    check_as(plain(), settings, address).await
}

async fn reason(settings: Settings, address: SocketAddr) -> String {
    check(settings, address).await.expect_err("the check should fail").to_string()
}

/// The reason with which a check of the service `shop` fails on a server with this reply.
async fn reason_for(reply: Reply) -> String {
    reason(about("shop"), Server::start(reply).await.address).await
}

#[tokio::test]
async fn a_backend_that_serves_passes() {
    let server = Server::start(SERVING).await;
    assert_eq!(check(about(""), server.address).await, Ok(()));
    let (request, message) = server.request();
    assert_eq!(request.uri().to_string(), format!("http://{}/grpc.health.v1.Health/Check", server.address));
    assert_eq!(message, [0; 5]);
    for (name, value) in
        [("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "load_balancer-health")]
    {
        assert_eq!(request.headers()[name], value);
    }
}

#[tokio::test]
async fn the_service_the_host_and_the_port_match_the_settings() {
    let server = Server::start(SERVING).await;
    let (_socket, refusing) = refusing();
    let orders = GrpcCheck { service: "shop.Orders".to_owned(), host: Some("a.example".to_owned()) };
    let port = NonZeroU16::new(server.address.port());
    let settings = Settings { kind: CheckKind::Grpc(orders), port, ..about("") };
    assert_eq!(check(settings, refusing).await, Ok(()));
    let (request, message) = server.request();
    assert_eq!(request.uri().authority().map(Authority::as_str), Some("a.example"));
    assert_eq!(message, b"\0\0\0\0\x0d\x0a\x0bshop.Orders");
}

#[tokio::test]
async fn any_other_response_fails_with_a_reason() {
    let head = |more: &[(&'static str, &'static str)]| {
        Reply::OnlyHead(200, [&[("content-type", "application/grpc")], more].concat())
    };
    for (reply, expected) in [
        (Reply::Serving(2), "not serving"),
        (Reply::Serving(0), "serving status UNKNOWN"),
        (Reply::Serving(3), "the gRPC health service has no service shop"),
        (head(&[("grpc-status", "5")]), "the gRPC health service has no service shop"),
        (head(&[("grpc-status", "12")]), "the backend has no gRPC health service (unimplemented)"),
        (head(&[("grpc-status", "14"), ("grpc-message", "full")]), "gRPC status unavailable: \"full\""),
        (Reply::OnlyHead(404, vec![]), "status 404, expected 200"),
        (Reply::OnlyHead(200, vec![("content-type", "text/html")]), "the response is not valid gRPC"),
        (Reply::NoTrailers, "the response is not valid gRPC"),
        (Reply::Endless, "the response is not valid gRPC"),
    ] {
        assert_eq!(reason_for(reply.clone()).await, expected, "{reply:?}");
    }
}

#[tokio::test]
async fn a_stream_or_connection_that_ends_without_a_response_fails() {
    for (reply, expected) in [
        (
            Reply::Reset(Reason::REFUSED_STREAM),
            "HTTP/2: stream reset by the backend: refused stream before processing any application logic",
        ),
        (
            Reply::GoAway(Reason::ENHANCE_YOUR_CALM),
            "HTTP/2: connection ended by the backend: detected excessive load generating behavior",
        ),
        (Reply::Hangup, "connection closed before the end of the response"),
    ] {
        assert_eq!(reason_for(reply.clone()).await, expected, "{reply:?}");
    }
}

#[tokio::test]
async fn a_response_before_a_goaway_counts() {
    let server = Server::start(Reply::ServingThenGoAway).await;
    for _ in 0..20 {
        assert_eq!(check(about(""), server.address).await, Ok(()));
    }
}

#[tokio::test]
async fn a_backend_of_another_protocol_fails_with_a_reason() {
    let not_http2 = "the backend does not speak HTTP/2";
    let http1 = Origin::responding("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(reason(about(""), http1.address).await, not_http2);
    let mail = Origin::start(Manner::Banner(b"220 mail.example.com ESMTP\r\n".to_vec())).await;
    assert_eq!(reason(about(""), mail.address).await, not_http2);
    let closing = Origin::responding("").await;
    assert_eq!(reason(about(""), closing.address).await, "connection closed before any HTTP/2 frame");
    let (_socket, refusing) = refusing();
    assert_eq!(reason(about(""), refusing).await, "connection refused");
}

#[tokio::test]
async fn the_timeout_covers_the_handshake_and_the_response() {
    let silent = Origin::start(Manner::Silence).await;
    let never = Server::start(Reply::Never).await;
    for address in [silent.address, never.address] {
        let settings = Settings { timeout: Duration::from_millis(250), ..about("") };
        assert_eq!(reason(settings, address).await, "timed out after 250ms");
    }
}

#[tokio::test]
async fn a_check_that_times_out_leaves_no_connection() {
    let server = Server::start(Reply::Never).await;
    let settings = Settings { timeout: Duration::from_millis(250), ..about("") };
    reason(settings, server.address).await;
    eventually("the connection has ended", || server.ended() == 1).await;
}

#[tokio::test]
async fn every_check_opens_a_connection_and_ends_it_with_a_goaway() {
    let server = Server::start(SERVING).await;
    let begun = Instant::now();
    for _ in 0..40 {
        assert_eq!(check(about(""), server.address).await, Ok(()));
    }
    let took = begun.elapsed();
    eventually("all connections have ended", || server.ended() == 40).await;
    // The frame has the type GOAWAY, no flags, stream 0, last stream 0, and the code NO_ERROR.
    let goaway = [&[0, 0, 8, 7, 0, 0, 0, 0, 0][..], &[0; 8]].concat();
    let bytes = server.seen.bytes.lock().expect("not poisoned").clone();
    assert_eq!(bytes.windows(goaway.len()).filter(|window| *window == goaway).count(), 40);
    // Each check would take 50 ms more if its end waited for the backend.
    assert!(took < Duration::from_millis(40 * 50), "{took:?}");
}

#[tokio::test]
async fn with_tls_http2_is_negotiated_in_the_handshake() {
    let (mut config, certificate) = tls::server_config();
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let server = Server::start_tls(SERVING, config).await;
    let peer = tls::trusting(&certificate, tls::NAME);
    assert_eq!(check_as(peer, about("shop"), server.address).await, Ok(()));
    let (request, _) = server.request();
    assert_eq!(request.uri().to_string(), "https://origin.example/grpc.health.v1.Health/Check");
    let (_, another) = tls::server_config();
    let error = check_as(tls::trusting(&another, tls::NAME), about("shop"), server.address).await;
    assert!(
        matches!(&error, Err(CheckError::Tls(why)) if why.contains("not signed by the trusted authority")),
        "{error:?}"
    );
}

#[tokio::test]
async fn with_tls_a_backend_that_does_not_negotiate_http2_fails() {
    for protocols in [vec![], vec![b"http/1.1".to_vec()]] {
        let (mut config, certificate) = tls::server_config();
        config.alpn_protocols = protocols;
        let server = Server::start_tls(SERVING, config).await;
        let peer = tls::trusting(&certificate, tls::NAME);
        assert_eq!(check_as(peer, about(""), server.address).await, Err(CheckError::NotHttp2));
    }
}

#[tokio::test]
async fn one_connector_serves_checks_of_every_kind() {
    let (mut config, certificate) = tls::server_config();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let server = Server::start_tls(SERVING, config).await;
    let connect = Arc::new(PeerConnect::new(tls::trusting(&certificate, tls::NAME)));
    let http = Settings { kind: CheckKind::Http(HttpCheck::default()), ..about("") };
    for _ in 0..2 {
        let checker = Checker::new(connect.clone(), http.clone());
        assert!(checker.check(&server.address.into()).await.is_err(), "the server speaks HTTP/2 only");
        let checker = Checker::new(connect.clone(), about(""));
        assert_eq!(checker.check(&server.address.into()).await, Ok(()));
    }
}

#[tokio::test]
async fn the_prober_uses_the_result_of_the_health_service() {
    let (serving, not_serving) = (Server::start(SERVING).await, Server::start(Reply::Serving(2)).await);
    let pool = TestPool::of(&[serving.address, not_serving.address]).await;
    let mut prober = Prober::new(Metrics::new());
    pool.add_to(&mut prober, "web", fast(CheckKind::Grpc(GrpcCheck::default())));
    let mut running = RunningProber::start(prober);
    running.until_ready().await;
    assert!(pool.verdict(serving.address).up);
    assert_eq!(pool.verdict(not_serving.address).reason, "1 check failed: not serving");
    running.shut_down().await;
}
