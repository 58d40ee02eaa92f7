//! The certificate that a pool presents to its backends.

use std::fmt;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::crypto;

/// A certificate with the chain to its authority and its private key, which is never printed. Clones share them.
#[derive(Clone)]
pub struct ClientCertificate(Arc<CertifiedKey>);

/// The reason why two PEM files are not a certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ClientCertificateError {
    #[error("it contains no certificate")]
    NoCertificate,
    #[error("it is not PEM: {0}")]
    CertificateNotPem(String),
    #[error("a certificate is invalid")]
    InvalidCertificate,
    #[error("it contains no private key")]
    NoKey,
    #[error("its private key is encrypted")]
    Encrypted,
    #[error("it is not PEM")]
    KeyNotPem,
    #[error("its private key is invalid or of a kind that is not supported")]
    InvalidKey,
    #[error("the private key does not belong to the certificate")]
    Mismatch,
}

// === impl ClientCertificate ===

impl ClientCertificate {
    /// Parses a PEM file with the certificate, followed by those of its intermediate authorities, and a PEM file with
    /// the private key.
    ///
    /// # Errors
    /// If a file does not contain what it should, or the key belongs to another certificate.
    pub fn parse(certificates: &[u8], key: &[u8]) -> Result<Self, ClientCertificateError> {
        let chain = chain(certificates)?;
        let key = private_key(key)?;
        let certified = CertifiedKey::from_der(chain, key, &crypto::provider());
        certified.map(|certified| Self(Arc::new(certified))).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => ClientCertificateError::Mismatch,
            Error::InvalidCertificate(_) => ClientCertificateError::InvalidCertificate,
            _ => ClientCertificateError::InvalidKey,
        })
    }

    /// Returns the certificate and the key as rustls takes them.
    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.0.clone()
    }
}

/// Equal certificates have equal public keys, and therefore the same private key.
impl PartialEq for ClientCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.0.cert == other.0.cert
    }
}

impl Eq for ClientCertificate {}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a chain of {} with its key", self.0.cert.len())
    }
}

// === impl ClientCertificateError ===

impl ClientCertificateError {
    /// Returns whether the file with the key is wrong, as opposed to the file with the certificate.
    pub fn is_about_key(&self) -> bool {
        matches!(self, Self::NoKey | Self::Encrypted | Self::KeyNotPem | Self::InvalidKey | Self::Mismatch)
    }
}

fn chain(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, ClientCertificateError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let chain = chain.map_err(|error| ClientCertificateError::CertificateNotPem(error.to_string()))?;
    if chain.is_empty() { Err(ClientCertificateError::NoCertificate) } else { Ok(chain) }
}

/// Parses the first private key. An error does not contain a part of the text, which is secret.
fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, ClientCertificateError> {
    let is_encrypted = [&b"BEGIN ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| memchr::memmem::find(text, mark).is_some());
    if is_encrypted {
        return Err(ClientCertificateError::Encrypted);
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => ClientCertificateError::NoKey,
        _ => ClientCertificateError::KeyNotPem,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a self-signed certificate and its key, both as PEM.
    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["client.test".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn error(certificates: &str, key: &str) -> ClientCertificateError {
        ClientCertificate::parse(certificates.as_bytes(), key.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_certificate_needs_its_own_key() {
        let ((certificate, key), (other, other_key)) = (pair(), pair());
        let parsed = ClientCertificate::parse(certificate.as_bytes(), key.as_bytes()).unwrap();
        let both = [&*certificate, &*key].concat();
        assert_eq!(ClientCertificate::parse(both.as_bytes(), both.as_bytes()), Ok(parsed.clone()));
        assert_ne!(ClientCertificate::parse(other.as_bytes(), other_key.as_bytes()), Ok(parsed.clone()));
        assert_eq!(error(&certificate, &other_key), ClientCertificateError::Mismatch);
        let printed = format!("{parsed:?}");
        assert_eq!(printed, "a chain of 1 with its key");
    }

    #[test]
    fn a_file_with_something_else_is_an_error_that_names_the_file() {
        let (certificate, key) = pair();
        for (certificates, keys, is_about_key) in [
            ("", &*key, false),
            (&*key, &*key, false),
            ("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", &*key, false),
            (&*certificate, "", true),
            (&*certificate, &*certificate, true),
            (&*certificate, "-----BEGIN ENCRYPTED PRIVATE KEY-----\n", true),
            (&*certificate, "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n", true),
        ] {
            let error = error(certificates, keys);
            assert_eq!(error.is_about_key(), is_about_key, "{error}");
        }
        assert_eq!(
            error(&certificate, "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"),
            ClientCertificateError::Encrypted
        );
    }
}
