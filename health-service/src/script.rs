//! Test helper: checks without sockets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::l4::socket::SocketAddr;
use tokio::time::Instant;

use crate::backend::Procedure;
use crate::check::{Check, CheckError};
use crate::connect::{Connect, ConnectError, Connection, Protocol};
use crate::settings::Settings;

/// Duration and result of a check.
type ScriptedResult = (Duration, Result<(), CheckError>);

/// Checks with a scripted duration and result for each address, which record their starts. Other addresses pass at
/// once.
#[derive(Default)]
pub(crate) struct Script {
    results: Mutex<HashMap<SocketAddr, ScriptedResult>>,
    starts: Mutex<Vec<(SocketAddr, Instant)>>,
    ends: Mutex<usize>,
}

impl Script {
    pub(crate) fn set(&self, address: &str, after: Duration, result: Result<(), CheckError>) {
        self.results.lock().expect("not poisoned").insert(addr(address), (after, result));
    }

    /// Seconds from one start of a check of `address` to the next.
    pub(crate) fn gaps(&self, address: &str) -> Vec<f64> {
        let starts = self.starts(address);
        starts.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
    }

    pub(crate) fn starts(&self, address: &str) -> Vec<Instant> {
        let starts = self.starts.lock().expect("not poisoned");
        starts.iter().filter(|(found, _)| *found == addr(address)).map(|(_, at)| *at).collect()
    }

    /// Number of checks that ran to their end.
    pub(crate) fn ends(&self) -> usize {
        *self.ends.lock().expect("not poisoned")
    }
}

#[async_trait]
impl Check for Script {
    async fn check(&self, address: &SocketAddr) -> Result<(), CheckError> {
        self.starts.lock().expect("not poisoned").push((address.clone(), Instant::now()));
        let scripted = self.results.lock().expect("not poisoned").get(address).cloned();
        let (after, result) = scripted.unwrap_or((Duration::ZERO, Ok(())));
        tokio::time::sleep(after).await;
        *self.ends.lock().expect("not poisoned") += 1;
        result
    }
}

/// Connects to nothing, because scripted checks do not connect.
struct Unused;

#[async_trait]
impl Connect for Unused {
    async fn connect(&self, _: &SocketAddr, _: Protocol) -> Result<Connection, ConnectError> {
        Err(ConnectError::Refused)
    }

    fn is_tls(&self) -> bool {
        false
    }

    fn server_name(&self) -> Option<&str> {
        None
    }

    fn is_like(&self, _: &dyn Connect) -> bool {
        true
    }
}

pub(crate) fn addr(address: &str) -> SocketAddr {
    address.parse().expect("valid address")
}

/// Checks by `script` with these `settings`.
pub(crate) fn procedure(settings: Settings, script: &Arc<Script>) -> Arc<Procedure> {
    Arc::new(Procedure { settings, connect: Arc::new(Unused), check: script.clone() })
}
