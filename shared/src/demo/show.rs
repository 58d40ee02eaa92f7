//! The output of the demo, and the checks of `demo --once`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use lb_service::pool::Pool;
use metrics_service::Readiness;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::time::{Instant, interval, timeout};

use super::{Demo, load};

/// The number of requests per second that the demo sends.
const RATE: u32 = 20;
/// The schedule: after `FIRST` seconds, one backend is broken for `BROKEN_FOR` seconds of each `PERIOD`.
const PERIOD: u64 = 15;
const FIRST: u64 = 5;
const BROKEN_FOR: u64 = 6;

/// Shows traffic line by line until the process ends; a Pingora background service.
pub(crate) struct Show {
    demo: Arc<Demo>,
    pool: Arc<Pool>,
    readiness: Readiness,
}

/// Checks that every backend is used and that a broken one is skipped, then ends the process.
pub(crate) struct Once {
    show: Show,
    outcome: Arc<Outcome>,
}

/// The result of `demo --once`.
#[derive(Debug, Default)]
pub(crate) struct Outcome(AtomicBool);

/// The line of the demo's output about one second.
struct Second {
    at: u64,
    sent: u32,
    failed: u32,
    responses: Vec<u64>,
}

/// Returns the backend that is broken in this second, if any.
fn broken_at(second: u64, backends: usize) -> Option<usize> {
    let since = second.checked_sub(FIRST)?;
    let turn = usize::try_from(since / PERIOD).ok()?;
    (since % PERIOD < BROKEN_FOR).then(|| turn % backends)
}

// === impl Show ===

impl Show {
    /// Creates the display of the demo's traffic through `pool`.
    pub(crate) fn new(demo: Arc<Demo>, pool: Arc<Pool>, readiness: Readiness) -> Self {
        Self { demo, pool, readiness }
    }

    async fn ready(&self) {
        let mut pace = interval(Duration::from_millis(20));
        // Readiness cannot be used here, because the demo in the background is never ready.
        while !self.readiness.is_listening() {
            pace.tick().await;
        }
    }

    fn header(&self) -> String {
        let Demo { proxy, metrics, .. } = &*self.demo;
        let names: String = self.demo.origins.iter().map(|origin| format!("{:>12}", origin.name())).collect();
        format!(
            "load_balancer {version} demo: Ctrl-C stops everything\n\n\
             \x20 proxy     http://{proxy}/               try: curl -i http://{proxy}/\n\
             \x20 metrics   http://{metrics}/metrics\n\
             \x20 status    http://{metrics}/api/v1/status\n\
             \x20 your own  load_balancer proxy --to 10.0.0.1:8080 --to 10.0.0.2:8080\n\n\
             {PER_SECOND} requests a second go to three backends. One of them breaks from time to time: its health check\n\
             fails, the others take over, and no request fails. Your own requests are shown as log lines.\n\n\
             {seconds:>8} {requests:>9} {failed:>7}{names}",
            version = env!("CARGO_PKG_VERSION"),
            PER_SECOND = RATE,
            seconds = "second",
            requests = "requests",
            failed = "failed",
        )
    }

    /// Returns the number of responses of each backend so far, in the order of the demo's origins.
    fn responses(&self) -> Vec<u64> {
        let count = |address: SocketAddr| {
            self.pool
                .backend(&address.into())
                .map_or(0, |b| b.history.responses.counted().map(|(_, n)| n).sum())
        };
        self.demo.origins.iter().map(|origin| count(origin.address())).collect()
    }

    fn is_ready(&self, origin: usize) -> bool {
        let backends = self.pool.balancer.backends();
        let address = self.demo.origins[origin].address();
        backends.get_backend().iter().any(|b| b.addr.as_inet() == Some(&address) && backends.ready(b))
    }

    async fn second(&self, at: u64) -> Second {
        let before = self.responses();
        let mut pace = interval(Duration::from_secs(1) / RATE);
        let mut failed = 0;
        for _ in 0..RATE {
            pace.tick().await;
            failed += u32::from(!load::request(self.demo.traffic).await);
        }
        let responses = self.responses().iter().zip(&before).map(|(now, then)| now - then).collect();
        Second { at, sent: RATE, failed, responses }
    }

    fn line(&self, second: &Second) -> String {
        let mut line = format!("{:>8} {:>9} {:>7}", second.at, second.sent, second.failed);
        for (origin, responses) in second.responses.iter().enumerate() {
            let state = if self.is_ready(origin) { "" } else { " down" };
            let _ = write!(line, "{:>12}", format!("{responses}{state}"));
        }
        line
    }

    fn break_one(&self, second: u64) {
        let broken = broken_at(second, self.demo.origins.len());
        for (index, origin) in self.demo.origins.iter().enumerate() {
            let shall = broken == Some(index);
            if origin.is_broken() != shall {
                say(&format!("          {} {}", origin.name(), if shall { "breaks" } else { "is repaired" }));
                origin.set_broken(shall);
            }
        }
    }
}

#[async_trait]
impl BackgroundService for Show {
    async fn start(&self, _shutdown: ShutdownWatch) {
        self.ready().await;
        let mut is_read = say(&self.header());
        for second in 1.. {
            if !is_read {
                // The reader of the output has closed it, as in `demo | head`.
                return end();
            }
            self.break_one(second);
            let seen = self.second(second).await;
            is_read = say(&self.line(&seen));
        }
    }
}

// === impl Once ===

impl Once {
    /// Creates the check, and a handle to its outcome for the time after the process has ended.
    pub(crate) fn new(show: Show) -> (Self, Arc<Outcome>) {
        let outcome = Arc::new(Outcome::default());
        (Self { show, outcome: outcome.clone() }, outcome)
    }

    async fn check(&self) -> Result<(), String> {
        self.show.ready().await;
        let before = self.show.responses();
        let all = self.send(RATE).await?;
        let unused = before.iter().zip(&all).any(|(before, after)| before == after);
        ensure(!unused, || format!("not every backend was used: {all:?}"))?;
        say(&format!("demo: {RATE} requests succeeded, spread over all backends: {all:?}"));

        let origin = &self.show.demo.origins[0];
        origin.set_broken(true);
        let down = Instant::now();
        self.until("the broken backend is skipped", || !self.show.is_ready(0)).await?;
        let left_out = down.elapsed();
        let before = self.show.responses()[0];
        let after = self.send(RATE).await?[0];
        ensure(before == after, || format!("the broken backend was used: {before} responses, then {after}"))?;
        say(&format!(
            "demo: {} broke, was skipped after {left_out:.1?}, and no request failed",
            origin.name()
        ));

        origin.set_broken(false);
        self.until("the repaired backend is ready", || self.show.is_ready(0)).await?;
        ensure(self.send(RATE).await?[0] > after, || "the repaired backend is not used".into())?;
        say(&format!("demo: {} was repaired and is used again", origin.name()));
        Ok(())
    }

    /// Sends requests, all of which must succeed, and returns the number of responses of each backend so far.
    async fn send(&self, requests: u32) -> Result<Vec<u64>, String> {
        for request in 1..=requests {
            ensure(load::request(self.show.demo.traffic).await, || format!("request {request} failed"))?;
        }
        Ok(self.show.responses())
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) -> Result<(), String> {
        let mut pace = interval(Duration::from_millis(20));
        let held = timeout(Duration::from_secs(10), async {
            while !condition() {
                pace.tick().await;
            }
        });
        held.await.map_err(|_| format!("timed out after 10 s waiting until {what}"))
    }
}

#[async_trait]
impl BackgroundService for Once {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let checked = self.check().await;
        self.outcome.0.store(checked.is_ok(), Ordering::Release);
        say(&checked.map_or_else(|problem| format!("demo: failed: {problem}"), |()| "demo: ok".into()));
        end();
    }
}

/// Ends the process like any daemon: with SIGTERM, through the drain.
fn end() {
    if let Err(error) = nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM) {
        log::error!("demo: cannot end: {error}");
    }
}

// === impl Outcome ===

impl Outcome {
    /// Returns whether all checks passed.
    pub(crate) fn passed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Writes a line to standard output and returns whether the output is still open. Other failures, such as a full disk,
/// do not end the demo.
fn say(line: &str) -> bool {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    !written.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_break_in_turn_and_are_repaired_in_between() {
        assert_eq!(broken_at(1, 3), None);
        assert_eq!(broken_at(FIRST, 3), Some(0));
        assert_eq!(broken_at(FIRST + BROKEN_FOR, 3), None);
        assert_eq!(broken_at(FIRST + PERIOD, 3), Some(1));
        assert_eq!(broken_at(FIRST + 3 * PERIOD, 3), Some(0));
    }
}
