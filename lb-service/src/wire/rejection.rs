//! The reasons to reject a message.

use super::chunked::BadBody;
use super::scan::ScanError;

/// The reason why the head or the body of a request is rejected.
///
/// Each reason is a label of the counter of rejected requests and a word in the access log. After any of them, no
/// further byte of the connection is read as a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The first line is not a method, a target and a version with one space between them.
    RequestLine,
    /// The method is not an upper-case token.
    Method,
    /// The method is longer than any method in use.
    MethodTooLong,
    /// The request asks for a tunnel to another host, which only a forward proxy provides.
    Connect,
    /// The request asks for an echo of its fields, which would reveal credentials.
    Trace,
    /// The target has bytes that a target cannot have, or a path that leaves its root.
    Target,
    /// The target is longer than the limit of the listener.
    TargetTooLong,
    /// The version is not a version of HTTP.
    Version,
    /// The version is a version of HTTP other than 1.0 and 1.1.
    UnsupportedVersion,
    /// A line of the head does not end with CR LF.
    LineEnd,
    /// A field is not a name, a colon and a value.
    Field,
    /// The head is larger than the limit of the listener.
    HeadTooLarge,
    /// The head has more fields than the limit of the listener.
    TooManyFields,
    /// The `Host` field is missing, repeated, or not a host with an optional port.
    Host,
    /// The `Host` field and the target name different hosts.
    HostMismatch,
    /// The `Content-Length` field is repeated or not a number.
    ContentLength,
    /// The `Transfer-Encoding` field does not end with `chunked`, or the version does not have transfer codings.
    TransferEncoding,
    /// The body has a transfer coding other than `chunked`.
    UnsupportedCoding,
    /// The request has both `Content-Length` and `Transfer-Encoding`.
    AmbiguousLength,
    /// A request of HTTP/1.0 has a body, and its method has none in that version.
    UnexpectedBody,
    /// The `Connection` field is not a list of tokens, or it names a field that belongs to the whole path of a request.
    Connection,
    /// The `Expect` field asks for something other than `100-continue`.
    Expect,
    /// The `Expect` field is repeated.
    RepeatedExpect,
    /// The `Max-Forwards` field of an OPTIONS request is not a number.
    MaxForwards,
    /// A chunk of the body does not follow the grammar.
    Chunk,
    /// The trailers do not follow the grammar, or they are larger than the limit.
    Trailers,
    /// The client has sent its last byte, and a part of the body is missing.
    TruncatedBody,
    /// The request asks for another protocol, and a field about it is repeated.
    Upgrade,
    /// The target names the scheme `https`, and the connection has no TLS.
    SchemeMismatch,
    /// The `X-Forwarded-For` field of a trusted proxy has too many entries. It is most likely a loop.
    TooManyForwarded,
}

/// The reason why the response of a backend cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BadResponse {
    /// The first line is not a version, a status of three digits and a reason.
    StatusLine,
    /// A line of the head does not end with CR LF.
    LineEnd,
    /// A field is not a name, a colon and a value.
    Field,
    /// The head is larger than the limit.
    HeadTooLarge,
    /// The head has too many fields.
    TooManyFields,
    /// Too many informational responses came before the final one.
    TooManyInformational,
    /// The `Content-Length` fields differ or are not numbers.
    ContentLength,
    /// The body has a transfer coding other than `chunked`.
    TransferEncoding,
}

// === impl Rejection ===

impl Rejection {
    /// Returns the reason for a body that does not follow the grammar.
    pub(crate) fn of_body(reason: BadBody) -> Self {
        match reason {
            BadBody::Chunk => Self::Chunk,
            BadBody::Trailers => Self::Trailers,
        }
    }

    /// Returns the reason for bytes that cannot become a head.
    pub(crate) fn of_head(error: ScanError) -> Self {
        match error {
            ScanError::Start | ScanError::RequestLine => Self::RequestLine,
            ScanError::LineEnd => Self::LineEnd,
            ScanError::TooLarge => Self::HeadTooLarge,
            ScanError::TooManyFields => Self::TooManyFields,
            ScanError::MethodTooLong => Self::MethodTooLong,
            ScanError::TargetTooLong => Self::TargetTooLong,
        }
    }

    /// All reasons, in the order of their discriminants.
    pub(crate) const ALL: [Self; 30] = [
        Self::RequestLine,
        Self::Method,
        Self::MethodTooLong,
        Self::Connect,
        Self::Trace,
        Self::Target,
        Self::TargetTooLong,
        Self::Version,
        Self::UnsupportedVersion,
        Self::LineEnd,
        Self::Field,
        Self::HeadTooLarge,
        Self::TooManyFields,
        Self::Host,
        Self::HostMismatch,
        Self::ContentLength,
        Self::TransferEncoding,
        Self::UnsupportedCoding,
        Self::AmbiguousLength,
        Self::UnexpectedBody,
        Self::Connection,
        Self::Expect,
        Self::RepeatedExpect,
        Self::MaxForwards,
        Self::Chunk,
        Self::Trailers,
        Self::TruncatedBody,
        Self::Upgrade,
        Self::SchemeMismatch,
        Self::TooManyForwarded,
    ];

    /// Returns the status of the response.
    pub(crate) const fn status(self) -> u16 {
        match self {
            Self::Connect | Self::Trace => 405,
            Self::TargetTooLong => 414,
            Self::Expect => 417,
            Self::HeadTooLarge | Self::TooManyFields => 431,
            Self::MethodTooLong | Self::UnsupportedCoding => 501,
            Self::UnsupportedVersion => 505,
            _ => 400,
        }
    }

    /// Returns the word for the access log, which is also the `reason` label.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::RequestLine => "bad_request_line",
            Self::Method => "bad_method",
            Self::MethodTooLong => "method_too_long",
            Self::Connect => "connect_method",
            Self::Trace => "trace_method",
            Self::Target => "bad_target",
            Self::TargetTooLong => "target_too_long",
            Self::Version => "bad_version",
            Self::UnsupportedVersion => "unsupported_version",
            Self::LineEnd => "bad_line_end",
            Self::Field => "bad_field",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyFields => "too_many_fields",
            Self::Host => "bad_host",
            Self::HostMismatch => "host_mismatch",
            Self::ContentLength => "bad_content_length",
            Self::TransferEncoding => "bad_transfer_encoding",
            Self::UnsupportedCoding => "unsupported_coding",
            Self::AmbiguousLength => "ambiguous_length",
            Self::UnexpectedBody => "unexpected_body",
            Self::Connection => "bad_connection",
            Self::Expect => "bad_expect",
            Self::RepeatedExpect => "repeated_expect",
            Self::MaxForwards => "bad_max_forwards",
            Self::Chunk => "bad_chunk",
            Self::Trailers => "bad_trailers",
            Self::TruncatedBody => "truncated_body",
            Self::Upgrade => "bad_upgrade",
            Self::SchemeMismatch => "scheme_mismatch",
            Self::TooManyForwarded => "too_many_forwarded",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_reason_is_listed_once_in_order_and_has_a_word_of_its_own() {
        for (index, reason) in Rejection::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let words: BTreeSet<_> = Rejection::ALL.into_iter().map(Rejection::as_str).collect();
        assert_eq!(words.len(), Rejection::ALL.len());
    }

    #[test]
    fn all_reasons_but_these_have_the_status_400() {
        let statuses = Rejection::ALL.into_iter().map(|reason| (reason, reason.status()));
        assert_eq!(
            statuses.filter(|(_, status)| *status != 400).collect::<Vec<_>>(),
            [
                (Rejection::MethodTooLong, 501),
                (Rejection::Connect, 405),
                (Rejection::Trace, 405),
                (Rejection::TargetTooLong, 414),
                (Rejection::UnsupportedVersion, 505),
                (Rejection::HeadTooLarge, 431),
                (Rejection::TooManyFields, 431),
                (Rejection::UnsupportedCoding, 501),
                (Rejection::Expect, 417),
            ]
        );
    }
}
