//! Rules about the certificate authorities of the system, which pools with `tls` trust if no `ca` or `ca_file` is set.

use super::{Checker, Id, Problem, Step};
use crate::words::uncapitalised;

/// The environment variables that name authorities instead of the usual places, and the kind of file that each names.
const VARIABLES: [(&str, &str); 2] =
    [("SSL_CERT_FILE", "a PEM file with certificates"), ("SSL_CERT_DIR", "a directory with certificates")];

impl Checker<'_> {
    /// Checks that the authorities can be loaded if a pool needs them. The daemon would otherwise start, and no
    /// connection to its backends could be made.
    pub(super) fn check_system_authorities(&mut self) {
        let paths = self.with_system_authorities();
        if paths.is_empty() || self.root.is_damaged(&[Step::from("ca_file")]) {
            return;
        }
        match self.context.files.system_authorities(self.account()) {
            Err(reason) => {
                let problem = self.unusable_authorities(&reason);
                self.findings.problems.push(problem);
            }
            Ok(0) => self.report_no_authorities(&paths),
            Ok(_) => {}
        }
    }

    /// Returns the paths of `tls` in the pools that verify certificates with the authorities of the system.
    fn with_system_authorities(&self) -> Vec<[Step; 3]> {
        if self.config.ca_file.is_some() {
            return Vec::new();
        }
        let pools = self.config.pools.iter();
        let needing = pools
            .filter(|(_, pool)| pool.tls.as_ref().is_some_and(|tls| tls.verify && tls.ca.is_none()))
            .map(|(name, _)| ["pools", name.written(), "tls"].map(Step::from));
        needing.filter(|path| !self.root.is_damaged(path)).collect()
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
    fn report_no_authorities(&mut self, paths: &[[Step; 3]]) {
        let named: Vec<_> = self.variables().map(|(name, value, _)| format!("{name}={value}")).collect();
        let why = match named.is_empty() {
            true => "this machine has no certificate authorities".to_owned(),
            false => format!("there are no certificate authorities in {}", named.join(" and ")),
        };
        for path in paths {
            let message = format!("no connection to these backends can be made: {why}");
            let hint = match named.is_empty() {
                true => "install the package `ca-certificates`, or add `ca: /path/to/ca.pem`",
                false => "let the environment variable name other certificates, or add `ca: /path/to/ca.pem`",
            };
            self.report_key(path, Problem::new(Id::NoAuthorities, message).hint(hint));
        }
    }
}
