//! What the theory promises, one test for each.

use crate::backend::Model;
use crate::world::Scenario;
use lb_service::policy::Algorithm;

#[test]
fn the_same_seed_gives_the_same_report() {
    let scenario = Scenario::new("even", vec![Model::new(2); 10], 0.8).policy(Algorithm::LeastRequest).requests(5000);
    assert_eq!(scenario.run(), scenario.run());
    let other = scenario.clone().with(|scenario| scenario.seed = 2);
    assert_ne!(scenario.run(), other.run());
}
