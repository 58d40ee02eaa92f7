//! Trailers: the fields behind a chunked body (RFC 9110, section 6.5).

use bytes::Bytes;

use super::fields::{Field, FieldLines};
use super::known::Known;

/// The largest size of trailers, in bytes.
pub(crate) const MAX_SIZE: usize = 16 * 1024;
/// The largest number of trailers.
pub(crate) const MAX_FIELDS: usize = 64;

/// The trailers do not follow the grammar, or they are larger than the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadTrailers;

/// Fields that are never passed on as trailers, besides those that [`Known`] names: they frame the message, choose its
/// route, authenticate, or say how it is read (RFC 9110, section 6.5.1).
const NEVER: [&[u8]; 21] = [
    b"age",
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expires",
    b"forwarded",
    b"location",
    b"range",
    b"retry-after",
    b"set-cookie",
    b"vary",
    b"via",
    b"www-authenticate",
    b"x-lb-explain",
    b"x-real-ip",
    b"x-request-id",
    b"content-location",
    b"authentication-info",
];
const NEVER_PREFIXES: [&[u8]; 3] = [b"if-", b"proxy-", b"x-forwarded-"];

/// Parses trailers with the empty line at their end.
///
/// # Errors
///
/// If a line is not a field, or if there are too many.
pub(crate) fn parse(bytes: Bytes) -> Result<FieldLines, BadTrailers> {
    if bytes.len() > MAX_SIZE {
        return Err(BadTrailers);
    }
    let fields = FieldLines::parse(bytes, 0).map_err(|_| BadTrailers)?;
    if fields.iter().len() > MAX_FIELDS { Err(BadTrailers) } else { Ok(fields) }
}

/// Returns whether a field may be passed on as a trailer.
pub(crate) fn may_pass(field: &Field<'_>) -> bool {
    let starts_with = |prefix: &&[u8]| {
        field.name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    field.known == Known::Other
        && !NEVER.iter().any(|name| field.name.eq_ignore_ascii_case(name))
        && !NEVER_PREFIXES.iter().any(starts_with)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(text: &str) -> Result<Vec<String>, BadTrailers> {
        let fields = parse(Bytes::copy_from_slice(text.as_bytes()))?;
        let passed = fields.iter().filter(may_pass);
        Ok(passed.map(|field| String::from_utf8_lossy(field.name).into_owned()).collect())
    }

    #[test]
    fn checksums_and_statuses_pass() {
        let trailers = "grpc-status: 0\r\nX-Checksum: a\r\nServer-Timing: b\r\n\r\n";
        assert_eq!(
            passed(trailers),
            Ok(vec!["grpc-status".into(), "X-Checksum".into(), "Server-Timing".into()])
        );
        assert_eq!(passed("\r\n"), Ok(vec![]));
    }

    #[test]
    fn fields_that_frame_route_or_authenticate_do_not_pass() {
        for name in [
            "Content-Length",
            "transfer-encoding",
            "Host",
            "Trailer",
            "Connection",
            "Cookie",
            "Set-Cookie",
            "If-Match",
            "X-Forwarded-For",
            "X_Forwarded_For",
            "Proxy-Authorization",
            "Max-Forwards",
            "Date",
            "Vary",
            "TE",
            "Upgrade",
            "Keep-Alive",
            "Content-Type",
            "Content-Encoding",
            "Content-Range",
            "Authorization",
            "Cache-Control",
            "Expires",
            "Age",
            "Location",
            "Retry-After",
            "Expect",
            "Range",
            "Forwarded",
            "X-Real-IP",
            "Via",
            "X-Lb-Explain",
        ] {
            assert_eq!(passed(&format!("{name}: a\r\n\r\n")), Ok(vec![]), "{name}");
        }
    }

    #[test]
    fn trailers_are_limited_and_checked() {
        assert_eq!(passed("a\r\n\r\n"), Err(BadTrailers));
        let fields = |count| format!("{}\r\n", "a: b\r\n".repeat(count));
        assert!(passed(&fields(MAX_FIELDS)).is_ok());
        assert_eq!(passed(&fields(MAX_FIELDS + 1)), Err(BadTrailers));
        assert_eq!(passed(&format!("a: {}\r\n\r\n", "b".repeat(MAX_SIZE))), Err(BadTrailers));
    }
}
