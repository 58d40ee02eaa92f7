//! Rules about the certificate authorities of the system, which Pingora loads at the start if there is no `ca_file`.
//!
//! If loading them fails, Pingora panics, even if no pool uses TLS. Therefore each check loads them in the same way.

use super::{Checker, Id, Problem, Step};
use crate::words::uncapitalised;

/// The environment variables that name authorities instead of the usual places, and the kind of file that each names.
const VARIABLES: [(&str, &str); 2] =
    [("SSL_CERT_FILE", "a PEM file with certificates"), ("SSL_CERT_DIR", "a directory with certificates")];

impl Checker<'_> {
    pub(super) fn check_system_authorities(&mut self) {
        let path = [Step::from("ca_file")];
        if self.config.ca_file.is_some() || self.root.is_damaged(&path) {
            return;
        }
        match self.context.files.system_authorities(self.account()) {
            Err(reason) => {
                let problem = self.unusable_authorities(&reason);
                self.findings.problems.push(problem);
            }
            Ok(0) => self.check_authorities_needed(),
            Ok(_) => {}
        }
    }

    /// Returns the environment variables that are set, each with its value and the kind of file that it must name.
    fn variables(&self) -> impl Iterator<Item = (&'static str, String, &'static str)> + use<'_> {
        VARIABLES.into_iter().filter_map(|(name, kind)| Some((name, (self.context.variables)(name)?, kind)))
    }

    fn unusable_authorities(&self, reason: &str) -> Problem {
        let named = self.variables().find_map(|(name, value, kind)| {
            let (_, reason) = reason.split_once(&format!(" {value}: "))?;
            Some((name, value, kind, uncapitalised(reason)))
        });
        let user = self.config.user.as_ref().map(|user| format!(", as the user `{user}`"));
        let readable = if user.is_some() { " that this user can read" } else { "" };
        let user = user.unwrap_or_default();
        let (message, hint) = match named {
            Some((name, value, kind, reason)) => (
                format!("cannot load certificate authorities from {name}={value}{user}: {reason}"),
                format!("unset the environment variable {name}, or let it name {kind}{readable}"),
            ),
            None => (
                format!("cannot load the certificate authorities of the system{user}: {reason}"),
                "repair or replace that file, or name another one with `ca_file: /path/to/ca.pem`".to_owned(),
            ),
        };
        Problem::new(Id::Certificates, message).hint(hint)
    }

    /// Warns about pools that verify certificates although there are no authorities.
    fn check_authorities_needed(&mut self) {
        let needed = self
            .config
            .pools
            .iter()
            .filter(|(_, pool)| pool.tls.as_ref().is_some_and(|tls| tls.verify && tls.ca.is_none()));
        let paths: Vec<_> =
            needed.map(|(name, _)| ["pools", name.written(), "tls"].map(Step::from)).collect();
        let named: Vec<_> = self.variables().map(|(name, value, _)| format!("{name}={value}")).collect();
        let why = match named.is_empty() {
            true => "this machine has no certificate authorities".to_owned(),
            false => format!("there are no certificate authorities in {}", named.join(" and ")),
        };
        for path in paths.iter().filter(|path| !self.root.is_damaged(&path[..])) {
            let message = format!("no connection to these backends can be made: {why}");
            let hint = match named.is_empty() {
                true => "install the package `ca-certificates`, or add `ca: /path/to/ca.pem`",
                false => "let the environment variable name other certificates, or add `ca: /path/to/ca.pem`",
            };
            self.report_key(path, Problem::new(Id::NoAuthorities, message).hint(hint));
        }
    }
}
