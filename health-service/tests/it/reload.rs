//! Pools that are added, removed and changed while the prober runs.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use health_service::{CheckKind, HttpCheck, Metrics, Observer, Prober, Settings, Stopped};
use prometheus::{Registry, TextEncoder};

use crate::origin::{LIMIT, Manner, Origin, eventually, refusing};
use crate::prober::{RunningProber, TestPool, fast};

fn tcp() -> Settings {
    fast(CheckKind::Tcp)
}

fn http() -> Settings {
    fast(CheckKind::Http(HttpCheck::default()))
}

fn none() -> Settings {
    fast(CheckKind::None)
}

#[tokio::test]
async fn a_new_backend_is_checked_before_it_is_ready_and_a_dead_one_never_is() {
    let (one, two) = (Origin::healthy("").await, Origin::healthy("").await);
    let (_socket, dead) = refusing();
    let before = TestPool::of(&[one.address]).await;
    let mut prober = Prober::new(Metrics::new());
    before.add_to(&mut prober, "web", tcp());
    let checks = prober.checks();
    let mut running = RunningProber::start(prober);
    running.until_ready().await;

    let after = before.reloaded(&[one.address, two.address, dead]).await;
    let staged = checks.stage([after.checked("web", tcp())]).await;
    assert!(!two.seen().is_empty(), "the first check is made while staging");
    assert_eq!(after.verdicts.get(&dead.into()), None, "a verdict exists before the commit");
    checks.commit(staged).await.expect("the prober runs");
    assert_eq!((after.ready(), before.ready()), (2, 1));
    assert_eq!(after.verdict(dead).reason, "1 check failed: connection refused");
    running.shut_down().await;
}

#[tokio::test]
async fn a_dropped_stage_changes_nothing() {
    let one = Origin::healthy("").await;
    let (_socket, dead) = refusing();
    let (metrics, registry) = (Metrics::new(), Registry::new());
    metrics.register(&registry).expect("an empty registry has no names yet");
    let before = TestPool::of(&[one.address]).await;
    let mut prober = Prober::new(metrics);
    before.add_to(&mut prober, "web", tcp());
    let checks = prober.checks();
    let mut running = RunningProber::start(prober);
    running.until_ready().await;

    let after = before.reloaded(&[dead]).await;
    drop(checks.stage([after.checked("web", tcp())]).await);
    assert_eq!(after.verdicts.get(&dead.into()), None);
    let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("metrics can be encoded");
    assert!(!text.contains(&dead.to_string()), "{text}");
    let checked = one.seen().len();
    eventually("the old pool is still checked", || one.seen().len() > checked + 2).await;
    running.shut_down().await;
}

#[tokio::test]
async fn staging_takes_no_longer_than_the_timeout_of_a_check() {
    let (silent, other) = (Origin::start(Manner::Silence).await, Origin::start(Manner::Silence).await);
    let pool = TestPool::of(&[silent.address, other.address]).await;
    let checks = Prober::new(Metrics::new()).checks();
    let begun = Instant::now();
    let settings = Settings { timeout: Duration::from_secs(1), ..http() };
    let _staged = checks.stage([pool.checked("web", settings)]).await;
    let took = begun.elapsed();
    assert!((Duration::from_secs(1)..LIMIT).contains(&took), "{took:?}");
    assert!(!silent.seen().is_empty() && !other.seen().is_empty());
}

#[tokio::test]
async fn pools_can_be_added_and_removed() {
    let (one, two) = (Origin::healthy("").await, Origin::healthy("").await);
    let (metrics, registry) = (Metrics::new(), Registry::new());
    metrics.register(&registry).expect("an empty registry has no names yet");
    let (web, api) = (TestPool::of(&[one.address]).await, TestPool::of(&[two.address]).await);
    let mut prober = Prober::new(metrics);
    web.add_to(&mut prober, "web", tcp());
    let checks = prober.checks();
    let mut running = RunningProber::start(prober);
    running.until_ready().await;

    let staged = checks.stage([api.checked("api", tcp())]).await;
    checks.commit(staged).await.expect("the prober runs");
    assert_eq!(web.verdicts.get(&one.address.into()), None);
    assert!(api.verdict(two.address).up);
    let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("metrics can be encoded");
    assert!(text.contains(r#"pool="api""#) && !text.contains(r#"pool="web""#), "{text}");
    let (gone, checked) = (one.seen().len(), two.seen().len());
    eventually("the new pool is checked", || two.seen().len() > checked + 4).await;
    // The origin may still accept one connection that was open before.
    assert!(one.seen().len() <= gone + 1);
    running.shut_down().await;
}

#[tokio::test]
async fn checks_of_a_pool_can_start_and_stop() {
    let (_socket, dead) = refusing();
    let unchecked = TestPool::of(&[dead]).await;
    let mut prober = Prober::new(Metrics::new());
    unchecked.add_to(&mut prober, "web", none());
    let checks = prober.checks();
    let mut running = RunningProber::start(prober);
    running.until_ready().await;
    assert_eq!(unchecked.ready(), 1);

    let checked = unchecked.reloaded(&[dead]).await;
    let staged = checks.stage([checked.checked("web", tcp())]).await;
    checks.commit(staged).await.expect("the prober runs");
    assert_eq!((checked.ready(), checked.verdict(dead).up), (0, false));

    let again = checked.reloaded(&[dead]).await;
    let staged = checks.stage([again.checked("web", none())]).await;
    checks.commit(staged).await.expect("the prober runs");
    assert_eq!((again.ready(), again.verdicts.get(&dead.into())), (1, None));
    running.shut_down().await;
}

#[tokio::test]
async fn a_verdict_stays_until_changed_checks_have_decided() {
    let failing = Origin::responding("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n").await;
    let before = TestPool::of(&[failing.address]).await;
    let mut prober = Prober::new(Metrics::new());
    before.add_to(&mut prober, "web", tcp());
    let checks = prober.checks();
    let mut running = RunningProber::start(prober);
    running.until_ready().await;
    let since = before.verdict(failing.address).since;

    let after = before.reloaded(&[failing.address]).await;
    let staged = checks.stage([after.checked("web", http())]).await;
    checks.commit(staged).await.expect("the prober runs");
    let verdict = after.verdict(failing.address);
    assert_eq!((after.ready(), verdict.up, verdict.since), (1, true, since));
    eventually("the new checks have decided", || after.ready() == 0).await;
    let reason = after.verdict(failing.address).reason;
    assert_eq!(reason, "3 checks failed: status 500, expected 200-399");
    running.shut_down().await;
}

#[tokio::test]
async fn commits_take_effect_in_order() {
    let origin = Origin::healthy("").await;
    let first = TestPool::of(&[]).await;
    let mut prober = Prober::new(Metrics::new());
    first.add_to(&mut prober, "web", tcp());
    let checks = prober.checks();
    let with = first.reloaded(&[origin.address]).await;
    let without = first.reloaded(&[]).await;
    let with = checks.stage([with.checked("web", tcp())]).await;
    let without = checks.stage([without.checked("web", tcp())]).await;
    let both = async { tokio::join!(checks.commit(with), checks.commit(without)) };
    // The commits wait for the start of the prober.
    let start = async { RunningProber::start(prober) };
    let (done, running) = tokio::join!(both, start);
    assert_eq!(done, (Ok(()), Ok(())));
    assert_eq!(first.verdicts.get(&origin.address.into()), None);
    running.shut_down().await;
}

#[tokio::test]
async fn no_stage_can_be_committed_after_the_shutdown() {
    let origin = Origin::healthy("").await;
    let pool = TestPool::of(&[origin.address]).await;
    let mut prober = Prober::new(Metrics::new());
    pool.add_to(&mut prober, "web", tcp());
    let checks = prober.checks();
    let staged = checks.stage([pool.checked("web", tcp())]).await;
    let mut running = RunningProber::start(prober);
    running.until_ready().await;
    running.shut_down().await;
    assert_eq!(checks.commit(staged).await, Err(Stopped));
}

/// An observer that stores all changes of health.
#[derive(Default)]
struct Changes(Mutex<Vec<(String, String, bool, String)>>);

impl Changes {
    fn all(&self) -> Vec<(String, String, bool, String)> {
        self.0.lock().expect("not poisoned").clone()
    }
}

impl Observer for Changes {
    fn changed(&self, pool: &str, backend: &str, up: bool, reason: &str) {
        let change = (pool.to_owned(), backend.to_owned(), up, reason.to_owned());
        self.0.lock().expect("not poisoned").push(change);
    }
}

#[tokio::test]
async fn an_observer_sees_all_changes_but_not_a_first_success() {
    let healthy = Origin::healthy("").await;
    let (socket, address) = refusing();
    let pool = TestPool::of(&[healthy.address, address]).await;
    let changes = Arc::new(Changes::default());
    let mut prober = Prober::new(Metrics::new()).observed_by(changes.clone());
    pool.add_to(&mut prober, "web", tcp());
    let mut running = RunningProber::start(prober);
    running.until_ready().await;
    let change = |address: SocketAddr, up, reason: &str| {
        ("web".to_owned(), address.to_string(), up, reason.to_owned())
    };
    let down = change(address, false, "1 check failed: connection refused");
    assert_eq!(changes.all(), std::slice::from_ref(&down));
    let _listener = socket.listen(16).expect("the address is ours");
    let up = change(address, true, "2 checks passed");
    eventually("the backend is up", || changes.all() == [down.clone(), up.clone()]).await;
    running.shut_down().await;
}
