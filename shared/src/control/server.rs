//! The service on the control socket.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use nix::unistd::Uid;
use pingora::apps::ServerApp;
use pingora::apps::http_app::{HttpServer, ServeHttp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use serde::Serialize;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Operations;
use super::api::{self, Call, Unclear};
use crate::operator::Verdict;

/// Answers on the control socket until it is told to close; what has been asked by then is answered.
pub struct ControlService {
    socket: Mutex<Option<OwnedFd>>,
    app: Arc<HttpServer<Control>>,
    closes: watch::Receiver<bool>,
}

/// From a request to its answer.
struct Control {
    operations: Arc<dyn Operations>,
    closes: watch::Receiver<bool>,
}

/// An answer before it is sent.
struct Answer {
    status: StatusCode,
    body: String,
    allow: Option<&'static str>,
}

/// More bytes of a body are not read.
const MAX_BODY: usize = 64 * 1024;
/// How long a request may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);
/// So many requests at a time.
const MAX_CONNECTIONS: usize = 64;
/// How long nobody is accepted when the system is out of something.
const PAUSE: Duration = Duration::from_millis(100);

// === impl ControlService ===

impl ControlService {
    /// A service that listens on `socket` until `closes` turns true.
    pub fn new(socket: OwnedFd, operations: Arc<dyn Operations>, closes: watch::Receiver<bool>) -> Self {
        let app = Arc::new(HttpServer::new_app(Control { operations, closes: closes.clone() }));
        Self { socket: Mutex::new(Some(socket)), app, closes }
    }

    async fn run(&self, shutdown: &ShutdownWatch) -> io::Result<()> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(socket) = socket else { return Ok(()) };
        let listener = StdListener::from(socket);
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (mut closes, mut requests) = (self.closes.clone(), JoinSet::new());
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = tokio::select! {
                biased;
                _ = closes.wait_for(|closes| *closes) => break,
                Some(_) = requests.join_next() => continue,
                place = places.clone().acquire_owned() => place,
            };
            let accepted = tokio::select! {
                biased;
                _ = closes.wait_for(|closes| *closes) => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (app, shutdown) = (self.app.clone(), shutdown.clone());
                    requests.spawn(async move {
                        let _place = place;
                        serve(&app, stream, &shutdown).await;
                    });
                }
                Err(error) => {
                    log::warn!("control: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(listener);
        while requests.join_next().await.is_some() {}
        Ok(())
    }
}

#[async_trait]
impl BackgroundService for ControlService {
    async fn start(&self, shutdown: ShutdownWatch) {
        if let Err(error) = self.run(&shutdown).await {
            log::error!("control: {error}");
        }
    }
}

/// One request of who may make one.
async fn serve(app: &Arc<HttpServer<Control>>, stream: UnixStream, shutdown: &ShutdownWatch) {
    match stream.peer_cred() {
        Ok(peer) if is_trusted(peer.uid()) => {
            let stream = Box::new(L4Stream::from(stream));
            app.process_new(stream, shutdown).await;
        }
        Ok(peer) => log::warn!("control: uid {} is turned away", peer.uid()),
        Err(error) => log::warn!("control: nobody knows who asks: {error}"),
    }
}

/// The modes of the socket and of its directory keep others away already; a process that was given the socket has neither.
fn is_trusted(peer: u32) -> bool {
    let peer = Uid::from_raw(peer);
    peer.is_root() || peer == Uid::effective()
}

// === impl Control ===

impl Control {
    async fn answer(&self, session: &mut ServerSession) -> Answer {
        let body = match timeout(ARRIVAL, read_body(session)).await {
            Ok(Ok(Some(body))) => body,
            Ok(Ok(None)) => {
                return Answer::problem(StatusCode::PAYLOAD_TOO_LARGE, "a body has at most 64 KiB");
            }
            Ok(Err(_)) | Err(_) => {
                return Answer::problem(StatusCode::REQUEST_TIMEOUT, "the body did not arrive");
            }
        };
        let request = session.req_header();
        let (path, query) = (request.uri.path(), request.uri.query().unwrap_or_default());
        match api::parse(request.method.as_str(), path, query, &body) {
            Ok(call) => self.carry_out(call).await,
            Err(unclear) => Answer::unclear(unclear),
        }
    }

    /// Nobody is kept waiting by a process that is replaced; its successor counts anew, so each says who it is.
    async fn events(&self, after: u64, wait: Duration) -> Answer {
        let events = self.operations.events();
        let mut closes = self.closes.clone();
        let told = tokio::select! {
            told = events.wait_after(after, wait) => told,
            _ = closes.wait_for(|closes| *closes) => events.after(after),
        };
        Answer::json(&json!({"process": std::process::id(), "events": told}))
    }

    async fn carry_out(&self, call: Call) -> Answer {
        let operations = &self.operations;
        match call {
            Call::Status => Answer::ok(operations.status()),
            Call::Events { after, wait } => self.events(after, wait).await,
            Call::Explain { query, as_text: false } => {
                operations.explain(&query).map_or_else(|problem| Answer::bad(&problem), Answer::ok)
            }
            Call::Explain { query, as_text: true } => match operations.explain_text(&query) {
                Ok(text) => Answer::json(&json!({"text": text})),
                Err(problem) => Answer::bad(&problem),
            },
            Call::ExplainToken => Answer::json(&json!({"token": operations.explain_token()})),
            Call::LogLevel(filter) => match operations.log_level(filter.as_deref()) {
                Ok(filter) => Answer::json(&json!({"filter": filter})),
                Err(problem) => Answer::bad(&problem),
            },
            Call::Reload(reload) => Answer::verdict(&operations.reload(reload).await),
            Call::Order(order) => Answer::verdict(&operations.order(order).await),
            Call::Upgrade => match operations.upgrade().await {
                Ok(pid) => Answer::json(&json!({"pid": pid})),
                Err(problem) => Answer::problem(StatusCode::CONFLICT, &problem),
            },
            Call::Idle { pool, backend, wait } => {
                match timeout(wait, operations.idle(&pool, backend)).await {
                    Ok(Ok(())) => Answer::json(&json!({"idle": true})),
                    Ok(Err(problem)) => Answer::problem(StatusCode::NOT_FOUND, &problem),
                    Err(_) => Answer::problem(
                        StatusCode::REQUEST_TIMEOUT,
                        &format!("it still works on requests after {wait:?}"),
                    ),
                }
            }
        }
    }
}

/// None: it is too long.
async fn read_body(session: &mut ServerSession) -> pingora::Result<Option<BytesMut>> {
    let mut body = BytesMut::new();
    while let Some(bytes) = session.read_request_body().await? {
        if body.len() + bytes.len() > MAX_BODY {
            return Ok(None);
        }
        body.extend_from_slice(&bytes);
    }
    Ok(Some(body))
}

#[async_trait]
impl ServeHttp for Control {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        session.set_write_timeout(Some(ARRIVAL));
        session.set_keepalive(None);
        let Answer { status, body, allow } = self.answer(session).await;
        let mut response = Response::new(body.into_bytes());
        *response.status_mut() = status;
        let length = response.body().len();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        if let Some(allow) = allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

// === impl Answer ===

impl Answer {
    fn ok(body: String) -> Self {
        Self { status: StatusCode::OK, body, allow: None }
    }

    fn json(value: &impl Serialize) -> Self {
        let body = serde_json::to_string_pretty(value).expect("texts, numbers and lists are JSON");
        Self::ok(body + "\n")
    }

    fn verdict(verdict: &Verdict) -> Self {
        let status = if verdict.is_good() { StatusCode::OK } else { StatusCode::CONFLICT };
        Self { status, ..Self::json(verdict) }
    }

    fn problem(status: StatusCode, problem: &str) -> Self {
        Self { status, ..Self::json(&json!({"problem": problem})) }
    }

    fn bad(problem: &str) -> Self {
        Self::problem(StatusCode::BAD_REQUEST, problem)
    }

    fn unclear(unclear: Unclear) -> Self {
        match unclear {
            Unclear::NotFound => Self::problem(StatusCode::NOT_FOUND, "there is nothing at this path"),
            Unclear::Method(allow) => {
                let answer =
                    Self::problem(StatusCode::METHOD_NOT_ALLOWED, &format!("this path takes {allow}"));
                Self { allow: Some(allow), ..answer }
            }
            Unclear::Bad(problem) => Self::bad(&problem),
        }
    }
}
