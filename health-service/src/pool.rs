//! The checks of one pool: one task for the pool, one for each of its backends.
//!
//! ```text
//! pool task ── follows the membership, publishes verdicts to the balancer
//!   ├── backend task 10.0.0.1:80 ── check, judge, sleep, check, …
//!   └── backend task 10.0.0.2:80 ── …
//! ```
//!
//! A backend task waits for nobody but its own backend, so one that hangs delays no other. Only the pool task
//! publishes: passes over the balancer never overlap, so an old verdict cannot overwrite a newer one, and many
//! changes at a time make one pass.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use log::{debug, info, warn};
use pingora::lb::selection::{BackendIter, BackendSelection};
use pingora::lb::{Backend, LoadBalancer};
use pingora::protocols::l4::socket::SocketAddr;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use crate::check::Check;
use crate::metrics::{BackendSeries, Metrics};
use crate::schedule::{Phase, pause};
use crate::settings::Settings;
use crate::state::{BackendHealth, Change, Outcome};
use crate::verdicts::Verdicts;

/// How often the membership of a pool is looked at. Looking costs one pointer comparison while nothing changes.
const MEMBERSHIP_CADENCE: Duration = Duration::from_millis(250);

/// A `LoadBalancer`, whatever its policy.
#[async_trait]
pub(crate) trait Balancer: Send + Sync {
    /// Its present backends; the same `Arc` for as long as they are the same.
    fn members(&self) -> Arc<BTreeSet<Backend>>;

    /// Has it ask the publisher about each of its backends.
    async fn publish(&self);
}

/// One pool, and what its checks need.
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) balancer: Arc<dyn Balancer>,
    pub(crate) settings: Settings,
    pub(crate) check: Arc<dyn Check>,
    pub(crate) verdicts: Verdicts,
    pub(crate) metrics: Metrics,
    /// Set when a verdict has changed and the balancer does not know yet.
    pub(crate) changed: Notify,
}

/// Proof that something has not happened yet: whoever waits learns when all copies are dropped.
pub(crate) type Pending = mpsc::Sender<Infallible>;

/// The task of one backend; ends when this is dropped.
struct BackendTask(JoinHandle<()>);

/// What the task of one backend works with.
struct BackendWatch {
    pool: Arc<Pool>,
    address: SocketAddr,
    series: Arc<BackendSeries>,
}

// === impl Balancer ===

#[async_trait]
impl<S> Balancer for LoadBalancer<S>
where
    S: BackendSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    fn members(&self) -> Arc<BTreeSet<Backend>> {
        self.backends().get_backend()
    }

    async fn publish(&self) {
        // In turn rather than in parallel: the publisher never waits, so a task for each backend would only cost.
        self.backends().run_health_check(false).await;
    }
}

// === impl Pool ===

impl Pool {
    /// Checks the pool until dropped. Drops `first_round` when every backend that was there at the start has had its
    /// first check and the balancer knows the result.
    pub(crate) async fn run(self: Arc<Self>, first_round: Pending) {
        let mut first_round = Some(first_round);
        let (unchecked, mut all_checked) = mpsc::channel(1);
        let mut tasks = HashMap::new();
        let mut members = self.balancer.members();
        self.follow(&members, &mut tasks, Some(&unchecked)).await;
        drop(unchecked);

        let mut cadence = interval_at(Instant::now() + MEMBERSHIP_CADENCE, MEMBERSHIP_CADENCE);
        cadence.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.changed.notified() => self.balancer.publish().await,
                None = all_checked.recv(), if first_round.is_some() => {
                    self.balancer.publish().await;
                    first_round = None;
                }
                _ = cadence.tick() => {
                    let present = self.balancer.members();
                    if !Arc::ptr_eq(&present, &members) {
                        members = present;
                        self.follow(&members, &mut tasks, None).await;
                        // A backend that went and came back began anew in the balancer.
                        self.balancer.publish().await;
                    }
                }
            }
        }
    }

    /// Ends the tasks of backends that are gone, and begins one for each that is new.
    async fn follow(
        self: &Arc<Self>,
        members: &BTreeSet<Backend>,
        tasks: &mut HashMap<SocketAddr, BackendTask>,
        unchecked: Option<&Pending>,
    ) {
        // Two backends may differ in weight only: they share one task.
        let present: HashSet<&SocketAddr> = members.iter().map(|backend| &backend.addr).collect();
        for (address, task) in tasks.extract_if(|address, _| !present.contains(address)) {
            task.end().await;
            self.verdicts.forget(&address);
        }
        for address in present {
            if !tasks.contains_key(address) {
                tasks.insert(address.clone(), self.watch(address, unchecked.cloned()));
            }
        }
    }

    fn watch(self: &Arc<Self>, address: &SocketAddr, unchecked: Option<Pending>) -> BackendTask {
        let watch = BackendWatch {
            pool: Arc::clone(self),
            address: address.clone(),
            series: self.metrics.series(&self.name, &address.to_string()),
        };
        BackendTask(tokio::spawn(watch.run(unchecked)))
    }
}

// === impl BackendTask ===

impl BackendTask {
    /// Ends the task and waits until it has, so that nothing it does comes after this.
    async fn end(mut self) {
        self.0.abort();
        // The only results are "cancelled" and "panicked": either way it is over.
        let _ = (&mut self.0).await;
    }
}

impl Drop for BackendTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

// === impl BackendWatch ===

impl BackendWatch {
    async fn run(self, unchecked: Option<Pending>) {
        let settings = &self.pool.settings;
        let mut health = BackendHealth::new(settings.thresholds);
        let mut started = self.check(&mut health).await;
        drop(unchecked);
        let mut phase = Phase::First;
        loop {
            sleep_until(started + pause(settings, phase, fastrand::f64())).await;
            started = self.check(&mut health).await;
            phase = if health.is_changing() { Phase::Changing } else { Phase::Steady };
        }
    }

    /// Checks once and takes in the result. Returns when the check started.
    async fn check(&self, health: &mut BackendHealth) -> Instant {
        let started = Instant::now();
        let result = self.pool.check.check(&self.address).await;
        self.series.checked(result.is_ok(), started.elapsed());
        let outcome = match result {
            Ok(()) => Outcome::Passed,
            Err(error) => Outcome::Failed(error.to_string()),
        };
        let change = health.observe(&outcome, SystemTime::now());
        if let Some(verdict) = health.verdict() {
            self.pool.verdicts.set(&self.address, verdict.clone());
        }
        if let Some(change) = change {
            self.announce(&change);
        }
        started
    }

    fn announce(&self, change: &Change) {
        let (pool, address, reason) = (&self.pool.name, &self.address, &change.reason);
        match change {
            // The balancer takes a backend for up until told otherwise: being found up at first is no change to it.
            Change { up: true, first: true, .. } => {
                debug!("pool {pool}: backend {address} is up: {reason}");
                return;
            }
            Change { up: true, .. } => info!("pool {pool}: backend {address} is up: {reason}"),
            Change { up: false, .. } => warn!("pool {pool}: backend {address} is down: {reason}"),
        }
        self.series.changed();
        self.pool.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use pingora::lb::selection::RoundRobin;
    use prometheus::Registry;

    use super::*;
    use crate::check::CheckError;
    use crate::config::Percent;
    use crate::membership::{self, Membership};

    /// How long a check takes, and what it finds.
    type Answer = (Duration, Result<(), CheckError>);

    /// A check without sockets: each address has a duration and a result, and each start is noted.
    #[derive(Default)]
    struct Script {
        answers: Mutex<HashMap<SocketAddr, Answer>>,
        starts: Mutex<Vec<(SocketAddr, Instant)>>,
    }

    impl Script {
        fn answer(&self, address: &str, after: Duration, result: Result<(), CheckError>) {
            self.answers.lock().expect("not poisoned").insert(addr(address), (after, result));
        }

        /// Seconds from one start of a check of `address` to the next.
        fn gaps(&self, address: &str) -> Vec<f64> {
            let starts = self.starts(address);
            starts.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
        }

        fn starts(&self, address: &str) -> Vec<Instant> {
            let starts = self.starts.lock().expect("not poisoned");
            starts.iter().filter(|(found, _)| *found == addr(address)).map(|(_, at)| *at).collect()
        }
    }

    #[async_trait]
    impl Check for Script {
        async fn check(&self, address: &SocketAddr) -> Result<(), CheckError> {
            self.starts.lock().expect("not poisoned").push((address.clone(), Instant::now()));
            let answer = self.answers.lock().expect("not poisoned").get(address).cloned();
            let (after, result) = answer.unwrap_or((Duration::ZERO, Ok(())));
            tokio::time::sleep(after).await;
            result
        }
    }

    /// A pool under test, running.
    struct Running {
        membership: Membership,
        balancer: Arc<LoadBalancer<RoundRobin>>,
        verdicts: Verdicts,
        registry: Registry,
        script: Arc<Script>,
        first_round: mpsc::Receiver<Infallible>,
        task: JoinHandle<()>,
    }

    impl Running {
        async fn start(settings: Settings, backends: &[&'static str], script: Script) -> Self {
            let (membership, verdicts) = (Membership::default(), Verdicts::new());
            membership.set(backends.iter().map(|address| (*address, 1)));
            let balancer = Arc::new(membership::balancer(&membership, &verdicts));
            balancer.update().await.expect("the membership is there");
            let (metrics, registry, script) = (Metrics::new(), Registry::new(), Arc::new(script));
            metrics.register(&registry).expect("an empty registry has no names yet");
            let pool = Pool {
                name: "web".to_owned(),
                balancer: balancer.clone(),
                settings,
                check: script.clone(),
                verdicts: verdicts.clone(),
                metrics,
                changed: Notify::new(),
            };
            let (pending, first_round) = mpsc::channel(1);
            let task = tokio::spawn(Arc::new(pool).run(pending));
            Self { membership, balancer, verdicts, registry, script, first_round, task }
        }

        async fn change_members(&self, backends: &[(&'static str, usize)]) {
            self.membership.set(backends.iter().copied());
            self.balancer.update().await.expect("the membership is there");
            tokio::time::sleep(2 * MEMBERSHIP_CADENCE).await;
        }

        fn ready(&self) -> Vec<bool> {
            let backends = self.balancer.backends();
            backends.get_backend().iter().map(|backend| backends.ready(backend)).collect()
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn addr(address: &str) -> SocketAddr {
        address.parse().expect("valid address")
    }

    fn settings(interval: u64, jitter: u8) -> Settings {
        Settings {
            interval: Duration::from_secs(interval),
            jitter: Percent::new(jitter).expect("valid percentage"),
            ..Settings::default()
        }
    }

    async fn seconds(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    const ONE: &str = "10.0.0.1:80";
    const TWO: &str = "10.0.0.2:80";

    #[tokio::test(start_paused = true)]
    async fn the_first_round_ends_when_the_balancer_knows_every_result() {
        let script = Script::default();
        script.answer(ONE, Duration::ZERO, Err(CheckError::Refused));
        script.answer(TWO, Duration::from_secs(2), Err(CheckError::Timeout(Duration::from_secs(2))));
        let begun = Instant::now();
        let mut pool = Running::start(settings(5, 10), &[ONE, TWO], script).await;
        assert_eq!(pool.first_round.recv().await, None);
        assert_eq!(begun.elapsed().as_secs(), 2);
        assert_eq!(pool.ready(), [false, false]);
        let verdict = pool.verdicts.get(&addr(TWO)).expect("it was checked");
        assert_eq!(verdict.reason, "1 check failed: timeout after 2s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_without_backends_has_nothing_to_wait_for() {
        let mut pool = Running::start(settings(5, 10), &[], Script::default()).await;
        assert_eq!(pool.first_round.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_hangs_delays_no_other() {
        let script = Script::default();
        script.answer(ONE, Duration::from_secs(1000), Ok(()));
        let pool = Running::start(settings(5, 10), &[ONE, TWO], script).await;
        seconds(100).await;
        let gaps = pool.script.gaps(TWO);
        assert!(gaps.len() >= 17, "{gaps:?}");
        assert!(gaps[0] <= 5.0, "the second check falls within one interval: {gaps:?}");
        assert!(gaps[1..].iter().all(|gap| (4.49..5.51).contains(gap)), "{gaps:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_interval_counts_from_start_to_start() {
        let script = Script::default();
        script.answer(ONE, Duration::from_secs(3), Ok(()));
        let pool = Running::start(settings(5, 0), &[ONE], script).await;
        seconds(60).await;
        let gaps = pool.script.gaps(ONE);
        // Timers have a resolution of one millisecond.
        assert!(gaps.len() > 8 && gaps[1..].iter().all(|gap| (gap - 5.0).abs() < 0.01), "{gaps:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_longer_than_its_interval_is_followed_by_the_next_at_once() {
        let script = Script::default();
        script.answer(ONE, Duration::from_secs(7), Ok(()));
        let pool = Running::start(settings(5, 0), &[ONE], script).await;
        seconds(70).await;
        let gaps = pool.script.gaps(ONE);
        assert!(gaps.len() > 7 && gaps[1..].iter().all(|gap| (gap - 7.0).abs() < 0.01), "{gaps:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_is_changing_is_checked_at_the_fast_interval() {
        let pool = Running::start(settings(10, 0), &[ONE], Script::default()).await;
        seconds(30).await;
        assert_eq!(pool.ready(), [true]);
        pool.script.answer(ONE, Duration::ZERO, Err(CheckError::Refused));
        seconds(14).await;
        assert_eq!(pool.ready(), [false]);
        let reason = pool.verdicts.get(&addr(ONE)).expect("it was checked").reason;
        assert_eq!(reason, "3 checks failed: connection refused");
        let gaps = pool.script.gaps(ONE);
        assert_eq!(gaps[1..].iter().filter(|gap| (*gap - 1.0).abs() < 0.01).count(), 2, "{gaps:?}");

        pool.script.answer(ONE, Duration::ZERO, Ok(()));
        seconds(12).await;
        assert_eq!(pool.ready(), [true]);
        assert_eq!(pool.verdicts.get(&addr(ONE)).expect("it was checked").reason, "2 checks passed");
        let text = prometheus::TextEncoder::new().encode_to_string(&pool.registry.gather()).expect("encodes");
        assert!(
            text.contains(r#"lb_backend_state_changes_total{backend="10.0.0.1:80",pool="web"} 2"#),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_weight_neither_loses_the_state_nor_restarts_the_checks() {
        let script = Script::default();
        script.answer(ONE, Duration::ZERO, Err(CheckError::Refused));
        let pool = Running::start(settings(1000, 0), &[ONE], script).await;
        seconds(1).await;
        let (before, checks) = (pool.verdicts.get(&addr(ONE)), pool.script.starts(ONE).len());
        pool.change_members(&[(ONE, 9)]).await;
        assert_eq!(pool.ready(), [false]);
        assert_eq!(pool.verdicts.get(&addr(ONE)), before);
        assert_eq!(pool.script.starts(ONE).len(), checks);
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_backend_is_forgotten_and_a_new_one_is_checked_at_once() {
        let script = Script::default();
        script.answer(ONE, Duration::ZERO, Err(CheckError::Refused));
        script.answer(TWO, Duration::ZERO, Err(CheckError::NoRoute));
        let pool = Running::start(settings(1000, 0), &[ONE], script).await;
        seconds(1).await;
        pool.change_members(&[(TWO, 1)]).await;
        assert_eq!(pool.verdicts.get(&addr(ONE)), None);
        assert_eq!(
            pool.verdicts.get(&addr(TWO)).expect("it was checked").reason,
            "1 check failed: no route to host"
        );
        assert_eq!(pool.ready(), [false]);
        let text = prometheus::TextEncoder::new().encode_to_string(&pool.registry.gather()).expect("encodes");
        assert!(text.contains(TWO) && !text.contains(ONE), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_went_and_came_back_between_two_looks_keeps_its_verdict() {
        let script = Script::default();
        script.answer(ONE, Duration::ZERO, Err(CheckError::Refused));
        let mut pool = Running::start(settings(1000, 0), &[ONE], script).await;
        pool.first_round.recv().await;
        pool.membership.set([]);
        pool.balancer.update().await.expect("the membership is there");
        pool.change_members(&[(ONE, 1)]).await;
        assert_eq!(pool.ready(), [false]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_checked_once_the_pool_task_is_gone() {
        let pool = Running::start(settings(1, 0), &[ONE, TWO], Script::default()).await;
        seconds(5).await;
        pool.task.abort();
        seconds(1).await;
        let checks = pool.script.starts(ONE).len();
        seconds(60).await;
        assert_eq!(pool.script.starts(ONE).len(), checks);
    }
}
