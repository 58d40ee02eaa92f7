//! The scalars that only the section `health_check` has. None can hold an invalid value, because it is rejected while
//! it is read.

use std::fmt;

use http::Method;
use schemars::{JsonSchema, Schema, json_schema};
use serde::{Deserialize, Serialize};
use values::choice::{Choice, OtherWords};
use values::{Rejection, Scalar, TextScalar};

/// The kind of check as written: `tcp`, `http`, `grpc` or `none`.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum CheckType {
    /// Connects, with a TLS handshake if the pool uses TLS.
    #[default]
    Tcp,
    /// Sends a request and compares the response with what is expected.
    Http,
    /// Queries the backend's gRPC health service.
    Grpc,
    /// No checks. Every backend counts as up.
    None,
}

/// The method of an HTTP check, written in upper case. It is not CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckMethod(pub Method);

/// A text that a body must contain. It is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyText(pub String);

/// The name of a gRPC service. It is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName(pub String);

// === impl CheckType ===

impl Choice for CheckType {
    const OTHER_WORDS: OtherWords = &[
        (
            &["https", "ssl_http", "http_ssl", "http+tls"],
            "write http; with `tls` in its pool, checks use TLS",
        ),
        (
            &["ssl", "tls", "ssl_hello", "ssl_hello_chk", "ssl_check", "tcp_ssl", "tls_handshake"],
            "write tcp; with `tls` in its pool, a check includes the TLS handshake",
        ),
        (&["http2", "h2", "h2c"], "write http, which checks over HTTP/1.1, or grpc for a gRPC service"),
        (
            &[
                "httpchk",
                "http_check",
                "option_httpchk",
                "http1",
                "http/1.1",
                "http_get",
                "get",
                "web",
                "url",
            ],
            "http",
        ),
        (
            &[
                "tcp_check",
                "tcpchk",
                "connect",
                "connection",
                "layer4",
                "l4",
                "port",
                "socket",
                "tcp_socket",
                "default",
            ],
            "tcp",
        ),
        (&["grpcs", "grpc_health", "grpc_health_v1", "grpc_check"], "grpc"),
        (&["disabled", "disable", "never", "no", "passive", "off"], "none"),
        (
            &[
                "mysql",
                "mysql_check",
                "pgsql",
                "pgsql_check",
                "postgres",
                "postgresql",
                "redis",
                "redis_check",
                "smtp",
                "smtpchk",
                "ldap",
                "ldap_check",
                "imap",
                "memcached",
                "mongodb",
                "udp",
                "dns",
            ],
            "write tcp, which checks that the port accepts connections",
        ),
        (
            &[
                "icmp",
                "ping",
                "arp",
                "exec",
                "script",
                "external",
                "external_check",
                "agent",
                "agent_check",
                "command",
            ],
            "use tcp, http or grpc: a check connects to the backend",
        ),
    ];
}

impl fmt::Display for CheckType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

// === impl CheckMethod ===

impl TextScalar for CheckMethod {
    const EXPECTED: &'static str = <Method as TextScalar>::EXPECTED;

    fn parse(text: &str) -> Result<Self, Rejection> {
        match Method::from_text(text)? {
            Method::CONNECT => {
                let why = "CONNECT opens a tunnel, so it has no path and no response to check";
                Err(format!("{why}\nwrite GET, or remove the key").into())
            }
            method => Ok(Self(method)),
        }
    }

    fn text_schema() -> Schema {
        let mut schema = Method::schema();
        schema.insert("not".to_owned(), json_schema!({"const": "CONNECT"}).to_value());
        schema
    }
}

// === impl BodyText ===

impl TextScalar for BodyText {
    const EXPECTED: &'static str = "a text that the body must contain";

    fn parse(text: &str) -> Result<Self, Rejection> {
        if text.is_empty() {
            let message = format!("expected {}, found an empty text", Self::expected());
            return Err(format!("{message}\nremove the key: every body contains an empty text").into());
        }
        Ok(Self(text.to_owned()))
    }
}

// === impl ServiceName ===

impl TextScalar for ServiceName {
    const EXPECTED: &'static str = "the name of a gRPC service such as shop.Orders";

    fn parse(text: &str) -> Result<Self, Rejection> {
        if text.is_empty() {
            let message = format!("expected {}, found an empty text", Self::expected());
            return Err(format!("{message}\nremove the key to check the whole server").into());
        }
        Ok(Self(text.to_owned()))
    }
}
