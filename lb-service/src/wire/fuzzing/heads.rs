//! Properties of heads.

use bytes::Bytes;
use http::Version;

use super::super::offset;
use super::super::rejection::{BadResponse, Rejection};
use super::super::request::RequestHead;
use super::super::response::{self, ResponseHead};
use super::super::scan::{Found, Limits, Scan, ScanError};
use super::bodies::owned;
use super::pieces::in_each_split;
use super::strict;
use crate::pool::Head;

/// The limits of a listener.
pub(super) const LIMITS: Limits = Limits { head: 64 * 1024, fields: 128, target: 16 * 1024 };
/// Limits that short heads reach.
const LOW: Limits = Limits { head: 160, fields: 4, target: 24 };

/// Reads the bytes as the head of a request.
///
/// # Panics
///
/// Panics if the pieces in which the bytes arrive matter, if a limit does not hold, or if an accepted head can be read
/// in another way.
pub fn request_head(bytes: &[u8]) {
    let _ = RequestHead::parse(&Bytes::copy_from_slice(bytes), &LIMITS);
    for limits in [LIMITS, LOW] {
        let found = found(bytes, |scan, bytes| scan.request(bytes, &limits));
        if let Err(error) = found {
            check_place(bytes, Rejection::of_head(error));
        }
        let Ok(Found::Head { start, end }) = found else { continue };
        let text = Bytes::copy_from_slice(&bytes[start..end]);
        assert!(text.len() <= limits.head, "the head is too large");
        let head = RequestHead::parse(&text, &limits).inspect_err(|reason| check_place(&text, *reason));
        if let Ok(head) = head {
            assert!(start == 0 || &bytes[..start] == b"\r\n", "only an empty line precedes a request");
            assert!(head.fields().iter().len() <= limits.fields && head.target().len() <= limits.target);
            check_request(&text, &head);
            compare_request(&text, &head);
        }
    }
}

/// Reads the bytes as the head of a response.
///
/// # Panics
///
/// Panics if the pieces in which the bytes arrive matter, or if an accepted head can be read in another way.
pub fn response_head(bytes: &[u8]) {
    let _ = ResponseHead::parse(Bytes::copy_from_slice(bytes));
    for limits in [response::LIMITS, LOW] {
        let found = found(bytes, |scan, bytes| scan.response(bytes, &limits));
        let Ok(Found::Head { start, end }) = found else { continue };
        let text = Bytes::copy_from_slice(&bytes[start..end]);
        assert!(start == 0 && end <= limits.head, "the head is too large");
        match ResponseHead::parse(text.clone()) {
            Ok(head) => {
                check_response(&text, &head);
                compare_response(&text, &head);
            }
            Err(reason) => assert_ne!(reason, BadResponse::LineEnd, "the lines were looked at before"),
        }
    }
}

/// Searches for the end of a head in each split.
fn found(
    bytes: &[u8],
    search: impl Fn(&mut Scan, &[u8]) -> Result<Found, ScanError>,
) -> Result<Found, ScanError> {
    in_each_split(bytes, |ends| {
        let mut scan = Scan::default();
        let results = ends.iter().map(|end| search(&mut scan, &bytes[..*end]));
        { results }.find(|result| *result != Ok(Found::Incomplete)).unwrap_or(Ok(Found::Incomplete))
    })
}

/// Asserts that the place of a rejection lies within the head.
fn check_place(bytes: &[u8], reason: Rejection) {
    let place = offset(bytes, reason);
    assert!(place.is_none_or(|place| place <= bytes.len()), "{reason:?} at {place:?}");
}

/// Compares a head with what the second reader makes of it.
fn check_request(text: &[u8], head: &RequestHead) {
    let strict = strict::head(text).expect("an accepted head is valid for a strict reader");
    let parts: Vec<&[u8]> = strict.line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts[..] else { unreachable!("a request line has three parts") };
    assert_eq!(method, Head::method(head).as_str().as_bytes());
    assert_eq!(version, if head.version() == Version::HTTP_10 { b"HTTP/1.0" } else { b"HTTP/1.1" });
    assert_eq!(strict.end, text.len(), "the head ends elsewhere");
    assert_eq!(owned_strict(&strict.fields), owned(head.fields()));
    assert_eq!(strict::request_length(&strict.fields), Some(head.length()), "the body is framed in two ways");
    check_target(target, head);
    check_host(&strict, head);
}

/// Asserts that what leaves is what was sent: the end of the target, at least.
fn check_target(sent: &[u8], head: &RequestHead) {
    let target = head.target();
    let is_sent = sent.ends_with(target.as_bytes());
    let is_completed = target == "*" || sent.ends_with(target.trim_start_matches('/').as_bytes());
    assert!(is_sent || (is_completed && head.scheme().is_some()), "{target} was not sent");
    assert!(target.starts_with('/') || target == "*", "{target}");
    assert!(target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{target}");
    assert!(head.path().starts_with('/') || head.path() == "*", "{}", head.path());
    assert!(!head.path().split('/').any(|segment| [".", ".."].contains(&segment)), "{}", head.path());
}

fn check_host(strict: &strict::Head<'_>, head: &RequestHead) {
    let hosts = strict::values(&strict.fields, b"host");
    assert!(hosts.len() == 1 || (hosts.is_empty() && head.version() == Version::HTTP_10), "{hosts:?}");
    let is_plain = |host: &&[u8]| !host.is_empty() && !host.iter().any(|byte| b"@,/?#\\ \t".contains(byte));
    assert!(hosts.iter().all(is_plain), "{hosts:?}");
    let sent = hosts.first().map(|host| String::from_utf8_lossy(host).into_owned());
    assert_eq!(head.host().map(str::to_owned), head.authority().map(str::to_owned).or(sent));
}

/// Compares a head with what `httparse` makes of it, which most Rust servers use.
fn compare_request(text: &[u8], head: &RequestHead) {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut other = httparse::Request::new(&mut fields);
    let status = other.parse(text).expect("an accepted head is valid for a lenient reader");
    assert_eq!(status, httparse::Status::Complete(text.len()));
    assert_eq!(other.method, Some(Head::method(head).as_str()));
    assert_eq!(other.version, Some(u8::from(head.version() == Version::HTTP_11)));
    assert_eq!(owned_other(other.headers), owned(head.fields()));
}

fn check_response(text: &[u8], head: &ResponseHead) {
    let strict = strict::head(text).expect("an accepted head is valid for a strict reader");
    assert_eq!(strict.end, text.len(), "the head ends elsewhere");
    assert_eq!(owned_strict(&strict.fields), owned(head.fields()));
    assert_eq!(&strict.line[9..12], head.status().to_string().as_bytes());
    assert!([b"HTTP/1.0 ", b"HTTP/1.1 "].contains(&strict.line.first_chunk().expect("it was read")));
    assert_eq!(strict.line.get(13..).unwrap_or_default(), head.reason());
}

fn compare_response(text: &[u8], head: &ResponseHead) {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut other = httparse::Response::new(&mut fields);
    let status = other.parse(text).expect("an accepted head is valid for a lenient reader");
    assert_eq!(status, httparse::Status::Complete(text.len()));
    assert_eq!(other.code, Some(head.status()));
    assert_eq!(owned_other(other.headers), owned(head.fields()));
}

fn owned_strict(fields: &[strict::Field<'_>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

fn owned_other(fields: &[httparse::Header<'_>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields.iter().map(|field| (field.name.as_bytes().to_vec(), field.value.to_vec())).collect()
}
