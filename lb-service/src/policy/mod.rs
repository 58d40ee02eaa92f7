//! Who is next: a selection algorithm for Pingora's `LoadBalancer`.
//!
//! [`Policy`] implements Pingora's [`BackendSelection`] and works in any Pingora program:
//!
//! ```
//! use lb_service::Policy;
//! use pingora::lb::LoadBalancer;
//!
//! let balancer = LoadBalancer::<Policy>::try_from_iter(["10.0.0.1:80", "10.0.0.2:80"])?;
//! let backend = balancer.select(b"", 2).expect("both are taken for healthy until a check fails");
//! # assert_eq!(backend.addr.to_string(), "10.0.0.1:80");
//! # Ok::<_, std::io::Error>(())
//! ```
//!
//! ```text
//! LoadBalancer<Policy>
//! |-- Arc<Policy>          built anew by Pingora whenever a backend comes, goes or changes its weight
//! |   |-- backends         in the order of their addresses
//! |   |-- RoundRobin       step -> backend, a pure function        (round_robin.rs)
//! |   `-- Cursor --+
//! `-- PolicyConfig |       lives as long as the balancer
//!     `-- Cursor --+       the same counter
//! ```
//!
//! A pick takes the next step of the cursor and looks up whose turn that is. When the caller refuses a
//! backend (unhealthy, already tried, full), [`Candidates`] takes **further steps of the same cursor**, so
//! the turns of a backend that is down go to those that would have come next: with `a`, `b`, `c` of equal
//! weight and `c` down the sequence is `a b a b …`, and backends that are left keep their shares. After four
//! steps for each backend it stops walking, which could be long when the heaviest is down, and offers the
//! others in a weighted random order. Each backend is offered exactly once.
//!
//! Cost of a pick that is not refused: one `fetch_add`, one look-up, one reference count of the `Arc` that
//! Pingora's trait demands. No lock, and no allocation before more than 128 backends have been refused or the
//! walk has ended. Memory: none for equal weights, at most 2 MiB otherwise.

mod candidates;
mod round_robin;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pingora::lb::Backend;
use pingora::lb::selection::BackendSelection;

pub use candidates::Candidates;
use round_robin::RoundRobin;

/// What a [`Policy`] keeps while its backends change.
///
/// Given to Pingora's `LoadBalancer::from_backends_with_config`. Without it (`try_from_iter`,
/// `from_backends`) the policy works too, but begins anew when a backend comes or goes.
///
/// A clone shares the position: two balancers that are given clones take turns.
#[derive(Clone, Debug, Default)]
pub struct PolicyConfig {
    cursor: Cursor,
}

/// Smooth weighted round robin over a set of backends.
///
/// A `Backend::weight` is a share relative to the others. A backend of weight 0 is only offered when every
/// other one has been refused; if all weights are 0 they are taken for equal.
#[derive(Debug)]
pub struct Policy {
    backends: Box<[Backend]>,
    order: RoundRobin,
    cursor: Cursor,
}

/// Counts the steps that were taken; shared by all selectors of a balancer.
#[derive(Clone, Debug, Default)]
struct Cursor(Arc<AtomicUsize>);

// === impl Policy ===

impl Policy {
    fn new(backends: &BTreeSet<Backend>, cursor: Cursor) -> Self {
        let backends: Box<[Backend]> = backends.iter().cloned().collect();
        let weights: Vec<usize> = backends.iter().map(|backend| backend.weight).collect();
        Self { order: RoundRobin::new(&weights), backends, cursor }
    }

    /// Whose turn it is now; the next call is about the next turn. `None` without backends.
    fn step(&self) -> Option<usize> {
        self.order.at(self.cursor.advance())
    }
}

impl BackendSelection for Policy {
    type Iter = Candidates;

    type Config = PolicyConfig;

    fn build_with_config(backends: &BTreeSet<Backend>, config: &PolicyConfig) -> Self {
        Self::new(backends, config.cursor.clone())
    }

    fn build(backends: &BTreeSet<Backend>) -> Self {
        Self::new(backends, Cursor::default())
    }

    fn iter(self: &Arc<Self>, _key: &[u8]) -> Candidates {
        Candidates::new(self.clone())
    }
}

// === impl Cursor ===

impl Cursor {
    fn advance(&self) -> usize {
        // Only the count matters, nothing is published through it.
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}
