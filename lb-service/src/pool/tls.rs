//! TLS towards the backends of one pool: its settings as rustls reads them, made once.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::ParsedCertificate;
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::address::UpstreamAddress;
use super::crypto;
use super::settings::UpstreamTls;

/// Verifies certificates as the settings of a pool say.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
enum Trust {
    /// Any certificate is accepted.
    Anything,
    /// A certificate must have been issued by one of the authorities, or be one of these certificates itself: tools
    /// such as `openssl req -x509` make server certificates that are also authorities, which the usual verification
    /// rejects.
    Only {
        /// `None` if there is no authority, so that only the certificates themselves are accepted.
        authorities: Option<Arc<WebPkiServerVerifier>>,
        certificates: Vec<CertificateDer<'static>>,
    },
}

/// Returns the settings for the connections to the backends of one pool.
#[expect(clippy::expect_used, reason = "the provider is a constant")]
pub(super) fn client_config(tls: &UpstreamTls) -> Arc<ClientConfig> {
    let provider = crypto::provider();
    let verifier = Verifier::new(tls, &provider);
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider has suites for TLS 1.2 and 1.3");
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &tls.client {
        Some(client) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(client.certified_key())))
        }
        None => builder.with_no_client_auth(),
    };
    // Without a name in the settings, the address is the name, and rustls sends no address.
    config.enable_sni = tls.sni.is_some();
    Arc::new(config)
}

/// Returns the name that the certificate of a backend must have: the name in the settings, or else the address. A
/// backend on a Unix socket is `localhost`.
#[expect(clippy::expect_used, reason = "the name is a constant")]
pub(super) fn server_name(tls: &UpstreamTls, address: &UpstreamAddress) -> ServerName<'static> {
    let named = tls.sni.as_ref().and_then(|name| ServerName::try_from(name.to_string()).ok());
    named.unwrap_or_else(|| match address.tcp() {
        Some(address) => ServerName::from(address.ip().to_canonical()),
        None => ServerName::try_from("localhost").expect("it is a name"),
    })
}

// === impl Verifier ===

impl Verifier {
    fn new(tls: &UpstreamTls, provider: &Arc<CryptoProvider>) -> Self {
        let trust = if tls.verify { Trust::of(&tls.ca, provider) } else { Trust::Anything };
        Self { trust, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Anything => Ok(ServerCertVerified::assertion()),
            Trust::Only { certificates, .. } if certificates.contains(end_entity) => {
                let certificate = ParsedCertificate::try_from(end_entity)?;
                verify_server_name(&certificate, server_name)?;
                verify_dates(end_entity, now)?;
                Ok(ServerCertVerified::assertion())
            }
            Trust::Only { authorities: Some(authorities), .. } => {
                authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            Trust::Only { authorities: None, .. } => {
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

// === impl Trust ===

impl Trust {
    fn of(ca: &[Vec<u8>], provider: &Arc<CryptoProvider>) -> Self {
        let certificates: Vec<_> = ca.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(if certificates.is_empty() {
            system_authorities()
        } else {
            certificates.clone()
        });
        let authorities = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone());
        Self::Only { authorities: authorities.build().ok(), certificates }
    }
}

/// Verifies the dates of a certificate that is named itself; the usual verification does so for all others.
fn verify_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = X509Certificate::from_der(certificate);
    let (_, parsed) = parsed.map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let (validity, now) = (parsed.validity(), i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    match () {
        () if now < validity.not_before.timestamp() => {
            Err(Error::InvalidCertificate(CertificateError::NotValidYet))
        }
        () if now > validity.not_after.timestamp() => {
            Err(Error::InvalidCertificate(CertificateError::Expired))
        }
        () => Ok(()),
    }
}

/// Returns the authorities that the system trusts.
fn system_authorities() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().unwrap_or_else(|error| {
        log::warn!("cannot read the authorities that the system trusts: {error}");
        Vec::new()
    })
}
