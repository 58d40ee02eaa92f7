//! Changes that operators make while the daemon runs. They are stored apart from the file, so that they can be shown,
//! and kept or dropped by a reload.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use lb_service::Algorithm;
use lb_service::pool::{Admin, BackendSettings, PoolSettings, UpstreamAddress, Weight};
use serde::{Deserialize, Serialize};

use super::order::{Change, Joining, Order};
use crate::config::{MAX_RING_WEIGHT, Plan};
use crate::serving::diff;

/// Changes by operators, by pool and backend. Settings equal to those of the file are not stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime(BTreeMap<(String, UpstreamAddress), Changed>);

/// Differences between a backend's settings and the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Changed {
    presence: Option<Presence>,
    weight: Option<Weight>,
    admin: Option<Admin>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Presence {
    Added(Joining),
    Removed,
}

/// Change of one backend in the form that an upgrade passes to the new process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Portable {
    pool: String,
    backend: UpstreamAddress,
    changed: Changed,
    /// The time of the change.
    since: SystemTime,
}

/// Times of changes, by pool and backend.
pub(crate) type Times = BTreeMap<(String, UpstreamAddress), SystemTime>;

// === impl Runtime ===

impl Runtime {
    /// Returns the change of this backend; `None` if there is none.
    pub(crate) fn of(&self, pool: &str, backend: &UpstreamAddress) -> Option<&Changed> {
        self.0.get(&(pool.to_owned(), backend.clone()))
    }

    /// Iterates over the changes, with the pool and the backend of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&(String, UpstreamAddress), &Changed)> {
        self.0.iter()
    }

    /// Returns one line for each change.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |((pool, backend), changed): (&(String, UpstreamAddress), &Changed)| {
            format!("pool {pool}: backend {backend}: {changed}")
        };
        self.0.iter().map(line).collect()
    }

    /// Returns the changes after `order`, given the plan of the file.
    ///
    /// # Errors
    /// If the order cannot be executed; the error contains the remedy.
    pub(crate) fn after(&self, order: &Order, file: &Plan) -> Result<Self, String> {
        let now = self.applied_to(file);
        let pool = pool(&now, &order.pool)?;
        let there = pool.backends.iter().find(|backend| backend.address == order.backend);
        let mut next = self.clone();
        let entry = next.0.entry((order.pool.clone(), order.backend.clone())).or_default();
        match (order.change, there) {
            (Change::Add(_), Some(_)) => {
                return Err(format!("pool {} already has backend {}", order.pool, order.backend));
            }
            (Change::Add(joining), None) => *entry = Changed::added(inherit(joining, pool)),
            (_, None) => return Err(unknown_backend(pool, &order.backend)),
            (Change::Remove, Some(backend)) => {
                refuse_last(pool, backend)?;
                *entry = Changed { presence: Some(Presence::Removed), ..Changed::default() };
            }
            (Change::Weigh(weight), Some(_)) => entry.weigh(weight),
            (change, Some(backend)) => entry.admin = Some(decide(change, backend)?),
        }
        refuse_overweight(&next.applied_to(file), &order.pool)?;
        Ok(next.without_what_the_file_says(file))
    }

    /// Returns `file` with the changes applied. Changes of backends that `file` does not have are ignored.
    pub(crate) fn applied_to(&self, file: &Plan) -> Plan {
        let mut plan = file.clone();
        for ((name, address), changed) in &self.0 {
            let pools = plan.pools.iter_mut().map(|(pool, _)| pool);
            for pool in pools.filter(|pool| *pool.name == **name) {
                changed.apply(address, &mut pool.backends);
            }
        }
        plan
    }

    /// Returns the changes that can be kept when `file` replaces the previous file, and one line for each dropped
    /// change.
    pub(crate) fn rebased(&self, file: &Plan) -> (Self, Vec<String>) {
        let fits = |(name, address): &(String, UpstreamAddress), changed: &Changed| {
            let pool = file.pools.iter().map(|(pool, _)| pool).find(|pool| *pool.name == **name);
            pool.is_some_and(|pool| {
                let is_there = pool.backends.iter().any(|backend| backend.address == *address);
                is_there != matches!(changed.presence, Some(Presence::Added(_))) || is_there
            })
        };
        let (mut kept, mut lost) = (self.clone(), self.clone());
        kept.0.retain(|key, changed| fits(key, changed));
        lost.0.retain(|key, changed| !fits(key, changed));
        let mut lines = lost.lines();
        let mut kept = kept.without_what_the_file_says(file);
        // Changes that would leave a pool without backends are dropped.
        for (pool, _) in &kept.applied_to(file).pools {
            if pool.backends.iter().all(|backend| backend.backup) {
                let mut removals = kept.clone();
                removals.0.retain(|(name, _), _| **name == *pool.name);
                lines.extend(removals.lines());
                kept.0.retain(|(name, _), _| **name != *pool.name);
            }
        }
        (kept, lines)
    }

    /// Returns the changes in the form that an upgrade passes on.
    pub(crate) fn portable(&self, times: &Times) -> Vec<Portable> {
        let portable = |(key, changed): (&(String, UpstreamAddress), &Changed)| Portable {
            pool: key.0.clone(),
            backend: key.1.clone(),
            changed: *changed,
            since: times.get(key).copied().unwrap_or_else(SystemTime::now),
        };
        self.0.iter().map(portable).collect()
    }

    /// Restores the changes that an upgrade passed on.
    pub(crate) fn from_portable(changes: Vec<Portable>) -> (Self, Times) {
        let (mut runtime, mut times) = (BTreeMap::new(), Times::new());
        for Portable { pool, backend, changed, since } in changes {
            runtime.insert((pool.clone(), backend.clone()), changed);
            times.insert((pool, backend), since);
        }
        (Self(runtime), times)
    }

    fn without_what_the_file_says(mut self, file: &Plan) -> Self {
        for ((name, address), changed) in &mut self.0 {
            let pool = file.pools.iter().map(|(pool, _)| pool).find(|pool| *pool.name == **name);
            let in_file =
                pool.and_then(|pool| pool.backends.iter().find(|backend| backend.address == *address));
            changed.forget_what_is_so(in_file);
        }
        self.0.retain(|_, changed| *changed != Changed::default());
        self
    }
}

fn pool<'a>(plan: &'a Plan, name: &str) -> Result<&'a PoolSettings, String> {
    let mut pools = plan.pools.iter().map(|(pool, _)| pool);
    pools.find(|pool| *pool.name == *name).ok_or_else(|| {
        let names: Vec<_> = plan.pools.iter().map(|(pool, _)| &*pool.name).collect();
        format!("there is no pool {name}; the pools are: {}", names.join(", "))
    })
}

fn unknown_backend(pool: &PoolSettings, address: &UpstreamAddress) -> String {
    let known: Vec<_> = pool.backends.iter().map(|backend| backend.address.to_string()).collect();
    format!("pool {} has no backend {address}; it has: {}", pool.name, known.join(", "))
}

fn refuse_last(pool: &PoolSettings, leaving: &BackendSettings) -> Result<(), String> {
    let mut others = pool.backends.iter().filter(|backend| backend.address != leaving.address);
    if others.any(|backend| !backend.backup) {
        return Ok(());
    }
    Err(format!(
        "{} is the last backend of pool {} that is not a backup: add another first, or use disable",
        leaving.address, pool.name
    ))
}

/// Rejects weights that the configuration would reject as well.
fn refuse_overweight(plan: &Plan, name: &str) -> Result<(), String> {
    let pool = pool(plan, name)?;
    let sum: usize = pool.backends.iter().map(|backend| backend.weight.get()).sum();
    if pool.policy != Algorithm::ConsistentHash || sum <= MAX_RING_WEIGHT {
        return Ok(());
    }
    Err(format!(
        "the weights of pool {name} would add up to {sum}; the maximum for `consistent_hash` is {MAX_RING_WEIGHT}"
    ))
}

fn decide(change: Change, backend: &BackendSettings) -> Result<Admin, String> {
    let otherwise = |subcommand: &str| {
        Err(format!("{} is {}: use {subcommand}", backend.address, diff::state(backend.admin)))
    };
    match (change, backend.admin) {
        (Change::Drain, _) => Ok(Admin::Draining),
        (Change::Disable, _) => Ok(Admin::Disabled),
        (Change::Undrain, Admin::Disabled) => otherwise("enable"),
        (Change::Enable, Admin::Draining) => otherwise("undrain"),
        _ => Ok(Admin::InService),
    }
}

/// Gives a new backend without a limit the limit of the other backends, if they all have the same one.
fn inherit(joining: Joining, pool: &PoolSettings) -> Joining {
    let mut limits = pool.backends.iter().map(|backend| backend.max_requests);
    let first = limits.next().flatten();
    let common = first.filter(|_| limits.all(|limit| limit == first));
    Joining { max_requests: joining.max_requests.or(common), ..joining }
}

// === impl Changed ===

impl Changed {
    /// Returns the administrative state that an operator set; `None` if none was set.
    pub(crate) fn admin(&self) -> Option<Admin> {
        self.admin
    }

    fn added(joining: Joining) -> Self {
        Self { presence: Some(Presence::Added(joining)), ..Self::default() }
    }

    fn weigh(&mut self, weight: Weight) {
        match &mut self.presence {
            Some(Presence::Added(joining)) => joining.weight = weight,
            _ => self.weight = Some(weight),
        }
    }

    fn apply(&self, address: &UpstreamAddress, backends: &mut Vec<BackendSettings>) {
        match self.presence {
            Some(Presence::Removed) => backends.retain(|backend| backend.address != *address),
            Some(Presence::Added(joining)) => {
                backends.retain(|backend| backend.address != *address);
                backends.push(joining.settings(address.clone()));
            }
            None => {}
        }
        for backend in backends.iter_mut().filter(|backend| backend.address == *address) {
            backend.weight = self.weight.unwrap_or(backend.weight);
            backend.admin = self.admin.unwrap_or(backend.admin);
        }
    }

    fn forget_what_is_so(&mut self, in_file: Option<&BackendSettings>) {
        if let (Some(Presence::Added(joining)), Some(backend)) = (self.presence, in_file) {
            let same_but_weight =
                joining.backup == backend.backup && joining.max_requests == backend.max_requests;
            if same_but_weight {
                (self.presence, self.weight) = (None, Some(joining.weight));
            }
        }
        if self.presence == Some(Presence::Removed) && in_file.is_none() {
            *self = Self::default();
        }
        self.weight = self.weight.filter(|weight| in_file.is_some_and(|backend| backend.weight != *weight));
        self.admin = self.admin.filter(|admin| *admin != Admin::InService);
    }
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.presence.map(|presence| match presence {
            Presence::Added(joining) => format!("added (weight {})", joining.weight.get()),
            Presence::Removed => "removed".to_owned(),
        }));
        words.extend(self.weight.map(|weight| format!("weight {}", weight.get())));
        words.extend(self.admin.map(|admin| diff::state(admin).to_owned()));
        f.write_str(&words.join(", "))
    }
}

// === impl Joining ===

impl Joining {
    fn settings(self, address: UpstreamAddress) -> BackendSettings {
        let Self { weight, backup, max_requests } = self;
        BackendSettings { address, weight, backup, max_requests, admin: Admin::InService }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::plan;

    const FILE: &str =
        "pools: {web: {backends: ['10.0.0.1:80', '10.0.0.2:80', {address: '10.0.0.9:80', backup: true}]}}";

    fn order(backend: &str, change: Change) -> Order {
        Order { pool: "web".into(), backend: backend.parse().unwrap(), change }
    }

    fn weight(weight: u64) -> Weight {
        Weight::new(weight).unwrap()
    }

    fn joining() -> Change {
        Change::Add(Joining { weight: weight(3), backup: false, max_requests: None })
    }

    /// Returns the changes after all these orders.
    fn after(orders: &[Order]) -> Runtime {
        let file = plan(FILE);
        orders.iter().fold(Runtime::default(), |runtime, order| runtime.after(order, &file).unwrap())
    }

    fn refusal(orders: &[Order], last: &Order) -> String {
        after(orders).after(last, &plan(FILE)).unwrap_err()
    }

    fn backends(runtime: &Runtime) -> Vec<(String, usize, Admin)> {
        let plan = runtime.applied_to(&plan(FILE));
        let backends = plan.pools[0].0.backends.iter();
        backends.map(|b| (b.address.to_string(), b.weight.get(), b.admin)).collect()
    }

    #[test]
    fn each_order_changes_the_plan_and_is_listed() {
        let runtime = after(&[
            order("10.0.0.1:80", Change::Drain),
            order("10.0.0.1:80", Change::Weigh(weight(7))),
            order("10.0.0.2:80", Change::Disable),
            order("10.0.0.3:80", joining()),
            order("10.0.0.9:80", Change::Remove),
        ]);
        assert_eq!(
            backends(&runtime),
            [
                ("10.0.0.1:80".to_owned(), 7, Admin::Draining),
                ("10.0.0.2:80".to_owned(), 1, Admin::Disabled),
                ("10.0.0.3:80".to_owned(), 3, Admin::InService),
            ]
        );
        assert_eq!(
            runtime.lines(),
            [
                "pool web: backend 10.0.0.1:80: weight 7, draining",
                "pool web: backend 10.0.0.2:80: disabled",
                "pool web: backend 10.0.0.3:80: added (weight 3)",
                "pool web: backend 10.0.0.9:80: removed",
            ]
        );
    }

    #[test]
    fn orders_that_cancel_each_other_leave_no_change() {
        for orders in [
            vec![order("10.0.0.1:80", Change::Drain), order("10.0.0.1:80", Change::Undrain)],
            vec![order("10.0.0.1:80", Change::Disable), order("10.0.0.1:80", Change::Enable)],
            vec![
                order("10.0.0.1:80", Change::Weigh(weight(9))),
                order("10.0.0.1:80", Change::Weigh(weight(1))),
            ],
            vec![order("10.0.0.3:80", joining()), order("10.0.0.3:80", Change::Remove)],
            vec![
                order("10.0.0.1:80", Change::Remove),
                order("10.0.0.1:80", joining()),
                order("10.0.0.1:80", Change::Weigh(weight(1))),
            ],
        ] {
            assert_eq!(after(&orders), Runtime::default(), "{orders:?}");
        }
    }

    #[test]
    fn impossible_orders_are_refused_with_a_remedy() {
        let unknown_pool = Order { pool: "api".into(), ..order("10.0.0.1:80", Change::Drain) };
        assert_eq!(refusal(&[], &unknown_pool), "there is no pool api; the pools are: web");
        let unknown = refusal(&[], &order("10.9.9.9:80", Change::Drain));
        assert!(unknown.starts_with("pool web has no backend 10.9.9.9:80; it has: 10.0.0.1:80"), "{unknown}");
        let twice = refusal(&[], &order("10.0.0.1:80", joining()));
        assert!(twice.contains("already"), "{twice}");
        let last = [order("10.0.0.1:80", Change::Remove)];
        let last = refusal(&last, &order("10.0.0.2:80", Change::Remove));
        assert!(last.contains("last backend") && last.contains("disable"), "{last}");
        let drained = [order("10.0.0.1:80", Change::Drain)];
        assert!(refusal(&drained, &order("10.0.0.1:80", Change::Enable)).contains("use undrain"));
        let disabled = [order("10.0.0.1:80", Change::Disable)];
        assert!(refusal(&disabled, &order("10.0.0.1:80", Change::Undrain)).contains("use enable"));
    }

    #[test]
    fn an_added_backend_gets_the_common_limit_of_the_others() {
        let file =
            plan("pools: {web: {backends: ['10.0.0.1:80', '10.0.0.2:80'], limits: {max_requests: 5}}}");
        let runtime = Runtime::default().after(&order("10.0.0.3:80", joining()), &file).unwrap();
        let pool = &runtime.applied_to(&file).pools[0].0;
        assert_eq!(pool.backends[2].max_requests.map(std::num::NonZeroU32::get), Some(5));
    }

    #[test]
    fn changes_are_kept_if_the_new_file_has_their_backends() {
        let runtime = after(&[
            order("10.0.0.1:80", Change::Drain),
            order("10.0.0.2:80", Change::Weigh(weight(4))),
            order("10.0.0.3:80", joining()),
        ]);
        let (kept, lost) = runtime.rebased(&plan("pools: {web: {backends: ['10.0.0.2:80', '10.0.0.4:80']}}"));
        assert_eq!(
            kept.lines(),
            ["pool web: backend 10.0.0.2:80: weight 4", "pool web: backend 10.0.0.3:80: added (weight 3)"]
        );
        assert_eq!(lost, ["pool web: backend 10.0.0.1:80: draining"]);
        let (kept, lost) = runtime.rebased(&plan("pools: {api: {backends: ['10.0.0.2:80', '10.0.0.4:80']}}"));
        assert!(kept.0.is_empty());
        assert_eq!(lost.len(), 3);
    }

    #[test]
    fn kept_changes_never_leave_a_pool_without_backends() {
        let runtime = after(&[order("10.0.0.1:80", Change::Remove)]);
        let (kept, lost) = runtime.rebased(&plan("pools: {web: {backends: ['10.0.0.1:80']}}"));
        assert!(kept.0.is_empty());
        assert_eq!(lost, ["pool web: backend 10.0.0.1:80: removed"]);
    }

    #[test]
    fn the_new_process_restores_all_changes() {
        let runtime = after(&[
            order("10.0.0.1:80", Change::Drain),
            order("10.0.0.1:80", Change::Weigh(weight(7))),
            order("10.0.0.2:80", Change::Disable),
            order("10.0.0.3:80", joining()),
            order("10.0.0.9:80", Change::Remove),
            order("unix:/run/app.sock", joining()),
        ]);
        let times: Times = runtime
            .iter()
            .map(|(key, _)| key.clone())
            .zip(std::iter::repeat(SystemTime::UNIX_EPOCH))
            .collect();
        let text = serde_json::to_string(&runtime.portable(&times)).unwrap();
        assert!(text.contains(r#""backend":"10.0.0.1:80""#), "the version before reads this text: {text}");
        let portable: Vec<Portable> = serde_json::from_str(&text).unwrap();
        assert_eq!(Runtime::from_portable(portable), (runtime, times));
    }
}
