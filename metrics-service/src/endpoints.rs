//! The HTTP server: which request gets which response.
//!
//! ```text
//! GET, HEAD  /metrics          Prometheus' text format
//!            /livez            200 while the process responds at all
//!            /readyz /healthz  200, or 503 with a reason per line; with ?verbose also a line for each pool
//!            /api/v1/…         the JSON documents of the caller
//! ```
//!
//! Any other path gets 404, any other method 405, and a request with a body 413. The body is never read; the connection
//! closes after the response instead.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, Version};
use pingora::apps::http_app::{HttpServer, ServeHttp};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::services::listening::Service;
use prometheus::Registry;

use crate::exposition::{self, TEXT_CONTENT_TYPE};
use crate::readiness::Readiness;

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Time without progress after which the response to a client is aborted.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns a JSON document for the query of a request, or says what is wrong with the query.
type Document = Arc<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// Why a request with this value of a header is rejected; `None`: it is served.
type Rejection = Box<dyn Fn(&[u8]) -> Option<String> + Send + Sync>;

/// All endpoints, as an application for Pingora's [`HttpServer`].
pub struct Endpoints {
    registry: Registry,
    readiness: Readiness,
    /// By path.
    documents: Vec<(&'static str, Document)>,
    /// With the name of the header.
    rejection: Option<(&'static str, Rejection)>,
}

/// The endpoint of a request, chosen by its method and path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// By index.
    Document(usize),
    Metrics,
    Live,
    Ready,
    NotFound,
    MethodNotAllowed,
}

/// Status, content type and body of a response.
type Page = (StatusCode, &'static str, String);

/// A service that serves [`Endpoints`] on one thread. The caller adds the listeners.
pub fn service(endpoints: Endpoints, name: impl Into<String>) -> Service<HttpServer<Endpoints>> {
    let mut service = Service::new(name.into(), HttpServer::new_app(endpoints));
    service.threads = Some(1);
    service
}

fn route(method: &Method, path: &str, documents: &[(&str, Document)]) -> Target {
    if method != Method::GET && method != Method::HEAD {
        return Target::MethodNotAllowed;
    }
    match path {
        "/metrics" => Target::Metrics,
        "/livez" => Target::Live,
        "/readyz" | "/healthz" => Target::Ready,
        _ => {
            let document = documents.iter().position(|(known, _)| *known == path);
            document.map_or(Target::NotFound, Target::Document)
        }
    }
}

// === impl Endpoints ===

impl Endpoints {
    /// Metrics and probes without documents.
    pub fn new(registry: Registry, readiness: Readiness) -> Self {
        Endpoints { registry, readiness, documents: Vec::new(), rejection: None }
    }

    /// Adds a JSON document at `path`. `document` is called with the query of each request. It must not block, because
    /// it runs on the only thread of the service. Its error becomes the body of a 400 response.
    #[must_use]
    pub fn with_document(
        mut self,
        path: &'static str,
        document: impl Fn(Option<&str>) -> Result<String, String> + Send + Sync + 'static,
    ) -> Self {
        self.documents.push((path, Arc::new(document)));
        self
    }

    /// Rejects requests by the header `name`: if `rejection` returns a text for its value, the response is 421 with
    /// that text. Requests without the header are served.
    #[must_use]
    pub fn rejecting(
        self,
        name: &'static str,
        rejection: impl Fn(&[u8]) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self { rejection: Some((name, Box::new(rejection))), ..self }
    }

    fn misdirected(&self, headers: &HeaderMap) -> Option<Response<Vec<u8>>> {
        let (name, rejection) = self.rejection.as_ref()?;
        let problem = rejection(headers.get(*name)?.as_bytes())?;
        let (status, content_type, body) = plain(StatusCode::MISDIRECTED_REQUEST, &format!("{problem}\n"));
        Some(response(status, content_type, body.len(), body.into_bytes()))
    }

    /// The response to HEAD has the same headers as that to GET. Pingora adds no `Content-Length`; without one, the
    /// body would end only with the connection.
    fn respond(&self, method: &Method, uri: &Uri, brings_body: bool) -> Response<Vec<u8>> {
        let target = route(method, uri.path(), &self.documents);
        // With a wrong method, 405 says more than 413, and the body is not read either.
        let (status, content_type, body) = if brings_body && target != Target::MethodNotAllowed {
            plain(StatusCode::PAYLOAD_TOO_LARGE, "the request must not have a body\n")
        } else {
            self.page(target, uri.query())
        };
        let length = body.len();
        let body = if *method == Method::HEAD { Vec::new() } else { body.into_bytes() };

        let mut response = response(status, content_type, length, body);
        if target == Target::MethodNotAllowed {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }

    #[expect(clippy::indexing_slicing, reason = "`route` has found the document at this index")]
    fn page(&self, target: Target, query: Option<&str>) -> Page {
        match target {
            Target::Metrics => self.metrics(),
            Target::Live => plain(StatusCode::OK, "ok\n"),
            Target::Ready => self.ready(is_verbose(query)),
            Target::Document(index) => match (self.documents[index].1)(query) {
                Ok(document) => (StatusCode::OK, JSON, document),
                Err(problem) => plain(StatusCode::BAD_REQUEST, &format!("{problem}\n")),
            },
            Target::NotFound => plain(StatusCode::NOT_FOUND, "not found\n"),
            Target::MethodNotAllowed => plain(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD\n"),
        }
    }

    fn metrics(&self) -> Page {
        match exposition::text(&self.registry) {
            Ok(text) => (StatusCode::OK, TEXT_CONTENT_TYPE, text),
            Err(error) => {
                log::error!("metrics: cannot encode the metrics: {error}");
                let text = "cannot encode the metrics; see the log\n";
                plain(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
        }
    }

    fn ready(&self, verbose: bool) -> Page {
        let report = self.readiness.report();
        let reasons = report.reasons();
        let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let lines = match reasons {
            _ if verbose => report.lines(),
            reasons if reasons.is_empty() => vec!["ok".to_owned()],
            reasons => reasons,
        };
        (status, PLAIN, lines.join("\n") + "\n")
    }
}

/// Whether the query has `verbose`, with or without a value, as the probes of Kubernetes have it.
fn is_verbose(query: Option<&str>) -> bool {
    let mut names = query.unwrap_or_default().split('&').map(|pair| pair.split('=').next());
    names.any(|name| name == Some("verbose"))
}

fn plain(status: StatusCode, text: &str) -> Page {
    (status, PLAIN, text.to_owned())
}

/// `length` is the length of the body for GET. The response to HEAD has this length, but no body.
fn response(
    status: StatusCode,
    content_type: &'static str,
    length: usize,
    body: Vec<u8>,
) -> Response<Vec<u8>> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A problem with a query quotes the query, which a browser must not read as a page.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Whether the connection must close after this request. Pingora's `HttpServer` obeys `Connection: close`, but also
/// keeps connections of HTTP/1.0 clients alive that did not ask for it and that read until the connection closes.
fn must_close(request: &RequestHeader, brings_body: bool) -> bool {
    let asks_to_stay = || {
        let connection = request.headers.get(CONNECTION);
        connection.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"keep-alive"))
    };
    brings_body || (request.version == Version::HTTP_10 && !asks_to_stay())
}

#[async_trait]
impl ServeHttp for Endpoints {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        session.set_write_timeout(Some(WRITE_TIMEOUT));
        // This checks Content-Length and Transfer-Encoding, and reads nothing.
        let brings_body = !session.is_body_empty();
        if must_close(session.req_header(), brings_body) {
            session.set_keepalive(None);
        }
        let request = session.req_header();
        let rejected = self.misdirected(&request.headers);
        rejected.unwrap_or_else(|| self.respond(&request.method, &request.uri, brings_body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::os::fd::IntoRawFd;

    use pingora::server::{Fds, ListenFds};
    use pingora::services::Service as _;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::watch;
    use tokio::task::JoinHandle;

    use crate::exposition::tests::untyped;
    use crate::pools::PoolView;
    use crate::pools::tests::{FixedPool, member};

    const STATUS: &str = "/api/v1/status";
    const DEADLINE: Duration = Duration::from_secs(5);

    fn endpoints() -> Endpoints {
        let registry = Registry::new();
        crate::build_info(&registry, "1.2.3").expect("registers");
        let readiness = Readiness::new(Vec::new());
        readiness.set_listening(true);
        Endpoints::new(registry, readiness).with_document(STATUS, |query| match query {
            None => Ok(r#"{"pools":[]}"#.into()),
            Some(query) => Err(format!("what is `{query}`?")),
        })
    }

    fn respond(endpoints: &Endpoints, method: &Method, uri: &'static str) -> Response<Vec<u8>> {
        endpoints.respond(method, &Uri::from_static(uri), false)
    }

    fn header<'a>(response: &'a Response<Vec<u8>>, name: &str) -> &'a str {
        let value = response.headers().get(name).expect(name);
        value.to_str().expect("text")
    }

    #[test]
    fn a_request_is_rejected_by_its_header() {
        let rejection = |value: &[u8]| (value != b"own").then(|| "it is another".to_owned());
        let endpoints = endpoints().rejecting("For", rejection);
        let asked = |value: Option<&'static str>| {
            let headers = value.map(|value| (http::header::HeaderName::from_static("for"), value));
            let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
            endpoints.misdirected(&headers.into_iter().collect())
        };
        assert!(asked(None).is_none() && asked(Some("own")).is_none());
        let rejected = asked(Some("other")).expect("it is rejected");
        assert_eq!((rejected.status().as_u16(), body(&rejected)), (421, "it is another\n"));
    }

    fn body(response: &Response<Vec<u8>>) -> &str {
        std::str::from_utf8(response.body()).expect("text")
    }

    #[test]
    fn each_path_has_its_endpoint() {
        let documents = endpoints().documents;
        for (path, target) in [
            ("/metrics", Target::Metrics),
            ("/livez", Target::Live),
            ("/readyz", Target::Ready),
            ("/healthz", Target::Ready),
            (STATUS, Target::Document(0)),
            ("", Target::NotFound),
            ("/", Target::NotFound),
            ("/metrics/", Target::NotFound),
            ("/Metrics", Target::NotFound),
            ("//metrics", Target::NotFound),
            ("/metrics/../livez", Target::NotFound),
            ("/api/v1", Target::NotFound),
        ] {
            assert_eq!(route(&Method::GET, path, &documents), target, "GET {path}");
            assert_eq!(route(&Method::HEAD, path, &documents), target, "HEAD {path}");
        }
    }

    #[test]
    fn only_get_and_head_are_allowed_anywhere() {
        let odd = Method::from_bytes(b"BREW").expect("a method");
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS].into_iter().chain([
            Method::PATCH,
            Method::TRACE,
            Method::CONNECT,
            odd,
        ]) {
            for path in ["/metrics", "/nowhere", ""] {
                assert_eq!(route(&method, path, &[]), Target::MethodNotAllowed);
            }
        }
    }

    #[test]
    fn each_response_has_a_type_and_a_length_and_is_not_cached() {
        for (path, status, content_type, text) in [
            ("/livez", 200, PLAIN, "ok\n"),
            ("/readyz", 200, PLAIN, "ok\n"),
            ("/healthz", 200, PLAIN, "ok\n"),
            (STATUS, 200, JSON, r#"{"pools":[]}"#),
            ("/api/v1/status?of=it", 400, PLAIN, "what is `of=it`?\n"),
            ("/livez?of=it", 200, PLAIN, "ok\n"),
            ("/nowhere", 404, PLAIN, "not found\n"),
        ] {
            let response = respond(&endpoints(), &Method::GET, path);
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(body(&response), text);
            assert_eq!(header(&response, "content-type"), content_type);
            assert_eq!(header(&response, "content-length"), text.len().to_string());
            assert_eq!(header(&response, "cache-control"), "no-store");
        }
        let metrics = respond(&endpoints(), &Method::GET, "/metrics");
        assert_eq!(header(&metrics, "content-type"), "text/plain; version=0.0.4; charset=utf-8");
        assert!(body(&metrics).contains("lb_build_info{version=\"1.2.3\"} 1\n"));
    }

    #[test]
    fn each_reason_for_not_being_ready_has_a_line() {
        let pool = FixedPool::new("web", vec![member("a:1", 1, false)]);
        let readiness = Readiness::new(vec![Arc::new(pool) as Arc<dyn PoolView>]);
        readiness.set_listening(true);
        readiness.set_draining(true);
        let endpoints = Endpoints::new(Registry::new(), readiness);
        for path in ["/readyz", "/healthz"] {
            let response = respond(&endpoints, &Method::GET, path);
            assert_eq!(response.status(), 503);
            assert_eq!(body(&response), "draining\npool web: no backend is ready\n");
        }
        assert_eq!(respond(&endpoints, &Method::GET, "/livez").status(), 200);
    }

    #[test]
    fn a_verbose_response_names_each_pool_even_when_the_process_is_ready() {
        let pools = [FixedPool::new("web", vec![member("a:1", 1, true)]), FixedPool::new("api", vec![])];
        let readiness = Readiness::new(crate::pools::tests::views(pools));
        readiness.set_listening(true);
        let endpoints = Endpoints::new(Registry::new(), readiness);
        let all = "ok\npool api: no backend is ready\npool web: its backend is ready\n";
        for (path, text) in [
            ("/readyz", "ok\n"),
            ("/readyz?verbose", all),
            ("/healthz?verbose", all),
            ("/readyz?a=b&verbose=1", all),
            ("/readyz?verbosely", "ok\n"),
        ] {
            let response = respond(&endpoints, &Method::GET, path);
            assert_eq!((response.status().as_u16(), body(&response)), (200, text), "{path}");
        }
    }

    #[test]
    fn head_has_the_headers_of_get_and_no_body() {
        for path in ["/metrics", "/readyz", STATUS, "/nowhere"] {
            let get = respond(&endpoints(), &Method::GET, path);
            let head = respond(&endpoints(), &Method::HEAD, path);
            assert_eq!(head.status(), get.status());
            assert_eq!(head.headers(), get.headers());
            assert!(head.body().is_empty());
        }
    }

    #[test]
    fn a_request_with_a_body_is_rejected() {
        let endpoints = endpoints();
        for path in ["/metrics", "/nowhere"] {
            let response = endpoints.respond(&Method::GET, &Uri::from_static(path), true);
            assert_eq!(response.status(), 413);
        }
        let response = endpoints.respond(&Method::POST, &Uri::from_static("/metrics"), true);
        assert_eq!(response.status(), 405);
        assert_eq!(header(&response, "allow"), "GET, HEAD");
    }

    #[test]
    fn metrics_that_cannot_be_encoded_get_500() {
        let registry = Registry::new();
        registry.register(Box::new(untyped())).expect("registers");
        let endpoints = Endpoints::new(registry, Readiness::new(vec![]));
        let response = respond(&endpoints, &Method::GET, "/metrics");
        assert_eq!(response.status(), 500);
    }

    #[test]
    fn the_connection_closes_after_bodies_and_plain_http_1_0() {
        let request = |version, connection: Option<&str>| {
            let mut request = RequestHeader::build("GET", b"/metrics", None).expect("a request");
            request.set_version(version);
            if let Some(value) = connection {
                request.insert_header("connection", value).expect("a header");
            }
            request
        };
        assert!(!must_close(&request(Version::HTTP_11, None), false));
        assert!(must_close(&request(Version::HTTP_11, None), true));
        assert!(must_close(&request(Version::HTTP_10, None), false));
        let kept = request(Version::HTTP_10, Some("Keep-Alive"));
        assert!(!must_close(&kept, false));
    }

    /// The real service on a loopback port.
    struct Running {
        address: SocketAddr,
        shutdown: watch::Sender<bool>,
        task: JoinHandle<()>,
    }

    impl Running {
        /// The socket listens before the service runs, so there is nothing to wait for.
        fn start(endpoints: Endpoints) -> Self {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
            listener.set_nonblocking(true).expect("a socket");
            let address = listener.local_addr().expect("a socket");

            let mut fds = Fds::new();
            fds.add(address.to_string(), listener.into_raw_fd());
            let fds = ListenFds::new(fds.into());
            let mut service = service(endpoints, "metrics");
            service.add_tcp(&address.to_string());

            let (shutdown, watch) = watch::channel(false);
            let task = tokio::spawn(async move { service.start_service(Some(fds), watch, 1).await });
            Running { address, shutdown, task }
        }

        async fn stop(self) {
            self.shutdown.send(true).expect("the service runs");
            let ended = tokio::time::timeout(DEADLINE, self.task).await;
            ended.expect("in time").expect("without a panic");
        }

        /// All bytes that come back until the server closes.
        async fn exchange(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.expect("connects");
            stream.write_all(request.as_bytes()).await.expect("writes");
            let mut response = String::new();
            tokio::time::timeout(DEADLINE, stream.read_to_string(&mut response))
                .await
                .expect("the server closes the connection")
                .expect("reads");
            response
        }
    }

    /// Status line and headers in lower case, and the body.
    fn split(response: &str) -> (String, &str) {
        let (head, body) = response.split_once("\r\n\r\n").expect("a whole head");
        (head.to_ascii_lowercase() + "\r\n", body)
    }

    fn content_length(head: &str) -> usize {
        assert!(!head.contains("transfer-encoding"), "{head}");
        let value = head.split("content-length: ").nth(1).expect("a length");
        let (value, _) = value.split_once("\r\n").expect("a line");
        value.parse().expect("a number")
    }

    #[tokio::test]
    async fn over_a_real_socket() {
        let server = Running::start(endpoints());
        let close = "Host: x\r\nConnection: close\r\n\r\n";

        for (request, status) in [
            (format!("GET /livez HTTP/1.1\r\n{close}"), 200),
            (format!("GET /metrics?a=/b HTTP/1.1\r\n{close}"), 200),
            (format!("GET http://x/metrics HTTP/1.1\r\n{close}"), 200),
            ("GET /metrics HTTP/1.0\r\n\r\n".to_owned(), 200),
            (format!("GET /nowhere HTTP/1.1\r\n{close}"), 404),
            (format!("DELETE /metrics HTTP/1.1\r\n{close}"), 405),
        ] {
            let response = server.exchange(&request).await;
            let (head, body) = split(&response);
            assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
            assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
            assert_eq!(content_length(&head), body.len());
            assert_eq!(head.contains("\r\nallow: get, head\r\n"), status == 405);
        }
        server.stop().await;
    }

    #[tokio::test]
    async fn an_announced_body_is_rejected_unread_and_ends_the_connection() {
        let server = Running::start(endpoints());
        // The bodies never come: the response shows that the server does not wait for them.
        for announcement in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
            for (method, status) in [("GET", 413), ("HEAD", 413), ("POST", 405)] {
                let request = format!("{method} /metrics HTTP/1.1\r\nHost: x\r\n{announcement}\r\n\r\n");
                let response = server.exchange(&request).await;
                let (head, _) = split(&response);
                assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
                assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
            }
        }
        let empty = "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert!(server.exchange(empty).await.starts_with("HTTP/1.1 200 "));
        server.stop().await;
    }

    #[tokio::test]
    async fn head_sends_no_body_and_the_connection_goes_on() {
        let server = Running::start(endpoints());
        let mut stream = TcpStream::connect(server.address).await.expect("connects");
        let mut next = async |method: &str, with_body: bool| {
            let request = format!("{method} /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("writes");
            let read = read_response(&mut stream, with_body);
            tokio::time::timeout(DEADLINE, read).await.expect("in time")
        };
        let (head_of_head, body_of_head) = next("HEAD", false).await;
        let (head_of_get, body_of_get) = next("GET", true).await;
        assert_eq!(content_length(&head_of_head), body_of_get.len());
        assert_eq!(content_length(&head_of_get), body_of_get.len());
        assert!(head_of_head.contains("\r\nconnection: keep-alive\r\n"));
        assert_eq!(body_of_head, "");
        assert!(body_of_get.starts_with("# HELP "));
        drop(stream);
        server.stop().await;
    }

    /// Reads just one response, so that a body after HEAD would stand before the next one.
    async fn read_response(stream: &mut TcpStream, with_body: bool) -> (String, String) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a byte"));
        }
        let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        let mut body = vec![0; if with_body { content_length(&head) } else { 0 }];
        stream.read_exact(&mut body).await.expect("the body");
        (head, String::from_utf8(body).expect("text"))
    }
}
