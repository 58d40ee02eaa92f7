//! Why a TLS handshake failed, in plain words. rustls writes most causes as the names of its enum variants.

/// The causes of rustls that operators meet, by the beginning of the text, and what they mean.
const CAUSES: [(&str, &str); 16] = [
    ("certificate expired", "the certificate has expired"),
    ("Expired", "the certificate has expired"),
    ("certificate not valid yet", "the certificate is not valid yet, or the clock of this machine is wrong"),
    ("NotValidYet", "the certificate is not valid yet, or the clock of this machine is wrong"),
    ("UnknownIssuer", "the certificate is self-signed, or its authority is not trusted"),
    (
        "BadSignature",
        "the certificate is not signed by the trusted authority: one with the same name but another key has signed it",
    ),
    (
        "CaUsedAsEndEntity",
        "the certificate is that of an authority (CA:TRUE), as many self-signed ones are; a server needs one without it",
    ),
    ("UnsupportedCertVersion", "the certificate has an old version of X.509, and version 3 is required"),
    ("NotValidForName", "the certificate is not valid for this name"),
    ("Revoked", "the certificate is revoked"),
    ("BadEncoding", "the certificate cannot be parsed"),
    ("received corrupt message of type InvalidContentType", "the backend does not respond with TLS"),
    (
        "received fatal alert: CertificateRequired",
        "the backend demands a client certificate: set `client_cert` and `client_key` in `tls`",
    ),
    ("received fatal alert: UnknownCA", "the backend does not trust the authority of the client certificate"),
    ("tls handshake eof", "the backend closed the connection during the handshake"),
    ("peer doesn't support any known protocol", "the backend does not support the protocol of the check"),
];

/// Returns a cause of rustls in plain words.
pub fn tls_reason(cause: &str) -> String {
    let (cause, _) = cause.split_once(" (os error").unwrap_or((cause, ""));
    let bare = cause.trim_start_matches("invalid peer certificate: ");
    let bare = bare.trim_start_matches("Other(OtherError(").trim_end_matches(')');
    if let Some((_, words)) = CAUSES.iter().find(|(start, _)| bare.starts_with(start)) {
        return (*words).to_owned();
    }
    if let Some(names) = bare.strip_prefix("certificate not valid for name ") {
        return wrong_name(names);
    }
    let words: Vec<_> = bare.split(' ').map(spaced).collect();
    let is_certificate = bare.len() < cause.len();
    format!("{}{}", if is_certificate { "invalid certificate: " } else { "" }, words.join(" "))
}

/// Formats `"a"; certificate is only valid for DnsName("b") or IpAddress(10.0.0.1`.
fn wrong_name(names: &str) -> String {
    let names = ["DnsName(\"", "IpAddress(", "\")", ")"]
        .iter()
        .fold(names.to_owned(), |names, kind| names.replace(kind, ""));
    let (expected, presented) = names.split_once("; certificate is ").unwrap_or((&names, ""));
    let presented = match presented.strip_prefix("only valid for ") {
        Some(presented) => format!("only for {}", presented.trim_end_matches('"')),
        None => "because it has no subject alternative name".to_owned(),
    };
    format!("the certificate is not valid for {}, {presented}", expected.trim_matches('"'))
}

/// Converts the name of an enum variant to words: `HandshakeFailure` becomes `handshake failure`. Its fields are left
/// out. Another word is returned as it is.
fn spaced(word: &str) -> String {
    let name = word.split(['(', '{']).next().unwrap_or_default();
    let is_variant = name.chars().next().is_some_and(char::is_uppercase) && name.contains(char::is_lowercase);
    if !is_variant {
        return word.to_owned();
    }
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_in_plain_words() {
        for (cause, words) in [
            ("invalid peer certificate: UnknownIssuer", "self-signed, or its authority is not trusted"),
            ("invalid peer certificate: BadSignature", "not signed by the trusted authority"),
            (
                "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))",
                "that of an authority (CA:TRUE)",
            ),
            (
                "invalid peer certificate: certificate expired: verification time 9 (UNIX), but certificate is not \
                 valid after 1 (8 seconds ago)",
                "the certificate has expired",
            ),
            (
                "invalid peer certificate: certificate not valid for name \"a.test\"; certificate is only valid for \
                 DnsName(\"b.test\"), DnsName(\"*.c.test\") or IpAddress(10.0.0.1)",
                "the certificate is not valid for a.test, only for b.test, *.c.test or 10.0.0.1",
            ),
            (
                "invalid peer certificate: certificate not valid for name \"a.test\"; certificate is not valid for any \
                 names (according to its subjectAltName extension)",
                "the certificate is not valid for a.test, because it has no subject alternative name",
            ),
            ("received corrupt message of type InvalidContentType", "the backend does not respond with TLS"),
            ("received fatal alert: HandshakeFailure", "received fatal alert: handshake failure"),
            (
                "invalid peer certificate: Other(OtherError(PathLenConstraintViolated))",
                "invalid certificate: path len constraint violated",
            ),
            ("Connection reset by peer (os error 104)", "connection reset by peer"),
        ] {
            let said = tls_reason(cause);
            assert!(said.contains(words), "{cause}: {said}");
            for syntax in ["Other(", "{ ", "(UNIX)", "DnsName"] {
                assert!(!said.contains(syntax), "{said}");
            }
        }
    }
}
