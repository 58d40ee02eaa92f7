//! Finds the routes for a host and a path, so that the number of routes does not matter.
//!
//! The index has the routes of each host pattern, by path. A name is stored from its end to its beginning, so that a
//! domain is a prefix of the names in it. Hosts with the same routes share their paths, so that a route with many hosts
//! and many paths takes space for each of them once.
//!
//! Invariant: a look-up allocates nothing, and its cost depends on the configuration only. A request cannot make it
//! longer by many labels or segments.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv6Addr;
use std::sync::Arc;

use super::pattern::{Host, HostRule, MAX_NAME};
use super::prefixes::{Entry, Prefixes, Sought};
use super::{HostPattern, PathPattern, Route};

/// The positions of routes, by host and path.
#[derive(Clone, Debug)]
pub(super) struct Index {
    names: Prefixes<Arc<Paths>>,
    addresses: BTreeMap<Ipv6Addr, Arc<Paths>>,
    /// The routes without a host.
    any_host: Arc<Paths>,
}

/// The positions of the routes of a host, by path.
#[derive(Debug)]
struct Paths {
    paths: Prefixes<Positions>,
    any_path: Positions,
}

/// Positions of routes in the table, in ascending order.
type Positions = Vec<usize>;

/// The positions of routes at each host, while the index is built.
#[derive(Default)]
struct Hosts {
    names: BTreeMap<Box<[u8]>, Entry<Positions>>,
    addresses: BTreeMap<Ipv6Addr, Positions>,
    any: Positions,
}

/// The hosts that a route must match.
#[derive(Clone, Copy)]
pub(super) enum SoughtHost<'a> {
    /// Any host, and also none.
    Any,
    /// This address.
    Address(Ipv6Addr),
    /// This name, or all names below a domain, reversed.
    Name(Sought<'a>),
}

/// The space for the end of a name in lower case, from the last byte to the first. It is long enough for every pattern.
pub(super) struct Reversed([u8; Reversed::MAX]);

// === impl Index ===

impl Index {
    pub(super) fn new(routes: &[Route]) -> Self {
        let mut hosts = Hosts::default();
        routes.iter().enumerate().for_each(|(position, route)| hosts.add(position, route));
        let mut known = HashMap::new();
        let mut paths = |positions: Positions| -> Arc<Paths> {
            let new = |positions: &Positions| Arc::new(Paths::new(routes, positions));
            known.entry(positions).or_insert_with_key(new).clone()
        };
        let any_host = paths(hosts.any);
        let addresses = hosts.addresses.into_iter().map(|(address, at)| (address, paths(at))).collect();
        let names = hosts.names.into_iter().map(|(name, entry)| (name, entry.map(&mut paths))).collect();
        Self { names: Prefixes::new(names, b'.'), addresses, any_host }
    }

    /// Returns the host of a request.
    pub(super) fn host_of<'a>(&self, host: Option<&str>, space: &'a mut Reversed) -> SoughtHost<'a> {
        // Without host patterns there is no need to read the host.
        let is_used = !self.names.is_empty() || !self.addresses.is_empty();
        let host = host.filter(|_| is_used).and_then(Host::parse);
        host.map_or(SoughtHost::Any, |host| SoughtHost::of(host, space))
    }

    /// Returns the first position below `limit` of a route for the host and the path that `is_meant`. The path `None`
    /// stands for any path.
    pub(super) fn first(
        &self,
        host: SoughtHost<'_>,
        path: Option<Sought<'_>>,
        limit: usize,
        is_meant: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut first = limit;
        let mut search = |positions: &Positions| {
            let mut earlier = positions.iter().copied().take_while(|position| *position < first);
            first = earlier.find(|position| is_meant(*position)).unwrap_or(first);
        };
        // `for_each` is faster than a loop over chained iterators.
        self.paths_of(host).for_each(|paths| paths.find(path).for_each(&mut search));
        (first < limit).then_some(first)
    }

    fn paths_of(&self, host: SoughtHost<'_>) -> impl Iterator<Item = &Paths> {
        let (name, address) = match host {
            SoughtHost::Any => (None, None),
            SoughtHost::Address(address) => (None, self.addresses.get(&address)),
            SoughtHost::Name(name) => (Some(self.names.find(name)), None),
        };
        name.into_iter().flatten().chain(address).chain([&self.any_host]).map(|paths| &**paths)
    }
}

// === impl Hosts ===

impl Hosts {
    fn add(&mut self, position: usize, route: &Route) {
        match &route.host {
            None => self.any.push(position),
            Some(hosts) => hosts.as_slice().iter().for_each(|host| push(self.at(host), position)),
        }
    }

    fn at(&mut self, host: &HostPattern) -> &mut Positions {
        match host.rule() {
            HostRule::Exact(name) => self.named(name).exact.get_or_insert_default(),
            HostRule::Below(domain) => self.named(domain).below.get_or_insert_default(),
            HostRule::Ipv6(address) => self.addresses.entry(*address).or_default(),
        }
    }

    fn named(&mut self, name: &str) -> &mut Entry<Positions> {
        self.names.entry(Reversed::new().fill(name).into()).or_default()
    }
}

/// Returns the positions of the routes with this path.
fn place<'a>(
    entries: &'a mut BTreeMap<Box<[u8]>, Entry<Positions>>,
    any_path: &'a mut Positions,
    pattern: &PathPattern,
) -> &'a mut Positions {
    let Some(path) = pattern.text() else { return any_path };
    let entry = entries.entry(path.as_bytes().into()).or_default();
    let is_exact = matches!(pattern, PathPattern::Exact(_));
    let place = if is_exact { &mut entry.exact } else { &mut entry.below };
    place.get_or_insert_default()
}

/// Adds a position, which is not below the last one.
fn push(positions: &mut Positions, position: usize) {
    if positions.last() != Some(&position) {
        positions.push(position);
    }
}

// === impl Paths ===

impl Paths {
    fn new(routes: &[Route], positions: &Positions) -> Self {
        let mut entries = BTreeMap::<Box<[u8]>, Entry<Positions>>::new();
        let mut any_path = Positions::new();
        for position in positions.iter().copied() {
            for pattern in routes.get(position).into_iter().flat_map(|route| route.path.as_slice()) {
                push(place(&mut entries, &mut any_path, pattern), position);
            }
        }
        Self { paths: Prefixes::new(entries, b'/'), any_path }
    }

    fn find(&self, path: Option<Sought<'_>>) -> impl Iterator<Item = &Positions> {
        path.into_iter().flat_map(|path| self.paths.find(path)).chain([&self.any_path])
    }
}

// === impl PathPattern ===

impl PathPattern {
    /// Returns all paths that this pattern matches; `None` stands for any path.
    pub(super) fn sought(&self) -> Option<Sought<'_>> {
        match self {
            Self::Any => None,
            Self::Exact(path) => Some(Sought::Text(path.as_bytes())),
            Self::Prefix(path) => Some(Sought::Below(path.as_bytes())),
        }
    }
}

// === impl SoughtHost ===

impl<'a> SoughtHost<'a> {
    /// Returns all hosts that this pattern matches.
    pub(super) fn of_pattern(pattern: &HostPattern, space: &'a mut Reversed) -> Self {
        match pattern.rule() {
            HostRule::Exact(name) => Self::Name(Sought::Text(space.fill(name))),
            HostRule::Below(domain) => Self::Name(Sought::Below(space.fill(domain))),
            HostRule::Ipv6(address) => Self::Address(*address),
        }
    }

    fn of(host: Host<'_>, space: &'a mut Reversed) -> Self {
        match host {
            Host::Ipv6(address) => Self::Address(address),
            // No pattern matches a name with an empty label.
            Host::Name(name) if name.split('.').any(str::is_empty) => Self::Any,
            Host::Name(name) => Self::Name(Sought::Text(space.fill(name))),
        }
    }
}

// === impl Reversed ===

impl Reversed {
    /// The length of the longest pattern with its dot, and another byte that makes longer names differ from it.
    const MAX: usize = MAX_NAME + 2;

    pub(super) fn new() -> Self {
        Self([0; Self::MAX])
    }

    fn fill(&mut self, name: &str) -> &[u8] {
        let (reversed, _) = self.0.split_at_mut(name.len().min(Self::MAX));
        for (to, from) in reversed.iter_mut().zip(name.bytes().rev()) {
            *to = from.to_ascii_lowercase();
        }
        reversed
    }
}
