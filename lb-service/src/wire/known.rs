//! The names of fields that the proxy acts on.

/// A name that the proxy acts on. Names are compared without regard to case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// `Connection`
    Connection,
    /// `Content-Length`
    ContentLength,
    /// `Date`
    Date,
    /// `Expect`
    Expect,
    /// `Host`
    Host,
    /// `Keep-Alive`, `Proxy-Connection` or `HTTP2-Settings`: for the next hop only, and of no use to the proxy.
    HopByHop,
    /// `Max-Forwards`
    MaxForwards,
    /// `Proxy`, which becomes the variable `HTTP_PROXY` in programs that use CGI (CVE-2016-5385).
    Proxy,
    /// `Sec-WebSocket-Key`
    SecWebsocketKey,
    /// `TE`
    Te,
    /// `Trailer`
    Trailer,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// `Upgrade`
    Upgrade,
    /// A name that some backends read as one of [`TRUSTED`], such as `X_Forwarded_For`.
    LookAlike,
    /// Any other name.
    Other,
}

/// Names that backends trust, because a proxy sets them or the proxy frames messages by them. Programs that use CGI or
/// WSGI read every byte of a name that is not a letter or a digit as `_`, so a client could send these under another
/// spelling.
pub(crate) const TRUSTED: [&[u8]; 13] = [
    b"connection",
    b"content-length",
    b"forwarded",
    b"host",
    b"proxy",
    b"transfer-encoding",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-port",
    b"x-forwarded-prefix",
    b"x-forwarded-proto",
    b"x-real-ip",
    b"x-request-id",
];

/// The prefix of a family of trusted names.
const X_FORWARDED: &[u8] = b"x-forwarded-";

// === impl Known ===

impl Known {
    /// Returns whether a field with this name never leaves as it came: it is for this hop only, or it could deceive the
    /// next one.
    pub(crate) fn never_passes(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::HopByHop
                | Self::LookAlike
                | Self::Proxy
                | Self::Te
                | Self::TransferEncoding
                | Self::Upgrade
                | Self::ContentLength
        )
    }

    /// Returns the meaning of a name.
    pub(crate) fn of(name: &[u8]) -> Self {
        let known = match name.len() {
            2 => Self::if_is(name, b"te", Self::Te),
            4 => Self::if_is(name, b"host", Self::Host).or_if(name, b"date", Self::Date),
            5 => Self::if_is(name, b"proxy", Self::Proxy),
            6 => Self::if_is(name, b"expect", Self::Expect),
            7 => Self::if_is(name, b"upgrade", Self::Upgrade).or_if(name, b"trailer", Self::Trailer),
            10 => {
                Self::if_is(name, b"connection", Self::Connection).or_if(name, b"keep-alive", Self::HopByHop)
            }
            12 => Self::if_is(name, b"max-forwards", Self::MaxForwards),
            14 => Self::if_is(name, b"content-length", Self::ContentLength).or_if(
                name,
                b"http2-settings",
                Self::HopByHop,
            ),
            16 => Self::if_is(name, b"proxy-connection", Self::HopByHop),
            17 => Self::if_is(name, b"transfer-encoding", Self::TransferEncoding).or_if(
                name,
                b"sec-websocket-key",
                Self::SecWebsocketKey,
            ),
            _ => Self::Other,
        };
        if known == Self::Other && is_look_alike(name) { Self::LookAlike } else { known }
    }

    fn if_is(name: &[u8], known: &[u8], this: Self) -> Self {
        if name.eq_ignore_ascii_case(known) { this } else { Self::Other }
    }

    fn or_if(self, name: &[u8], known: &[u8], this: Self) -> Self {
        if self == Self::Other { Self::if_is(name, known, this) } else { self }
    }
}

fn is_odd(byte: u8) -> bool {
    !byte.is_ascii_alphanumeric() && byte != b'-'
}

fn is_look_alike(name: &[u8]) -> bool {
    if !name.iter().copied().any(is_odd) {
        return false;
    }
    let folded: Vec<u8> =
        name.iter().map(|byte| if is_odd(*byte) { b'-' } else { byte.to_ascii_lowercase() }).collect();
    folded.starts_with(X_FORWARDED) || TRUSTED.contains(&&*folded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_case() {
        assert_eq!(Known::of(b"Host"), Known::Host);
        assert_eq!(Known::of(b"DATE"), Known::Date);
        assert_eq!(Known::of(b"transfer-Encoding"), Known::TransferEncoding);
        assert_eq!(Known::of(b"Sec-WebSocket-Key"), Known::SecWebsocketKey);
        assert_eq!(Known::of(b"keep-alive"), Known::HopByHop);
        for name in [&b"Hosts"[..], b"X-Forwarded-For", b"api_key", b"", b"te2"] {
            assert_eq!(Known::of(name), Known::Other, "{name:?}");
        }
    }

    #[test]
    fn other_spellings_of_trusted_names_are_look_alikes() {
        for name in ["X_Forwarded_For", "x.real.ip", "Content_Length", "X-Forwarded_New", "x_request-id"] {
            assert_eq!(Known::of(name.as_bytes()), Known::LookAlike, "{name}");
        }
        for name in TRUSTED {
            assert_ne!(Known::of(name), Known::LookAlike, "{name:?} is the right spelling");
        }
    }
}
