//! The service on the control socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use pingora::ErrorType;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::api::{self, Call, Unclear};
use super::bodies::{EventList, ExplainToken, ExplainedText, Failure, Filter, Idle, Predecessors, Upgraded};
use super::{Operations, is_trusted};
use crate::http_message::FILE_HEADER;
use crate::operator::ChangeResult;
use crate::process::files::reason;
use crate::process::lifecycle::Outcome;
use crate::process::sockets::SocketFile;

/// Service that serves the control socket until it must close. It completes the requests that have been accepted by
/// then.
pub(crate) struct ControlService {
    socket: Mutex<Option<OwnedFd>>,
    control: Arc<Control>,
    draining_socket: Option<DrainingSocket>,
}

/// Separate control socket of a process that has handed over the main one. It exists until the process has drained.
pub(crate) struct DrainingSocket {
    path: PathBuf,
    outcome: Outcome,
}

/// Handler of requests.
struct Control {
    operations: Arc<dyn Operations>,
    closes: watch::Receiver<bool>,
    /// The time limit for a request to arrive.
    arrival: Duration,
    /// The places for calls that only wait. They are separate, so that long waits do not lock out operators.
    waits: Semaphore,
    /// Notifies all requests that are being read when the last place is taken.
    crowded: Notify,
}

/// Response before it is sent.
struct Response {
    status: StatusCode,
    body: String,
    allow: Option<&'static str>,
}

/// Result of reading a request.
enum Arrival {
    /// The request is complete and has this body.
    Whole(BytesMut),
    /// The body is larger than `MAX_BODY`.
    TooLong,
    /// The connection closed without a request.
    Nothing,
    /// The request did not arrive in time.
    Late,
    /// The request is not valid HTTP, or it ends early.
    Broken(Box<pingora::Error>),
}

/// Maximum size of a body, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// Time limit for reading a request, and for writing its response.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Time limit for reading a request while `MAX_REQUESTS` connections are open.
const CROWDED: Duration = Duration::from_secs(1);
/// Maximum number of requests that are read or executed at a time.
const MAX_REQUESTS: usize = 64;
/// Maximum number of requests that only wait at a time.
const MAX_WAITS: usize = 512;
/// Pause after a failed `accept`, for example when file descriptors are exhausted.
const PAUSE: Duration = Duration::from_millis(100);

// === impl ControlService ===

impl ControlService {
    /// Returns a service that listens on `socket` until `closes` becomes true.
    pub(crate) fn new(
        socket: OwnedFd,
        operations: Arc<dyn Operations>,
        closes: watch::Receiver<bool>,
    ) -> Self {
        let control = Arc::new(Control::new(operations, closes, ARRIVAL));
        Self { socket: Mutex::new(Some(socket)), control, draining_socket: None }
    }

    /// Adds a separate socket, which the service uses after a new process has taken over the main one.
    #[must_use]
    pub(crate) fn with_draining_socket(self, draining_socket: DrainingSocket) -> Self {
        Self { draining_socket: Some(draining_socket), ..self }
    }

    async fn run(&self) -> io::Result<()> {
        let socket = self.socket.lock().take();
        let Some(socket) = socket else { return Ok(()) };
        let mut requests = JoinSet::new();
        accept(StdListener::from(socket), &self.control, &mut requests).await?;
        // The file is removed with `_file` at the end of the process.
        if let Some((listener, _file)) = self.draining_socket.as_ref().and_then(DrainingSocket::open) {
            let (_never, closes) = watch::channel(false);
            let Control { operations, arrival, .. } = &*self.control;
            let control = Arc::new(Control::new(operations.clone(), closes, *arrival));
            accept(listener, &control, &mut requests).await?;
        }
        while requests.join_next().await.is_some() {}
        Ok(())
    }
}

/// Accepts connections until the service must close.
async fn accept(listener: StdListener, control: &Arc<Control>, requests: &mut JoinSet<()>) -> io::Result<()> {
    let mut closes = control.closes.clone();
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MAX_REQUESTS));
    loop {
        let place = tokio::select! {
            biased;
            _ = closes.wait_for(|closes| *closes) => break,
            Some(_) = requests.join_next() => continue,
            place = places.clone().acquire_owned() => place,
        };
        if places.available_permits() == 0 {
            control.crowded.notify_waiters();
        }
        let accepted = tokio::select! {
            biased;
            _ = closes.wait_for(|closes| *closes) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (control, place) = (control.clone(), place.expect("the semaphore is never closed"));
                requests.spawn(async move { control.serve(stream, place).await });
            }
            Err(error) => {
                log::warn!("control: cannot accept a connection: {}", reason(&error));
                sleep(PAUSE).await;
            }
        }
    }
    Ok(())
}

impl DrainingSocket {
    /// Returns a socket that is opened at `path` after the process has handed over according to `outcome`.
    pub(crate) fn new(path: PathBuf, outcome: Outcome) -> Self {
        Self { path, outcome }
    }

    fn open(&self) -> Option<(StdListener, SocketFile)> {
        if !self.outcome.is_handed_over() {
            return None;
        }
        let opened = SocketFile::listen(&self.path);
        opened
            .inspect_err(|error| {
                log::warn!("control: cannot open the socket of the draining process: {error}");
            })
            .ok()
    }
}

#[async_trait]
impl BackgroundService for ControlService {
    async fn start(&self, _shutdown: ShutdownWatch) {
        if let Err(error) = self.run().await {
            log::error!("control: cannot serve the control socket: {}", reason(&error));
        }
    }
}

// === impl Control ===

impl Control {
    fn new(operations: Arc<dyn Operations>, closes: watch::Receiver<bool>, arrival: Duration) -> Self {
        Self { operations, closes, arrival, waits: Semaphore::new(MAX_WAITS), crowded: Notify::new() }
    }

    /// Serves one request if the peer is accepted.
    async fn serve(&self, stream: UnixStream, place: OwnedSemaphorePermit) {
        // The modes of the socket and of its directory already keep other users out, but a process that received an
        // open descriptor bypasses them.
        match stream.peer_cred() {
            Ok(peer) if is_trusted(peer.uid()) => {
                let connection = stream.as_fd().try_clone_to_owned();
                let session = ServerSession::new_http1(Box::new(L4Stream::from(stream)));
                if let Err(error) = self.exchange(session, connection, place).await {
                    // The client sees that there is no response, or has disconnected.
                    log::debug!("control: {error}");
                }
            }
            Ok(peer) => log::warn!("control: rejected a connection of UID {}", peer.uid()),
            Err(error) => {
                log::warn!("control: cannot read the peer's credentials: {}", reason(&error));
            }
        }
    }

    async fn exchange(
        &self,
        mut session: ServerSession,
        connection: io::Result<OwnedFd>,
        place: OwnedSemaphorePermit,
    ) -> pingora::Result<()> {
        session.set_write_timeout(Some(ARRIVAL));
        let arrived = tokio::select! {
            biased;
            arrived = arrival(&mut session) => arrived,
            () = self.overdue(&place) => Arrival::Late,
        };
        // The head of any other request might be missing.
        let is_head = matches!(arrived, Arrival::Whole(_)) && session.req_header().method == Method::HEAD;
        let response = match arrived {
            Arrival::Whole(body) => self.respond(&mut session, connection, &body, place).await,
            arrived => arrived.rejected(),
        };
        match response {
            Some(response) => response.send(session, is_head).await,
            None => Ok(()),
        }
    }

    /// Waits until a request must have arrived. The time limit is shorter while all places are taken, so that
    /// connections with incomplete requests do not lock out operators.
    async fn overdue(&self, place: &OwnedSemaphorePermit) {
        sleep(self.arrival.min(CROWDED)).await;
        let rest = self.arrival.saturating_sub(CROWDED);
        // Both results mean that the time is over.
        let _ = timeout(rest, self.all_taken(place.semaphore())).await;
    }

    async fn all_taken(&self, places: &Semaphore) {
        loop {
            // This must come before the check, or a notification between the two would be lost.
            let taken = self.crowded.notified();
            if places.available_permits() == 0 {
                return;
            }
            taken.await;
        }
    }

    /// Returns `None` if the client has disconnected, or receives its response at the end of the process.
    async fn respond(
        &self,
        session: &mut ServerSession,
        connection: io::Result<OwnedFd>,
        body: &[u8],
        place: OwnedSemaphorePermit,
    ) -> Option<Response> {
        let request = session.req_header();
        let wanted = request.headers.get(FILE_HEADER).map(|value| String::from_utf8_lossy(value.as_bytes()));
        if let Some(refusal) = wanted.and_then(|wanted| self.operations.refusal(&wanted)) {
            return Some(Response::problem(StatusCode::MISDIRECTED_REQUEST, &refusal));
        }
        let (path, query) = (request.uri.path(), request.uri.query().unwrap_or_default());
        match api::parse(request.method.as_str(), path, query, body) {
            Ok(call) if call.only_waits() => {
                drop(place);
                self.wait(session, call).await
            }
            Ok(Call::Stop { now }) => self.stop(now, connection),
            Ok(call) => Some(self.carry_out(call).await),
            Err(unclear) => Some(Response::unclear(unclear)),
        }
    }

    fn stop(&self, now: bool, connection: io::Result<OwnedFd>) -> Option<Response> {
        match connection {
            Ok(connection) => {
                self.operations.stop(now, connection);
                None
            }
            Err(error) => Some(Response::problem(StatusCode::SERVICE_UNAVAILABLE, &reason(&error))),
        }
    }

    async fn wait(&self, session: &mut ServerSession, call: Call) -> Option<Response> {
        let Ok(_place) = self.waits.try_acquire() else {
            let problem = format!("{MAX_WAITS} requests already wait, which is the limit");
            return Some(Response::problem(StatusCode::SERVICE_UNAVAILABLE, &problem));
        };
        tokio::select! {
            biased;
            response = self.carry_out(call) => Some(response),
            _ = session.read_body_or_idle(true) => None,
        }
    }

    /// Waits for events. The wait ends early when the process is replaced. Each process numbers its own events, so a
    /// number is valid only together with its process.
    async fn events(&self, after: u64, process: Option<u32>, wait: Duration) -> Response {
        let events = self.operations.events();
        let process = process.unwrap_or_else(|| events.process());
        let mut closes = self.closes.clone();
        let received = tokio::select! {
            received = events.wait_after(process, after, wait) => received,
            _ = closes.wait_for(|closes| *closes) => events.after(process, after),
        };
        Response::json(&EventList { process: events.process(), events: received })
    }

    async fn carry_out(&self, call: Call) -> Response {
        let operations = &self.operations;
        match call {
            Call::Status => Response::ok(operations.status()),
            Call::Predecessors => Response::json(&Predecessors { sockets: operations.predecessors() }),
            Call::Events { after, process, wait } => self.events(after, process, wait).await,
            Call::Explain { query, as_text: false } => {
                operations.explain(&query).map_or_else(|problem| Response::bad(&problem), Response::ok)
            }
            Call::Explain { query, as_text: true } => match operations.explain_text(&query) {
                Ok(text) => Response::json(&ExplainedText { text }),
                Err(problem) => Response::bad(&problem),
            },
            Call::ExplainToken => {
                Response::json(&ExplainToken { token: operations.explain_token().to_string() })
            }
            Call::LogLevel(filter) => match operations.log_level(filter.as_deref()).await {
                Ok(filter) => Response::json(&Filter { filter: filter.to_string() }),
                Err(problem) => Response::bad(&problem),
            },
            Call::Reload(reload) => Response::change_result(&operations.reload(reload).await),
            Call::Order(order) => Response::change_result(&operations.order(order).await),
            // `respond` handles this call.
            Call::Stop { .. } => Response::bad("a stop has no response before the end"),
            Call::Upgrade => match operations.upgrade().await {
                Ok(pid) => Response::json(&Upgraded { pid }),
                Err(problem) => Response::problem(StatusCode::CONFLICT, &problem),
            },
            Call::Idle { pool, backend, wait } => {
                match timeout(wait, operations.idle(&pool, &backend)).await {
                    Ok(Ok(())) => Response::json(&Idle { idle: true }),
                    Ok(Err(problem)) => Response::problem(StatusCode::NOT_FOUND, &problem),
                    Err(_) => Response::problem(
                        StatusCode::REQUEST_TIMEOUT,
                        &format!("the backend still has requests in flight after {wait:?}"),
                    ),
                }
            }
        }
    }
}

/// Reads a request.
async fn arrival(session: &mut ServerSession) -> Arrival {
    match session.read_request().await {
        Ok(true) => {}
        Ok(false) => return Arrival::Nothing,
        Err(error) => return Arrival::Broken(error),
    }
    let mut body = BytesMut::new();
    loop {
        match session.read_request_body().await {
            Ok(Some(bytes)) if body.len() + bytes.len() > MAX_BODY => return Arrival::TooLong,
            Ok(Some(bytes)) => body.extend_from_slice(&bytes),
            Ok(None) => return Arrival::Whole(body),
            Err(error) => return Arrival::Broken(error),
        }
    }
}

// === impl Arrival ===

impl Arrival {
    /// Returns the response to a request that has not arrived completely, and logs why. `None` means that there is
    /// nothing to respond to.
    fn rejected(self) -> Option<Response> {
        let (status, problem) = match self {
            Self::Whole(_) | Self::Nothing => return None,
            Self::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 64 KiB".to_owned()),
            Self::Late => (StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time".to_owned()),
            Self::Broken(error) => (StatusCode::BAD_REQUEST, not_http(&error)),
        };
        log::warn!("control: rejected a request: {problem}");
        Some(Response::problem(status, &problem))
    }
}

/// Returns the problem of a request that cannot be read. The error of Pingora also contains the bytes.
fn not_http(error: &pingora::Error) -> String {
    match error.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError => "the request is incomplete".to_owned(),
        _ => "the request is not valid HTTP/1.1".to_owned(),
    }
}

// === impl Response ===

impl Response {
    async fn send(self, mut session: ServerSession, is_head: bool) -> pingora::Result<()> {
        let Self { status, body, allow } = self;
        // This call must come late, because reading the request sets keep-alive as the client asks.
        session.set_keepalive(None);
        let mut head = ResponseHeader::build(status, Some(4))?;
        head.insert_header(CONTENT_TYPE, "application/json")?;
        head.insert_header(CONTENT_LENGTH, body.len())?;
        if let Some(allow) = allow {
            head.insert_header(ALLOW, allow)?;
        }
        session.write_response_header(Box::new(head)).await?;
        if !is_head {
            session.write_response_body(body.into(), true).await?;
        }
        session.finish().await.map(drop)
    }

    fn ok(body: String) -> Self {
        Self { status: StatusCode::OK, body, allow: None }
    }

    fn json(value: &impl Serialize) -> Self {
        let body = serde_json::to_string_pretty(value).expect("texts, numbers and lists are JSON");
        Self::ok(body + "\n")
    }

    fn change_result(change_result: &ChangeResult) -> Self {
        let status = if change_result.is_good() { StatusCode::OK } else { StatusCode::CONFLICT };
        Self { status, ..Self::json(change_result) }
    }

    fn problem(status: StatusCode, problem: &str) -> Self {
        Self { status, ..Self::json(&Failure { problem: problem.to_owned() }) }
    }

    fn bad(problem: &str) -> Self {
        Self::problem(StatusCode::BAD_REQUEST, problem)
    }

    fn unclear(unclear: Unclear) -> Self {
        match unclear {
            Unclear::NotFound => Self::problem(StatusCode::NOT_FOUND, "there is no such path"),
            Unclear::Method(allow) => {
                let response = Self::problem(
                    StatusCode::METHOD_NOT_ALLOWED,
                    &format!("this path supports only {allow}"),
                );
                Self { allow: Some(allow), ..response }
            }
            Unclear::Bad(problem) => Self::bad(&problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::PathBuf;

    use lb_service::pool::UpstreamAddress;
    use serde_json::{Value, json};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::events::{About, Events, Kind};
    use crate::operator::{self, Order, Reload};

    const DEADLINE: Duration = Duration::from_secs(9);
    const IDLE: &str = "GET /v1/pools/web/backends/10.0.0.1:80/idle";

    /// Operations in which changes wait for `through`, and no backend is ever idle.
    #[derive(Default)]
    struct Fake {
        events: Events,
        called: Notify,
        through: Notify,
        done: Notify,
    }

    #[async_trait]
    impl Operations for Fake {
        async fn reload(&self, _: Reload) -> ChangeResult {
            self.called.notify_one();
            self.through.notified().await;
            self.done.notify_one();
            ChangeResult { problem: "no such file".into(), ..ChangeResult::of(operator::Outcome::Refused, 1) }
        }

        async fn order(&self, order: Order) -> ChangeResult {
            let changes = vec![format!("{order:?}")];
            ChangeResult { changes, ..ChangeResult::of(operator::Outcome::Applied, 2) }
        }

        async fn idle(&self, pool: &str, _: &UpstreamAddress) -> Result<(), String> {
            if pool != "web" {
                return Err(format!("there is no pool {pool}"));
            }
            self.called.notify_one();
            std::future::pending().await
        }

        async fn upgrade(&self) -> Result<u32, String> {
            self.called.notify_one();
            self.through.notified().await;
            Ok(77)
        }

        fn stop(&self, now: bool, connection: OwnedFd) {
            let text = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\n{}",
                if now { "true" } else { "null" }
            );
            std::os::unix::net::UnixStream::from(connection).write_all(text.as_bytes()).unwrap();
        }

        fn status(&self) -> String {
            r#"{"state": "serving"}"#.into()
        }

        fn events(&self) -> &Events {
            &self.events
        }

        fn explain(&self, query: &str) -> Result<String, String> {
            Err(format!("what is {query}?"))
        }

        fn explain_text(&self, query: &str) -> Result<String, String> {
            Ok(query.into())
        }

        fn explain_token(&self) -> String {
            "secret".into()
        }

        async fn log_level(&self, filter: Option<&str>) -> Result<String, String> {
            Ok(filter.unwrap_or("info").into())
        }
    }

    /// Real service on a socket file.
    struct Running {
        fake: Arc<Fake>,
        control: Arc<Control>,
        socket: PathBuf,
        closing: watch::Sender<bool>,
        task: JoinHandle<()>,
        _directory: TempDir,
    }

    impl Running {
        fn start(arrival: Duration) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("control.sock");
            let listener = StdListener::bind(&socket).unwrap();
            let (closing, closes) = watch::channel(false);
            let fake = Arc::new(Fake::default());
            let mut service = ControlService::new(listener.into(), fake.clone(), closes.clone());
            let control = Arc::new(Control::new(fake.clone(), closes.clone(), arrival));
            service.control = control.clone();
            let task = tokio::spawn(async move { service.start(closes).await });
            Self { fake, control, socket, closing, task, _directory: directory }
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(&self.socket).await.unwrap()
        }

        async fn begin(&self, request: &str) -> UnixStream {
            let mut stream = self.connect().await;
            let text = format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            stream.write_all(text.as_bytes()).await.unwrap();
            stream
        }

        async fn send(&self, request: &str) -> (u16, Value) {
            read_response(self.begin(request).await).await
        }

        async fn ended(self) {
            timeout(DEADLINE, self.task).await.expect("the service ends").unwrap();
        }
    }

    /// Reads until the end of the connection, with a deadline. The end is a reset if the service has not read the whole
    /// request.
    async fn rest(mut stream: UnixStream) -> String {
        let mut text = Vec::new();
        let read = timeout(DEADLINE, stream.read_to_end(&mut text)).await.expect("an end");
        assert!(read.is_ok() || !text.is_empty(), "{read:?}");
        String::from_utf8(text).unwrap()
    }

    async fn read_response(stream: UnixStream) -> (u16, Value) {
        let text = rest(stream).await;
        let (head, body) = text.split_once("\r\n\r\n").expect(&text);
        assert!(head.to_lowercase().contains("connection: close"), "{head}");
        (head[9..12].parse().unwrap(), serde_json::from_str(body).expect(body))
    }

    #[tokio::test]
    async fn each_response_has_its_status() {
        let running = Running::start(ARRIVAL);
        assert_eq!(running.send("GET /v1/status").await, (200, json!({"state": "serving"})));
        let (status, change_result) = running.send("POST /v1/pools/web/backends/10.0.0.1:80/drain").await;
        assert_eq!((status, &change_result["result"]), (200, &json!("applied")));
        running.fake.through.notify_one();
        let (status, change_result) = running.send("POST /v1/reload").await;
        assert_eq!((status, &change_result["problem"]), (409, &json!("no such file")));
        running.fake.through.notify_one();
        assert_eq!(running.send("POST /v1/upgrade").await, (200, json!({"pid": 77})));
        assert_eq!(running.send("POST /v1/stop").await, (200, Value::Null));
        assert_eq!(running.send("GET /v1/log_level").await, (200, json!({"filter": "info"})));
        assert_eq!(running.send("GET /v1/explain?a").await, (400, json!({"problem": "what is a?"})));
        assert_eq!(running.send("GET /v1/explain/text?a").await, (200, json!({"text": "a"})));
        assert_eq!(running.send("GET /v1/explain/token").await, (200, json!({"token": "secret"})));
        assert_eq!(running.send("GET /v1/pools/api/backends/10.0.0.1:80/idle").await.0, 404);
        let (status, problem) = running.send(&format!("{IDLE}?wait=0.01")).await;
        assert_eq!(
            (status, &problem["problem"]),
            (408, &json!("the backend still has requests in flight after 10ms"))
        );
        assert_eq!(running.send("GET /").await.0, 404);
        let head = rest(running.begin("HEAD /v1/status").await).await;
        assert!(head.starts_with("HTTP/1.1 405 ") && head.to_lowercase().contains("allow: get"), "{head}");
        assert!(head.ends_with("\r\n\r\n"), "a response to HEAD has no body: {head}");
    }

    #[tokio::test]
    async fn waiting_requests_do_not_block_other_requests() {
        let running = Running::start(ARRIVAL);
        let mut waiting = Vec::new();
        for _ in 0..=MAX_REQUESTS {
            waiting.push(running.begin(IDLE).await);
            running.fake.called.notified().await;
        }
        assert_eq!(running.send("GET /v1/status").await.0, 200);
    }

    #[tokio::test]
    async fn a_waiting_client_that_disconnects_frees_its_place() {
        let running = Running::start(ARRIVAL);
        let places = || running.control.waits.available_permits();
        let waits = running.begin(IDLE).await;
        running.fake.called.notified().await;
        assert_eq!(places(), MAX_WAITS - 1);
        drop(waits);
        let all_free = async {
            while places() < MAX_WAITS {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, all_free).await.expect("the place is free");
    }

    #[tokio::test]
    async fn waiting_requests_above_the_limit_are_rejected() {
        let running = Running::start(ARRIVAL);
        let _all = running.control.waits.acquire_many(MAX_WAITS as u32).await.unwrap();
        assert_eq!(
            running.send(IDLE).await,
            (503, json!({"problem": "512 requests already wait, which is the limit"}))
        );
    }

    #[tokio::test]
    async fn a_request_waits_for_a_place_when_all_are_taken() {
        let running = Running::start(ARRIVAL);
        let mut silent = Vec::new();
        for _ in 0..MAX_REQUESTS {
            silent.push(running.connect().await);
        }
        let next = running.begin("GET /v1/status").await;
        drop(silent);
        assert_eq!(read_response(next).await.0, 200);
    }

    #[tokio::test]
    async fn incomplete_requests_do_not_keep_all_places() {
        let running = Running::start(Duration::from_secs(600));
        let mut halves = Vec::new();
        for _ in 0..MAX_REQUESTS + 6 {
            let mut half = running.connect().await;
            half.write_all(b"GET /v1").await.unwrap();
            halves.push(half);
        }
        assert_eq!(running.send("GET /v1/status").await.0, 200);
    }

    #[tokio::test]
    async fn silent_clients_and_incomplete_requests_time_out() {
        let running = Running::start(Duration::from_millis(50));
        let late = (408, json!({"problem": "the request did not arrive in time"}));
        assert_eq!(read_response(running.connect().await).await, late);
        let mut slow = running.connect().await;
        slow.write_all(b"POST /v1/reload HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{").await.unwrap();
        assert_eq!(read_response(slow).await, late);
    }

    #[tokio::test]
    async fn malformed_requests_get_a_response_with_the_problem() {
        let running = Running::start(ARRIVAL);
        let head = |fields: &str| format!("POST /v1/reload HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let long = format!("GET /v1/status HTTP/1.1\r\nX: {}", "x".repeat(2 << 20));
        let chunk = head("Transfer-Encoding: chunked\r\n") + "nonsense\r\n\r\n";
        let (invalid, incomplete) = ("the request is not valid HTTP/1.1", "the request is incomplete");
        for (request, status, problem) in [
            ("nonsense\r\n\r\n", 400, invalid),
            ("GET /v1/status HTTP/9.9\r\n\r\n", 400, invalid),
            (&long, 400, invalid),
            (&chunk, 400, invalid),
            ("GET /v1/sta", 400, incomplete),
            (&(head("Content-Length: 9\r\n") + "{"), 400, incomplete),
            (&head("Content-Length: 99999\r\n"), 413, "the body is larger than 64 KiB"),
        ] {
            let mut stream = running.connect().await;
            let more = if status == 413 { "x".repeat(70_000) } else { String::new() };
            // The service can respond before it has read everything.
            let _ = stream.write_all((request.to_owned() + &more).as_bytes()).await;
            let _ = stream.shutdown().await;
            assert_eq!(read_response(stream).await, (status, json!({"problem": problem})), "{request:.40}");
        }
    }

    #[tokio::test]
    async fn a_change_continues_after_its_client_has_disconnected() {
        let running = Running::start(ARRIVAL);
        let asking = running.begin("POST /v1/reload").await;
        running.fake.called.notified().await;
        drop(asking);
        assert_eq!(running.send("GET /v1/status").await.0, 200);
        running.fake.through.notify_one();
        timeout(DEADLINE, running.fake.done.notified()).await.expect("it is done");
    }

    #[tokio::test]
    async fn requests_received_before_the_end_get_responses() {
        let running = Running::start(ARRIVAL);
        let upgrading = running.begin("POST /v1/upgrade").await;
        running.fake.called.notified().await;
        let following = running.begin("GET /v1/events?wait=60").await;
        // This request is accepted after the previous one.
        running.send("GET /v1/status").await;
        running.closing.send_replace(true);
        assert_eq!(
            read_response(following).await,
            (200, json!({"process": std::process::id(), "events": []}))
        );
        while UnixStream::connect(&running.socket).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(!running.task.is_finished(), "the service waits for the upgrade");
        running.fake.through.notify_one();
        assert_eq!(read_response(upgrading).await, (200, json!({"pid": 77})));
        running.ended().await;
    }

    #[tokio::test]
    async fn event_numbers_of_another_process_are_ignored() {
        let running = Running::start(ARRIVAL);
        let own = std::process::id();
        running.fake.events.note(Kind::Process, About::default(), "serves");
        let count = |(status, document): (u16, Value)| {
            assert_eq!(status, 200);
            document["events"].as_array().unwrap().len()
        };
        assert_eq!(count(running.send("GET /v1/events").await), 1);
        assert_eq!(count(running.send(&format!("GET /v1/events?after=1&process={own}")).await), 0);
        assert_eq!(count(running.send("GET /v1/events?after=1").await), 0);
        let other = format!("GET /v1/events?after=1&process={}&wait=60", own + 1);
        assert_eq!(count(running.send(&other).await), 1);
    }
}
