//! Tests of the prober with real balancers and real backends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use health_service::{
    CheckKind, CheckedPool, Connect, HealthVerdict, HttpCheck, Metrics, PeerConnect, Prober, Settings,
    Verdicts, registry,
};
use pingora::lb::discovery::Static;
use pingora::lb::selection::RoundRobin;
use pingora::lb::{Backends, HealthRegistry, LoadBalancer};
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use pingora::upstreams::peer::HttpPeer;
use prometheus::{Registry, TextEncoder};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::origin::{LIMIT, Manner, Origin, eventually, ok, refusing};

/// A balancer with the verdicts on its backends.
pub(crate) struct TestPool {
    pub(crate) balancer: Arc<LoadBalancer<RoundRobin>>,
    registry: Arc<HealthRegistry>,
    connect: Arc<dyn Connect>,
    pub(crate) verdicts: Verdicts,
}

impl TestPool {
    pub(crate) async fn of(addresses: &[SocketAddr]) -> Self {
        let verdicts = Verdicts::new();
        let registry = registry();
        registry.set_health_check(verdicts.publisher());
        let connect = PeerConnect::new(HttpPeer::new("0.0.0.0:1", false, String::new()));
        Self::over(addresses, registry, Arc::new(connect), verdicts).await
    }

    /// The pool after a reload, with other backends and the health of the old pool.
    pub(crate) async fn reloaded(&self, addresses: &[SocketAddr]) -> Self {
        let (registry, connect) = (Arc::clone(&self.registry), Arc::clone(&self.connect));
        Self::over(addresses, registry, connect, self.verdicts.clone()).await
    }

    async fn over(
        addresses: &[SocketAddr],
        registry: Arc<HealthRegistry>,
        connect: Arc<dyn Connect>,
        verdicts: Verdicts,
    ) -> Self {
        let backends = Static::try_from_iter(addresses).expect("addresses need no resolving");
        let backends = Backends::new_with_health_registry(backends, Arc::clone(&registry));
        let balancer = LoadBalancer::from_backends(backends);
        balancer.update().await.expect("a static membership never fails");
        Self { balancer: Arc::new(balancer), registry, connect, verdicts }
    }

    pub(crate) fn add_to(&self, prober: &mut Prober, name: &str, settings: Settings) {
        prober.add(self.checked(name, settings));
    }

    pub(crate) fn checked(&self, name: &str, settings: Settings) -> CheckedPool {
        let (balancer, connect) = (Arc::clone(&self.balancer), Arc::clone(&self.connect));
        CheckedPool::new(name, balancer, settings, connect, self.verdicts.clone())
    }

    pub(crate) fn verdict(&self, address: SocketAddr) -> HealthVerdict {
        self.verdicts.get(&address.into()).expect("the backend has been checked")
    }

    /// The number of backends that the balancer considers ready.
    pub(crate) fn ready(&self) -> usize {
        let backends = self.balancer.backends();
        backends.get_backend().iter().filter(|backend| backends.ready(backend)).count()
    }
}

/// A running prober.
pub(crate) struct RunningProber {
    shutdown: watch::Sender<bool>,
    pub(crate) ready: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl RunningProber {
    pub(crate) fn start(prober: Prober) -> Self {
        let (shutdown, watch_shutdown) = watch::channel(false);
        let (ready_tx, ready) = watch::channel(false);
        let notifier = ServiceReadyNotifier::new(ready_tx);
        let task =
            tokio::spawn(async move { prober.start_with_ready_notifier(watch_shutdown, notifier).await });
        Self { shutdown, ready, task }
    }

    pub(crate) async fn until_ready(&mut self) {
        let ready = tokio::time::timeout(LIMIT, self.ready.wait_for(|ready| *ready)).await;
        ready.expect("the prober is ready in time").expect("the prober notifies before it ends");
    }

    pub(crate) async fn shut_down(self) {
        self.shutdown.send(true).expect("the prober runs");
        let ended = tokio::time::timeout(LIMIT, self.task).await;
        ended.expect("the prober ends in time").expect("the prober does not panic");
    }
}

/// Settings with short intervals.
pub(crate) fn fast(kind: CheckKind) -> Settings {
    Settings {
        kind,
        interval: Duration::from_millis(100),
        fast_interval: Duration::from_millis(50),
        timeout: Duration::from_secs(5),
        ..Settings::default()
    }
}

fn http() -> CheckKind {
    CheckKind::Http(HttpCheck::default())
}

#[tokio::test]
async fn the_prober_is_ready_once_every_backend_of_every_pool_is_checked() {
    let silent = Origin::start(Manner::Silence).await;
    let healthy = Origin::healthy("").await;
    let (_socket, refusing) = refusing();
    let (web, api) =
        (TestPool::of(&[silent.address, healthy.address]).await, TestPool::of(&[refusing]).await);
    let mut prober = Prober::new(Metrics::new());
    web.add_to(&mut prober, "web", Settings { timeout: Duration::from_millis(500), ..fast(http()) });
    api.add_to(&mut prober, "api", fast(CheckKind::Tcp));

    let begun = Instant::now();
    let mut running = RunningProber::start(prober);
    running.until_ready().await;
    assert!(begun.elapsed() >= Duration::from_millis(500), "the prober must wait for the slowest check");
    assert_eq!((web.ready(), api.ready()), (1, 0));
    assert_eq!(web.verdict(silent.address).reason, "1 check failed: timed out after 500ms");
    assert_eq!(api.verdict(refusing).reason, "1 check failed: connection refused");
    running.shut_down().await;
}

#[tokio::test]
async fn the_same_address_has_a_state_in_each_pool() {
    let failing = Origin::responding("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n").await;
    let (strict, lenient) = (TestPool::of(&[failing.address]).await, TestPool::of(&[failing.address]).await);
    let mut prober = Prober::new(Metrics::new());
    strict.add_to(&mut prober, "strict", fast(http()));
    lenient.add_to(&mut prober, "lenient", fast(CheckKind::Tcp));
    let mut running = RunningProber::start(prober);
    running.until_ready().await;
    assert_eq!((strict.ready(), lenient.ready()), (0, 1));
    assert!(!strict.verdict(failing.address).up && lenient.verdict(failing.address).up);
    running.shut_down().await;
}

#[tokio::test]
async fn a_pool_without_checks_gets_no_verdict() {
    let origin = Origin::healthy("").await;
    let (_socket, refusing) = refusing();
    let (checked, unchecked) = (TestPool::of(&[origin.address]).await, TestPool::of(&[refusing]).await);
    let mut prober = Prober::new(Metrics::new());
    unchecked.add_to(&mut prober, "static", fast(CheckKind::None));
    checked.add_to(&mut prober, "web", fast(http()));
    let mut running = RunningProber::start(prober);
    running.until_ready().await;
    assert_eq!(unchecked.ready(), 1);
    assert_eq!(unchecked.verdicts.get(&refusing.into()), None);
    running.shut_down().await;
}

#[tokio::test]
async fn checks_end_at_the_shutdown() {
    let origin = Origin::healthy("").await;
    let pool = TestPool::of(&[origin.address]).await;
    let mut prober = Prober::new(Metrics::new());
    pool.add_to(&mut prober, "web", fast(http()));
    let running = RunningProber::start(prober);
    eventually("three checks have arrived", || origin.seen().len() >= 3).await;
    running.shut_down().await;
    let checks = origin.seen().len();
    // A remaining check would arrive within these intervals.
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The origin may still accept one connection that was open before.
    assert!(origin.seen().len() <= checks + 1);
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_check() {
    let silent = Origin::start(Manner::Silence).await;
    let pool = TestPool::of(&[silent.address]).await;
    let mut prober = Prober::new(Metrics::new());
    pool.add_to(&mut prober, "web", Settings { timeout: 10 * LIMIT, ..fast(http()) });
    let running = RunningProber::start(prober);
    eventually("a check has begun", || !silent.seen().is_empty()).await;
    running.shut_down().await;
}

#[tokio::test]
async fn checks_are_counted() {
    let origin = Origin::healthy("").await;
    let pool = TestPool::of(&[origin.address]).await;
    let (metrics, registry) = (Metrics::new(), Registry::new());
    metrics.register(&registry).expect("an empty registry has no names yet");
    let mut prober = Prober::new(metrics);
    pool.add_to(&mut prober, "web", Settings { interval: LIMIT * 10, ..fast(http()) });
    let mut running = RunningProber::start(prober);
    running.until_ready().await;
    let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("metrics can be encoded");
    let line =
        format!(r#"lb_health_checks_total{{backend="{}",pool="web",result="pass"}} 1"#, origin.address);
    assert!(text.contains(&line), "{text}");
    running.shut_down().await;
}

/// A hanging backend delays no other check: with 200 backends, of which 50 hang, and an interval of one second, every
/// healthy backend is checked in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_hanging_backends_of_two_hundred_delay_no_check_of_the_others() {
    const INTERVAL: Duration = Duration::from_secs(1);
    /// The delay that is allowed on a busy machine. It is much shorter than one hanging check.
    const SLACK: Duration = Duration::from_secs(2);
    const TIMEOUT: Duration = Duration::from_secs(4);

    let (mut hanging, mut healthy) = (Vec::new(), Vec::new());
    for number in 0..200 {
        if number % 4 == 0 {
            hanging.push(Origin::start(Manner::Silence).await);
        } else {
            healthy.push(Origin::responding(ok("ok")).await);
        }
    }
    let addresses: Vec<SocketAddr> =
        hanging.iter().chain(&healthy).map(|origin: &Origin| origin.address).collect();
    let pool = TestPool::of(&addresses).await;
    let mut prober = Prober::new(Metrics::new());
    let settings = Settings { interval: INTERVAL, fast_interval: INTERVAL, timeout: TIMEOUT, ..fast(http()) };
    pool.add_to(&mut prober, "web", settings);
    let mut running = RunningProber::start(prober);
    running.until_ready().await;
    assert_eq!(pool.ready(), 150);

    eventually("every healthy backend had five checks", || {
        healthy.iter().all(|origin| origin.seen().len() >= 5)
    })
    .await;
    for origin in &healthy {
        let seen = origin.seen();
        let gap = seen.windows(2).map(|pair| pair[1].at - pair[0].at).max().expect("five checks");
        assert!(gap <= INTERVAL.mul_f64(1.1) + SLACK, "{}: {gap:?} between two checks", origin.address);
        let verdict = pool.verdict(origin.address);
        assert!(verdict.up && verdict.last_failure.is_none(), "{verdict:?}");
    }
    for origin in &hanging {
        assert_eq!(pool.verdict(origin.address).reason, "1 check failed: timed out after 4s");
    }
    assert_eq!(pool.ready(), 150);
    running.shut_down().await;
}
