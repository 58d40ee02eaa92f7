//! Series about the program itself: which build runs, with which configuration.

use prometheus::{Error, Gauge, IntGauge, Opts, Registry};

/// Which configuration is in effect.
///
/// The first configuration is generation 1, and having it loaded is a success; a program that
/// never reloads stays there.
#[derive(Clone, Debug)]
pub struct ConfigMetrics {
    generation: IntGauge,
    last_reload_successful: Gauge,
}

impl ConfigMetrics {
    /// Adds `lb_config_generation` and `lb_config_last_reload_successful` to `registry`.
    ///
    /// # Errors
    ///
    /// When `registry` has series of these names already.
    pub fn register(registry: &Registry) -> Result<Self, Error> {
        let metrics = ConfigMetrics::first()?;
        registry.register(Box::new(metrics.generation.clone()))?;
        registry.register(Box::new(metrics.last_reload_successful.clone()))?;
        Ok(metrics)
    }

    fn first() -> Result<Self, Error> {
        let generation = IntGauge::new(
            "lb_config_generation",
            "Number of the configuration in effect; the one read at the start is 1.",
        )?;
        let last_reload_successful = Gauge::new(
            "lb_config_last_reload_successful",
            "Whether the configuration read last is in effect (1) or was refused (0).",
        )?;
        generation.set(1);
        last_reload_successful.set(1.0);
        Ok(ConfigMetrics { generation, last_reload_successful })
    }
}

/// Adds `lb_build_info{version}`, which is always 1, to `registry`.
///
/// # Errors
///
/// When `registry` has it already.
pub fn build_info(registry: &Registry, version: &str) -> Result<(), Error> {
    let opts =
        Opts::new("lb_build_info", "The build that is running; always 1.").const_label("version", version);
    let info = IntGauge::with_opts(opts)?;
    info.set(1);
    registry.register(Box::new(info))
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
    fn the_first_configuration_is_generation_one_and_a_success() {
        let registry = Registry::new();
        ConfigMetrics::register(&registry).expect("registers");
        let text = exposition::text(&registry).expect("encodes");
        assert!(text.contains("\nlb_config_generation 1\n"));
        assert!(text.contains("\nlb_config_last_reload_successful 1\n"));
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
