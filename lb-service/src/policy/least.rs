//! Which of several backends has least to do.
//!
//! Up to four backends are all compared. Of more, two are drawn with a chance proportional to their weight and the
//! better one is taken: the power of two choices (Mitzenmacher, "The power of two choices in randomized load
//! balancing", 2001). That is nearly as even as comparing all, costs the same for any number, and unlike it does not
//! send a burst of requests, decided at the same moment, all to the one backend that was best just then.

use std::time::Instant;

use super::load::Load;

/// Pools of up to so many backends compare all of them.
pub(super) const COMPARE_ALL: usize = 4;

/// What backends are compared by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Measure {
    /// Requests in flight over weight.
    InFlight,
    /// What an answer is expected to cost at this time, behind the requests in flight over weight.
    Cost(Instant),
}

/// What a backend has to do, and what it can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Score {
    amount: f64,
    weight: f64,
}

// === impl Measure ===

impl Measure {
    /// The score of a backend in a pool whose weights are `mean` on average.
    ///
    /// A request costs its own time and that of those before it. A backend of three times the weight works on three
    /// requests in the time of one, but does not answer a single one sooner: the weight divides those before it only.
    /// So idle backends that are equally quick have equal scores, whatever their weights.
    pub(super) fn score(self, load: &Load, weight: usize, mean: f64) -> Score {
        let in_flight = load.in_flight() as f64;
        let weight = weight as f64;
        match self {
            Self::InFlight => Score { amount: in_flight, weight },
            // One request at a time, until it has answered: who is not known to be quick would otherwise never be found
            // out to be, where all are compared.
            Self::Cost(now) if in_flight == 0.0 && !load.is_known(now) => Score { amount: 0.0, weight: 1.0 },
            Self::Cost(now) => {
                Score { amount: load.seconds(now) * (1.0 + in_flight * mean / weight), weight: 1.0 }
            }
        }
    }
}

// === impl Score ===

impl Score {
    /// Whether `self` has less to do for its weight than `other`. Multiplied crosswise, so that equal shares compare
    /// as equal.
    pub(super) fn is_less_than(self, other: Self) -> bool {
        self.amount * other.weight < other.amount * self.weight
    }

    /// What it has to do for its weight, as one number to be shown.
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
    fn the_weight_divides_the_requests_before_only() {
        let load = Arc::new(Load::new(Instant::now()));
        let score = |weight| Measure::Cost(Instant::now()).score(&load, weight, 2.0).amount / 0.030;
        assert_eq!([score(1), score(3)], [0.0, 0.0], "nothing is known yet");
        load.answered(Duration::from_millis(30), Instant::now());
        assert_eq!([score(1), score(3)].map(f64::round), [1.0, 1.0]);
        let _held = [(); 3].map(|()| load.enter());
        assert_eq!([score(1), score(3)].map(f64::round), [7.0, 3.0]);
    }

    #[test]
    fn scores_compare_by_share() {
        assert!(less((2.0, 3.0), (1.0, 1.0)) && !less((1.0, 1.0), (2.0, 3.0)));
        assert!(!less((1.0, 3.0), (2.0, 6.0)) && !less((2.0, 6.0), (1.0, 3.0)));
        assert!(!less((0.0, 1.0), (0.0, 9.0)));
    }
}
