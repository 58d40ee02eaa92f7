//! Rules about the certificate that a pool presents to its backends, and about the files that contain it.

use std::path::Path;

use lb_service::config::TlsConfig;
use lb_service::pool::{ClientCertificate, ClientCertificateError};

use super::{Checker, FileAccess, Id, Problem, SecretError, Step, reason};
use crate::config::secrets::private_key;

const CERT: &str = "client_cert";
const KEY: &str = "client_key";

/// A problem with a file, and the key of the configuration that names the file.
type FileProblem = (&'static str, Problem);

impl Checker<'_> {
    pub(super) fn check_client_certificate(&mut self, pool: &str, tls: &TlsConfig) {
        match (&tls.client_cert, &tls.client_key) {
            (Some(cert), Some(key)) => self.load_client_certificate(pool, &cert.get().0, &key.get().0),
            (Some(_), None) => self.lacks_half(pool, [CERT, KEY], "its private key"),
            (None, Some(_)) => self.lacks_half(pool, [KEY, CERT], "its certificate"),
            (None, None) => {}
        }
    }

    fn lacks_half(&mut self, pool: &str, [given, missing]: [&str; 2], what: &str) {
        if self.root.is_damaged(&["pools", pool, "tls"].map(Step::from)) {
            return;
        }
        let problem = Problem::new(Id::ClientCertificate, format!("`{given}` needs `{missing}`, {what}"));
        let hint = format!("add `{missing}: /path/to/file.pem`, or remove the key");
        self.report_key(&["pools", pool, "tls", given].map(Step::from), problem.hint(hint));
    }

    fn load_client_certificate(&mut self, pool: &str, cert: &Path, key: &Path) {
        let place = |name: &str| ["pools", pool, "tls", name].map(Step::from);
        match self.read_client_certificate(cert, key) {
            Ok(client) => {
                self.check_allowed(&place(CERT), FileAccess::Read(cert));
                self.check_allowed(&place(KEY), FileAccess::Read(key));
                self.findings.files.entry(pool.to_owned()).or_default().client = Some(client);
            }
            Err(problems) => {
                for (name, problem) in problems {
                    self.report(&place(name), problem);
                }
            }
        }
    }

    fn read_client_certificate(
        &self,
        cert: &Path,
        key: &Path,
    ) -> Result<ClientCertificate, Vec<FileProblem>> {
        let files = self.context.files;
        let certificate = files.read(cert).map_err(|error| of_certificate(cert, &reason(&error)));
        let secret =
            private_key(key, files, files.uid_of(self.account())).map_err(|error| of_key(key, &error));
        match (certificate, secret) {
            (Ok(certificate), Ok(secret)) => ClientCertificate::parse(&certificate, &secret)
                .map_err(|error| vec![of_contents(&error, cert, key)]),
            (certificate, secret) => Err(certificate.err().into_iter().chain(secret.err()).collect()),
        }
    }
}

fn of_certificate(file: &Path, why: &str) -> FileProblem {
    let message = format!("cannot read the client certificate from {}: {why}", file.display());
    let problem = Problem::new(Id::ClientCertificate, message);
    (CERT, problem.hint("name a PEM file that contains `BEGIN CERTIFICATE`"))
}

fn of_key(file: &Path, SecretError { why, remedy }: &SecretError) -> FileProblem {
    let message = format!("cannot use the private key in {}: {why}", file.display());
    (KEY, Problem::new(Id::ClientCertificate, message).hint(remedy.clone()))
}

fn of_contents(error: &ClientCertificateError, cert: &Path, key: &Path) -> FileProblem {
    let why = error.to_string();
    match error.is_about_key() {
        true => of_key(key, &SecretError { why, remedy: remedy(error, cert, key) }),
        false => of_certificate(cert, &why),
    }
}

/// Returns the remedy for a private key that cannot be used.
fn remedy(error: &ClientCertificateError, cert: &Path, key: &Path) -> String {
    match error {
        ClientCertificateError::Encrypted => {
            let key = key.display();
            format!("decrypt it with `umask 077; openssl pkey -in {key} -out FILE`, and name that file")
        }
        ClientCertificateError::Mismatch => {
            format!("name the key of the first certificate in {}", cert.display())
        }
        ClientCertificateError::InvalidKey => {
            "use an RSA key of at least 2048 bits, an ECDSA key on P-256 or P-384, or an Ed25519 key"
                .to_owned()
        }
        _ => "name a PEM file that contains `BEGIN PRIVATE KEY`".to_owned(),
    }
}
