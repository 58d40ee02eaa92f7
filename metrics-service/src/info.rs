//! Metrics of the program itself: its build and its configuration.

use prometheus::{Error, Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Metrics of the configuration in effect and of reloads.
///
/// The first configuration is generation 1 and counts as successful. A program that never reloads keeps these values.
#[derive(Clone, Debug)]
pub struct ConfigMetrics {
    generation: IntGauge,
    last_reload_successful: Gauge,
    /// In the order of [`Reload::ALL`].
    reloads: [IntCounter; Reload::ALL.len()],
}

/// The result of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The new configuration is in effect.
    Applied,
    /// The new configuration was rejected, and the old one stays in effect.
    Refused,
    /// The new configuration caused failures, and the old one is in effect again.
    RolledBack,
}

/// Adds `lb_build_info{version}`, which is always 1, to `registry`.
///
/// # Errors
///
/// Fails if `registry` already has it.
pub fn build_info(registry: &Registry, version: &str) -> Result<(), Error> {
    let opts = Opts::new("lb_build_info", "The running build; always 1.").const_label("version", version);
    let info = IntGauge::with_opts(opts)?;
    info.set(1);
    registry.register(Box::new(info))
}

// === impl ConfigMetrics ===

impl ConfigMetrics {
    /// Adds `lb_config_generation`, `lb_config_last_reload_successful` and
    /// `lb_config_reloads_total` to `registry`.
    ///
    /// # Errors
    ///
    /// Fails if `registry` already has metrics of these names.
    pub fn register(registry: &Registry) -> Result<Self, Error> {
        let generation =
            IntGauge::new("lb_config_generation", "Number of the configuration in effect; 1 at the start.")?;
        let last_reload_successful = Gauge::new(
            "lb_config_last_reload_successful",
            "1 if the last reload was applied, 0 if it was rejected or rolled back.",
        )?;
        let reloads =
            IntCounterVec::new(Opts::new("lb_config_reloads_total", "Reloads by result."), &["result"])?;
        generation.set(1);
        last_reload_successful.set(1.0);
        registry.register(Box::new(generation.clone()))?;
        registry.register(Box::new(last_reload_successful.clone()))?;
        registry.register(Box::new(reloads.clone()))?;
        let reloads = Reload::ALL.map(|result| reloads.with_label_values(&[result.label()]));
        Ok(ConfigMetrics { generation, last_reload_successful, reloads })
    }

    /// Counts a reload, after which this generation is in effect.
    #[expect(clippy::indexing_slicing, reason = "the array has a counter for each variant")]
    pub fn reloaded(&self, result: Reload, generation: u64) {
        self.reloads[result as usize].inc();
        self.last_reload_successful.set(f64::from(u8::from(result == Reload::Applied)));
        self.set_generation(generation);
    }

    /// Sets the generation in effect after a change other than a reload.
    pub fn set_generation(&self, generation: u64) {
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }
}

// === impl Reload ===

impl Reload {
    /// All of them, in the order of their discriminants.
    const ALL: [Self; 3] = [Self::Applied, Self::Refused, Self::RolledBack];

    /// The value of the label `result`.
    fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::RolledBack => "rolled_back",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition;

    #[test]
    fn the_build_is_a_label() {
        let registry = Registry::new();
        build_info(&registry, "0.1.0 \"x\"").expect("registers");
        let text = exposition::text(&registry).expect("encodes");
        assert!(text.contains("# TYPE lb_build_info gauge\n"));
        assert!(text.contains("lb_build_info{version=\"0.1.0 \\\"x\\\"\"} 1\n"));
    }

    #[test]
    fn the_first_configuration_is_generation_one_and_successful() {
        let registry = Registry::new();
        ConfigMetrics::register(&registry).expect("registers");
        let text = exposition::text(&registry).expect("encodes");
        assert!(text.contains("\nlb_config_generation 1\n"));
        assert!(text.contains("\nlb_config_last_reload_successful 1\n"));
    }

    #[test]
    fn reloads_are_counted_by_result_and_the_last_one_is_shown() {
        let registry = Registry::new();
        let metrics = ConfigMetrics::register(&registry).expect("registers");
        let shows = |lines: &[&str]| {
            let text = exposition::text(&registry).expect("encodes");
            for line in lines {
                assert!(text.contains(&format!("\n{line}\n")), "{line} is not in {text}");
            }
        };
        shows(&["lb_config_reloads_total{result=\"applied\"} 0"]);
        metrics.reloaded(Reload::Applied, 2);
        shows(&["lb_config_generation 2", "lb_config_last_reload_successful 1"]);
        metrics.reloaded(Reload::Refused, 2);
        metrics.reloaded(Reload::RolledBack, 3);
        shows(&[
            "lb_config_generation 3",
            "lb_config_last_reload_successful 0",
            "lb_config_reloads_total{result=\"applied\"} 1",
            "lb_config_reloads_total{result=\"refused\"} 1",
            "lb_config_reloads_total{result=\"rolled_back\"} 1",
        ]);
        metrics.set_generation(4);
        shows(&["lb_config_generation 4", "lb_config_last_reload_successful 0"]);
    }

    #[test]
    fn registering_twice_is_an_error() {
        let registry = Registry::new();
        ConfigMetrics::register(&registry).expect("registers");
        assert!(ConfigMetrics::register(&registry).is_err());
        build_info(&registry, "1").expect("registers");
        assert!(build_info(&registry, "1").is_err());
    }
}
