//! Constant load on a daemon, during which every failed request is counted.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::{Connection, Failure, Response};

/// The number of errors whose text is kept.
const KEPT_ERRORS: usize = 5;

/// The pause after each request, which leaves CPU time to other tests.
const PAUSE: Duration = Duration::from_millis(2);

/// Threads that send requests until they are stopped.
pub struct LoadGenerator {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// The counts of a load.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Requests with a response of 200.
    pub ok: u64,
    /// Requests that were refused, cut off, or had another status.
    pub failed: u64,
    /// Keep-alive connections that were closed while idle and that the client replaced.
    pub reconnects: u64,
    /// Keep-alive connections that the daemon closed after it had announced it in a response.
    pub announced_closes: u64,
    /// The first few failures.
    pub errors: Vec<String>,
}

/// The outcome of one request of a [`burst`].
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The complete response, or the error.
    pub response: Result<Response, String>,
    /// The time from the request to the end of the response.
    pub took: Duration,
}

struct Shared {
    address: SocketAddr,
    stop: AtomicBool,
    ok: AtomicU64,
    failed: AtomicU64,
    reconnects: AtomicU64,
    announced_closes: AtomicU64,
    errors: Mutex<Vec<String>>,
}

/// Sends `each` requests without a body from each of `clients` clients in parallel, and waits for all responses.
///
/// A client sends no request twice. After a failure it continues with the next request. It reuses its connection while
/// it is open.
///
/// # Panics
///
/// Panics if a client thread panics.
pub fn burst(address: SocketAddr, method: &'static str, clients: usize, each: usize) -> Vec<Outcome> {
    let client = move || {
        let mut connection = None;
        (0..each).map(|_| one(address, method, &mut connection)).collect::<Vec<_>>()
    };
    let clients: Vec<_> = (0..clients).map(|_| thread::spawn(client)).collect();
    clients.into_iter().flat_map(|client| client.join().expect("a client does not panic")).collect()
}

fn one(address: SocketAddr, method: &str, connection: &mut Option<Connection>) -> Outcome {
    let began = Instant::now();
    let open = connection.take().map_or_else(|| Connection::open(address), Ok);
    let response = open.and_then(|mut open| {
        let response = open.request(method, "/burst", &[], b"")?;
        *connection = Some(open).filter(|_| !response.closes());
        Ok(response)
    });
    Outcome { response: response.map_err(|error| error.to_string()), took: began.elapsed() }
}

// ===== impl Outcome =====

impl Outcome {
    /// Returns the status of the response, or 0 if there is none.
    pub fn status(&self) -> u16 {
        self.response.as_ref().map_or(0, |response| response.status)
    }
}

// ===== impl LoadGenerator =====

impl LoadGenerator {
    /// Starts `keep_alive` threads that reuse their connection and `fresh` threads that open one per request.
    pub fn start(address: SocketAddr, keep_alive: usize, fresh: usize) -> Self {
        let shared = Arc::new(Shared::new(address));
        let reusing = (0..keep_alive).map(|_| Arc::clone(&shared)).map(|s| thread::spawn(move || s.reuse()));
        let fresh =
            (0..fresh).map(|_| Arc::clone(&shared)).map(|s| thread::spawn(move || s.connect_each_time()));
        let threads = reusing.chain(fresh).collect();
        Self { shared, threads }
    }

    /// Returns the counts so far.
    pub fn report(&self) -> Report {
        let shared = &self.shared;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Report {
            ok: count(&shared.ok),
            failed: count(&shared.failed),
            reconnects: count(&shared.reconnects),
            announced_closes: count(&shared.announced_closes),
            errors: shared.errors.lock().expect("no thread panics while it holds the lock").clone(),
        }
    }

    /// Waits until every thread has finished its request, and returns the final counts.
    pub fn stop(mut self) -> Report {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a load thread counts its failures and does not panic");
        }
    }
}

impl Drop for LoadGenerator {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn new(address: SocketAddr) -> Self {
        let counter = || AtomicU64::new(0);
        Self {
            address,
            stop: AtomicBool::new(false),
            ok: counter(),
            failed: counter(),
            reconnects: counter(),
            announced_closes: counter(),
            errors: Mutex::default(),
        }
    }

    fn reuse(&self) {
        let mut idle = None;
        while !self.stop.load(Ordering::Relaxed) {
            idle = self.reuse_once(idle.take());
            thread::sleep(PAUSE);
        }
    }

    /// Sends one request, on the idle connection if there is one. Returns the connection if it can be reused.
    fn reuse_once(&self, idle: Option<Connection>) -> Option<Connection> {
        let mut outcome = Err(Failure::Closed);
        let mut connection = None;
        if let Some(mut reused) = idle {
            outcome = reused.get("/reused");
            connection = Some(reused);
            if matches!(outcome, Err(Failure::Closed)) {
                self.reconnects.fetch_add(1, Ordering::Relaxed);
                connection = None;
            }
        }
        if connection.is_none() {
            let mut fresh = self.open()?;
            outcome = fresh.get("/first");
            connection = Some(fresh);
        }
        let closes = self.count(&outcome);
        connection.filter(|_| !closes)
    }

    fn connect_each_time(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(mut connection) = self.open() {
                self.count(&connection.request("GET", "/fresh", &[("Connection", "close")], b""));
            }
            thread::sleep(PAUSE);
        }
    }

    fn open(&self) -> Option<Connection> {
        Connection::open(self.address).map_err(|error| self.fail(error.to_string())).ok()
    }

    /// Counts an outcome. Returns whether the connection must be dropped.
    fn count(&self, outcome: &Result<Response, Failure>) -> bool {
        match outcome {
            Ok(response) if response.status == 200 => {
                self.ok.fetch_add(1, Ordering::Relaxed);
                let closes = response.closes();
                self.announced_closes.fetch_add(u64::from(closes), Ordering::Relaxed);
                closes
            }
            Ok(response) => {
                self.fail(format!("response {} {}", response.head.start, response.text()));
                true
            }
            Err(error) => {
                self.fail(error.to_string());
                true
            }
        }
    }

    fn fail(&self, error: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut errors = self.errors.lock().expect("no thread panics while it holds the lock");
        if errors.len() < KEPT_ERRORS {
            errors.push(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{LONG, until};
    use crate::{Behaviour, CannedResponse, Origin};

    #[test]
    fn a_connection_closed_while_idle_is_not_a_failure() {
        let origin = Origin::start("one");
        let load = LoadGenerator::start(origin.address, 1, 0);
        until(LONG, "requests succeed", || load.report().ok > 10);
        origin.cut_connections();
        until(LONG, "the client has reconnected", || load.report().reconnects > 0);
        load.stop();
    }

    #[test]
    fn refused_connections_and_other_statuses_are_failures() {
        let mut origin = Origin::start("one");
        let load = LoadGenerator::start(origin.address, 1, 1);
        origin.behave(Behaviour::Respond(CannedResponse::status(503, "busy")));
        until(LONG, "responses with 503 are counted", || load.report().failed > 2);
        origin.refuse();
        let before = load.report().failed;
        until(LONG, "refused connections are counted", || load.report().failed > before + 2);
        assert!(load.stop().errors[0].contains("503"));
    }

    #[test]
    fn a_burst_returns_the_outcome_of_each_request() {
        let origin = Origin::start("one");
        assert!(burst(origin.address, "GET", 3, 4).iter().all(|outcome| outcome.status() == 200));
        assert_eq!((origin.requests(), origin.connections()), (12, 3));
        origin.behave(Behaviour::ResetOnRequest);
        assert!(burst(origin.address, "POST", 2, 2).iter().all(|outcome| outcome.status() == 0));
        assert_eq!((origin.requests(), origin.connections()), (16, 7));
    }

    #[test]
    fn announced_closes_are_counted_separately() {
        let origin = Origin::start("one");
        origin.behave(Behaviour::Respond(CannedResponse::ok("").with("Connection", "close")));
        let load = LoadGenerator::start(origin.address, 1, 0);
        until(LONG, "closes are counted", || load.report().announced_closes > 2);
        let report = load.stop();
        assert_eq!(report.reconnects, 0, "{report:?}");
    }
}
