//! What the connections to the backends of a pool share: the settings of TLS, and the lists of idle connections.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use super::address::UpstreamAddress;
use super::by_address::ByAddress;
use super::idle::IdleConnections;
use super::settings::UpstreamTls;
use super::tls;

/// What the connections to the backends of a pool share. A reload keeps it unless it changes TLS: connections that were
/// made with other settings must not be used.
#[derive(Debug)]
pub(crate) struct Upstreams {
    /// The settings, and what rustls made of them; `None` means plain text.
    tls: Option<(UpstreamTls, Arc<ClientConfig>)>,
    idle: ByAddress<IdleConnections>,
}

impl Upstreams {
    /// Returns a new one for connections with these settings of TLS.
    pub(super) fn new(tls: Option<&UpstreamTls>) -> Arc<Self> {
        let tls = tls.map(|tls| (tls.clone(), tls::client_config(tls)));
        Arc::new(Self { tls, idle: ByAddress::default() })
    }

    /// Returns the one for these settings of TLS: this one if they have not changed.
    pub(super) fn successor(self: &Arc<Self>, tls: Option<&UpstreamTls>) -> Arc<Self> {
        if self.tls.as_ref().map(|(tls, _)| tls) == tls { self.clone() } else { Self::new(tls) }
    }

    /// Returns whether connections use TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Returns the name of all backends in TLS. `None` means that there is no TLS, or that each certificate is for the
    /// address of its backend.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.tls.as_ref()?.0.sni.as_deref()
    }

    /// Returns the settings of TLS for the backend at `address`, and the name that its certificate must have.
    pub(crate) fn tls_to(
        &self,
        address: &UpstreamAddress,
    ) -> Option<(Arc<ClientConfig>, ServerName<'static>)> {
        let (tls, config) = self.tls.as_ref()?;
        Some((config.clone(), tls::server_name(tls, address)))
    }

    /// Returns the idle connections to the backend at `address`.
    pub(super) fn idle(&self, address: &UpstreamAddress) -> Arc<IdleConnections> {
        self.idle.of(address, IdleConnections::default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(verify: bool) -> UpstreamTls {
        UpstreamTls { sni: Some("a.test".into()), verify, ca: Vec::new(), client: None }
    }

    #[test]
    fn idle_connections_survive_a_reload_unless_tls_changes() {
        let address: UpstreamAddress = "10.0.0.1:443".parse().unwrap();
        let before = Upstreams::new(Some(&tls(false)));
        let idle = before.idle(&address);
        let is_kept = |tls: Option<&UpstreamTls>| Arc::ptr_eq(&before.successor(tls).idle(&address), &idle);
        assert!(is_kept(Some(&tls(false))));
        assert!(!is_kept(Some(&tls(true))) && !is_kept(None));
    }
}
