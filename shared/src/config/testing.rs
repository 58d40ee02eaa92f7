//! Plans for tests, made from text.

use super::{Context, Plan, RealFiles, load_text};
use crate::process::runtime::RuntimeFiles;

/// Returns the plan for this text.
#[track_caller]
pub(crate) fn plan(text: &str) -> Plan {
    let loopback = std::net::Ipv4Addr::LOCALHOST.into();
    let runtime = &RuntimeFiles::new("/run/load_balancer".into(), None);
    let context =
        Context { variables: &|_| None, runtime, cpus: 2, daemon: false, loopback, files: &RealFiles };
    let loaded = load_text("test", text, &context);
    loaded.unwrap_or_else(|problems| panic!("{}", super::text(&problems, false))).plan
}
