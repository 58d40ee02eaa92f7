//! The cryptography of all TLS connections, chosen in one place.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// Returns the cryptography of all TLS connections.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
