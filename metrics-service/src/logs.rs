//! `lb_*_lines_dropped_total`: lines of logs that were dropped, because a log must never block the program.

use std::fmt;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use crate::exposition::{Family, Kind};

/// Counters of the dropped lines of both logs. Each scrape reads them from their source.
pub struct LogCollector {
    log: Counted,
    access_log: Counted,
}

/// A family of one series, and the source of its value.
struct Counted(Family, Box<dyn Fn() -> u64 + Send + Sync>);

impl LogCollector {
    /// The arguments return the numbers of dropped lines of the daemon's log and of the access log. Neither may
    /// decrease.
    pub fn new(
        log: impl Fn() -> u64 + Send + Sync + 'static,
        access_log: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        let counter = |name, help| Family::new(Kind::Counter, name, help, &[]);
        let log_family = counter(
            "lb_log_lines_dropped_total",
            "Lines of the log that were dropped because standard error was blocked.",
        );
        let access_log_family = counter(
            "lb_access_log_dropped_total",
            "Lines of the access log that were dropped because its target was blocked.",
        );
        Self {
            log: Counted(log_family, Box::new(log)),
            access_log: Counted(access_log_family, Box::new(access_log)),
        }
    }
}

impl fmt::Debug for LogCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogCollector").finish_non_exhaustive()
    }
}

impl Collector for LogCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![self.log.0.desc(), self.access_log.0.desc()]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let families = [&self.log, &self.access_log].into_iter();
        families.map(|Counted(family, read)| family.with(vec![family.sample(&[], read() as f64)])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_log_has_its_own_counter() {
        let families = LogCollector::new(|| 3, || 5).collect();
        let found: Vec<_> = families
            .iter()
            .map(|family| (family.name(), family.get_metric()[0].get_counter().get_value()))
            .collect();
        assert_eq!(found, [("lb_log_lines_dropped_total", 3.0), ("lb_access_log_dropped_total", 5.0)]);
    }
}
