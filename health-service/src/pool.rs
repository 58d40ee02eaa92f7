//! The checks of one pool: one task for the pool, one for each of its backends.
//!
//! ```text
//! pool task ── follows the membership, publishes verdicts to the balancer
//!   ├── backend task 10.0.0.1:80 ── check, apply the result, sleep, check, …
//!   └── backend task 10.0.0.2:80 ── …
//! ```
//!
//! A backend task waits only for its own backend, so a hanging backend delays no other check. Only the pool task
//! publishes. Its passes over the balancer never overlap, so an old verdict cannot overwrite a newer one, and many
//! simultaneous changes need one pass.
//!
//! [`PoolTask::continue_with`] replaces the balancer or the way to check while the tasks run. A backend that stays and
//! is checked in the same way keeps its task. A request uses one balancer until it ends, so earlier balancers stay in
//! use for a while. In those, a backend that has left keeps its last state.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use pingora::lb::selection::{BackendIter, BackendSelection};
use pingora::lb::{Backend, LoadBalancer};
use pingora::protocols::l4::socket::SocketAddr;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::backend::{BackendChecks, CheckResult, InitialHealth, Pending, Procedure, Reports, Task};
use crate::settings::CheckKind;
use crate::verdicts::Verdicts;

/// Interval at which the membership of a pool is compared. It costs one pointer comparison while nothing changes.
const MEMBERSHIP_CADENCE: Duration = Duration::from_millis(250);

/// A `LoadBalancer` of any policy.
#[async_trait]
pub(crate) trait Balancer: Send + Sync {
    /// Its current backends; the `Arc` is the same until they change.
    fn members(&self) -> Arc<BTreeSet<Backend>>;

    /// Makes it read the verdict on each of its backends.
    async fn publish(&self);
}

/// A pool and how it is checked.
#[derive(Clone)]
pub(crate) struct PoolSetup {
    pub(crate) name: String,
    pub(crate) balancer: Arc<dyn Balancer>,
    pub(crate) verdicts: Verdicts,
    pub(crate) procedure: Arc<Procedure>,
}

/// Results of staged first checks, by the address of the backend.
pub(crate) type FirstResults = HashMap<SocketAddr, CheckResult>;

/// The running checks of one pool. They end when this is dropped.
pub(crate) struct PoolTask {
    reports: Arc<Reports>,
    orders: mpsc::Sender<Replacement>,
    task: Task,
}

/// The state of the pool task.
struct PoolChecks {
    reports: Arc<Reports>,
    balancer: Arc<dyn Balancer>,
    procedure: Arc<Procedure>,
    members: Arc<BTreeSet<Backend>>,
    tasks: HashMap<SocketAddr, Task>,
    /// Earlier balancers that are still in use.
    predecessors: Vec<Weak<dyn Balancer>>,
}

/// An order to continue with another balancer, or another way to check.
struct Replacement {
    pool: PoolSetup,
    findings: FirstResults,
    done: oneshot::Sender<()>,
}

/// A step of the task of one backend. A task without a step goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TaskStep {
    /// Start a task, which replaces the existing one, if any.
    Begin,
    /// End the task and drop the verdict.
    End,
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
        // Sequentially: the publisher never waits, so a task for each backend would only add cost.
        self.backends().run_health_check(false).await;
    }
}

// === impl Pool ===

impl PoolSetup {
    /// Whether the pool has health checks.
    pub(crate) fn is_checked(&self) -> bool {
        self.procedure.settings.kind != CheckKind::None
    }

    /// The members without a verdict.
    pub(crate) fn unchecked(&self) -> Vec<SocketAddr> {
        let mut unchecked = addresses(&self.balancer.members());
        unchecked.retain(|address| self.is_checked() && self.verdicts.get(address).is_none());
        unchecked.into_iter().collect()
    }
}

/// Two backends that differ only in weight share one task.
fn addresses(members: &BTreeSet<Backend>) -> BTreeSet<SocketAddr> {
    members.iter().map(|backend| backend.addr.clone()).collect()
}

// === impl PoolTask ===

impl PoolTask {
    /// Starts the checks of `pool`. The `findings` have been published to the balancer when this returns.
    ///
    /// Drops `first_round` once every present backend has a verdict that has been published to the balancer.
    pub(crate) async fn begin(
        reports: Reports,
        pool: PoolSetup,
        findings: FirstResults,
        first_round: Option<Pending>,
    ) -> Self {
        let reports = Arc::new(reports);
        let (unchecked, all_checked) = mpsc::channel(1);
        let mut checks = PoolChecks {
            reports: Arc::clone(&reports),
            members: pool.balancer.members(),
            balancer: pool.balancer,
            procedure: pool.procedure,
            tasks: HashMap::new(),
            predecessors: Vec::new(),
        };
        checks.follow(true, findings, Some(&unchecked)).await;
        drop(unchecked);
        checks.balancer.publish().await;
        let (orders, received) = mpsc::channel(1);
        Self { reports, orders, task: Task::spawn(checks.run(received, all_checked, first_round)) }
    }

    /// Whether `pool` continues this pool, so the verdicts on its backends stay valid.
    pub(crate) fn is_continued_by(&self, pool: &PoolSetup) -> bool {
        self.reports.pool == pool.name && self.reports.verdicts.is(&pool.verdicts) && pool.is_checked()
    }

    /// Continues with `pool`. All verdicts have been published to its balancer when this returns.
    pub(crate) async fn continue_with(&self, pool: PoolSetup, findings: FirstResults) {
        let (done, is_done) = oneshot::channel();
        // An error means that the task is gone, which only a panic can cause. Then there is nothing to change.
        if self.orders.send(Replacement { pool, findings, done }).await.is_ok() {
            let _ = is_done.await;
        }
    }

    /// Ends the checks and drops their verdicts.
    pub(crate) async fn end(self) {
        let Self { reports, orders, task } = self;
        drop(orders);
        task.ended().await;
        reports.verdicts.forget_all();
    }
}

// === impl PoolChecks ===

impl PoolChecks {
    /// Runs the checks until the sender of orders is dropped.
    async fn run(
        mut self,
        mut orders: mpsc::Receiver<Replacement>,
        mut all_checked: mpsc::Receiver<Infallible>,
        mut first_round: Option<Pending>,
    ) {
        let mut cadence = interval_at(Instant::now() + MEMBERSHIP_CADENCE, MEMBERSHIP_CADENCE);
        cadence.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.reports.changed.notified() => self.balancer.publish().await,
                None = all_checked.recv(), if first_round.is_some() => {
                    self.balancer.publish().await;
                    first_round = None;
                }
                _ = cadence.tick() => self.look().await,
                order = orders.recv() => match order {
                    Some(Replacement { pool, findings, done }) => {
                        self.continue_with(pool, findings).await;
                        // The caller may have stopped waiting.
                        let _ = done.send(());
                    }
                    None => break,
                }
            }
        }
        for (_, task) in self.tasks.drain() {
            task.end().await;
        }
    }

    /// Follows a change of the members, and drops predecessors that are no longer in use.
    async fn look(&mut self) {
        let present = self.balancer.members();
        if !Arc::ptr_eq(&present, &self.members) {
            self.members = present;
            self.follow(false, FirstResults::new(), None).await;
            // A backend that left and joined again is a new one to the balancer.
            self.balancer.publish().await;
        }
        self.let_go();
    }

    /// Drops the predecessors that are no longer in use, and the verdicts that were kept only for them.
    fn let_go(&mut self) {
        let before = self.predecessors.len();
        self.predecessors.retain(|balancer| balancer.strong_count() > 0);
        if self.predecessors.len() < before {
            let living = self.predecessors.iter().filter_map(Weak::upgrade);
            let held: BTreeSet<_> = living.flat_map(|balancer| addresses(&balancer.members())).collect();
            self.reports.verdicts.keep_retired(|address| held.contains(address));
        }
    }

    async fn continue_with(&mut self, pool: PoolSetup, findings: FirstResults) {
        let changed = !self.procedure.is_like(&pool.procedure);
        if changed {
            self.procedure = pool.procedure;
        }
        self.replace_balancer(pool.balancer);
        self.members = self.balancer.members();
        self.follow(changed, findings, None).await;
        self.balancer.publish().await;
    }

    fn replace_balancer(&mut self, balancer: Arc<dyn Balancer>) {
        let before = std::mem::replace(&mut self.balancer, balancer);
        self.predecessors.push(Arc::downgrade(&before));
        // The balancer may be the current one or a predecessor again. Then it is not a predecessor any more.
        let present = Arc::as_ptr(&self.balancer);
        self.predecessors.retain(|balancer| !std::ptr::addr_eq(balancer.as_ptr(), present));
    }

    /// Ends the tasks of backends that are gone, and starts a task for each new backend, or for all if the way to check
    /// has `changed`.
    async fn follow(&mut self, changed: bool, mut findings: FirstResults, unchecked: Option<&Pending>) {
        for (address, step) in steps(self.tasks.keys(), &addresses(&self.members), changed) {
            match step {
                TaskStep::Begin => self.begin(&address, findings.remove(&address), unchecked).await,
                TaskStep::End => self.end(&address).await,
            }
        }
    }

    async fn begin(
        &mut self,
        address: &SocketAddr,
        finding: Option<CheckResult>,
        unchecked: Option<&Pending>,
    ) {
        // Created before the old task ends, so the metric series always has a user and continues.
        let watch = BackendChecks::new(&self.reports, &self.procedure, address);
        if let Some(before) = self.tasks.remove(address) {
            before.end().await;
        }
        let verdict = self.reports.verdicts.get(address);
        let task = watch.begin(InitialHealth::from(verdict, finding, unchecked));
        self.tasks.insert(address.clone(), task);
    }

    async fn end(&mut self, address: &SocketAddr) {
        if let Some(task) = self.tasks.remove(address) {
            task.end().await;
        }
        if self.predecessors.is_empty() {
            self.reports.verdicts.forget(address);
        } else {
            // Without a verdict the backend would count as up in the predecessors, which requests still use.
            self.reports.verdicts.retire(address);
        }
    }
}

/// The steps after which there is one task for each member.
fn steps<'a>(
    tasks: impl Iterator<Item = &'a SocketAddr>,
    members: &BTreeSet<SocketAddr>,
    changed: bool,
) -> BTreeMap<SocketAddr, TaskStep> {
    let tasks: BTreeSet<&SocketAddr> = tasks.collect();
    let gone = tasks.iter().filter(|address| !members.contains(**address));
    let begin = members.iter().filter(|address| changed || !tasks.contains(address));
    let ends = gone.map(|address| ((*address).clone(), TaskStep::End));
    begin.map(|address| (address.clone(), TaskStep::Begin)).chain(ends).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use pingora::lb::HealthRegistry;
    use pingora::lb::selection::RoundRobin;
    use prometheus::Registry;
    use tokio::sync::Notify;

    use super::*;
    use crate::backend::Observer;
    use crate::check::CheckError;
    use crate::membership::{self, Membership, ready};
    use crate::metrics::Metrics;
    use crate::script::{Script, addr, procedure};
    use crate::settings::Settings;
    use crate::state::HealthVerdict;
    use crate::verdicts::registry;
    use values::Percent;

    /// Records changes of health.
    #[derive(Default)]
    struct RecordingObserver(Mutex<Vec<String>>);

    impl Observer for RecordingObserver {
        fn changed(&self, pool: &str, backend: &str, up: bool, reason: &str) {
            let state = if up { "up" } else { "down" };
            self.0.lock().expect("not poisoned").push(format!("{pool} {backend} {state}: {reason}"));
        }
    }

    /// A running pool under test.
    struct RunningPool {
        membership: Membership,
        balancer: Arc<LoadBalancer<RoundRobin>>,
        health: Arc<HealthRegistry>,
        verdicts: Verdicts,
        registry: Registry,
        script: Arc<Script>,
        observer: Arc<RecordingObserver>,
        first_round: mpsc::Receiver<Infallible>,
        task: PoolTask,
    }

    impl RunningPool {
        async fn start(settings: Settings, backends: &[&'static str], script: Script) -> Self {
            let (membership, verdicts, health) = (Membership::default(), Verdicts::new(), registry());
            health.set_health_check(verdicts.publisher());
            membership.set(backends.iter().map(|address| (*address, 1)));
            let balancer = Arc::new(membership::view(&membership, &health));
            balancer.update().await.expect("the membership is known");
            let (metrics, registry, script) = (Metrics::new(), Registry::new(), Arc::new(script));
            metrics.register(&registry).expect("an empty registry has no names yet");
            let observer = Arc::<RecordingObserver>::default();
            let reports = Reports {
                pool: "web".to_owned(),
                verdicts: verdicts.clone(),
                metrics,
                observer: Some(observer.clone()),
                changed: Notify::new(),
            };
            let pool = PoolSetup {
                name: "web".to_owned(),
                balancer: balancer.clone(),
                verdicts: verdicts.clone(),
                procedure: procedure(settings, &script),
            };
            let (pending, first_round) = mpsc::channel(1);
            let task = PoolTask::begin(reports, pool, FirstResults::new(), Some(pending)).await;
            Self { membership, balancer, health, verdicts, registry, script, observer, first_round, task }
        }

        async fn change_members(&self, backends: &[(&'static str, usize)]) {
            self.membership.set(backends.iter().copied());
            self.balancer.update().await.expect("the membership is known");
            tokio::time::sleep(2 * MEMBERSHIP_CADENCE).await;
        }

        /// Continues with a new balancer of these backends that has the same registry. Returns the old one.
        async fn continue_with(
            &mut self,
            settings: Settings,
            backends: &[&'static str],
        ) -> Arc<LoadBalancer<RoundRobin>> {
            let balancer = membership::members(backends, &self.health).await;
            let pool = PoolSetup {
                name: "web".to_owned(),
                balancer: balancer.clone(),
                verdicts: self.verdicts.clone(),
                procedure: procedure(settings, &self.script),
            };
            let mut findings = FirstResults::new();
            for address in pool.unchecked() {
                let finding = CheckResult::make(&*self.script, &address).await;
                findings.insert(address, finding);
            }
            assert!(self.task.is_continued_by(&pool));
            self.task.continue_with(pool, findings).await;
            std::mem::replace(&mut self.balancer, balancer)
        }

        fn ready(&self) -> Vec<bool> {
            ready(&self.balancer)
        }

        fn verdict(&self, address: &str) -> HealthVerdict {
            self.verdicts.get(&addr(address)).expect("it was checked")
        }

        fn reports(&self) -> Vec<String> {
            self.observer.0.lock().expect("not poisoned").clone()
        }

        fn scrape(&self) -> String {
            prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).expect("encodes")
        }
    }

    fn settings(interval: u64, jitter: u8) -> Settings {
        Settings {
            interval: Duration::from_secs(interval),
            jitter: Percent::near(jitter.into()),
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
        script.set(ONE, Duration::ZERO, Err(CheckError::Refused));
        script.set(TWO, Duration::from_secs(2), Err(CheckError::Timeout(Duration::from_secs(2))));
        let begun = Instant::now();
        let mut pool = RunningPool::start(settings(5, 10), &[ONE, TWO], script).await;
        assert_eq!(pool.first_round.recv().await, None);
        assert_eq!(begun.elapsed().as_secs(), 2);
        assert_eq!(pool.ready(), [false, false]);
        let verdict = pool.verdicts.get(&addr(TWO)).expect("it was checked");
        assert_eq!(verdict.reason, "1 check failed: timed out after 2s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_without_backends_has_nothing_to_wait_for() {
        let mut pool = RunningPool::start(settings(5, 10), &[], Script::default()).await;
        assert_eq!(pool.first_round.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_hangs_delays_no_other() {
        let script = Script::default();
        script.set(ONE, Duration::from_secs(1000), Ok(()));
        let pool = RunningPool::start(settings(5, 10), &[ONE, TWO], script).await;
        seconds(100).await;
        let gaps = pool.script.gaps(TWO);
        assert!(gaps.len() >= 17, "{gaps:?}");
        assert!(gaps[0] <= 5.0, "the second check falls within one interval: {gaps:?}");
        assert!(gaps[1..].iter().all(|gap| (4.49..5.51).contains(gap)), "{gaps:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_interval_counts_from_start_to_start() {
        let script = Script::default();
        script.set(ONE, Duration::from_secs(3), Ok(()));
        let pool = RunningPool::start(settings(5, 0), &[ONE], script).await;
        seconds(60).await;
        let gaps = pool.script.gaps(ONE);
        // Timers have a resolution of one millisecond.
        assert!(gaps.len() > 8 && gaps[1..].iter().all(|gap| (gap - 5.0).abs() < 0.01), "{gaps:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_longer_than_its_interval_is_followed_by_the_next_at_once() {
        let script = Script::default();
        script.set(ONE, Duration::from_secs(7), Ok(()));
        let pool = RunningPool::start(settings(5, 0), &[ONE], script).await;
        seconds(70).await;
        let gaps = pool.script.gaps(ONE);
        assert!(gaps.len() > 7 && gaps[1..].iter().all(|gap| (gap - 7.0).abs() < 0.01), "{gaps:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_is_changing_is_checked_at_the_fast_interval() {
        let pool = RunningPool::start(settings(10, 0), &[ONE], Script::default()).await;
        seconds(30).await;
        assert_eq!(pool.ready(), [true]);
        pool.script.set(ONE, Duration::ZERO, Err(CheckError::Refused));
        seconds(14).await;
        assert_eq!(pool.ready(), [false]);
        let reason = pool.verdicts.get(&addr(ONE)).expect("it was checked").reason;
        assert_eq!(reason, "3 checks failed: connection refused");
        let gaps = pool.script.gaps(ONE);
        assert_eq!(gaps[1..].iter().filter(|gap| (*gap - 1.0).abs() < 0.01).count(), 2, "{gaps:?}");

        pool.script.set(ONE, Duration::ZERO, Ok(()));
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
        script.set(ONE, Duration::ZERO, Err(CheckError::Refused));
        let pool = RunningPool::start(settings(1000, 0), &[ONE], script).await;
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
        script.set(ONE, Duration::ZERO, Err(CheckError::Refused));
        script.set(TWO, Duration::ZERO, Err(CheckError::NoRoute));
        let pool = RunningPool::start(settings(1000, 0), &[ONE], script).await;
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
        script.set(ONE, Duration::ZERO, Err(CheckError::Refused));
        let mut pool = RunningPool::start(settings(1000, 0), &[ONE], script).await;
        pool.first_round.recv().await;
        pool.membership.set([]);
        pool.balancer.update().await.expect("the membership is known");
        pool.change_members(&[(ONE, 1)]).await;
        assert_eq!(pool.ready(), [false]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_checked_once_the_pool_task_is_gone() {
        let pool = RunningPool::start(settings(1, 0), &[ONE, TWO], Script::default()).await;
        seconds(5).await;
        drop(pool.task);
        seconds(1).await;
        let checks = pool.script.starts(ONE).len();
        seconds(60).await;
        assert_eq!(pool.script.starts(ONE).len(), checks);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_ends_forgets_what_it_found() {
        let script = Script::default();
        script.set(ONE, Duration::ZERO, Err(CheckError::Refused));
        let mut pool = RunningPool::start(settings(1, 0), &[ONE], script).await;
        pool.first_round.recv().await;
        pool.task.end().await;
        assert_eq!(pool.verdicts.get(&addr(ONE)), None);
        let families = pool.registry.gather();
        assert!(families.is_empty(), "{families:?}");
        let checks = pool.script.starts(ONE).len();
        seconds(60).await;
        assert_eq!(pool.script.starts(ONE).len(), checks);
    }

    #[test]
    fn only_backends_that_come_and_go_make_a_step() {
        let (one, two, three) = (addr(ONE), addr(TWO), addr("10.0.0.3:80"));
        let members = BTreeSet::from([two.clone(), three.clone()]);
        let steps = |changed| steps([&one, &two].into_iter(), &members, changed);
        assert_eq!(
            steps(false),
            BTreeMap::from([(one.clone(), TaskStep::End), (three.clone(), TaskStep::Begin)]),
        );
        assert_eq!(
            steps(true),
            BTreeMap::from([
                (one.clone(), TaskStep::End),
                (two.clone(), TaskStep::Begin),
                (three.clone(), TaskStep::Begin)
            ]),
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_stays_does_not_notice_a_succession() {
        let mut pool = RunningPool::start(settings(5, 0), &[ONE, TWO], Script::default()).await;
        seconds(12).await;
        pool.script.set(ONE, Duration::ZERO, Err(CheckError::Refused));
        while pool.verdict(ONE).last_failure.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // One of three failures; the count goes on in the midst of them.
        let checks = pool.script.starts(TWO).len();
        pool.continue_with(settings(5, 0), &[ONE, TWO, "10.0.0.3:80"]).await;
        assert_eq!(pool.script.starts(TWO).len(), checks);
        assert_eq!(pool.ready(), [true, true, true]);
        seconds(3).await;
        assert_eq!(pool.verdict(ONE).reason, "3 checks failed: connection refused");
        let failing = pool.script.gaps(ONE);
        assert!(failing[failing.len() - 1] < 1.01, "{failing:?}");
        seconds(20).await;
        let gaps = pool.script.gaps(TWO);
        assert!(gaps.len() > 5 && gaps[1..].iter().all(|gap| (gap - 5.0).abs() < 0.01), "{gaps:?}");
        assert_eq!(pool.ready(), [false, true, true], "the new balancer has the results");
    }

    #[tokio::test(start_paused = true)]
    async fn other_settings_keep_the_verdict_and_restart_the_count() {
        let mut pool = RunningPool::start(settings(5, 0), &[ONE], Script::default()).await;
        pool.first_round.recv().await;
        let before = pool.verdict(ONE);
        pool.script.set(ONE, Duration::ZERO, Err(CheckError::Refused));
        while pool.script.starts(ONE).len() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Two of three failures; by the new settings none.
        let checks = pool.script.starts(ONE).len();
        pool.continue_with(Settings { fast_interval: Duration::from_secs(2), ..settings(7, 0) }, &[ONE])
            .await;
        assert_eq!((pool.verdict(ONE).since, pool.ready()), (before.since, vec![true]));
        seconds(3).await;
        assert!(pool.verdict(ONE).up && pool.script.starts(ONE).len() == checks + 2);
        seconds(2).await;
        assert_eq!(pool.verdict(ONE).reason, "3 checks failed: connection refused");
        assert_eq!(pool.ready(), [false]);
        let text = pool.scrape();
        let all = pool.script.starts(ONE).len();
        let failed =
            format!(r#"lb_health_checks_total{{backend="{ONE}",pool="web",result="fail"}} {}"#, all - 1);
        assert!(text.contains(&failed), "the series goes on: {text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_is_down_stays_down_by_other_settings() {
        let script = Script::default();
        script.set(ONE, Duration::ZERO, Err(CheckError::Refused));
        let mut pool = RunningPool::start(settings(5, 0), &[ONE], script).await;
        pool.first_round.recv().await;
        let before = pool.verdict(ONE);
        pool.script.set(ONE, Duration::ZERO, Ok(()));
        pool.continue_with(settings(7, 0), &[ONE]).await;
        assert_eq!((pool.ready(), pool.verdict(ONE).reason), (vec![false], before.reason));
        seconds(2).await;
        assert_eq!((pool.ready(), pool.verdict(ONE).reason), (vec![true], "2 checks passed".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_backend_that_is_dead_is_never_ready_in_the_new_balancer() {
        let script = Script::default();
        script.set(TWO, Duration::ZERO, Err(CheckError::Refused));
        let mut pool = RunningPool::start(settings(5, 0), &[ONE], script).await;
        pool.first_round.recv().await;
        pool.continue_with(settings(5, 0), &[ONE, TWO]).await;
        assert_eq!(pool.ready(), [true, false]);
        assert_eq!(pool.reports(), ["web 10.0.0.2:80 down: 1 check failed: connection refused"]);
        let text = pool.scrape();
        for line in [
            r#"lb_health_checks_total{backend="10.0.0.2:80",pool="web",result="fail"} 1"#,
            r#"lb_backend_state_changes_total{backend="10.0.0.2:80",pool="web"} 1"#,
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
        assert_eq!(pool.script.starts(TWO).len(), 1, "its first check was made before");
        pool.script.set(TWO, Duration::ZERO, Ok(()));
        seconds(12).await;
        assert_eq!(pool.ready(), [true, true]);
        assert_eq!(pool.reports()[1..], ["web 10.0.0.2:80 up: 2 checks passed"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_is_gone_is_forgotten_but_not_up_for_requests_from_before() {
        let script = Script::default();
        script.set(TWO, Duration::ZERO, Err(CheckError::Refused));
        let mut pool = RunningPool::start(settings(5, 0), &[ONE, TWO], script).await;
        pool.first_round.recv().await;
        let before = pool.continue_with(settings(5, 0), &[ONE]).await;
        assert_eq!(pool.verdicts.get(&addr(TWO)), None);
        let text = pool.scrape();
        assert!(text.contains(ONE) && !text.contains(TWO), "{text}");
        let checks = pool.script.starts(TWO).len();
        seconds(60).await;
        assert_eq!(pool.script.starts(TWO).len(), checks);
        pool.balancer.backends().run_health_check(false).await;
        assert_eq!(ready(&before), [true, false]);

        // Once the old balancer is dropped, nothing is left of the backend.
        drop(before);
        assert_eq!(pool.verdicts.retired(), 1);
        tokio::time::sleep(2 * MEMBERSHIP_CADENCE).await;
        assert_eq!(pool.verdicts.retired(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_is_gone_is_forgotten_although_a_balancer_without_it_is_still_in_use() {
        let script = Script::default();
        script.set(TWO, Duration::ZERO, Err(CheckError::Refused));
        let mut pool = RunningPool::start(settings(5, 0), &[ONE], script).await;
        pool.first_round.recv().await;
        let _eternal = pool.continue_with(settings(5, 0), &[ONE, TWO]).await;
        seconds(12).await;
        drop(pool.continue_with(settings(5, 0), &[ONE]).await);
        assert_eq!(pool.verdicts.retired(), 1);
        tokio::time::sleep(2 * MEMBERSHIP_CADENCE).await;
        assert_eq!(pool.verdicts.retired(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_balancer_gets_all_verdicts_before_it_is_used() {
        let script = Script::default();
        script.set(ONE, Duration::ZERO, Err(CheckError::Refused));
        let mut pool = RunningPool::start(settings(1000, 0), &[ONE], script).await;
        pool.first_round.recv().await;
        pool.health = registry();
        pool.health.set_health_check(pool.verdicts.publisher());
        pool.continue_with(settings(1000, 0), &[ONE]).await;
        assert_eq!(pool.ready(), [false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_balancer_that_comes_back_is_no_predecessor_of_itself() {
        let script = Script::default();
        script.set(TWO, Duration::ZERO, Err(CheckError::Refused));
        let mut pool = RunningPool::start(settings(5, 0), &[ONE, TWO], script).await;
        pool.first_round.recv().await;
        let pool_of = |balancer: &Arc<LoadBalancer<RoundRobin>>| PoolSetup {
            name: "web".to_owned(),
            balancer: balancer.clone(),
            verdicts: pool.verdicts.clone(),
            procedure: procedure(settings(5, 0), &pool.script),
        };
        let other = membership::members(&[ONE], &pool.health).await;
        pool.task.continue_with(pool_of(&other), FirstResults::new()).await;
        assert_eq!(pool.verdicts.retired(), 1);
        pool.task.continue_with(pool_of(&pool.balancer), FirstResults::new()).await;
        drop(other);
        pool.change_members(&[(ONE, 1)]).await;
        assert_eq!(pool.verdicts.retired(), 0);
    }
}
