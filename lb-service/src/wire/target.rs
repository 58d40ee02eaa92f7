//! The target of a request (RFC 9112, section 3.2).

use std::borrow::Cow;

use super::grammar::{has_valid_escapes, is_target};
use super::host;
use super::rejection::Rejection;

/// A target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// The scheme and the host, if the target has them.
    pub(super) absolute: Option<Absolute<'a>>,
    /// The path and the query; `*` for a request that concerns the whole server. It is borrowed unless the target is in
    /// absolute form without a path.
    pub(super) path_and_query: Cow<'a, str>,
}

/// The scheme and the host of a target in absolute form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Absolute<'a> {
    /// The scheme.
    pub(super) scheme: Scheme,
    /// The host and the port.
    pub(super) authority: &'a str,
}

/// The scheme of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

// === impl Scheme ===

impl Scheme {
    /// Returns the port that a host without a port has.
    pub(crate) fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

// === impl Target ===

impl<'a> Target<'a> {
    /// Parses the target of a request with the method OPTIONS (`is_options`) or with another method, except CONNECT.
    pub(super) fn parse(text: &'a [u8], is_options: bool) -> Result<Self, Rejection> {
        let text =
            str::from_utf8(text).ok().filter(|text| is_target(text.as_bytes())).ok_or(Rejection::Target)?;
        if text.starts_with('/') || (text == "*" && is_options) {
            return Ok(Self { absolute: None, path_and_query: checked(text)?.into() });
        }
        let (scheme, rest) = scheme(text).ok_or(Rejection::Target)?;
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if host::split(authority).is_none() {
            return Err(Rejection::Target);
        }
        let path_and_query = match checked(rest)? {
            // RFC 9112, section 3.2.4.
            "" if is_options => Cow::Owned("*".to_owned()),
            rest if rest.starts_with('/') => rest.into(),
            query => format!("/{query}").into(),
        };
        Ok(Self { absolute: Some(Absolute { scheme, authority }), path_and_query })
    }

    /// Returns the path.
    pub(super) fn path(&self) -> &str {
        path(&self.path_and_query)
    }
}

/// Returns the path of a path with a query.
pub(super) fn path(path_and_query: &str) -> &str {
    let end = memchr::memchr(b'?', path_and_query.as_bytes());
    end.and_then(|end| path_and_query.get(..end)).unwrap_or(path_and_query)
}

/// Checks the path of a path with a query.
fn checked(path_and_query: &str) -> Result<&str, Rejection> {
    let path = path(path_and_query);
    // Browsers and some servers read a backslash as a slash.
    let is_valid = has_valid_escapes(path.as_bytes()) && memchr::memchr(b'\\', path.as_bytes()).is_none();
    if is_valid { Ok(path_and_query) } else { Err(Rejection::Target) }
}

fn scheme(text: &str) -> Option<(Scheme, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    match () {
        () if scheme.eq_ignore_ascii_case("http") => Some((Scheme::Http, rest)),
        () if scheme.eq_ignore_ascii_case("https") => Some((Scheme::Https, rest)),
        () => None,
    }
}

/// Returns the path without its dot segments (RFC 3986, section 5.2.4), by which routes are found; `None` if it has
/// none. A user agent removes them before it sends the path, and many backends do so, too.
///
/// # Errors
///
/// If the path leaves its root.
pub(crate) fn without_dot_segments(path: &str) -> Result<Option<String>, Rejection> {
    if !may_have_dot_segments(path) {
        return Ok(None);
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_in_directory = false;
    for segment in path.split('/').skip(1) {
        ends_in_directory = true;
        match dots(segment) {
            Some(1) => {}
            Some(_) => drop(kept.pop().ok_or(Rejection::Target)?),
            None => {
                kept.push(segment);
                ends_in_directory = false;
            }
        }
    }
    let end = if ends_in_directory && !kept.is_empty() { "/" } else { "" };
    Ok(Some(format!("/{}{end}", kept.join("/"))))
}

fn may_have_dot_segments(path: &str) -> bool {
    // Most paths have none of the bytes that a dot segment is made of.
    memchr::memchr2(b'.', b'%', path.as_bytes()).is_some()
        && path.split('/').any(|segment| dots(segment).is_some())
}

/// Returns the number of dots of a segment that consists of one or two dots, raw or escaped.
fn dots(segment: &str) -> Option<usize> {
    let (mut rest, mut count) = (segment.as_bytes(), 0);
    while !rest.is_empty() {
        rest = match rest {
            [b'.', after @ ..] | [b'%', b'2', b'e' | b'E', after @ ..] => after,
            _ => return None,
        };
        count += 1;
    }
    (1..=2).contains(&count).then_some(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Target<'_>, Rejection> {
        Target::parse(text.as_bytes(), false)
    }

    #[test]
    fn a_path_may_have_a_query_with_any_visible_byte_but_a_fragment() {
        let target = parse("/a/b?c=100%&d=\\{}|^`").unwrap();
        assert_eq!((target.absolute, &*target.path_and_query), (None, "/a/b?c=100%&d=\\{}|^`"));
        for (text, path) in [("/a/b?c?d", "/a/b"), ("/", "/"), ("//a//b;c", "//a//b;c"), ("/?", "/")] {
            assert_eq!(parse(text).unwrap().path(), path);
        }
    }

    #[test]
    fn a_target_in_absolute_form_has_a_scheme_and_a_host() {
        let absolute = |scheme, authority| Some(Absolute { scheme, authority });
        for (text, host, path_and_query) in [
            ("HTTP://a.test:81/b?c", absolute(Scheme::Http, "a.test:81"), "/b?c"),
            ("https://[::1]", absolute(Scheme::Https, "[::1]"), "/"),
            ("http://a?b", absolute(Scheme::Http, "a"), "/?b"),
        ] {
            let target = parse(text).unwrap();
            assert_eq!((target.absolute, &*target.path_and_query), (host, path_and_query), "{text}");
        }
    }

    #[test]
    fn a_request_about_the_server_has_the_method_options() {
        assert_eq!(parse("*"), Err(Rejection::Target));
        for (text, path) in [("*", "*"), ("http://a", "*"), ("http://a/", "/"), ("http://a?b", "/?b")] {
            let target = Target::parse(text.as_bytes(), true).unwrap();
            assert_eq!(target.path_and_query, path, "{text}");
        }
    }

    #[test]
    fn anything_else_is_rejected() {
        for text in [
            "",
            "a",
            "a:80",
            "/a#b",
            "/\u{e9}",
            "/a\x7f",
            "/a\\b",
            "/%",
            "/%4",
            "/%zz",
            "/%00",
            "ftp://a/",
            "http:/a",
            "http://",
            "http:///a",
            "http://user@a/",
            "http://a b/",
            "http://a..b/",
            "*/a",
            "?a",
        ] {
            assert_eq!(parse(text), Err(Rejection::Target), "{text:?}");
        }
    }

    #[test]
    fn dot_segments_are_removed() {
        for (path, without) in [
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/a/%2E%2e/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/.", "/"),
            ("/a/..", "/"),
            ("/a//../b", "/a/b"),
        ] {
            assert_eq!(without_dot_segments(path), Ok(Some(without.to_owned())), "{path}");
        }
        for path in ["/", "/a/b", "/a/...", "/a/.b", "/a..b", "/%2f..", "//", ""] {
            assert_eq!(without_dot_segments(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn a_path_that_leaves_its_root_is_rejected() {
        for path in ["/..", "/a/../..", "/%2e%2e/a", "/./../a"] {
            assert_eq!(without_dot_segments(path), Err(Rejection::Target), "{path}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_left_to_remove(segments in prop::collection::vec("[.]{0,3}|%2e|a", 0..8)) {
            let path = format!("/{}", segments.join("/"));
            if let Ok(Some(without)) = without_dot_segments(&path) {
                prop_assert!(without.starts_with('/'));
                prop_assert_eq!(without_dot_segments(&without), Ok(None));
            }
        }
    }
}
