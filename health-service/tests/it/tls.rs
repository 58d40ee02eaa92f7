//! Checks of backends that use TLS, with certificates of the test.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use health_service::{CheckError, CheckKind, Checker, HttpCheck, PeerConnect, Settings};
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{WrappedX509, parse_x509};
use rustls::pki_types::PrivateKeyDer;

use crate::origin::{Manner, Origin, ok};

pub(crate) const NAME: &str = "origin.example";

/// A TLS server that responds to every request with status 200. Its thread ends with the process.
struct TlsOrigin {
    address: SocketAddr,
    certificate: Vec<u8>,
}

impl TlsOrigin {
    fn start() -> Self {
        let (config, certificate) = server_config();
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        std::thread::spawn(move || serve(&listener, &Arc::new(config)));
        Self { address, certificate }
    }

    fn peer(&self, sni: &str) -> HttpPeer {
        trusting(&self.certificate, sni)
    }
}

/// The configuration of a TLS server with a new self-signed certificate for [`NAME`], and this certificate.
pub(crate) fn server_config() -> (rustls::ServerConfig, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a valid name");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key of a known kind");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("key and certificate fit");
    (config, made.cert.der().to_vec())
}

/// A peer that accepts only this certificate.
pub(crate) fn trusting(certificate: &[u8], sni: &str) -> HttpPeer {
    let mut peer = HttpPeer::new("0.0.0.0:1", true, sni.to_owned());
    let ca = [WrappedX509::new(certificate.to_vec(), parse_x509)];
    peer.options.ca = Some(Arc::new(ca));
    peer
}

fn serve(listener: &TcpListener, config: &Arc<rustls::ServerConfig>) {
    for stream in listener.incoming().flatten() {
        let Ok(connection) = rustls::ServerConnection::new(Arc::clone(config)) else { return };
        let mut tls = rustls::StreamOwned::new(connection, stream);
        let mut buffer = [0; 1024];
        // A TCP check sends no request and closes the connection here.
        if tls.read(&mut buffer).is_ok_and(|length| length > 0) {
            let _ = tls.write_all(ok("ok").as_bytes());
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    }
}

async fn check(kind: CheckKind, peer: HttpPeer, address: SocketAddr) -> Result<(), CheckError> {
    let settings = Settings { kind, timeout: Duration::from_secs(10), ..Settings::default() };
    Checker::new(Arc::new(PeerConnect::new(peer)), settings).check(&address.into()).await
}

fn http_ok() -> CheckKind {
    CheckKind::Http(HttpCheck { expect_body: Some("ok".to_owned()), ..HttpCheck::default() })
}

#[tokio::test]
async fn a_trusted_backend_passes() {
    let origin = TlsOrigin::start();
    assert_eq!(check(CheckKind::Tcp, origin.peer(NAME), origin.address).await, Ok(()));
    assert_eq!(check(http_ok(), origin.peer(NAME), origin.address).await, Ok(()));
}

#[tokio::test]
async fn an_unknown_issuer_fails_unless_verification_is_off() {
    let (origin, other) = (TlsOrigin::start(), TlsOrigin::start());
    let reason = check(CheckKind::Tcp, other.peer(NAME), origin.address).await.map_err(|e| e.to_string());
    let reason = reason.expect_err("the authority is another one");
    assert!(reason.starts_with("TLS: the certificate is not signed by the trusted authority"), "{reason}");
    let mut trusting = other.peer(NAME);
    trusting.options.verify_cert = false;
    assert_eq!(check(CheckKind::Tcp, trusting, origin.address).await, Ok(()));
}

#[tokio::test]
async fn a_certificate_for_another_name_fails() {
    let origin = TlsOrigin::start();
    let error = check(CheckKind::Tcp, origin.peer("other.example"), origin.address).await;
    let reason = error.expect_err("the name does not match").to_string();
    assert_eq!(reason, format!("TLS: the certificate is not valid for other.example, only for {NAME}"));
}

#[tokio::test]
async fn a_backend_that_does_not_speak_tls_fails() {
    let origin = Origin::start(Manner::Banner(b"220 mail.example.com ESMTP\r\n".to_vec())).await;
    let error = check(CheckKind::Tcp, TlsOrigin::start().peer(NAME), origin.address).await;
    let reason = error.expect_err("the banner is not a TLS handshake").to_string();
    assert_eq!(reason, "TLS: the backend does not respond with TLS");
}

#[tokio::test]
async fn the_timeout_covers_the_handshake() {
    let origin = Origin::start(Manner::Silence).await;
    let timeout = Duration::from_millis(250);
    let settings = Settings { timeout, ..Settings::default() };
    let peer = TlsOrigin::start().peer(NAME);
    let checker = Checker::new(Arc::new(PeerConnect::new(peer)), settings);
    assert_eq!(checker.check(&origin.address.into()).await, Err(CheckError::Timeout(timeout)));
}
