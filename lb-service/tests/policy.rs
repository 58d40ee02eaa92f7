//! The policy in Pingora's own load balancers, as any Pingora program can use it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use lb_service::clock::Clock;
use lb_service::policy::{Algorithm, Load};
use lb_service::{Policy, PolicyConfig};
use pingora::lb::discovery::ServiceDiscovery;
use pingora::lb::{Backend, Backends, LoadBalancer, LoadBalancerGroup};

const A: (&str, usize) = ("10.0.0.1:1", 1);
const B: (&str, usize) = ("10.0.0.2:1", 1);
const C: (&str, usize) = ("10.0.0.3:1", 1);
const D: (&str, usize) = ("10.0.0.4:1", 1);

/// A set of backends that the test can change.
#[derive(Clone, Default)]
struct Membership(Arc<Mutex<BTreeSet<Backend>>>);

#[async_trait]
impl ServiceDiscovery for Membership {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        Ok((self.0.lock().unwrap().clone(), HashMap::new()))
    }
}

impl Membership {
    fn set(&self, members: &[(&str, usize)]) {
        *self.0.lock().unwrap() = members
            .iter()
            .map(|(address, weight)| Backend::new_with_weight(address, *weight).unwrap())
            .collect();
    }
}

/// A balancer, and the set of its backends.
async fn balancer(members: &[(&str, usize)]) -> (LoadBalancer<Policy>, Membership) {
    balancer_with(PolicyConfig::default(), members).await
}

async fn balancer_with(
    config: PolicyConfig,
    members: &[(&str, usize)],
) -> (LoadBalancer<Policy>, Membership) {
    let membership = Membership::default();
    membership.set(members);
    let backends = Backends::new(Box::new(membership.clone()));
    let balancer = LoadBalancer::from_backends_with_config(backends, Some(config));
    balancer.update().await.unwrap();
    (balancer, membership)
}

async fn change(balancer: &LoadBalancer<Policy>, membership: &Membership, members: &[(&str, usize)]) {
    membership.set(members);
    balancer.update().await.unwrap();
}

/// The address of a backend as a letter: `10.0.0.1` is `a`.
fn letter(backend: &Backend) -> char {
    let address = backend.addr.to_string();
    let last = address.split(['.', ':']).nth(3).unwrap().parse::<u8>().unwrap();
    char::from(b'a' + last - 1)
}

fn picks(balancer: &LoadBalancer<Policy>, count: usize) -> String {
    (0..count).map(|_| letter(&balancer.select(b"", 10).unwrap())).collect()
}

#[test]
fn a_policy_needs_no_configuration() {
    let balancer = LoadBalancer::<Policy>::try_from_iter(["10.0.0.1:1", "10.0.0.2:1"]).unwrap();
    assert_eq!(picks(&balancer, 4), "abab");
}

#[tokio::test]
async fn weights_5_1_1_give_the_sequence_of_nginx() {
    let (balancer, _) = balancer(&[("10.0.0.1:1", 5), B, C]).await;
    assert_eq!(picks(&balancer, 14), "aabacaaaabacaa");
}

#[tokio::test]
async fn the_position_survives_a_membership_change() {
    let (balancer, membership) = balancer(&[A, B, C]).await;
    assert_eq!(picks(&balancer, 2), "ab");
    change(&balancer, &membership, &[A, B, C, D]).await;
    assert_eq!(picks(&balancer, 4), "cdab");
    change(&balancer, &membership, &[A, B]).await;
    assert_eq!(picks(&balancer, 3), "aba");
    change(&balancer, &membership, &[A, ("10.0.0.2:1", 2)]).await;
    assert_eq!(picks(&balancer, 3), "bab");
}

#[tokio::test]
async fn frequent_changes_do_not_favour_the_first_backend() {
    let (balancer, membership) = balancer(&[A, B, C]).await;
    let mut counts: BTreeMap<char, usize> = BTreeMap::new();
    for turn in 0..300 {
        let weight = 1 + turn % 2;
        change(
            &balancer,
            &membership,
            &[("10.0.0.1:1", weight), ("10.0.0.2:1", weight), ("10.0.0.3:1", weight)],
        )
        .await;
        *counts.entry(picks(&balancer, 1).chars().next().unwrap()).or_default() += 1;
    }
    assert!(counts.values().all(|count| *count == 100), "{counts:?}");
}

#[tokio::test]
async fn a_set_of_backends_may_become_empty_and_refill() {
    let (balancer, membership) = balancer(&[]).await;
    assert!(balancer.select(b"", 10).is_none());
    change(&balancer, &membership, &[("10.0.0.1:1", 0), ("10.0.0.2:1", 0)]).await;
    assert!(balancer.select(b"", 10).is_some());
    change(&balancer, &membership, &[]).await;
    assert!(balancer.select(b"", 10).is_none());
}

#[tokio::test]
async fn the_turns_of_a_disabled_backend_go_to_the_next_one() {
    let (balancer, _) = balancer(&[A, B, C]).await;
    let c = Backend::new(C.0).unwrap();
    balancer.backends().set_enable(&c, false);
    assert_eq!(picks(&balancer, 6), "ababab");
    balancer.backends().set_enable(&c, true);
    assert_eq!(picks(&balancer, 3).chars().collect::<BTreeSet<_>>().len(), 3);
}

#[tokio::test]
async fn one_iteration_per_backend_suffices() {
    let members: Vec<(String, usize)> =
        (1..=200).map(|last| (format!("10.0.0.{last}:1"), 201 - last)).collect();
    let members: Vec<(&str, usize)> =
        members.iter().map(|(address, weight)| (address.as_str(), *weight)).collect();
    let (balancer, _) = balancer(&members).await;
    for (address, _) in &members {
        let found =
            balancer.select_with(b"", members.len(), |backend, _| backend.addr.to_string() == *address);
        assert_eq!(found.unwrap().addr.to_string(), *address);
    }
}

#[tokio::test]
async fn threads_share_one_position() {
    let (balancer, _) = balancer(&[("10.0.0.1:1", 5), B, C]).await;
    let mut counts: BTreeMap<char, usize> = BTreeMap::new();
    let all: String = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| picks(&balancer, 7000))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    all.chars().for_each(|letter| *counts.entry(letter).or_default() += 1);
    assert_eq!(counts, BTreeMap::from([('a', 20_000), ('b', 4_000), ('c', 4_000)]));
}

#[tokio::test]
async fn two_selectors_of_a_group_have_their_own_positions() {
    let membership = Membership::default();
    membership.set(&[A, B]);
    let backends = Backends::new(Box::new(membership));
    let configs = [Some(PolicyConfig::default()), Some(PolicyConfig::default())];
    let group = LoadBalancerGroup::<Policy>::from_backends_with_configs(backends, configs);
    group.update().await.unwrap();
    let rebuilt = async {
        while !group.selectors_ready_for(group.backend_generation()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), rebuilt).await.unwrap();
    let pick = |selector| letter(&group.select(selector, b"", 10).unwrap());
    assert_eq!([pick(0), pick(1), pick(0), pick(1)], ['a', 'a', 'b', 'b']);
}

fn load(config: &PolicyConfig, member: (&str, usize)) -> Arc<Load> {
    config.load(&member.0.parse().unwrap())
}

#[tokio::test]
async fn every_algorithm_follows_its_membership() {
    for algorithm in Algorithm::ALL {
        let (balancer, membership) = balancer_with(PolicyConfig::new(algorithm), &[A, B, C]).await;
        for members in [&[A, B, C][..], &[A, B], &[], &[D], &[("10.0.0.1:1", 7), B, C, D]] {
            change(&balancer, &membership, members).await;
            let keys = (0..500).map(|key| format!("key {key}"));
            let picked: BTreeSet<char> =
                keys.filter_map(|key| Some(letter(&balancer.select(key.as_bytes(), 10)?))).collect();
            let expected: BTreeSet<char> =
                members.iter().map(|(address, _)| letter(&Backend::new(address).unwrap())).collect();
            assert_eq!(picked, expected, "{algorithm:?}");
        }
    }
}

#[tokio::test]
async fn every_algorithm_finds_the_only_backend_that_is_ready() {
    let members: Vec<String> = (1..=50).map(|last| format!("10.0.0.{last}:1")).collect();
    let members: Vec<(&str, usize)> = members.iter().map(|address| (address.as_str(), 1)).collect();
    for algorithm in Algorithm::ALL {
        let (balancer, _) = balancer_with(PolicyConfig::new(algorithm), &members).await;
        for (address, weight) in &members[1..] {
            balancer.backends().set_enable(&Backend::new_with_weight(address, *weight).unwrap(), false);
        }
        for key in 0..100 {
            let found = balancer.select(format!("key {key}").as_bytes(), members.len()).unwrap();
            assert_eq!(found.addr.to_string(), members[0].0, "{algorithm:?}");
        }
    }
}

#[tokio::test]
async fn requests_in_flight_survive_changes_of_membership_and_weight() {
    let config = PolicyConfig::new(Algorithm::LeastRequest);
    let (balancer, membership) = balancer_with(config.clone(), &[A, B]).await;
    let held = [(); 3].map(|()| load(&config, A).enter());
    assert_eq!(picks(&balancer, 4), "bbbb");
    change(&balancer, &membership, &[("10.0.0.1:1", 2), B]).await;
    assert_eq!(picks(&balancer, 4), "bbbb");
    change(&balancer, &membership, &[B]).await;
    change(&balancer, &membership, &[A, B]).await;
    assert_eq!(load(&config, A).in_flight(), 3);
    assert_eq!(picks(&balancer, 4), "bbbb");
    drop(held);
    assert!(picks(&balancer, 2).contains('a'));
}

#[tokio::test]
async fn latencies_survive_changes_of_membership_and_weight() {
    let (clock, _hands) = Clock::manual();
    let config = PolicyConfig::new(Algorithm::PeakEwma).with_clock(clock.clone());
    let (balancer, membership) = balancer_with(config.clone(), &[A, B]).await;
    let a = load(&config, A);
    a.responded(Duration::from_secs(1), clock.now());
    for members in [&[("10.0.0.1:1", 2), B][..], &[B], &[A, B, C], &[A, B]] {
        change(&balancer, &membership, members).await;
        assert!(!picks(&balancer, 10).contains('a'));
        assert_eq!(load(&config, A).cost(clock.now()), Duration::from_secs(1));
    }
}

#[tokio::test]
async fn a_removed_backend_loses_its_latencies() {
    let config = PolicyConfig::new(Algorithm::PeakEwma);
    let (balancer, membership) = balancer_with(config.clone(), &[A, B]).await;
    load(&config, A).responded(Duration::from_secs(1), Clock::system().now());
    change(&balancer, &membership, &[B]).await;
    change(&balancer, &membership, &[A, B]).await;
    assert_eq!(load(&config, A).cost(Clock::system().now()), Duration::from_millis(30));
}

#[tokio::test]
async fn requests_can_be_counted_by_the_filter_of_a_selection() {
    let config = PolicyConfig::new(Algorithm::LeastRequest);
    let (balancer, _) = balancer_with(config.clone(), &[A, B, C]).await;
    let loads = [A, B, C].map(|member| (member.0, load(&config, member)));
    let held = Mutex::new(Vec::new());
    let enter = |backend: &Backend, ready: bool| {
        let address = backend.addr.to_string();
        let load = loads.iter().find(|(name, _)| *name == address).map(|(_, load)| load);
        ready
            && load.and_then(|load| load.try_enter(2)).map(|guard| held.lock().unwrap().push(guard)).is_some()
    };
    assert!((0..6).all(|_| balancer.select_with(b"", 3, enter).is_some()));
    assert!(balancer.select_with(b"", 3, enter).is_none());
    held.lock().unwrap().clear();
    assert!(balancer.select_with(b"", 3, enter).is_some());
}
