//! Compares backends by their load.
//!
//! In pools of up to four backends, all are compared. In larger pools, two are drawn with a probability proportional to
//! their weight, and the better one is taken: the power of two choices (Mitzenmacher, "The power of two choices in
//! randomized load balancing", 2001). The result is nearly as even as a comparison of all, and the cost does not depend
//! on the number of backends. It also avoids that a burst of simultaneous requests goes to the one backend that is
//! best.

use std::time::Instant;

use super::load::Load;

/// The largest number of backends of which all are compared.
pub(super) const COMPARE_ALL: usize = 4;

/// The measure by which backends are compared.
#[derive(Clone, Copy, Debug)]
pub(super) enum Measure {
    /// Requests in flight divided by weight.
    InFlight,
    /// The expected cost of a response at this time, behind the requests in flight divided by weight.
    Cost(Instant),
}

/// The load of a backend and its weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Score {
    amount: f64,
    weight: f64,
}

// === impl Measure ===

impl Measure {
    /// Returns the score of a backend in a pool with the mean weight `mean`.
    ///
    /// A request costs its own time and that of the requests before it. A backend of three times the weight processes
    /// three requests in the time of one, but does not respond faster to a single one. So the weight divides only the
    /// requests before, and idle backends of equal speed have equal scores regardless of their weights.
    pub(super) fn score(self, load: &Load, weight: usize, mean: f64) -> Score {
        let in_flight = load.in_flight() as f64;
        let weight = weight as f64;
        match self {
            Self::InFlight => Score { amount: in_flight, weight },
            // A backend without an estimate gets one request until it responds. Otherwise it might never get one,
            // because its default cost could be higher than the cost of all others.
            Self::Cost(now) if in_flight == 0.0 && !load.is_known(now) => Score { amount: 0.0, weight: 1.0 },
            Self::Cost(now) => {
                Score { amount: load.seconds(now) * (1.0 + in_flight * mean / weight), weight: 1.0 }
            }
        }
    }
}

// === impl Score ===

impl Score {
    /// Whether `self` has less load for its weight than `other`. Cross-multiplication avoids rounding, so that equal
    /// shares compare as equal.
    pub(super) fn is_less_than(self, other: Self) -> bool {
        self.amount * other.weight < other.amount * self.weight
    }

    /// Returns the load divided by the weight, for display.
    pub(super) fn value(self) -> f64 {
        self.amount / self.weight
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn less(a: (f64, f64), b: (f64, f64)) -> bool {
        let score = |(amount, weight)| Score { amount, weight };
        score(a).is_less_than(score(b))
    }

    #[test]
    fn the_weight_divides_only_the_requests_before() {
        let load = Arc::new(Load::new(Instant::now()));
        let score = |weight| Measure::Cost(Instant::now()).score(&load, weight, 2.0).amount / 0.030;
        assert_eq!([score(1), score(3)], [0.0, 0.0], "nothing is known yet");
        load.responded(Duration::from_millis(30), Instant::now());
        assert_eq!([score(1), score(3)].map(f64::round), [1.0, 1.0]);
        let _held = [(); 3].map(|()| load.enter());
        assert_eq!([score(1), score(3)].map(f64::round), [7.0, 3.0]);
    }

    #[test]
    fn scores_are_compared_by_load_per_weight() {
        assert!(less((2.0, 3.0), (1.0, 1.0)) && !less((1.0, 1.0), (2.0, 3.0)));
        assert!(!less((1.0, 3.0), (2.0, 6.0)) && !less((2.0, 6.0), (1.0, 3.0)));
        assert!(!less((0.0, 1.0), (0.0, 9.0)));
    }
}
