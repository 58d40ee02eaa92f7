//! The well-behaved clients. They send requests at a fixed rate, and check every byte of every response.
//!
//! A ticker starts each request at its time, whether earlier requests have their responses or not. So a slow response
//! does not reduce the load, and the duration of a request includes the wait for its client.
//!
//! Some clients send the same requests to the origins directly. They are the control: what slows them down is not the
//! daemon.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use tests::client::head_bytes;
use tests::pattern::{self, Meter};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::origin::Origins;
use super::runtime;
use super::wire::Wire;
use crate::ledger::{Done, Kind, Ledger};
use crate::setup::WEB_HOST;

/// The requests per second, of which every third is sent to an origin directly.
pub(crate) const RATE: u32 = 450;
/// The number of clients of the daemon. Each keeps its connection.
pub(crate) const CLIENTS: usize = 200;
/// The number of clients that connect to the origins directly.
const DIRECT_CLIENTS: usize = 20;
/// The time after which a request without a response has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// The length of the body of a response, in bytes.
const DOWNLOAD: u64 = 1024;
/// The length of the body of a `POST`, in bytes.
const UPLOAD: usize = 4096;

/// The load. Dropping it ends the load.
pub(crate) struct Crowd {
    page: Arc<Mutex<Arc<Page>>>,
    _runtime: Runtime,
}

/// The record of one part of a run.
pub(crate) struct Page {
    /// The requests to the daemon.
    pub(crate) through: Ledger,
    /// The requests to the origins directly.
    pub(crate) direct: Ledger,
    /// The time from its beginning until the next page was begun.
    lasted: OnceLock<Duration>,
}

/// The destination of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Through,
    Direct,
}

/// A request that is due.
#[derive(Debug, Clone, Copy)]
struct Errand {
    kind: Kind,
    seed: u64,
    due: Instant,
}

/// A client, which sends one request after the other.
struct Client {
    way: Way,
    address: SocketAddr,
    page: Arc<Mutex<Arc<Page>>>,
    kept: Option<Wire>,
}

// ===== impl Crowd =====

impl Crowd {
    /// Starts the load.
    pub(crate) fn start(daemon: SocketAddr, origins: &Origins) -> Self {
        let (runtime, page) = (runtime("crowd"), Arc::new(Mutex::new(Arc::new(Page::new()))));
        let client = |way, address| {
            let (errands, due) = unbounded_channel();
            runtime.spawn(Client { way, address, page: Arc::clone(&page), kept: None }.work(due));
            errands
        };
        let through = (0..CLIENTS).map(|_| client(Way::Through, daemon)).collect();
        let addresses = origins.addresses.iter().cycle().take(DIRECT_CLIENTS);
        let direct = addresses.map(|address| client(Way::Direct, *address)).collect();
        runtime.spawn(tick(through, direct));
        Self { page, _runtime: runtime }
    }

    /// Begins a new page, and returns the one before.
    pub(crate) fn turn_page(&self) -> Arc<Page> {
        let page = std::mem::replace(&mut *lock(&self.page), Arc::new(Page::new()));
        page.lasted.get_or_init(|| page.through.now());
        page
    }
}

/// Starts each request at its time.
async fn tick(through: Vec<UnboundedSender<Errand>>, direct: Vec<UnboundedSender<Errand>>) {
    let mut ticks = interval(Duration::from_secs(1) / RATE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0_usize.. {
        ticks.tick().await;
        let (clients, turn) =
            if number % 3 == 2 { (&direct, number / 3) } else { (&through, number / 3 * 2 + number % 3) };
        let errand = Errand { kind: kind(turn), seed: turn as u64, due: Instant::now() };
        if clients[turn % clients.len()].send(errand).is_err() {
            return;
        }
    }
}

/// Returns the kind of a request: most use kept connections.
fn kind(turn: usize) -> Kind {
    match turn % 7 {
        0 => Kind::Fresh,
        1 => Kind::Post,
        _ => Kind::KeepAlive,
    }
}

// ===== impl Client =====

impl Client {
    async fn work(mut self, mut due: UnboundedReceiver<Errand>) {
        while let Some(errand) = due.recv().await {
            let outcome = timeout(LIMIT, self.perform(errand)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(format!("no response after {LIMIT:?}")));
            let page = Arc::clone(&lock(&self.page));
            let ledger = page.of(self.way);
            match outcome {
                Ok(bytes) => ledger.done(errand.kind, Done { began: errand.due, bytes }),
                Err(text) => {
                    self.kept = None;
                    ledger.failed(errand.kind, text);
                }
            }
        }
    }

    /// Sends a request, and returns the number of checked bytes.
    async fn perform(&mut self, errand: Errand) -> Result<u64, String> {
        let kept = if errand.kind == Kind::Fresh { None } else { self.kept.take() };
        let mut wire = match kept {
            Some(wire) => wire,
            None => self.connect().await.map_err(|error| format!("cannot connect: {error}"))?,
        };
        let checked = match errand.kind {
            Kind::Post => upload(&mut wire, errand.seed).await?,
            _ => download(&mut wire, errand.seed).await?,
        };
        if errand.kind != Kind::Fresh {
            self.kept = Some(wire);
        }
        Ok(checked)
    }

    async fn connect(&self) -> io::Result<Wire> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(Wire::new(stream))
    }
}

async fn download(wire: &mut Wire, seed: u64) -> Result<u64, String> {
    let request = head_bytes("GET", &format!("/pattern/{seed}/{DOWNLOAD}"), &[("Host", WEB_HOST)], 0);
    let mut meter = Meter::at(seed);
    exchange(wire, &request, |bytes| meter.feed(bytes)).await?;
    let is_right = meter.is_pattern && meter.length == DOWNLOAD;
    is_right.then_some(DOWNLOAD).ok_or_else(|| format!("the {} bytes of the body are wrong", meter.length))
}

async fn upload(wire: &mut Wire, seed: u64) -> Result<u64, String> {
    let mut request = head_bytes("POST", &format!("/digest/{seed}"), &[("Host", WEB_HOST)], UPLOAD);
    request.extend_from_slice(&pattern::bytes(seed, UPLOAD));
    let mut body = Vec::new();
    exchange(wire, &request, |bytes| body.extend_from_slice(bytes)).await?;
    let received = String::from_utf8_lossy(&body);
    let is_right = received == format!("{UPLOAD} true");
    is_right.then_some(UPLOAD as u64).ok_or_else(|| format!("the origin received wrong bytes: {received}"))
}

async fn exchange(wire: &mut Wire, request: &[u8], sink: impl FnMut(&[u8])) -> Result<(), String> {
    wire.send(request).await.map_err(|error| format!("cannot send the request: {error}"))?;
    let head = wire.head().await.map_err(|error| format!("cannot read the response: {error}"))?;
    let head = head.ok_or("the connection was closed")?;
    if !head.start.starts_with("HTTP/1.1 200 ") {
        return Err(format!("the response is {}", head.start));
    }
    wire.body(&head, sink).await.map_err(|error| format!("cannot read the body: {error}"))
}

// ===== impl Page =====

impl Page {
    fn new() -> Self {
        Self { through: Ledger::new(), direct: Ledger::new(), lasted: OnceLock::new() }
    }

    /// Returns the time for which requests were recorded on this page.
    pub(crate) fn lasted(&self) -> Duration {
        self.lasted.get().copied().unwrap_or_default()
    }

    fn of(&self, way: Way) -> &Ledger {
        match way {
            Way::Through => &self.through,
            Way::Direct => &self.direct,
        }
    }
}

fn lock(page: &Mutex<Arc<Page>>) -> MutexGuard<'_, Arc<Page>> {
    page.lock().expect("no thread panics while it holds this")
}
