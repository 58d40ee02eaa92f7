//! A private certificate authority for a test, and certificates for any name.

use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};

/// An authority that signs certificates.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, signed by an [`Authority`].
pub struct Certified {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    /// Generates an authority with a new key.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().expect("a key can be generated");
        let pem = params.self_signed(&key).expect("an authority can sign itself").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Writes the authority's certificate as a PEM file, for a client that should trust it.
    ///
    /// # Errors
    ///
    /// Returns the error if the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, &self.pem)
    }

    /// Issues a certificate for these DNS names or IP addresses.
    pub fn certify(&self, names: &[&str]) -> Certified {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("the names of a test are valid");
        params.distinguished_name.push(DnType::CommonName, "test server");
        let key = KeyPair::generate().expect("a key can be generated");
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority can sign");
        Certified { certificate, key }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Certified {
    /// Makes a certificate for these names that no authority has signed. It expired long ago if `is_expired`.
    pub fn self_signed(names: &[&str], is_expired: bool) -> Self {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("the names of a test are valid");
        if is_expired {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        }
        let key = KeyPair::generate().expect("a key can be generated");
        let certificate = params.self_signed(&key).expect("a key can sign its own certificate");
        Self { certificate, key }
    }

    /// Makes a self-signed certificate for these names that is also that of an authority, as `openssl req -x509` does.
    pub fn self_signed_authority(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("the names of a test are valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be generated");
        let certificate = params.self_signed(&key).expect("a key can sign its own certificate");
        Self { certificate, key }
    }

    /// Writes the certificate and the key as PEM files, for a server that reads files.
    ///
    /// # Errors
    ///
    /// Returns the error if a file cannot be written.
    pub fn write(&self, certificate: &Path, key: &Path) -> io::Result<()> {
        fs::write(certificate, self.certificate.pem())?;
        fs::write(key, self.key.serialize_pem())
    }

    /// Returns the settings of a TLS server with this certificate.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server_that_accepts(WebPkiClientVerifier::no_client_auth())
    }

    /// Returns the settings of a TLS server with this certificate that demands a certificate of `authority` from its
    /// clients.
    pub fn server_for_clients_of(&self, authority: &Authority) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("it is PEM");
        roots.add(root).expect("the certificate of an authority is valid");
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        self.server_that_accepts(verifier.expect("there is an authority"))
    }

    fn server_that_accepts(&self, clients: Arc<dyn ClientCertVerifier>) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![self.certificate.der().clone()], key)
            .expect("the key belongs to the certificate");
        Arc::new(config)
    }
}
