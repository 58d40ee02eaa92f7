//! Properties of parts of a head: targets, hosts, and fields that are lists.

use bytes::Bytes;
use http::Version;
use http::uri::{Authority, Uri};

use super::super::connection::{Named, Options};
use super::super::fields::FieldLines;
use super::super::framing::{self, Length};
use super::super::host;
use super::super::known::{Known, TRUSTED};
use super::super::rejection::BadResponse;
use super::super::target::{Scheme, Target, path, without_dot_segments};
use super::bodies::owned;
use super::strict;

/// Options that have a meaning of their own, so they name no field.
const OPTIONS: [&[u8]; 3] = [b"close", b"keep-alive", b"upgrade"];

/// Reads the bytes as the target of a request, as its path, and as a host.
///
/// # Panics
///
/// Panics if another reader finds another path, query or host.
pub fn request_target(bytes: &[u8]) {
    for is_options in [false, true] {
        if let Ok(target) = Target::parse(bytes, is_options) {
            let text = str::from_utf8(bytes).expect("a target is ASCII");
            check_target(text, &target, is_options);
            compare_target(text, &target);
        }
    }
    if let Ok(text) = str::from_utf8(bytes) {
        check_path(text);
        check_host(text);
    }
}

/// Reads the bytes as fields, and those that frame a message or its connection.
///
/// # Panics
///
/// Panics if another reader finds other fields, another length, or other options of the connection.
pub fn fields(bytes: &[u8]) {
    let text = [bytes, b"\r\n\r\n"].concat();
    let Ok(ours) = FieldLines::parse(Bytes::from(text), 0) else { return };
    let lines = owned(&ours);
    let fields: Vec<strict::Field<'_>> = lines.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let length = framing::of_request(&ours, Version::HTTP_11).ok();
    assert_eq!(length, strict::request_length(&fields), "the body of a request is framed in two ways");
    check_options(&ours, &strict::members(&fields, b"connection"));
    check_names(&fields);
    for status in [100, 200, 204, 205, 304, 500] {
        for to_head in [false, true] {
            check_framing(&ours, &fields, status, to_head);
        }
    }
}

fn check_target(text: &str, target: &Target<'_>, is_options: bool) {
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{text:?}");
    let path = target.path();
    assert!(path.starts_with('/') || (path == "*" && is_options), "{text:?} has the path {path:?}");
    assert!(!path.contains(['\\', '?']) && !path.contains("%00"), "{text:?} has the path {path:?}");
    if let Some(absolute) = target.absolute {
        assert!(!absolute.authority.contains(['@', '/', '?', ',']), "{text:?}");
        check_host(absolute.authority);
    }
}

/// Compares a target with what the crate `http` makes of it, which accepts fewer bytes.
fn compare_target(text: &str, target: &Target<'_>) {
    let Ok(uri) = text.parse::<Uri>() else { return };
    let (path, query) = match target.path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&*target.path_and_query, None),
    };
    let is_of_server = path == "*";
    assert!(is_of_server || uri.path() == path, "{text:?}: {:?} and {path:?}", uri.path());
    assert_eq!(uri.query(), query, "{text:?}");
    assert_eq!(uri.authority().map(Authority::as_str), target.absolute.map(|absolute| absolute.authority));
    let scheme =
        target.absolute.map(|absolute| if absolute.scheme == Scheme::Http { "http" } else { "https" });
    assert_eq!(uri.scheme_str().map(str::to_ascii_lowercase).as_deref(), scheme, "{text:?}");
}

/// Asserts that dot segments are removed as RFC 3986 describes it.
fn check_path(text: &str) {
    let path = path(text);
    let Ok(without) = without_dot_segments(path) else { return };
    if !path.starts_with('/') {
        return;
    }
    let ours = without.as_deref().unwrap_or(path);
    assert_eq!(unescaped_dots(ours), remove_dot_segments(&unescaped_dots(path)), "{path:?}");
    assert_eq!(without_dot_segments(ours), Ok(None), "nothing is left to remove: {path:?}");
}

fn unescaped_dots(path: &str) -> String {
    path.replace("%2e", ".").replace("%2E", ".")
}

/// Does what RFC 3986, section 5.2.4, says, for a path that begins with a slash.
fn remove_dot_segments(path: &str) -> String {
    let (mut input, mut output) = (path, String::new());
    while !input.is_empty() {
        if input.starts_with("/./") || input == "/." {
            input = if input == "/." { "/" } else { &input[2..] };
        } else if input.starts_with("/../") || input == "/.." {
            input = if input == "/.." { "/" } else { &input[3..] };
            output.truncate(output.rfind('/').unwrap_or(0));
        } else {
            let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
            output.push_str(&input[..end]);
            input = &input[end..];
        }
    }
    output
}

/// Compares a host with what the crate `http` makes of it, which accepts other hosts as well.
fn check_host(text: &str) {
    let Some((name, port)) = host::split(text) else { return };
    assert!(host::is_host(text.as_bytes()));
    assert!(host::is_same(text, &text.to_ascii_uppercase(), 80), "{text:?} is another host in upper case");
    assert!(!name.is_empty() && name.len() <= 253, "{text:?}");
    assert!(text.trim_start_matches('[').starts_with(name), "{text:?} has the host {name:?}");
    if let Ok(authority) = text.parse::<Authority>() {
        assert_eq!(authority.host().trim_matches(['[', ']']), name, "{text:?}");
        assert_eq!(authority.port_u16(), port, "{text:?}");
    }
}

fn check_options(ours: &FieldLines, members: &[Vec<u8>]) {
    let has = |option: &[u8]| members.iter().any(|member| member == option);
    let of_response = Options::of_response(ours);
    if let Ok(options) = Options::of_request(ours) {
        assert!(members.len() <= 16 && members.iter().all(|member| strict::is_token(member)));
        assert!(!has(b"host") && !has(b"content-length") && !has(b"x-forwarded-for") && !has(b"cookie"));
        let named = members.iter().any(|member| !OPTIONS.contains(&&member[..]));
        let expected = Options {
            close: has(b"close"),
            keep_alive: has(b"keep-alive"),
            upgrade: has(b"upgrade"),
            names_fields: named,
        };
        assert_eq!((options, of_response), (expected, expected));
    }
    let named = Named::of(ours, of_response);
    let is_missed = |member: &&Vec<u8>| !OPTIONS.contains(&&member[..]) && !named.contains(member);
    let tokens = members.iter().filter(|member| strict::is_token(member));
    assert_eq!({ tokens }.find(is_missed), None, "a nominated field passes");
}

/// Asserts that no spelling of a name that backends trust passes for another name.
fn check_names(fields: &[strict::Field<'_>]) {
    for (name, _) in fields {
        let lower = name.to_ascii_lowercase();
        let fold = |byte: &u8| if byte.is_ascii_alphanumeric() { *byte } else { b'-' };
        let folded: Vec<u8> = lower.iter().map(fold).collect();
        let is_trusted = TRUSTED.contains(&&folded[..]) || folded.starts_with(b"x-forwarded-");
        assert_eq!(Known::of(name) == Known::LookAlike, is_trusted && folded != lower, "{name:?}");
    }
}

fn check_framing(ours: &FieldLines, fields: &[strict::Field<'_>], status: u16, to_head: bool) {
    let expected = length_of_response(fields);
    let framing = framing::of_response(ours, status, to_head);
    let Ok(framing) = framing else {
        assert_eq!(expected, None, "{framing:?}: the response has a length");
        assert!(matches!(framing, Err(BadResponse::ContentLength | BadResponse::TransferEncoding)));
        return;
    };
    let has_none = to_head || [100, 204, 304].contains(&status);
    let length = if has_none { Some(Length::None) } else { expected };
    assert_eq!(Some(framing.length), length, "the body of a response is framed in two ways");
    let both = !strict::values(fields, b"content-length").is_empty() && expected == Some(Length::Chunked);
    assert_eq!(framing.is_ambiguous, both);
    let announces = has_none && ![100, 204].contains(&status);
    let announced = expected.filter(|_| announces);
    assert_eq!(
        framing.announced.map(Length::Known),
        announced.filter(|length| matches!(length, Length::Known(_)))
    );
}

/// Returns the length of the body of a response; `None` if it is not valid.
fn length_of_response(fields: &[strict::Field<'_>]) -> Option<Length> {
    let lengths = strict::values(fields, b"content-length");
    let all = lengths.join(&b","[..]);
    let numbers = all.split(|byte| *byte == b',').map(|text| strict::number(text.trim_ascii()));
    let numbers: Option<Vec<u64>> = if lengths.is_empty() { Some(Vec::new()) } else { numbers.collect() };
    let numbers = numbers.filter(|numbers| numbers.iter().all(|number| *number == numbers[0]))?;
    match (&strict::values(fields, b"transfer-encoding")[..], numbers.first()) {
        ([], None) => Some(Length::UntilClose),
        ([], Some(length)) => Some(Length::Known(*length)),
        ([coding], _) if coding.eq_ignore_ascii_case(b"chunked") => Some(Length::Chunked),
        _ => None,
    }
}
