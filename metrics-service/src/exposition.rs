//! Building blocks of our collectors, and the text of a scrape.
//!
//! The label vectors of the crate `prometheus` find a series by a hash over its concatenated label values, so
//! `{pool="web",backend="11"}` and `{pool="web1",backend="1"}` become one series. Our collectors build their families
//! label by label instead, without a hash.

use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Registry, TextEncoder};
use thiserror::Error;

/// The content type of [`text`].
pub(crate) const TEXT_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether the values of a family only increase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}

/// Name, help and label names of a metric family. Each scrape adds the values.
#[derive(Debug)]
pub(crate) struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    desc: Desc,
}

/// Why a scrape failed.
#[derive(Debug, Error)]
pub(crate) enum ExpositionError {
    /// The text encoder would panic on this type.
    #[error("family {0} is untyped, which the text encoder does not support")]
    Untyped(String),
    #[error(transparent)]
    Encode(#[from] prometheus::Error),
}

impl Family {
    /// # Panics
    ///
    /// Panics if a name is not valid in Prometheus. All names are constants of this crate.
    #[expect(clippy::expect_used, reason = "names and labels are constants")]
    pub(crate) fn new(
        kind: Kind,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Self {
        let variable_labels = labels.iter().map(|&label| label.to_owned()).collect();
        let desc = Desc::new(name.into(), help.into(), variable_labels, HashMap::new())
            .expect("the names of this crate's families are valid");
        Family { name, help, kind, labels, desc }
    }

    pub(crate) fn desc(&self) -> &Desc {
        &self.desc
    }

    /// A series of this family. The `values` are in the order of the label names.
    pub(crate) fn sample(&self, values: &[&str], value: f64) -> Metric {
        debug_assert_eq!(values.len(), self.labels.len(), "labels of {}", self.name);
        let mut metric = Metric::from_label(label_pairs(self.labels, values));
        match self.kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        metric
    }

    /// The family with these samples, as a collector returns it.
    pub(crate) fn with(&self, samples: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.into());
        family.set_help(self.help.into());
        family.set_field_type(match self.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
        });
        family.set_metric(samples);
        family
    }
}

/// All registered metrics in Prometheus' text format.
///
/// # Errors
///
/// Fails if a registered collector returns a family that the format does not support.
pub(crate) fn text(registry: &Registry) -> Result<String, ExpositionError> {
    let families = registry.gather();
    if let Some(family) = families.iter().find(|family| family.get_field_type() == MetricType::UNTYPED) {
        return Err(ExpositionError::Untyped(family.name().to_owned()));
    }
    Ok(TextEncoder::new().encode_to_string(&families)?)
}

fn label_pairs(names: &[&str], values: &[&str]) -> Vec<LabelPair> {
    let pair = |(name, value): (&&str, &&str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    names.iter().zip(values).map(pair).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use prometheus::core::Collector;

    /// The text of a scrape of `collector` alone.
    pub(crate) fn scrape(collector: impl Collector + 'static) -> String {
        let registry = Registry::new();
        registry.register(Box::new(collector)).expect("registers");
        text(&registry).expect("encodes")
    }

    /// A collector that returns this family.
    pub(crate) struct Fixed(pub(crate) Family, pub(crate) MetricFamily);

    impl Collector for Fixed {
        fn desc(&self) -> Vec<&Desc> {
            vec![self.0.desc()]
        }

        fn collect(&self) -> Vec<MetricFamily> {
            vec![self.1.clone()]
        }
    }

    pub(crate) fn untyped() -> Fixed {
        let family = Family::new(Kind::Gauge, "odd", "Help.", &[]);
        let mut collected = family.with(vec![family.sample(&[], 1.0)]);
        collected.set_field_type(MetricType::UNTYPED);
        Fixed(family, collected)
    }

    #[test]
    fn families_have_help_type_labels_and_values() {
        let family = Family::new(Kind::Counter, "lb_things_total", "Things.", &["pool", "kind"]);
        let collected = family.with(vec![family.sample(&["web", "a \"b\"\n"], 2.5)]);
        assert_eq!(
            scrape(Fixed(family, collected)),
            "# HELP lb_things_total Things.\n\
             # TYPE lb_things_total counter\n\
             lb_things_total{pool=\"web\",kind=\"a \\\"b\\\"\\n\"} 2.5\n"
        );
    }

    #[test]
    fn an_untyped_family_is_an_error_instead_of_a_panic() {
        let registry = Registry::new();
        registry.register(Box::new(untyped())).expect("registers");
        let error = text(&registry).expect_err("the encoder cannot write it");
        assert!(error.to_string().contains("family odd is untyped"));
    }

    #[test]
    fn a_family_without_a_name_is_an_error() {
        let family = Family::new(Kind::Gauge, "named", "Help.", &[]);
        let mut nameless = family.with(vec![family.sample(&[], 1.0)]);
        nameless.set_name(String::new());
        let registry = Registry::new();
        registry.register(Box::new(Fixed(family, nameless))).expect("registers");
        assert!(matches!(text(&registry), Err(ExpositionError::Encode(_))));
    }

    #[test]
    fn an_empty_registry_has_an_empty_text() {
        assert_eq!(text(&Registry::new()).expect("encodes"), "");
    }
}
